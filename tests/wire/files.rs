//! A model's files from nodes that serve it, and from a store for the rest.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use cic_agent::effect::engine::Record;
use cic_agent::effect::link::Pulse;
use cic_agent::effect::model::content::{Effort, Ledger, check, make};
use cic_agent::effect::model::fetch::{Address, Fetched, Neighbours, Places, fetch, store_at};
use cic_agent::effect::model::{Badge, Depth, Models, Quiet};
use cic_agent::serve::files::Shelf;
use cic_agent::serve::order::OrderDesk;
use cic_agent::serve::peer::{PeerBody, PeerPort};
use cic_common::assignment::{Assignment, EngineSpec, ModelSpec};
use cic_common::id::{DeploymentName, Incarnation};
use cic_common::model::Manifest;
use cic_common::model::manifest::MANIFEST_NAME;
use cic_common::model::tree::PIECE_BYTES;
use cic_common::supervise::{Kind, Supervisor};
use cic_common::time::Clock;
use cic_common::tls::config::{tcp_client, tcp_server};
use fleet_tests::process::binary;
use http_body_util::{BodyExt as _, Empty};
use hyper::Response;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::parties::{Fleet, HOUR, in_own_runtime, loopback, node_id};

const MODEL: &str = "org/tiny";

/// More than are under way at once from two nodes and a store.
const PIECES: usize = 20;

/// Faster than any machine that runs this.
const FAST: u64 = 1 << 40;

/// A node that serves the model in a directory. Its port ends with it.
struct Node {
    address: Address,
    has_room: Arc<AtomicBool>,
    /// Pieces that it was asked for, and has.
    asked_count: Arc<AtomicU32>,
    _runtime: Runtime,
}

fn node(fleet: &Fleet, name: &str, directory: &Path, per_second: u64) -> Node {
    let path = directory.display().to_string();
    let engine = EngineSpec { program: "vllm".to_owned(), args: Vec::new(), env: Default::default() };
    let assignment = Assignment {
        deployment: DeploymentName::new("d").unwrap(),
        model: ModelSpec::at(MODEL, &path),
        engine,
    };
    let record = Record {
        pid: 1,
        start_ticks: 1,
        boot_id: String::new(),
        port: 1,
        cgroup: None,
        spec_digest: String::new(),
        directory: Some(path),
        assignment,
    };
    let (running, seen) = watch::channel(Some(record));
    let has_room = Arc::new(AtomicBool::new(true));
    let asked_count = Arc::new(AtomicU32::new(0));
    let (room, asked) = (Arc::clone(&has_room), Arc::clone(&asked_count));
    let is_free = move || {
        asked.fetch_add(1, Ordering::Relaxed);
        room.load(Ordering::Relaxed)
    };
    let files = Shelf::new(seen, is_free, per_second, Clock::start());
    let port = PeerPort {
        tls: tcp_server(&fleet.identity(name, HOUR), &fleet.trust).unwrap(),
        pulse: Arc::new(Pulse::new(node_id(name), Incarnation(1), Clock::start())),
        edge: Arc::new(|_, _| {
            let body: PeerBody = Empty::new().map_err(|never| match never {}).boxed_unsync();
            Box::pin(async move { Response::new(body) })
        }),
        orders: OrderDesk::open().0,
        files: Some(files),
    };
    let (runtime, at): (Runtime, SocketAddr) = in_own_runtime(async || {
        let listener = TcpListener::bind(loopback(0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let supervisor = Supervisor::new();
        let inner = supervisor.clone();
        supervisor.spawn("peer port", Kind::Vital, move |token| async move {
            let _lives_as_long = running;
            port.run(listener, inner, token).await
        });
        at
    });
    Node {
        address: Address { node: node_id(name), at: at.to_string() },
        has_room,
        asked_count,
        _runtime: runtime,
    }
}

fn quietly() -> Effort<'static> {
    Effort { threads: 2, progress: &|_| {} }
}

/// A model in `root/source`, and what it is.
fn model(root: &Path) -> (PathBuf, Manifest) {
    let source = root.join("source");
    fs::create_dir_all(&source).unwrap();
    let bytes: Vec<u8> =
        (0..PIECE_BYTES as usize * PIECES).map(|at| (at ^ (at >> 9) ^ (at >> 20)) as u8).collect();
    fs::write(source.join("weights.bin"), bytes).unwrap();
    fs::write(source.join("config.json"), "{}").unwrap();
    let manifest = make(&source, false, &[], &quietly()).unwrap();
    (source, manifest)
}

/// Fetches the model as a node `n9` does.
fn fetched(fleet: &Fleet, nodes: &[&Address], source: &Path, manifest: &Manifest, to: &Path) -> Fetched {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let tls = tcp_client(&fleet.identity("n9", HOUR), &fleet.trust).unwrap();
        let addresses = nodes.iter().map(|address| (*address).clone()).collect();
        let neighbours = Neighbours::new(MODEL.to_owned(), addresses, tls, Supervisor::new());
        let store = store_at(&format!("file://{}", source.display())).unwrap();
        let places = Places { store, neighbours: Some(Arc::new(neighbours)) };
        let fetched = fetch(&places, manifest, to, &[], &mut Ledger::default(), &quietly()).await.unwrap();
        let checked = check(to, manifest, &[], &mut Ledger::default(), &quietly()).unwrap();
        assert_eq!(checked.findings, []);
        fetched
    })
}

