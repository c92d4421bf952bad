//! What a model's files say of themselves, read from bytes that somebody else has read; and where they may
//! lie.

pub mod dtype;
pub mod header;
pub mod index;
pub mod manifest;
pub mod place;
pub mod tree;

pub use dtype::Dtype;
pub use header::{Header, HeaderFault, Tensor};
pub use index::{Index, IndexFault};
pub use manifest::{Manifest, ManifestFault};
