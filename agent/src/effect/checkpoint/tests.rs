use std::time::Duration;

use cic_common::id::{Incarnation, NodeId};
use cic_common::report::Role;
use cic_common::supervise::Supervisor;
use cic_common::time::{Clock, unix_ms};
use tokio::sync::{mpsc, watch};

use super::save::name_of;
use super::succeed::is_last_word;
use super::*;
use crate::core::{Event, Occasion};
use crate::serve::edge::{Edge, EdgeSpec, Routes, ScarcitySpec};
use crate::state::StateDir;
use cic_common::objects::StoreError;

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
    assert_eq!(open("file://var/lib/x"), Err(StoreError::FileHost { host: "var".to_owned() }));
    assert_eq!(open("s3://me:secret@bucket/x"), Err(StoreError::Credentials));
    assert_eq!(open("s3://bucket?zone=1"), Err(StoreError::Option { option: "zone".to_owned() }));
}

#[tokio::test]
async fn an_answer_is_kept_for_its_question_alone() {
    let place = tempfile::tempdir().unwrap();
    let url = format!("file://{}", place.path().display());
    let answers = Answers::new(Stores::open([url.as_str()]).unwrap(), Clock::start());
    let question = Question::new(Some("a"), "k", "/v1/completions", b"{}");
    assert_eq!(answers.find(&question).await, None);
    let answer = KeptAnswer {
        request_digest: question.request_digest.clone(),
        request_id: "r".to_owned(),
        kept_at_ms: unix_ms(),
        content_type: Some("application/json".to_owned()),
        body: "{}".to_owned(),
        node: cic_common::id::NodeId::new("n1").unwrap(),
    };
    answers.keep(&question, &answer).await.unwrap();
    assert_eq!(answers.find(&question).await.as_ref(), Some(&answer));
    for (client, key, body) in [(None, "k", "{}"), (Some("a"), "j", "{}"), (Some("a"), "k", "{ }")] {
        let other = Question::new(client, key, "/v1/completions", body.as_bytes());
        assert_eq!(answers.find(&other).await, None);
    }
    let day_ms = 24 * 60 * 60 * 1000;
    answers.keep(&question, &KeptAnswer { kept_at_ms: unix_ms() - day_ms, ..answer }).await.unwrap();
    assert_eq!(answers.find(&question).await, None, "nobody comes for one of yesterday");
}

#[tokio::test]
async fn a_directory_of_checkpoints_is_for_its_user_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("bucket");
    let url = format!("file://{}", directory.display());
    let stores = Stores::open([url.as_str()]).unwrap();
    stores.all[0].put("a/b", bytes::Bytes::from_static(b"x"), Duration::from_secs(5)).await.unwrap();
    assert_eq!(std::fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_nodes_last_word_is_that_of_its_leaving_or_one_that_no_other_followed() {
    let checkpoint = |occasion, every_s: u64| Checkpoint {
        node: NodeId::new("n1").unwrap(),
        incarnation: Incarnation(1),
        taken_at_ms: 0,
        occasion,
        every_ms: every_s * 1000,
        assignment: None,
        model_digest: None,
        requests: Vec::new(),
        metrics: String::new(),
    };
    let is_last = |occasion, every_s, age_s: u64| is_last_word(&checkpoint(occasion, every_s), age_s * 1000);
    assert!(is_last(Occasion::Leaving, 300, 0));
    for occasion in [Occasion::Periodic, Occasion::Notice] {
        assert!(!is_last(occasion, 300, 300));
        assert!(!is_last(occasion, 300, 449));
        assert!(is_last(occasion, 300, 450));
        assert!(is_last(occasion, 10, 160));
    }
}

#[test]
fn names_sort_by_run_and_then_by_moment_though_the_clock_went_back() {
    let names = [(1, 900), (1, 1000), (2, 500), (10, 1)].map(|(run, ms)| name_of(Incarnation(run), ms));
    assert!(names.is_sorted(), "{names:?}");
}

/// A successor of `n1` and what it tells, with a store in `place`.
struct Stand {
    checkpoints: Checkpoints,
    gone: watch::Sender<bool>,
    told: mpsc::Receiver<Event>,
    _tasks: Supervisor,
}

impl Stand {
    fn new(place: &std::path::Path) -> Self {
        let (clock, tasks) = (Clock::start(), Supervisor::new());
        let url = format!("file://{}/bucket", place.display());
        let stores = Stores::open([url.as_str()]).unwrap();
        let every = Duration::from_secs(300);
        let checkpoints = Checkpoints::new(predecessor(), Incarnation(1), stores.clone(), every, clock);
        let answers = Answers::new(stores, clock);
        let routes = Routes::remembered(&StateDir::open(&place.join("state")).unwrap());
        let spec = EdgeSpec {
            node: NodeId::new("n2").unwrap(),
            role: Role::Replica,
            zone: None,
            tls: None,
            continuation: true,
            scarcity: ScarcitySpec::default(),
            answers: Some(answers.clone()),
        };
        let edge = Edge::new(spec, routes, clock, &tasks);
        let (events, told) = mpsc::channel(8);
        let gone = watch::Sender::new(false);
        let is_gone = gone.subscribe();
        let successor = Successor { checkpoints: checkpoints.clone(), edge, answers, events, clock, is_gone };
        tokio::spawn(async move { successor.succeed(predecessor()).await });
        Self { checkpoints, gone, told, _tasks: tasks }
    }

    async fn save(&self, occasion: Occasion) {
        let snapshot = self.checkpoints.look(occasion, (None, None), String::new(), Vec::new);
        self.checkpoints.save(snapshot).await.unwrap();
    }

    /// Whether the next word is of the last checkpoint.
    async fn is_last(&mut self) -> Result<bool, String> {
        match tokio::time::timeout(Duration::from_secs(30), self.told.recv()).await {
            Ok(Some(Event::Restored { from, result })) if from == predecessor() => {
                result.map(|restored| restored.is_last)
            }
            other => panic!("{other:?}"),
        }
    }
}

fn predecessor() -> NodeId {
    NodeId::new("n1").unwrap()
}

#[tokio::test]
async fn a_successor_waits_for_the_word_of_the_leaving() {
    let place = tempfile::tempdir().unwrap();
    let mut stand = Stand::new(place.path());
    // It is there before its predecessor has written anything.
    stand.save(Occasion::Notice).await;
    assert_eq!(stand.is_last().await, Ok(false));
    stand.save(Occasion::Leaving).await;
    assert_eq!(stand.is_last().await, Ok(true));
}

#[tokio::test]
async fn what_a_node_wrote_before_it_was_gone_is_its_last_word() {
    let place = tempfile::tempdir().unwrap();
    let mut stand = Stand::new(place.path());
    stand.save(Occasion::Periodic).await;
    assert_eq!(stand.is_last().await, Ok(false));
    stand.gone.send_replace(true);
    assert_eq!(stand.is_last().await, Ok(true));
}

#[tokio::test]
async fn a_node_that_is_gone_and_wrote_nothing_is_not_waited_for() {
    let place = tempfile::tempdir().unwrap();
    let mut stand = Stand::new(place.path());
    stand.gone.send_replace(true);
    assert_eq!(stand.is_last().await, Err("there is no checkpoint of n1".to_owned()));
}
