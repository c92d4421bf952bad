//! The edge's user port as strangers meet it: a real agent before the stand-in engine, and clients that do not behave.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic, in its helpers too")]

mod bodies;
mod doors;
mod floods;
mod frames;
mod heads;
mod leaving;
mod stand;
