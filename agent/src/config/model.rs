//! `[model]`: how closely a model's files are looked at.

use serde::Deserialize;

use super::Node;
use crate::effect::model::{Depth, Models, Quiet};
use crate::run::OWN_PROGRAM;
use crate::state::name;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Model {
    /// `structure`: lengths and headers; `content`: every byte too, where the model has a manifest.
    #[serde(default)]
    pub verify: Depth,
}

impl Model {
    /// Who looks at the models of this node.
    #[must_use]
    pub fn looker(&self, node: &Node) -> Models {
        Models {
            program: OWN_PROGRAM.into(),
            ledger: node.state_dir.join(name::VERIFIED),
            depth: self.verify,
            quiet: Quiet::default(),
        }
    }
}
