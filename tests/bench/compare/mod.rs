//! Failure detectors side by side: ours and those of the field, over the same generated evidence, in virtual time.
//!
//! ```text
//! scenario -> Episode (who dies or is cut off when, what is lost) -> [ours: the real Fleet] [kubernetes] [nomad] [phi] [swim]
//!                                                                        '-> Verdict -> report
//! days     -> months of healthy links, gap by gap ---------------> the same rules, counted
//! ```
//! An episode is minutes of a small fleet with one fault in it, from which the time to detection is read, and who was
//! replaced or killed for nothing. The long run has no fault but loss and short outages; only gaps between heartbeats
//! are played, so that a million node-days take a minute.

mod days;
mod episode;
mod kubernetes;
mod nomad;
mod ours;
mod phi;
mod report;
mod scenario;
mod swim;
mod verdict;

pub(crate) use report::{RUNS, run};
