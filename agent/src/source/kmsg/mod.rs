//! The kernel log: faults of GPUs, and processes killed for memory.
//!
//! ```text
//! /dev/kmsg --bytes--> [watch] --line--> [reader] --text--> [news] --> Event::Gpu, Event::OomKilled
//!                        |   place        which counts        what it says
//!                        `--> kmsg.json   ([record])
//! ```

pub mod news;
mod reader;
pub mod record;
#[cfg(test)]
mod tests;
mod watch;

pub use watch::{KmsgSpec, STATE_FILE, watch};
