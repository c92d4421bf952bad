//! What the node knows of its cloud's notices: whose machine it is, and which source cannot be read.

use std::collections::{BTreeMap, BTreeSet};

use cic_common::notice::{BlindSource, Cloud, SpotReport};
use cic_common::time::Mono;

use super::agent::millis;

/// Of a cause so much travels with every heartbeat.
const CAUSE_CHARS_MAX: usize = 120;

#[derive(Debug, Default)]
pub(super) struct Sight {
    cloud: Option<Cloud>,
    sources: Vec<String>,
    /// Read at some time in this run; a source may be quicker than the search for the cloud.
    read: BTreeSet<String>,
    blind: BTreeMap<String, (Mono, String)>,
}

impl Sight {
    pub(super) fn found(&mut self, cloud: Cloud, sources: Vec<String>) {
        self.cloud = Some(cloud);
        self.sources = sources;
    }

    /// True when that is news.
    pub(super) fn lost(&mut self, source: &str, since: Mono, cause: &str) -> bool {
        let cause = cause.chars().take(CAUSE_CHARS_MAX).collect();
        self.blind.insert(source.to_owned(), (since, cause)).is_none()
    }

    /// True when it was lost.
    pub(super) fn read(&mut self, source: &str) -> bool {
        self.read.insert(source.to_owned());
        self.blind.remove(source).is_some()
    }

    pub(super) fn report(&self, now: Mono) -> SpotReport {
        let blind = self.blind.iter().map(|(source, (since, cause))| BlindSource {
            source: source.clone(),
            for_ms: millis(now.since(*since)),
            cause: cause.clone(),
        });
        let unread = self.sources.iter().filter(|source| !self.read.contains(*source)).cloned().collect();
        SpotReport { cloud: self.cloud, blind: blind.collect(), unread }
    }
}
