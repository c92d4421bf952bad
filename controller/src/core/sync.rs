//! A provider's list against the rows: do both say the same, and what becomes of each difference.
//!
//! Nothing is reconciled here: a silent node that is not listed any more is gone and replaced, a VM without a row is
//! taken over and terminated. This says in one place which of these is under way.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use cic_common::id::{DeploymentName, NodeId, OperationId};
use cic_common::name::ClusterName;
use cic_common::time::Mono;
use serde::{Deserialize, Serialize};

use super::evidence::span;
use super::fleet::{Fleet, Listing};
use super::instance::{Instance, InstanceState};
use super::{Action, CloudFault};

/// How the two lists stand to each other. `InSync -> Syncing -> InSync`, or `Diverged` where nobody asked for a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncState {
    InSync,
    /// Every difference is one that an open operation makes, or of a node too young to be listed.
    Syncing,
    Diverged,
}

impl SyncState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InSync => "in_sync",
            Self::Syncing => "syncing",
            Self::Diverged => "diverged",
        }
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    pub node: NodeId,
    /// What differs, and what is done about it.
    pub text: String,
    /// Whether it was to be expected.
    pub is_expected: bool,
}

/// State of a cluster as a whole, in SkyPilot's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterStatus {
    /// Every node that has a row runs.
    Up,
    /// Some do.
    Init,
    /// None does.
    Stopped,
}

impl ClusterStatus {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "UP",
            Self::Init => "INIT",
            Self::Stopped => "STOPPED",
        }
    }
}

/// The nodes of one cluster name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    pub cluster: ClusterName,
    /// None of one that only strangers are of.
    pub deployment: Option<DeploymentName>,
    pub zone: String,
    pub status: ClusterStatus,
    /// With a row.
    pub node_count: u32,
    /// Listed as running.
    pub running_count: u32,
    /// Of what is listed of it.
    pub hash: String,
    /// The first launch among its nodes'.
    pub launched_by: OperationId,
}

/// One comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRecord {
    pub provider: String,
    pub state: SyncState,
    /// Equal exactly where both sides name the same running nodes. Empty before the first listing.
    pub store_hash: String,
    pub provider_hash: String,
    /// By node.
    pub drift: Vec<Drift>,
    pub clusters: Vec<ClusterRecord>,
    /// Why the provider could not be listed; the rest is what was last known.
    pub error: Option<String>,
}

/// What the comparison needs of a node's row.
#[derive(Debug, Clone)]
struct Known {
    deployment: Option<DeploymentName>,
    zone: String,
    launched_by: OperationId,
    /// Why a difference is to be expected.
    expected: Option<String>,
}

/// Compares what `provider` lists with the rows that are its.
fn compare(
    provider: &str,
    rows: &BTreeMap<NodeId, Known>,
    instances: &BTreeMap<NodeId, InstanceState>,
    orphan_grace: Duration,
) -> SyncRecord {
    let mut drift = Vec::new();
    for (node, known) in rows {
        let (what, then) = match instances.get(node) {
            Some(InstanceState::Running) => continue,
            Some(InstanceState::Stopped) => {
                ("listed as stopped", "gone, and replaced, unless it still answers")
            }
            None => ("not listed", "gone, and replaced, unless it still answers"),
        };
        let text = match &known.expected {
            Some(why) => format!("{what}: {why}"),
            None => format!("{what}: {then}"),
        };
        drift.push(Drift { node: node.clone(), text, is_expected: known.expected.is_some() });
    }
    for node in instances.keys().filter(|node| !rows.contains_key(*node)) {
        let text =
            format!("listed without a row: an orphan, terminated once it is seen for {}", span(orphan_grace));
        drift.push(Drift { node: node.clone(), text, is_expected: false });
    }
    drift.sort_by(|a, b| a.node.cmp(&b.node));
    let state = if drift.is_empty() {
        SyncState::InSync
    } else if drift.iter().all(|drift| drift.is_expected) {
        SyncState::Syncing
    } else {
        SyncState::Diverged
    };
    SyncRecord {
        provider: provider.to_owned(),
        state,
        store_hash: hash(rows.keys().map(|node| (node, InstanceState::Running))),
        provider_hash: hash(instances.iter().map(|(node, state)| (node, *state))),
        drift,
        clusters: clusters(rows, instances),
        error: None,
    }
}

