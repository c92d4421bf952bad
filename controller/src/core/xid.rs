//! XIDs that nodes told of, counted for `/metrics`.

use std::collections::BTreeMap;

use cic_common::gpu::GpuAction;
use serde::{Deserialize, Serialize};

/// Kinds counted apart. NVIDIA's catalogue has fewer than 200 codes, nearly all with one action each; what a node makes
/// up beyond that is counted together.
const KINDS_MAX: usize = 256;

/// How often a code was told of since this controller started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct XidCount {
    /// `None`: all codes beyond those counted apart.
    pub code: Option<u32>,
    pub action: GpuAction,
    pub count: u64,
}

#[derive(Debug, Default)]
pub(super) struct XidCounts {
    kinds: BTreeMap<(Option<u32>, GpuAction), u64>,
}

impl XidCounts {
    pub(super) fn add(&mut self, code: u32, action: GpuAction) {
        let own = (Some(code), action);
        let is_apart = self.kinds.contains_key(&own) || self.kinds.len() < KINDS_MAX;
        let kind = if is_apart { own } else { (None, action) };
        *self.kinds.entry(kind).or_default() += 1;
    }

    pub(super) fn all(&self) -> Vec<XidCount> {
        let one =
            |(&(code, action), &count): (&(Option<u32>, GpuAction), &u64)| XidCount { code, action, count };
        self.kinds.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_made_up_without_end_are_counted_together() {
        let mut counts = XidCounts::default();
        for code in 0..10_000 {
            counts.add(code, GpuAction::Report);
        }
        counts.add(7, GpuAction::Report);
        let all = counts.all();
        assert_eq!(all.len(), KINDS_MAX + 1);
        assert_eq!(all.iter().map(|kind| kind.count).sum::<u64>(), 10_001);
        let seven = all.iter().find(|kind| kind.code == Some(7)).expect("counted apart");
        assert_eq!(seven.count, 2);
    }
}
