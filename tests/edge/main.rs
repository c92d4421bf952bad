//! Streams that outlive the replica they began on: whoever listens at an edge hears the whole answer, token by token.
//!
//! `continuity` breaks replicas under two hundred streams, `eligibility` cuts one of each kind of request, `foreign` has
//! clients listen that others wrote, `real` does the first and the last with the real vLLM.

mod continuity;
mod eligibility;
mod foreign;
mod real;
mod scenario;