fn given_by(fetched: &Fetched, node: &Node) -> u64 {
    fetched.given.iter().find(|(name, _)| *name == node.address.node).map_or(0, |(_, bytes)| *bytes)
}

#[test]
fn nodes_that_serve_a_model_and_the_store_give_it_together() {
    let (fleet, root) = (Fleet::new(), tempfile::tempdir().unwrap());
    let (source, manifest) = model(root.path());
    let nodes = [node(&fleet, "n1", &source, FAST), node(&fleet, "n2", &source, FAST)];
    let fetched =
        fetched(&fleet, &[&nodes[0].address, &nodes[1].address], &source, &manifest, &root.path().join("to"));
    let given: Vec<u64> = nodes.iter().map(|node| given_by(&fetched, node)).collect();
    let all: u64 = given.iter().sum();
    assert!(given.iter().all(|bytes| *bytes >= PIECE_BYTES), "{given:?}");
    assert!(all < fetched.fetched_bytes, "the store gives what they have no room for: {given:?}");
}

#[test]
fn the_step_that_fetches_for_an_agent_shows_its_certificate_and_is_given_pieces() {
    let (fleet, root) = (Fleet::new(), tempfile::tempdir().unwrap());
    let (source, manifest) = model(root.path());
    fs::write(source.join(MANIFEST_NAME), manifest.to_json()).unwrap();
    let node = node(&fleet, "n1", &source, FAST);
    fleet.identity("n9", HOUR);
    let models = Models {
        program: binary("cic-agent").unwrap(),
        ledger: root.path().join("verified.json"),
        depth: Depth::Content,
        quiet: Quiet::default(),
        badge: Some(Badge { identity: fleet.path("n9.pem"), ca: fleet.path("ca.pem") }),
    };
    let to = root.path().join("to");
    let spec = ModelSpec::at(MODEL, to.to_str().unwrap());
    let url = format!("file://{}", source.display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(models.fetch(&url, &spec, std::slice::from_ref(&node.address), |_, _| {})).unwrap();
    assert!(node.asked_count.load(Ordering::Relaxed) > 1, "it is asked for pieces");
    let checked = check(&to, &manifest, &[], &mut Ledger::default(), &quietly()).unwrap();
    assert_eq!(checked.findings, []);
}

#[test]
fn a_node_with_another_byte_is_asked_no_more_and_nothing_of_it_is_loaded() {
    let (fleet, root) = (Fleet::new(), tempfile::tempdir().unwrap());
    let (source, manifest) = model(root.path());
    let wrong = root.path().join("wrong");
    fs::create_dir(&wrong).unwrap();
    let mut bytes = fs::read(source.join("weights.bin")).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 1);
    fs::write(wrong.join("weights.bin"), bytes).unwrap();
    let nodes = [node(&fleet, "n1", &wrong, FAST), node(&fleet, "n2", &source, FAST)];
    let fetched =
        fetched(&fleet, &[&nodes[0].address, &nodes[1].address], &source, &manifest, &root.path().join("to"));
    assert_eq!(given_by(&fetched, &nodes[0]), 0, "{fetched:?}");
    let asked = nodes[0].asked_count.load(Ordering::Relaxed);
    // Two may have been under way when the first was looked at.
    assert!((1..=2).contains(&asked), "{asked}");
    assert!(given_by(&fetched, &nodes[1]) > 0, "{fetched:?}");
}

#[test]
fn a_node_whose_requests_need_it_or_whose_rate_is_used_up_gives_nothing() {
    let (fleet, root) = (Fleet::new(), tempfile::tempdir().unwrap());
    let (source, manifest) = model(root.path());
    let (draining, slow) = (node(&fleet, "n1", &source, FAST), node(&fleet, "n2", &source, PIECE_BYTES / 60));
    draining.has_room.store(false, Ordering::Relaxed);
    let fetched =
        fetched(&fleet, &[&draining.address, &slow.address], &source, &manifest, &root.path().join("to"));
    assert_eq!(given_by(&fetched, &draining), 0);
    assert!(draining.asked_count.load(Ordering::Relaxed) > 0);
    // The first comes at once, perhaps after the two bytes of another file, and the next would take a minute.
    assert!((1..=PIECE_BYTES + 2).contains(&given_by(&fetched, &slow)), "{fetched:?}");
}

#[test]
fn nodes_that_are_gone_or_have_other_files_cost_no_fetch() {
    let (fleet, root) = (Fleet::new(), tempfile::tempdir().unwrap());
    let (source, manifest) = model(root.path());
    let empty = root.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let gone = node(&fleet, "n1", &source, FAST).address.clone();
    let bare = node(&fleet, "n2", &empty, FAST);
    let fetched = fetched(&fleet, &[&gone, &bare.address], &source, &manifest, &root.path().join("to"));
    assert_eq!(fetched.given, []);
}
