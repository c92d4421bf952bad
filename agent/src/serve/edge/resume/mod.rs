//! Streams that survive their replica.
//!
//! ```text
//! rule: may this request's stream be continued? ──▶ Terms
//! Stream (what the client reads) ── events ──▶ Keeper (tokens so far; what the client has of them)
//!    │ the replica is cut off                        │ seam
//!    └──▶ again: another replica, asked to go on after the seam ──▶ its events ──▶ Keeper ──▶ client
//! ```
//! `rule`, `event`, `stops` and `keeper` are pure. What cannot be continued ends in an error event (`stream.rs`).

mod again;
mod event;
mod keeper;
mod room;
mod rule;
mod stops;
mod stream;

pub(super) use event::{EVENT_BYTES_MAX, Framer, MOVED, Said, read};
pub(super) use room::Rooms;
pub(super) use rule::{Plan, plan};
pub(super) use stream::{Part, Stream, Ticket};

#[cfg(test)]
mod tests;
