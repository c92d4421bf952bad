//! `[local]`: machines that are processes beside the controller.

use std::net::SocketAddr;
use std::path::PathBuf;

use cic_common::config::ConfigMistakes;
use cic_common::notice::Cloud;
use serde::Deserialize;

use super::{absolute, address};
use crate::provision::local::{Checkpoints, Hardware};

/// The section of provider `local`.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalConfig {
    /// Absolute.
    pub directory: PathBuf,
    pub agent_program: PathBuf,
    /// None: this controller's own QUIC port on the loopback.
    pub controller_address: Option<SocketAddr>,
    /// `ADDRESS:PORT` of the other controllers, to which agents connect too.
    pub other_controllers: Vec<SocketAddr>,
    pub agent_timing: toml::Table,
    pub hardware: Hardware,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawLocal {
    dir: Option<PathBuf>,
    agent_program: Option<PathBuf>,
    controller_address: Option<String>,
    other_controllers: Option<Vec<String>>,
    #[serde(default)]
    agent_timing: toml::Table,
    cloud: Option<String>,
    metadata_program: Option<PathBuf>,
    checkpoint_url: Option<String>,
    checkpoint_second_url: Option<String>,
    checkpoint_every_s: Option<u64>,
}

impl RawLocal {
    pub(super) fn build(&self, mistakes: &mut ConfigMistakes) -> Option<LocalConfig> {
        let RawLocal {
            dir, agent_program, controller_address, agent_timing, cloud, metadata_program, ..
        } = self;
        let checkpoints = Checkpoints {
            url: self.checkpoint_url.clone(),
            second_url: self.checkpoint_second_url.clone(),
            every_s: self.checkpoint_every_s,
        };
        let Some(directory) = dir else {
            let has_hardware =
                cloud.is_some() || metadata_program.is_some() || checkpoints != Checkpoints::default();
            let has_more =
                agent_program.is_some() || controller_address.is_some() || !agent_timing.is_empty();
            if has_more || has_hardware {
                mistakes.push("local", "dir", "missing: without it there is no provider local");
            }
            return None;
        };
        let directory = absolute("local", "dir", directory, mistakes);
        let agent_program = agent_program.clone().or_else(sibling_agent).unwrap_or_default();
        if !agent_program.is_file() {
            let what = format!("there is no program {}", agent_program.display());
            mistakes.push("local", "agent_program", what);
        }
        let controller_address = controller_address
            .as_deref()
            .and_then(|text| address("local", "controller_address", Some(text), "", mistakes));
        let others = self.other_controllers.iter().flatten();
        let other_controllers = others
            .filter_map(|text| address("local", "other_controllers", Some(text), "", mistakes))
            .collect();
        let named = cloud.as_deref().unwrap_or(Cloud::None.as_str());
        let cloud = Cloud::ALL.into_iter().find(|cloud| cloud.as_str() == named);
        if cloud.is_none() {
            let known = Cloud::ALL.map(Cloud::as_str).join(", ");
            mistakes.push("local", "cloud", format_args!("{named:?} is none of {known}"));
        }
        if let Some(path) = metadata_program.as_ref().filter(|path| !path.is_file()) {
            mistakes.push(
                "local",
                "metadata_program",
                format_args!("there is no program {}", path.display()),
            );
        }
        if matches!(cloud, Some(Cloud::Aws | Cloud::Gcp | Cloud::Azure)) && metadata_program.is_none() {
            let what = format_args!("missing: a machine of {named} has a metadata service");
            mistakes.push("local", "metadata_program", what);
        }
        let hardware = Hardware { cloud: cloud?, metadata_program: metadata_program.clone(), checkpoints };
        let agent_timing = agent_timing.clone();
        Some(LocalConfig {
            directory: directory?,
            agent_program,
            controller_address,
            other_controllers,
            agent_timing,
            hardware,
        })
    }
}

/// The agent that was installed beside this program.
fn sibling_agent() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.with_file_name("cic-agent"))
}
