//! One fault of one fleet under load: what the controller did about it, and what users saw.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use cic_common::time::unix_ms;
use fleet_tests::process::{DevFleet, Load, Options, Streams, View, request};
use serde_json::Value;

use crate::wires::{self, Wires};

/// Longest for what must happen; a loaded machine is slow.
const SOON: Duration = Duration::from_secs(60);

/// Between two looks at what the controller believes.
const LOOK: Duration = Duration::from_millis(100);

/// Requests of each kind are made one after the other with this pause: a load that leaves the machine time.
const PAUSE: Duration = Duration::from_millis(100);

const REPLICAS: u16 = 3;

/// Of each stream.
const TOKENS: u32 = 32;

/// A fleet of three replicas, whose users ask through the gateway and through the edge of a replica.
pub(crate) struct Trial {
    pub(crate) fleet: DevFleet,
    pub(crate) wires: Wires,
    /// Those that serve when the trial begins, in order; the first is the one to be broken.
    pub(crate) nodes: Vec<String>,
    name: &'static str,
    loads: Vec<Load>,
    streams: Streams,
    begun_at_unix_ms: u64,
    mended_at_unix_ms: u64,
    loses_packets: bool,
    lost_packets: u64,
    beliefs: BTreeSet<String>,
}

/// What came of it. Moments are of the controller's event log.
#[derive(Debug)]
pub(crate) struct Seen {
    name: &'static str,
    /// Nodes that were routed out after the fault began: when, and how long each stayed out where it came back.
    pub(crate) outs: Vec<Out>,
    /// From the end of the fault to the last return of a node that was out then.
    pub(crate) back_after: Option<Duration>,
    /// Nodes that were.
    pub(crate) launches: usize,
    pub(crate) terminations: usize,
    pub(crate) requests: u64,
    pub(crate) failed: Vec<String>,
    pub(crate) longest: Duration,
    /// Between two events of a stream.
    pub(crate) longest_gap: Duration,
    /// Every one that any node of the beginning was given.
    pub(crate) beliefs: BTreeSet<String>,
    lost_packets: u64,
    begun_at_unix_ms: u64,
    /// Since the fault began, oldest first.
    pub(crate) events: Vec<Value>,
}

#[derive(Debug)]
pub(crate) struct Out {
    pub(crate) node: String,
    /// After the fault began.
    pub(crate) after: Duration,
    pub(crate) lasted: Option<Duration>,
}

impl Trial {
    /// Starts a fleet with these variables, and its users.
    pub(crate) fn prepare(name: &'static str, env: &[(&str, &str)]) -> Self {
        Self::prepare_with(name, env, |_| {})
    }

    /// As [`Self::prepare`]; `begun` is called as soon as the controller runs.
    pub(crate) fn prepare_with(
        name: &'static str,
        env: &[(&str, &str)],
        begun: impl FnOnce(&DevFleet),
    ) -> Self {
        let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let options = Options { replicas: REPLICAS, env, ..Options::default() };
        let mut fleet = DevFleet::start(&options).expect("a fleet");
        begun(&fleet);
        let nodes = fleet.wait_serving(usize::from(REPLICAS), SOON).expect("three replicas serve");
        let settled = |fleet: &mut DevFleet| fleet.view().ok().filter(|view| view.is_settled).map(drop);
        fleet.wait_for("a settled controller", SOON, settled).expect("settled");
        let wires = Wires::of(&fleet, &nodes).expect("every node's ports");
        let model = model(&fleet);
        let edges = [fleet.edge.clone(), fleet.edge_of(&nodes[1]).expect("an edge")];
        let loads = edges.iter().map(|edge| Load::paced(edge, &model, 1, PAUSE)).collect();
        let streams = Streams::start(&fleet.edge, &model, 1, TOKENS);
        let begun_at_unix_ms = unix_ms();
        Self {
            fleet,
            wires,
            nodes,
            name,
            loads,
            streams,
            begun_at_unix_ms,
            mended_at_unix_ms: begun_at_unix_ms,
            loses_packets: false,
            lost_packets: 0,
            beliefs: BTreeSet::new(),
        }
    }

    /// The fault begins, by `act`.
    pub(crate) fn begin(&mut self, act: impl FnOnce(&Self)) {
        self.begun_at_unix_ms = unix_ms();
        act(self);
    }

    /// From now on these packets are lost.
    pub(crate) fn lose(&mut self, packets: &[String]) {
        self.begin(|_| wires::lose(packets).expect("rules of nft"));
        self.loses_packets = true;
    }

    /// The fault ends, by `act`.
    ///
    /// # Panics
    /// When packets were to be lost and none was.
    pub(crate) fn mend(&mut self, act: impl FnOnce(&Self)) {
        self.lost_packets = wires::lost().expect("counters of nft");
        assert!(!self.loses_packets || self.lost_packets > 0, "the rules met no packet");
        // Before it ends: a node may be back before this process runs on.
        self.mended_at_unix_ms = unix_ms();
        act(self);
        wires::lose(&[]).expect("rules of nft");
    }

    /// Looks at what the controller believes for so long.
    pub(crate) fn wait_and_look(&mut self, span: Duration) {
        let began = Instant::now();
        while began.elapsed() < span {
            if let Ok(view) = self.fleet.view() {
                self.beliefs.extend(self.nodes.iter().filter_map(|node| belief(&view, node)));
            }
            std::thread::sleep(LOOK.min(span.saturating_sub(began.elapsed())));
        }
    }

