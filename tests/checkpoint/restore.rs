//! What a successor reads when its predecessor's newest checkpoints are damaged.

use std::path::Path;
use std::time::{Duration, Instant};

use cic_agent::core::{Occasion, Saved};
use cic_agent::effect::checkpoint::{Checkpoints, Stores, newest};
use cic_agent::serve::edge::Unfinished;
use cic_common::id::{Incarnation, NodeId};
use cic_common::route::Class;
use cic_common::time::Clock;
use fleet_tests::process::{DevFleet, Fault, Options, S3_KEYS, S3Server};

const SOON: Duration = Duration::from_secs(60);

const FOLDER: &str = "node001/checkpoints";

/// So many requests under way, of a kilobyte each.
fn busy(count: usize) -> Vec<Unfinished> {
    let request = |number| Unfinished {
        request_id: format!("r-{number}"),
        idempotency_key: Some(format!("k-{number}")),
        client: None,
        model: "tiny".to_owned(),
        path: "/v1/completions".to_owned(),
        class: Class::Standard,
        is_stream: number % 2 == 0,
        is_json_post: true,
        for_ms: 10,
        body: Some("x".repeat(1024)),
        tokens: (0..100).collect(),
    };
    (0..count).map(request).collect()
}

fn checkpoints(stores: &Stores, node: &NodeId) -> Checkpoints {
    let every = Duration::from_secs(300);
    Checkpoints::new(node.clone(), Incarnation(1), stores.clone(), every, Clock::start())
}

async fn save(checkpoints: &Checkpoints, occasion: Occasion, count: usize) -> Saved {
    let snapshot = checkpoints.look(occasion, (None, None), "a 1\n".to_owned(), move || busy(count));
    checkpoints.save(snapshot).await.expect("saved")
}

/// What a store or a wire makes of an object.
type Damage = fn(Vec<u8>) -> Vec<u8>;

/// Ways in which an object can be wrong, and what is said of each.
const DAMAGES: [(&str, Damage, &str); 7] = [
    ("empty", |_| Vec::new(), "it is no cic-checkpoint"),
    ("cut off", |object| object[..object.len() / 2].to_vec(), "bytes of"),
    (
        "one bit",
        |mut object| {
            let middle = object.len() / 2;
            object[middle] ^= 1;
            object
        },
        "its checksum is wrong",
    ),
    ("longer", |mut object| [object.split_off(0), b"x".to_vec()].concat(), "bytes of"),
    ("a page of an error", |_| b"<html>503 Slow Down</html>\n".to_vec(), "it is no cic-checkpoint"),
    (
        "a later program's",
        |object| {
            String::from_utf8_lossy(&object).replacen("cic-checkpoint 1 ", "cic-checkpoint 2 ", 1).into()
        },
        "it is of version 2",
    ),
    (
        "another node's",
        |object| {
            let text = String::from_utf8_lossy(&object).replacen("node001", "node002", 1);
            let body = text.split_once('\n').expect("two lines").1.as_bytes().to_vec();
            let sum = sha256(&body);
            [format!("cic-checkpoint 1 sha256:{sum} {}\n", body.len()).into_bytes(), body].concat()
        },
        "it is of node002",
    ),
];

/// As another program would compute it.
fn sha256(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), bytes).expect("written");
    let output = std::process::Command::new("sha256sum").arg(file.path()).output().expect("sha256sum");
    String::from_utf8_lossy(&output.stdout).split(' ').next().expect("a sum").to_owned()
}

fn damage(object: &Path, how: Damage) {
    std::fs::write(object, how(std::fs::read(object).expect("read"))).expect("written");
}

#[tokio::test]
async fn of_checkpoints_the_newest_that_verifies_is_restored_and_each_other_is_named_with_its_fault() {
    let s3 = S3Server::start().expect("a server");
    let stores = stores(&s3);
    let node = NodeId::new("node001").expect("a name");
    assert_eq!(newest(&stores, &node).await.expect_err("none"), "there is no checkpoint of node001");
    for (number, (what, how, said)) in DAMAGES.into_iter().enumerate() {
        let checkpoints = checkpoints(&stores, &node);
        save(&checkpoints, Occasion::Periodic, number + 1).await;
        save(&checkpoints, Occasion::Periodic, 99).await;
        let object = s3.objects(FOLDER).pop().expect("an object");
        damage(&object, how);
        let since = Instant::now();
        let found = newest(&stores, &node).await.expect("restored");
        println!("{what}: the one before restored in {:.1} ms", since.elapsed().as_secs_f64() * 1000.0);
        assert_eq!(found.checkpoint.requests.len(), number + 1, "{what}");
        assert!(found.skipped[0].contains(said), "{what}: {:?}", found.skipped);
    }
}

#[tokio::test]
async fn a_thousand_requests_are_written_and_restored() {
    let s3 = S3Server::start().expect("a server");
    let stores = stores(&s3);
    let node = NodeId::new("node001").expect("a name");
    let saved = save(&checkpoints(&stores, &node), Occasion::Leaving, 1000).await;
    let since = Instant::now();
    let found = newest(&stores, &node).await.expect("restored");
    println!(
        "{} requests, {} bytes: written in {} ms, restored in {:.1} ms",
        saved.request_count,
        saved.bytes,
        saved.took_ms,
        since.elapsed().as_secs_f64() * 1000.0
    );
    assert_eq!((found.checkpoint.requests.len(), found.skipped.len()), (1000, 0));
    assert_eq!(found.checkpoint.requests[999].tokens.len(), 100);
}

/// The server's bucket, with its keys: a test's own environment is not to be changed while others run.
fn stores(s3: &S3Server) -> Stores {
    let [(_, access), (_, secret)] = S3_KEYS;
    Stores::open_with([s3.url().as_str()], [("AWS_ACCESS_KEY_ID", access), ("AWS_SECRET_ACCESS_KEY", secret)])
        .expect("a store")
}

#[test]
fn the_successor_of_a_node_that_lost_power_passes_a_damaged_checkpoint_over() {
    let s3 = S3Server::start().expect("a server");
    let more = ["--checkpoints", &s3.url(), "--checkpoint-every", "1"].map(str::to_owned).into();
    let mut fleet =
        DevFleet::start(&Options { env: s3.keys(), more, ..Options::default() }).expect("a fleet");
    let node = fleet.wait_serving(2, SOON).expect("two serve").remove(0);
    let folder = format!("{node}/checkpoints");
    fleet
        .wait_for("two checkpoints", SOON, |_| (s3.objects(&folder).len() >= 2).then_some(()))
        .expect("written");
    fleet.fault(&node, Fault::Kill).expect("killed");
    damage(&s3.objects(&folder).pop().expect("one"), |mut object| object.split_off(10));
    let text = fleet
        .wait_for("its successor's word", SOON, |fleet| {
            let events = fleet.events().ok()?;
            let restored = events.iter().find(|event| event["kind"] == "restored")?;
            restored["text"].as_str().map(str::to_owned)
        })
        .expect("restored");
    println!("{text}");
    assert!(text.starts_with(&format!("of {node}, ")), "{text}");
    assert!(text.contains("same model and arguments") && text.contains("it is no cic-checkpoint"), "{text}");
    fleet.stop().expect("nothing is left");
}
