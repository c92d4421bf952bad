//! `[backup]`: where snapshots of the store go.

use std::time::Duration;

use cic_common::config::ConfigMistakes;
use cic_common::objects::Stores;
use serde::Deserialize;

/// Between two snapshots.
const EVERY_S: u64 = 300;

/// Of a minute and less, each is barely written when the next is due; above a day it is no backup.
const EVERY_S_ALLOWED: std::ops::RangeInclusive<u64> = 1..=86_400;

/// As many as checkpoints of a node: with five minutes between them, most of an hour.
const KEEP: usize = 10;

/// Where snapshots go, how often, and how many are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupConfig {
    pub url: String,
    pub every: Duration,
    pub keep: usize,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawBackup {
    url: Option<String>,
    every_s: Option<u64>,
    keep: Option<usize>,
}

impl RawBackup {
    pub(super) fn build(&self, mistakes: &mut ConfigMistakes) -> Option<BackupConfig> {
        let (every_s, keep) = (self.every_s.unwrap_or(EVERY_S), self.keep.unwrap_or(KEEP));
        if !EVERY_S_ALLOWED.contains(&every_s) {
            let (first, last) = EVERY_S_ALLOWED.into_inner();
            mistakes.push("backup", "every_s", format_args!("expected {first} to {last}, found {every_s}"));
        }
        if keep == 0 {
            mistakes.push("backup", "keep", "0 keeps no snapshot");
        }
        let Some(url) = &self.url else {
            if self.every_s.is_some() || self.keep.is_some() {
                mistakes.push("backup", "url", "missing: without it there are no snapshots");
            }
            return None;
        };
        if let Err((_, error)) = Stores::open([url.as_str()]) {
            mistakes.push("backup", "url", format_args!("{url:?} {error}"));
        }
        Some(BackupConfig { url: url.clone(), every: Duration::from_secs(every_s), keep })
    }
}
