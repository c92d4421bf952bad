//! The look for a model's files: its directory first, then its sources in order. The first that is whole is used.

use cic_common::assignment::ModelSpec;
use cic_common::id::NodeId;
use cic_common::name::ClusterName;
use cic_common::report::ModelProgress;
use cic_common::source::{Source, mount_name, without_options};
use cic_common::time::Mono;
use cic_common::units::Bytes;

use super::event::ModelFault;

/// Where it is looked for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A directory as the engine would load it.
    Directory(ModelSpec),
    /// What is mounted on a directory of this node's own.
    Mount { url: String, at: ModelSpec },
    /// What the model's own directory is filled from.
    Store { url: String, into: ModelSpec },
}

/// One look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Search {
    model: ModelSpec,
    /// Below it is what this agent mounts.
    mounts: String,
    /// Of the sources, this many were begun; the directory is before them.
    begun: usize,
    /// What is looked at now, in words.
    place: String,
    passed: Vec<(String, ModelFault)>,
    progress: Option<Progress>,
}

/// How far one step has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    /// At its first word.
    since: Mono,
    before_bytes: u64,
    last: ModelProgress,
}

impl Search {
    /// Begins in the model's own directory. Sources are those of the region that `node` is named after.
    pub(super) fn begin(mut model: ModelSpec, mounts: String, node: &NodeId) -> Self {
        let place = model.path.clone();
        if let Ok((cluster, _)) = ClusterName::parse_node(node) {
            model.sources =
                model.sources.into_iter().map(|source| source.in_region(&cluster.region)).collect();
        }
        Self { model, mounts, begun: 0, place, passed: Vec::new(), progress: None }
    }

    /// The place where it is now.
    pub(super) fn place(&self) -> Place {
        let at = |path: &str| ModelSpec::at(&self.model.name, path);
        match self.begun.checked_sub(1).and_then(|place| self.model.sources.get(place)) {
            None => Place::Directory(at(&self.model.path)),
            Some(Source::Directory(path)) => Place::Directory(at(path)),
            Some(Source::Mount(url)) => {
                let at = at(&format!("{}/{}", self.mounts, mount_name(url)));
                Place::Mount { url: url.clone(), at }
            }
            Some(Source::Store(url)) => Place::Store { url: url.clone(), into: at(&self.model.path) },
        }
    }

    /// The directory that is looked at, or filled.
    pub(super) fn directory(&self) -> ModelSpec {
        match self.place() {
            Place::Directory(model) | Place::Mount { at: model, .. } | Place::Store { into: model, .. } => {
                model
            }
        }
    }

    /// Passes the current place over, and goes on to the next. `None` when there is none.
    pub(super) fn pass(&mut self, fault: ModelFault) -> Option<Place> {
        self.passed.push((std::mem::take(&mut self.place), fault));
        self.progress = None;
        let next = self.model.sources.get(self.begun)?;
        without_options(next.as_str()).clone_into(&mut self.place);
        self.begun += 1;
        Some(self.place())
    }

    /// Why no place will do, and whether that can pass.
    pub(super) fn verdict(&self) -> (String, bool) {
        let may_heal = self.passed.iter().any(|(_, fault)| fault.may_heal());
        let text = match self.passed.as_slice() {
            [(_, only)] if self.model.sources.is_empty() => only.to_string(),
            _ => format!("ModelNotCached: {}", self.tried()),
        };
        (text, may_heal)
    }

    /// What was passed over and why, for a phase's reason; empty where nothing was.
    pub(super) fn tried(&self) -> String {
        let one = |(place, fault): &(String, ModelFault)| {
            let fault = fault.to_string();
            if fault.contains(place.as_str()) { fault } else { format!("{place}: {fault}") }
        };
        self.passed.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    /// The current step has come so far.
    pub(super) fn heard(&mut self, now: Mono, done_bytes: u64, all_bytes: u64) {
        // What is there is compared before the rest is fetched: another amount is of other work.
        let same = self.progress.filter(|progress| progress.last.all == Bytes(all_bytes));
        let (since, before_bytes) =
            same.map_or((now, done_bytes), |progress| (progress.since, progress.before_bytes));
        let took_ms = u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
        let rate = (done_bytes.saturating_sub(before_bytes)).saturating_mul(1000).checked_div(took_ms);
        let last = ModelProgress {
            done: Bytes(done_bytes),
            all: Bytes(all_bytes),
            rate: Bytes(rate.unwrap_or_default()),
        };
        self.progress = Some(Progress { since, before_bytes, last });
    }

    /// Another step of the same place begins.
    pub(super) fn step_over(&mut self) {
        self.progress = None;
    }

    pub(super) fn progress(&self) -> Option<ModelProgress> {
        self.progress.map(|progress| progress.last)
    }
}
