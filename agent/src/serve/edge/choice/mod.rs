//! Which replica gets the next attempt.
//!
//! ```text
//! routing table -> Candidate ─┐                                          ┌-> Turn, counted in flight while alive
//! request ------> Wish ───────┼─> Board::pick ─> Seen ─> choose ─> How ──┤
//! answers ------> Standing ───┘   (clock, draw)  (facts) (no clock)      '-> None: nobody is left
//! ```
//! The rules, in the order in which they are asked ([`pick::choose`] is this list as code):
//!
//! 1. *Fit.* A model above 200 B parameters goes only to the GPU its deployment names. Nothing overrides this.
//! 2. *Health.* A replica that failed is out for 1 s, longer with each failure in a row, up to 10 s; then one
//!    request at a time tries it ([`circuit::Circuit`]). One that refuses is passed over for 1 s. Where more than half would
//!    be out, those with a single bad answer are in. When all are out, the one that is back soonest is tried.
//! 3. *Weight 0.* Only when nothing else is left.
//! 4. *Class.* `latency_critical` goes to tier 1 first, `batch` to tier 3 first, unless the replicas there carry
//!    far more than the others.
//! 5. *Weight.* Where weights differ one is drawn, each replica counting by its own: an operator's split holds
//!    across zones, and among those that class and health left.
//! 6. *Zone.* Replicas in the edge's own zone, unless they carry more than the others.
//! 7. *Prefix.* A long prompt goes where prompts that begin alike went ([`affinity`]), unless that replica carries
//!    more than 1.25 times the mean.
//! 8. *Policy.* `power_of_two`, `round_robin` or `least_load` among those left ([`pick::Score`]).
//!
//! A rule that would leave nobody is skipped; only the first may end with no replica at all.

mod affinity;
mod board;
mod candidate;
mod circuit;
mod load;
mod pick;
mod prompt;
mod standing;

pub(super) use board::{Choice, Turn, Wish};
pub(super) use candidate::Candidate;
pub(super) use load::Load;
pub(super) use prompt::Prompt;

#[cfg(test)]
mod tests;
