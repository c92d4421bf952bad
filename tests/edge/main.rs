//! Streams that outlive the replica they began on: whoever listens at an edge hears the whole answer, token by token.
//!
//! `continuity` breaks replicas under two hundred streams, `eligibility` cuts one of each kind of request, `foreign` has
//! clients listen that others wrote.

mod continuity;
mod eligibility;
mod foreign;
mod scenario;