fn clusters(
    rows: &BTreeMap<NodeId, Known>,
    instances: &BTreeMap<NodeId, InstanceState>,
) -> Vec<ClusterRecord> {
    let mut names: BTreeMap<ClusterName, Vec<&NodeId>> = BTreeMap::new();
    let strangers = instances.keys().filter(|node| !rows.contains_key(*node));
    for node in rows.keys().chain(strangers) {
        if let Ok((cluster, _)) = ClusterName::parse_node(node) {
            names.entry(cluster).or_default().push(node);
        }
    }
    let record = |(cluster, nodes): (ClusterName, Vec<&NodeId>)| {
        let known: Vec<&Known> = nodes.iter().filter_map(|node| rows.get(*node)).collect();
        let listed = || nodes.iter().filter_map(|node| Some((*node, *instances.get(*node)?)));
        let running = listed().filter(|(_, state)| *state == InstanceState::Running).count();
        let status = match running {
            0 => ClusterStatus::Stopped,
            some if some >= known.len() => ClusterStatus::Up,
            _ => ClusterStatus::Init,
        };
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        ClusterRecord {
            deployment: known.iter().find_map(|known| known.deployment.clone()),
            zone: known.first().map(|known| known.zone.clone()).unwrap_or_default(),
            status,
            node_count: count(known.len()),
            running_count: count(running),
            hash: hash(listed()),
            launched_by: known.iter().map(|known| known.launched_by).min().unwrap_or(OperationId(0)),
            cluster,
        }
    };
    names.into_iter().map(record).collect()
}

/// FNV-1a of the nodes in their order with their states: it tells two lists apart, and guards against nobody.
fn hash<'a>(nodes: impl Iterator<Item = (&'a NodeId, InstanceState)>) -> String {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut text = String::new();
    for (node, state) in nodes {
        let state = match state {
            InstanceState::Running => "running",
            InstanceState::Stopped => "stopped",
        };
        let _ = writeln!(text, "{node} {state}");
    }
    let sum = text.bytes().fold(OFFSET, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(PRIME));
    format!("{sum:016x}")
}

impl Listing {
    /// Whether `record` is to be stored now: when it is news, and at each `interval` all the same.
    fn is_due(&mut self, now: Mono, record: &SyncRecord, interval: Duration) -> bool {
        let is_news = self.synced.as_ref().is_none_or(|(_, last)| last != record);
        let is_due = is_news || self.synced.as_ref().is_none_or(|(at, _)| now.since(*at) >= interval);
        if is_due {
            self.synced = Some((now, record.clone()));
        }
        is_due
    }
}

impl Fleet {
    /// Stores how a provider's answer to a listing stands to the rows.
    pub(super) fn sync(
        &mut self,
        now: Mono,
        provider: &str,
        answer: Result<&[Instance], &CloudFault>,
        out: &mut Vec<Action>,
    ) {
        let record = match answer {
            Ok(instances) => {
                let states =
                    instances.iter().map(|instance| (instance.node.clone(), instance.state)).collect();
                compare(provider, &self.known_of(now, provider), &states, self.timing.orphan_grace)
            }
            Err(fault) => {
                let last = self.listings.get(provider).and_then(|listing| listing.synced.clone());
                let blank = SyncRecord {
                    provider: provider.to_owned(),
                    state: SyncState::Syncing,
                    store_hash: String::new(),
                    provider_hash: String::new(),
                    drift: Vec::new(),
                    clusters: Vec::new(),
                    error: None,
                };
                let last = last.map_or(blank, |(_, record)| record);
                SyncRecord { error: Some(fault.to_string()), ..last }
            }
        };
        let interval = self.timing.list_interval;
        let Some(listing) = self.listings.get_mut(provider) else { return };
        if listing.is_due(now, &record, interval) {
            out.push(Action::SaveSync(record));
        }
    }