    /// Waits until each node of the beginning is routed and alive.
    pub(crate) fn wait_all_back(&mut self) {
        let nodes = self.nodes.clone();
        let is_back = |view: &View, node: &String| {
            view.is_routed(node) && belief(view, node).is_some_and(|belief| belief == "alive")
        };
        let all = |fleet: &mut DevFleet| {
            let view = fleet.view().ok()?;
            nodes.iter().all(|node| is_back(&view, node)).then_some(())
        };
        self.fleet.wait_for("the return of all", SOON, all).expect("all are back");
    }

    /// Waits until the node is no more; returns the view that no longer has it.
    pub(crate) fn wait_removed(&mut self, node: &str) -> View {
        let (nodes, beliefs) = (&self.nodes, &mut self.beliefs);
        let look = |fleet: &mut DevFleet| {
            let view = fleet.view().ok()?;
            beliefs.extend(nodes.iter().filter_map(|node| belief(&view, node)));
            view.node(node).is_none().then_some(view)
        };
        self.fleet.wait_for("removal", SOON, look).expect("given back")
    }

    /// Ends users and fleet, and prints what was seen.
    pub(crate) fn end(self) -> Seen {
        let streams = self.streams.stop();
        let loads: Vec<_> = self.loads.into_iter().map(Load::stop).collect();
        let events = self.fleet.events().expect("the event log");
        let after =
            |event: &&Value| event["at_unix_ms"].as_u64().is_some_and(|at| at >= self.begun_at_unix_ms);
        let recent: Vec<&Value> = events.iter().filter(after).collect();
        // An operation has an event at its beginning and one at its end.
        let count = |kind: &str| {
            let of_kind = recent.iter().filter(|event| event["kind"] == kind);
            of_kind.map(|event| event["node"].as_str()).collect::<BTreeSet<_>>().len()
        };
        let is_first = |event: &&&Value| self.nodes.iter().any(|node| event["node"] == **node);
        let routed = recent.iter().filter(is_first).filter(|event| event["kind"] == "route-in");
        let back_at = routed.clone().map(|event| at(event)).max().unwrap_or(0);
        let outs = recent.iter().filter(is_first).filter(|event| event["kind"] == "route-out");
        let outs: Vec<Out> = outs
            .map(|event| {
                let back =
                    routed.clone().filter(|back| back["node"] == event["node"] && at(back) >= at(event));
                Out {
                    node: event["node"].as_str().unwrap_or_default().to_owned(),
                    after: Duration::from_millis(at(event) - self.begun_at_unix_ms),
                    lasted: back.map(|back| Duration::from_millis(at(back) - at(event))).min(),
                }
            })
            .collect();
        let failed = loads.iter().flat_map(|load| load.failed.clone()).chain(streams.refused);
        let failed: Vec<String> = failed.chain(streams.broken.into_iter().map(|(_, cause)| cause)).collect();
        let seen = Seen {
            name: self.name,
            outs,
            back_after: back_at.checked_sub(self.mended_at_unix_ms).map(Duration::from_millis),
            launches: count("launch"),
            terminations: count("terminate"),
            requests: loads.iter().map(|load| load.good).sum::<u64>() + streams.whole + failed.len() as u64,
            failed,
            longest: loads.iter().map(|load| load.longest).max().unwrap_or_default(),
            longest_gap: streams.longest_gap,
            beliefs: self.beliefs,
            lost_packets: self.lost_packets,
            begun_at_unix_ms: self.begun_at_unix_ms,
            events: recent.into_iter().cloned().collect(),
        };
        println!("{seen}");
        self.fleet.stop().expect("nothing is left");
        seen
    }
}

impl Seen {
    /// When the first node was routed out, after the fault began.
    pub(crate) fn out_after(&self) -> Option<Duration> {
        self.outs.iter().map(|out| out.after).min()
    }

    /// When the first event of this kind was, after the fault began.
    pub(crate) fn first(&self, kind: &str) -> Option<Duration> {
        let event = self.events.iter().find(|event| event["kind"] == kind)?;
        Some(Duration::from_millis(at(event) - self.begun_at_unix_ms))
    }

    /// # Panics
    /// When anything was launched or terminated, or a request failed.
    pub(crate) fn assert_nothing_was_done(&self) {
        assert_eq!((self.launches, self.terminations), (0, 0), "{:#?}", self.events);
        self.assert_no_request_failed();
    }

    /// # Panics
    /// When one did, or hardly any was made.
    pub(crate) fn assert_no_request_failed(&self) {
        assert!(self.requests > 50, "{self}");
        assert!(self.failed.is_empty(), "{self}: {:#?}", self.failed);
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = |span: Option<Duration>| {
            span.map_or("-".to_owned(), |span| format!("{:.2} s", span.as_secs_f64()))
        };
        write!(
            f,
            "{}: out {}, back {}, route-outs {}, launches {}, terminations {}, failed requests {} of {}, longest {}, \
             longest gap of a stream {}; believed {}; packets lost {}",
            self.name,
            span(self.out_after()),
            span(self.back_after),
            self.outs.len(),
            self.launches,
            self.terminations,
            self.failed.len(),
            self.requests,
            span(Some(self.longest)),
            span(Some(self.longest_gap)),
            self.beliefs.iter().cloned().collect::<Vec<_>>().join(" "),
            self.lost_packets
        )
    }
}

/// 0 where the event does not say.
fn at(event: &Value) -> u64 {
    event["at_unix_ms"].as_u64().unwrap_or(0)
}

fn belief(view: &View, node: &str) -> Option<String> {
    view.node(node)?["belief"].as_str().map(str::to_owned)
}

/// The name clients ask for.
fn model(fleet: &DevFleet) -> String {
    let answer = request(&fleet.edge, "GET", "/v1/models", None, SOON).expect("models").json().expect("JSON");
    answer["data"][0]["id"].as_str().expect("a model").to_owned()
}
