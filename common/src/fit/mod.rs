//! Whether a model fits GPUs, and by what arithmetic, before anybody pays for them.
//!
//! ```text
//! config.json ─▶ config ─▶ Architecture ─┬─▶ count ───┐
//! headers of safetensors ────────────────┴─▶ headers ─┴─▶ Weights ─┐
//! "70B" ─▶ size ───────────────────────────────────────────────────┴─▶ Subject ─┐
//! "H100:8" ─▶ gpu ─▶ Rack ───────────────────────────────────────────────────────┼─▶ plan ─▶ Judgement
//! flags of vLLM ─▶ flags ─▶ Wanted ──────────────────────────────────────────────┘
//! ```
//! `layout` says how a model may be split, `kv` what a sequence takes, `reserve` what the engine keeps for itself, `nearest`
//! what would fit where this does not. `directory` alone reads files.

pub mod config;
mod count;
pub mod directory;
mod family;
pub mod flags;
pub mod gpu;
pub mod headers;
pub mod kv;
mod layers;
pub mod layout;
mod nearest;
pub mod plan;
pub mod quantization;
mod reserve;
pub mod size;
mod subject;
#[cfg(test)]
mod tests;
mod vision;
pub mod weights;

pub use config::{Architecture, ConfigFault};
pub use gpu::{Gpu, GpuFault, Rack};
pub use kv::KvDtype;
pub use layout::{Layout, LayoutFault};
pub use nearest::Alternative;
pub use plan::{Judgement, PlanFault, Verdict, Wanted, judge, judge_engine};
pub use quantization::Quantization;
pub use subject::Subject;
pub use weights::Weights;
