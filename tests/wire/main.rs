//! Agents' and controllers' network parts against each other, on loopback, without their cores.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic, in its helpers too")]

mod files;
mod hostile;
mod identity;
mod link;
mod order;
mod parties;
mod poll;