    fn known_of(&self, now: Mono, provider: &str) -> BTreeMap<NodeId, Known> {
        let known = |id: NodeId| {
            let node = self.nodes.get(&id)?;
            let open = node.operation.and_then(|operation| self.operations.get(&operation));
            let is_young = !node.cloud.was_listed() && now.since(node.known_since) <= self.timing.visibility;
            let expected = match open {
                Some(open) => Some(format!("{} under way", open.operation.kind.as_str())),
                None => is_young.then(|| "too young to be listed".to_owned()),
            };
            let known = Known {
                deployment: node.record.deployment.clone(),
                zone: node.record.zone.clone(),
                launched_by: node.record.launched_by.unwrap_or(OperationId(0)),
                expected,
            };
            Some((id, known))
        };
        self.nodes_of(provider).into_iter().filter_map(known).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORPHAN_GRACE: Duration = Duration::from_secs(300);

    fn id(number: u16) -> NodeId {
        "cic-local-here-none-dev-20261124-001".parse::<ClusterName>().unwrap().node(number).unwrap()
    }

    fn rows(nodes: &[(u16, Option<&str>)]) -> BTreeMap<NodeId, Known> {
        let known = |expected: Option<&str>| Known {
            deployment: Some(DeploymentName::new("chat").unwrap()),
            zone: "here".to_owned(),
            launched_by: OperationId(4),
            expected: expected.map(str::to_owned),
        };
        nodes.iter().map(|(number, expected)| (id(*number), known(*expected))).collect()
    }

    fn listed(nodes: &[(u16, InstanceState)]) -> BTreeMap<NodeId, InstanceState> {
        nodes.iter().map(|(number, state)| (id(*number), *state)).collect()
    }

    #[test]
    fn each_difference_says_what_becomes_of_it() {
        use InstanceState::{Running, Stopped};
        let gone = "not listed: gone, and replaced, unless it still answers";
        let orphan = "listed without a row: an orphan, terminated once it is seen for 5 min";
        for (known, found, state, drift) in [
            (rows(&[]), listed(&[]), SyncState::InSync, vec![]),
            (rows(&[(1, None)]), listed(&[(1, Running)]), SyncState::InSync, vec![]),
            (rows(&[(1, Some("drain under way"))]), listed(&[(1, Running)]), SyncState::InSync, vec![]),
            (rows(&[(1, None)]), listed(&[]), SyncState::Diverged, vec![(1, gone)]),
            (
                rows(&[(1, Some("launch under way"))]),
                listed(&[]),
                SyncState::Syncing,
                vec![(1, "not listed: launch under way")],
            ),
            (
                rows(&[(1, None), (2, Some("launch under way"))]),
                listed(&[]),
                SyncState::Diverged,
                vec![(1, gone), (2, "not listed: launch under way")],
            ),
            (
                rows(&[(2, None)]),
                listed(&[(1, Running), (2, Stopped)]),
                SyncState::Diverged,
                vec![(1, orphan), (2, "listed as stopped: gone, and replaced, unless it still answers")],
            ),
        ] {
            let record = compare("local", &known, &found, ORPHAN_GRACE);
            let seen: Vec<(NodeId, &str)> =
                record.drift.iter().map(|drift| (drift.node.clone(), drift.text.as_str())).collect();
            let expected: Vec<(NodeId, &str)> = drift.iter().map(|(n, text)| (id(*n), *text)).collect();
            assert_eq!((record.state, seen), (state, expected));
            let is_same = record.store_hash == record.provider_hash;
            assert_eq!(is_same, state == SyncState::InSync, "{record:?}");
        }
    }

    #[test]
    fn a_cluster_is_up_when_all_its_nodes_run() {
        use InstanceState::{Running, Stopped};
        let known = rows(&[(1, None), (2, None)]);
        for (found, status, running) in [
            (listed(&[(1, Running), (2, Running)]), ClusterStatus::Up, 2),
            (listed(&[(1, Running)]), ClusterStatus::Init, 1),
            (listed(&[(1, Stopped)]), ClusterStatus::Stopped, 0),
        ] {
            let clusters = compare("local", &known, &found, ORPHAN_GRACE).clusters;
            let [cluster] = clusters.as_slice() else { panic!("{clusters:?}") };
            assert_eq!((cluster.status, cluster.running_count, cluster.node_count), (status, running, 2));
            assert_eq!(cluster.launched_by, OperationId(4));
        }
    }
}
