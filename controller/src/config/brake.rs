//! `[brake]`: what stops mass replacement.

use std::time::Duration;

use cic_common::config::ConfigMistakes;
use serde::Deserialize;

use crate::core::BrakeRules;

#[derive(Debug, Deserialize)]
pub(super) struct RawBrake {
    terminations_max: Option<u32>,
    launches_max: Option<u32>,
    window_ms: Option<u64>,
    silent_share: Option<f32>,
    silent_count_min: Option<u32>,
    silent_launch_after_ms: Option<u64>,
}

impl RawBrake {
    pub(super) fn over(&self, defaults: BrakeRules, mistakes: &mut ConfigMistakes) -> BrakeRules {
        let silent_share = self.silent_share.unwrap_or(defaults.silent_share);
        if !(0.0..=1.0).contains(&silent_share) {
            mistakes.push("brake", "silent_share", "expected a share from 0 to 1");
        }
        BrakeRules {
            terminations_max: self.terminations_max.unwrap_or(defaults.terminations_max),
            launches_max: self.launches_max.unwrap_or(defaults.launches_max),
            window: self.window_ms.map_or(defaults.window, Duration::from_millis),
            silent_share,
            silent_count_min: self.silent_count_min.unwrap_or(defaults.silent_count_min),
            silent_launch_after: self
                .silent_launch_after_ms
                .map_or(defaults.silent_launch_after, Duration::from_millis),
            release_after: defaults.release_after,
        }
    }
}
