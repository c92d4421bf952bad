use super::object::{ObjectFault, seal, sha256_hex, unseal};
use super::store::StoreError;
use super::*;

#[test]
fn an_object_is_read_as_it_was_written_and_no_other_way() {
    let object = seal("cic-thing", &vec![1, 2, 3]).unwrap();
    assert_eq!(unseal::<Vec<u8>>("cic-thing", &object), Ok(vec![1, 2, 3]));
    let foreign = |what| Err(ObjectFault::Foreign { what });
    assert_eq!(unseal::<Vec<u8>>("cic-other", &object), foreign("cic-other"));
    let text = String::from_utf8(object.to_vec()).unwrap();
    let cases: [(String, ObjectFault); 5] = [
        (text.replace("[1,2,3]", "[1,2,4]"), ObjectFault::Checksum),
        (text.replace("[1,2,3]", "[1,2"), ObjectFault::Length { have: 4, want: 7 }),
        (text.replace("thing 1 ", "thing 3 "), ObjectFault::Version { version: "3".to_owned() }),
        (text.replace(" 7\n", " seven\n"), ObjectFault::Foreign { what: "cic-thing" }),
        (text.replace('\n', " "), ObjectFault::Foreign { what: "cic-thing" }),
    ];
    for (wrong, fault) in cases {
        assert_eq!(unseal::<Vec<u8>>("cic-thing", wrong.as_bytes()), Err(fault), "{wrong}");
    }
    let text = seal("cic-thing", &"text").unwrap();
    assert!(matches!(unseal::<Vec<u8>>("cic-thing", &text), Err(ObjectFault::Content { .. })));
}

#[test]
fn parts_are_not_run_together_in_a_digest() {
    assert_ne!(sha256_hex(&[b"ab", b"c"]), sha256_hex(&[b"a", b"bc"]));
    // Of FIPS 180-2.
    assert!(sha256_hex(&[b"abc"]).starts_with("ba7816bf8f01cfea"));
}

#[test]
fn a_question_is_one_clients_one_name_and_one_request() {
    let question = |client, key, body: &str| Question::new(client, key, "/v1/completions", body.as_bytes());
    let first = question(Some("a"), "k", "{}");
    assert_eq!(first, question(Some("a"), "k", "{}"));
    for other in [question(None, "k", "{}"), question(Some("a"), "j", "{}"), question(Some("a"), "k", "{ }")]
    {
        assert_ne!(first, other);
    }
}

#[test]
fn a_url_that_no_store_has_is_refused_with_its_fault() {
    let open = |url| Stores::open_with([url], [("AWS_REGION", "x")]).map(|_| ()).map_err(|(_, error)| error);
    for url in ["s3://bucket", "s3://bucket/fleet?region=eu-west-1", "gs://bucket/x", "file:///var/lib/x"] {
        assert_eq!(open(url), Ok(()), "{url}");
    }
    assert!(matches!(open("bucket"), Err(StoreError::Url { .. })));
    assert!(matches!(open("ftp://host/x"), Err(StoreError::Unusable { .. })));
    assert_eq!(open("s3://me:secret@bucket/x"), Err(StoreError::Credentials));
    assert_eq!(open("s3://bucket?zone=1"), Err(StoreError::Option { option: "zone".to_owned() }));
}

#[tokio::test]
async fn an_answer_is_kept_for_its_question_alone() {
    let place = tempfile::tempdir().unwrap();
    let url = format!("file://{}", place.path().display());
    let answers = Answers::new(Stores::open([url.as_str()]).unwrap());
    let question = Question::new(Some("a"), "k", "/v1/completions", b"{}");
    assert_eq!(answers.find(&question).await, None);
    let answer = KeptAnswer {
        request_digest: question.request_digest.clone(),
        request_id: "r".to_owned(),
        status: 200,
        content_type: Some("application/json".to_owned()),
        body: "{}".to_owned(),
        node: cic_common::id::NodeId::new("n1").unwrap(),
    };
    answers.keep(&question, &answer).await.unwrap();
    assert_eq!(answers.find(&question).await, Some(answer));
    for (client, key, body) in [(None, "k", "{}"), (Some("a"), "j", "{}"), (Some("a"), "k", "{ }")] {
        let other = Question::new(client, key, "/v1/completions", body.as_bytes());
        assert_eq!(answers.find(&other).await, None);
    }
}
