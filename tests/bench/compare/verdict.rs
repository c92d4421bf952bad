//! What a rule did in one episode.

use cic_common::time::Mono;

/// Of one node.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Verdict {
    /// Out of service since, where it is at the end.
    pub(super) out_at: Option<Mono>,
    /// It was at any time.
    pub(super) was_out: bool,
    /// Another was ordered in its place.
    pub(super) replaced_at: Option<Mono>,
    /// Its VM was given back. A rule that replaces at once gives back at once: that is what the scripts around it do.
    pub(super) killed_at: Option<Mono>,
}

impl Verdict {
    /// A rule whose one verdict takes out, replaces and gives back.
    pub(super) fn at_once(at: Option<Mono>) -> Self {
        Self { out_at: at, was_out: at.is_some(), replaced_at: at, killed_at: at }
    }
}
