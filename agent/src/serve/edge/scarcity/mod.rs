//! What an edge does when there is less to serve with than is asked for.
//!
//! ```text
//! request -> Admission (own engine: bounded, by class) -> attempt -- refused --> the next replica
//!                                                           '------ broken ----> Budget: may it be repeated?
//! every replica refused -> Edge::wait: a Seat, a place in line, then
//!                            full   -> 429 with Retry-After after a short while
//!                            absent -> Missing tells the controllers; 503 after a longer one
//!                            either -> Surge, where the route allows it: an API outside, within its Purse
//! ```
//! Bounded throughout: requests at the engine, in line, on seats and outside, retries, words to the controllers, money.

mod admission;
mod budget;
mod figures;
mod missing;
mod patience;
mod seats;
mod spec;
mod surge;

pub use admission::AdmissionLimits;
pub(super) use admission::Slot;
pub(super) use patience::{Patience, Waited};
pub(super) use spec::Scarcity;
pub use spec::ScarcitySpec;
pub use surge::{Price, SurgeSpec, SurgeUrl, SurgeUrlError};
