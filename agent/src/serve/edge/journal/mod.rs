//! Requests of users that are under way, as a node in this one's place would have to know them.
//!
//! ```text
//! front: a request ──▶ Journal::note ──▶ Line, held by its guard; a stream tells it of its tokens
//!                          │ checkpoint
//!                      UnderWay ──▶ [Unfinished] ──▶ store ──▶ the successor's Edge::run_again ──▶ kept for the client
//! ```
//! Kept only where there is a store for checkpoints, and only as long as the request lasts.

mod again;
mod noted;
mod unfinished;

pub use again::{Answered, NotAnswered};
pub use noted::UnderWay;
pub(super) use noted::{Journal, Line};
pub use unfinished::Unfinished;

#[cfg(test)]
mod tests;
