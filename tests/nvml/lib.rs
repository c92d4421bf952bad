#![allow(unsafe_code, non_snake_case, non_upper_case_globals)]
//! A stand-in for `libnvidia-ml.so.1`, steered by a script.
//!
//! ```text
//! CIC_NVML_SCRIPT (JSON, may be rewritten at any time) -> script -> stage -> base, newer (exported symbols)
//! ```
//! - `script`: what the driver is to answer; without a script, that of a healthy node of eight H100.
//! - `stage`: every call passes here: it is logged, it hangs or fails where the script says so.
//! - `base`: symbols that every driver has; `newer`: those that an old one lacks (`tests/nvml-old`).
//!
//! A device handle is a GPU's number plus one and is never followed. Why there is unsafe code:
//! `docs/decisions/0013-nvml-mock.md`.

mod answer;
mod base;
mod newer;
mod script;
mod stage;
