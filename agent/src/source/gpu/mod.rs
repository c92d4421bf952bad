//! What can be known of this machine's GPUs, by a child process that is the only one to talk to the driver.
//!
//! ```text
//! device (is there one?) ──▶ watch ──spawns──▶ probe (child: cic-gpu-probe) ──frames──▶ watch ──▶ GpuEvent
//!                              │ ▲                                                        ▲
//!        request (sample now) ─┘ └─ vigil (pure: which silence is too long)      clear (an operator's word)
//! ```
//! - `spec`: which probe, and how long each thing may take.
//! - `vigil`: what the probe owes and since when; says when a driver call hangs.
//! - [`watch()`]: at most one probe at a time, started again after an end, reported while it is stuck.
//! - [`clear`]: an operator says that a GPU is good again.

pub mod clear;
mod device;
mod probe;
mod request;
mod spec;
mod vigil;
mod watch;

pub use clear::write_clear;
pub use device::is_there;
pub use request::GpuRequests;
pub use spec::{GpuSpans, GpuSpec};
pub use watch::watch;
