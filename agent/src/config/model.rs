//! `[model]`: how closely a model's files are looked at.

use std::path::Path;

use serde::Deserialize;

use super::Node;
use crate::effect::model::{Badge, Depth, Models, Quiet};
use crate::run::{IDENTITY_NAME, OWN_PROGRAM};
use crate::state::name;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Model {
    /// `structure`: lengths and headers; `content`: every byte too, where the model has a manifest.
    #[serde(default)]
    pub verify: Depth,
    /// What of its model a node gives to others that fetch it, in MiB a second; 0 gives nothing.
    #[serde(default = "share_default")]
    pub share_mib_per_s: u64,
}

/// A third of a NIC of 12 Gbit/s, which small clouds give to a GPU.
const fn share_default() -> u64 {
    500
}

impl Model {
    /// Who looks at the models of this node.
    #[must_use]
    pub fn looker(&self, node: &Node, ca: Option<&Path>) -> Models {
        Models {
            program: OWN_PROGRAM.into(),
            ledger: node.state_dir.join(name::VERIFIED),
            depth: self.verify,
            quiet: Quiet::default(),
            badge: ca.map(|ca| Badge { identity: node.state_dir.join(IDENTITY_NAME), ca: ca.to_owned() }),
        }
    }
}
