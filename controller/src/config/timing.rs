//! `[timing]`: how long the core waits for what.

use std::time::Duration;

use cic_common::config::ConfigMistakes;
use serde::Deserialize;

use crate::core::Timing;

#[derive(Debug, Deserialize)]
pub(super) struct RawTiming {
    push_fresh_ms: Option<u64>,
    challenge_ms: Option<u64>,
    poll_interval_ms: Option<u64>,
    poll_failures_max: Option<u32>,
    urgent_interval_ms: Option<u64>,
    partition_grace_ms: Option<u64>,
    boot_grace_ms: Option<u64>,
    serve_grace_ms: Option<u64>,
    settle_ms: Option<u64>,
    own_stall_ms: Option<u64>,
    list_interval_ms: Option<u64>,
    list_interval_urgent_ms: Option<u64>,
    list_fresh_ms: Option<u64>,
    visibility_ms: Option<u64>,
    retry_ms: Option<u64>,
    drain_ms: Option<u64>,
    operation_deadline_ms: Option<u64>,
    orphan_grace_ms: Option<u64>,
}

impl RawTiming {
    pub(super) fn over(&self, defaults: Timing, mistakes: &mut ConfigMistakes) -> Timing {
        let span = |ms: Option<u64>, default| ms.map_or(default, Duration::from_millis);
        let visibility = span(self.visibility_ms, defaults.visibility);
        let orphan_grace = span(self.orphan_grace_ms, defaults.orphan_grace);
        if orphan_grace <= visibility {
            let what = format_args!("must be longer than visibility_ms, {}", visibility.as_millis());
            mistakes.push("timing", "orphan_grace_ms", what);
        }
        Timing {
            heartbeat: defaults.heartbeat,
            push_fresh: span(self.push_fresh_ms, defaults.push_fresh),
            challenge: span(self.challenge_ms, defaults.challenge),
            poll_interval: span(self.poll_interval_ms, defaults.poll_interval),
            poll_within: defaults.poll_within,
            poll_failures_max: self.poll_failures_max.unwrap_or(defaults.poll_failures_max),
            urgent_interval: span(self.urgent_interval_ms, defaults.urgent_interval),
            partition_grace: span(self.partition_grace_ms, defaults.partition_grace),
            boot_grace: span(self.boot_grace_ms, defaults.boot_grace),
            serve_grace: span(self.serve_grace_ms, defaults.serve_grace),
            settle: span(self.settle_ms, defaults.settle),
            own_stall: span(self.own_stall_ms, defaults.own_stall),
            list_interval: span(self.list_interval_ms, defaults.list_interval),
            list_interval_urgent: span(self.list_interval_urgent_ms, defaults.list_interval_urgent),
            list_fresh: span(self.list_fresh_ms, defaults.list_fresh),
            visibility,
            retry: span(self.retry_ms, defaults.retry),
            drain: span(self.drain_ms, defaults.drain),
            operation_deadline: span(self.operation_deadline_ms, defaults.operation_deadline),
            orphan_grace,
        }
    }
}
