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
    /// Not read yet in this run.
    unread: BTreeSet<String>,
    blind: BTreeMap<String, (Mono, String)>,
}

impl Sight {
    pub(super) fn found(&mut self, cloud: Cloud, sources: Vec<String>) {
        self.cloud = Some(cloud);
        self.unread = sources.into_iter().collect();
    }

    /// True when that is news.
    pub(super) fn lost(&mut self, source: &str, since: Mono, cause: &str) -> bool {
        let cause = cause.chars().take(CAUSE_CHARS_MAX).collect();
        self.blind.insert(source.to_owned(), (since, cause)).is_none()
    }

    /// True when it was lost.
    pub(super) fn read(&mut self, source: &str) -> bool {
        self.unread.remove(source);
        self.blind.remove(source).is_some()
    }

    pub(super) fn report(&self, now: Mono) -> SpotReport {
        let blind = self.blind.iter().map(|(source, (since, cause))| BlindSource {
            source: source.clone(),
            for_ms: millis(now.since(*since)),
            cause: cause.clone(),
        });
        let is_whole = self.cloud.is_some() && self.unread.is_empty() && self.blind.is_empty();
        SpotReport { cloud: self.cloud, blind: blind.collect(), is_whole }
    }
}
