//! The fleet as the API shows it, and names and tones for people.

use std::collections::BTreeMap;
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::report::{Phase, Role};
use cic_common::time::{Mono, unix_ms};
use serde::Deserialize;

use super::client::Client;
use super::condition;
use super::failure::Failure;
use super::style::Tone;
use crate::core::{Belief, NodeView, View};

/// Names listed when an ending fits several nodes.
const CANDIDATES_SHOWN: usize = 3;

/// Answer of `/v1/view`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Shown {
    /// Wall clock at `view.now`. A view is published when something changes, so it may be old and still true.
    #[serde(default)]
    now_unix_ms: u64,
    #[serde(flatten)]
    pub(super) view: View,
}

impl Shown {
    pub(super) async fn fetch(client: &Client) -> Result<Self, Failure> {
        Ok(client.get("/v1/view").await?)
    }

    /// How long ago `moment` was. Between two machines this is off by what their clocks differ.
    pub(super) fn ago(&self, moment: Mono) -> Duration {
        let age_ms = if self.now_unix_ms == 0 { 0 } else { unix_ms().saturating_sub(self.now_unix_ms) };
        self.view.now.since(moment) + Duration::from_millis(age_ms)
    }

    /// The node whose name ends in `ending`.
    ///
    /// # Errors
    /// When no name does, or several do.
    pub(super) fn node(&self, ending: &str) -> Result<&NodeView, Failure> {
        if let Some(exact) = self.view.nodes.iter().find(|node| node.node.as_str() == ending) {
            return Ok(exact);
        }
        let fitting: Vec<_> =
            self.view.nodes.iter().filter(|node| node.node.as_str().ends_with(ending)).collect();
        match fitting[..] {
            [one] => Ok(one),
            [] => Err(Failure::new(format!("no node's name ends in {ending:?}; `cic nodes` lists them"))),
            _ => {
                let names = fitting.iter().take(CANDIDATES_SHOWN).map(|node| node.node.as_str());
                let names: Vec<_> = names.collect();
                let text = format!(
                    "{ending:?} fits {} nodes ({}…); give more of the name",
                    fitting.len(),
                    names.join(", ")
                );
                Err(Failure::new(text))
            }
        }
    }

    /// For each node the shortest ending, at a dash, that no other node's name has.
    pub(super) fn short_names(&self) -> BTreeMap<&NodeId, &str> {
        let all: Vec<&NodeId> = self.view.nodes.iter().map(|node| &node.node).collect();
        all.iter().map(|node| (*node, shortest(node, &all))).collect()
    }
}

fn shortest<'a>(node: &'a NodeId, all: &[&NodeId]) -> &'a str {
    let name = node.as_str();
    let endings = name.rmatch_indices('-').map(|(at, _)| &name[at + 1..]);
    let is_unique = |ending: &&str| all.iter().filter(|other| other.as_str().ends_with(*ending)).count() <= 1;
    endings.filter(|ending| ending.len() > 3).find(is_unique).unwrap_or(name)
}

pub(super) fn role(role: Role) -> &'static str {
    match role {
        Role::Replica => "replica",
        Role::Gateway => "gateway",
    }
}

/// A node's own word on its phase, `-` before the first.
pub(super) fn phase(node: &NodeView) -> (&'static str, Tone) {
    match node.report.as_ref().map(|report| report.phase) {
        None => ("-", Tone::Faint),
        Some(phase) => (
            phase.as_str(),
            match phase {
                Phase::Serving => Tone::Good,
                Phase::Failed => Tone::Bad,
                Phase::Booting | Phase::Mounting | Phase::Verifying | Phase::Loading => Tone::Plain,
                Phase::Draining | Phase::Stopped => Tone::Odd,
            },
        ),
    }
}

pub(super) fn belief(belief: Belief) -> (&'static str, Tone) {
    let tone = match belief {
        Belief::Alive => Tone::Good,
        Belief::Unknown => Tone::Faint,
        Belief::SuspectPoll | Belief::SuspectPush => Tone::Odd,
        Belief::Silent | Belief::Gone => Tone::Bad,
    };
    (belief.as_str(), tone)
}

/// That it is to go and why; else what is wrong with it, then the evidence.
pub(super) fn why(node: &NodeView) -> String {
    if let Some(reason) = &node.leaving {
        return format!("leaving: {reason}");
    }
    let Some(report) = &node.report else { return node.why.clone() };
    let mut parts = condition::troubles(report);
    parts.push(node.why.clone());
    if report.phase != Phase::Serving {
        let far = report.model.map_or_else(String::new, |progress| format!(": {progress}"));
        parts.push(format!("says: {}{far}", report.reason));
    }
    parts.join("; ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cli) fn shown(names: &[&str]) -> Shown {
        let node = |name: &&str| NodeView::sample(name);
        let view = View {
            now: Mono::from_millis(10_000),
            nodes: names.iter().map(node).collect(),
            ..View::default()
        };
        Shown { now_unix_ms: 0, view }
    }

    #[test]
    fn a_node_is_named_by_any_ending_that_is_its_own() {
        let shown = shown(&["cic-local-a-001-node001", "cic-local-a-001-node002", "cic-local-a-002-node001"]);
        let found = |ending: &str| shown.node(ending).map(|node| node.node.as_str().to_owned());
        assert_eq!(found("node002").as_deref(), Ok("cic-local-a-001-node002"));
        assert_eq!(found("2-node001").as_deref(), Ok("cic-local-a-002-node001"));
        assert_eq!(found("cic-local-a-001-node001").as_deref(), Ok("cic-local-a-001-node001"));
        assert!(found("node001").expect_err("two").to_string().contains("fits 2 nodes"));
        assert!(found("node009").expect_err("none").to_string().contains("`cic nodes`"));
    }

    #[test]
    fn a_name_that_is_the_end_of_another_is_still_reached() {
        let shown = shown(&["gateway", "my-gateway"]);
        assert_eq!(shown.node("gateway").expect("exact").node.as_str(), "gateway");
    }

    #[test]
    fn short_names_stay_unique() {
        let names = ["cic-a-001-node001", "cic-a-002-node001", "cic-a-001-node002", "gateway"];
        let shown = shown(&names);
        let short: Vec<_> = shown.short_names().into_values().collect();
        assert_eq!(short, ["001-node001", "node002", "002-node001", "gateway"]);
        for name in short {
            assert!(shown.node(name).is_ok());
        }
    }
}
