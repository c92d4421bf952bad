//! What is written down of a VM: the directory and the two records in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use cic_common::id::{DeploymentName, FleetName, NodeId, OperationId};
use cic_common::notice::Cloud;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::process::{self, Tag};

/// Where the metadata service writes its address.
pub(super) const METADATA: &str = "metadata.addr";

/// Made by something inside that ends the machine.
pub(super) const POWER_OFF: &str = "power-off";

const TAKING: &str = "taking.json";

/// The intent to launch, on disk before anything is started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaunchRecord {
    /// The tag; records from before there were fleets are of the fleet `cic`.
    #[serde(default)]
    pub fleet: FleetName,
    pub node: NodeId,
    pub operation: OperationId,
    pub deployment: DeploymentName,
    pub zone: String,
    pub created_unix_ms: u64,
    pub agent_program: PathBuf,
    /// `address:port` of each controller; the machine's cable leads there.
    pub controller_addresses: Vec<String>,
    /// Overrides of the agent's time table, as its configuration file spells them.
    pub agent_timing: toml::Table,
    #[serde(default)]
    pub hardware: Hardware,
}

/// What the VM seems to be made of, and what its agent finds around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Whose machine it plays.
    pub cloud: Cloud,
    /// Serves that cloud's metadata; `None`: there is none.
    pub metadata_program: Option<PathBuf>,
    #[serde(default)]
    pub checkpoints: Checkpoints,
}

/// Where its agent writes checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoints {
    /// `None`: the provider's own directory.
    pub url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_s: Option<u64>,
}

impl Checkpoints {
    /// The same with a URL, whatever the directory.
    #[must_use]
    pub fn below(&self, directory: &Path) -> Self {
        let url = self.url.clone().unwrap_or_else(|| bucket(directory));
        Self { url: Some(url), ..self.clone() }
    }
}

impl Default for Hardware {
    fn default() -> Self {
        Self { cloud: Cloud::None, metadata_program: None, checkpoints: Checkpoints::default() }
    }
}

/// When the cloud takes the VM: written by whoever gives notice, read by the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taking {
    pub at_unix_ms: u64,
}

/// The ends of the cable that the agent and its peers are given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cable {
    /// In the order of the launch record's controllers.
    pub controllers: Vec<String>,
    pub peer: String,
}

/// A machine that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    #[serde(default)]
    pub fleet: FleetName,
    pub node: NodeId,
    pub operation: OperationId,
    pub pid: u32,
    /// See [`process::start_time`].
    pub start_time: u64,
    pub cable: Cable,
    pub created_unix_ms: u64,
}

impl MachineRecord {
    #[must_use]
    pub fn is_running(&self) -> bool {
        process::is_alive(self.pid, self.start_time)
    }
}

/// One VM's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// The home of `node` under the provider's directory.
    #[must_use]
    pub fn of(directory: &Path, node: &NodeId) -> Self {
        Self(directory.join("nodes").join(node.as_str()))
    }

    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// The directory of its provider.
    #[must_use]
    pub fn provider(&self) -> &Path {
        self.0.ancestors().nth(2).unwrap_or(&self.0)
    }

    /// The tag holds the directory's one true path: whoever looks for it may have come by a link.
    #[must_use]
    pub fn tag(&self, node: &NodeId) -> Tag {
        let path = self.0.canonicalize();
        Tag::new(node.clone(), path.as_deref().unwrap_or(&self.0))
    }

    /// # Errors
    /// When there is a record and it cannot be read.
    pub fn launch(&self) -> io::Result<Option<LaunchRecord>> {
        read(&self.file("launch.json"))
    }

    /// # Errors
    /// When there is a record and it cannot be read.
    pub fn machine(&self) -> io::Result<Option<MachineRecord>> {
        read(&self.file("machine.json"))
    }

    /// `host:port` of the VM's metadata service.
    #[must_use]
    pub fn metadata(&self) -> Option<String> {
        Some(fs::read_to_string(self.file(METADATA)).ok()?.trim().to_owned())
    }

    /// When the VM is taken, if that was announced.
    #[must_use]
    pub fn taking(&self) -> Option<Taking> {
        read(&self.file(TAKING)).ok().flatten()
    }

    /// Has the VM taken at that moment; `None`: not after all.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn take_at(&self, taking: Option<Taking>) -> io::Result<()> {
        match taking {
            Some(taking) => write(&self.file(TAKING), &serde_json::to_vec(&taking)?, 0o644),
            None => match fs::remove_file(self.file(TAKING)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            },
        }
    }

    /// Pid of the agent that the machine started last.
    #[must_use]
    pub fn agent_pid(&self) -> Option<u32> {
        fs::read_to_string(self.file("agent.pid")).ok()?.trim().parse().ok()
    }

    pub(super) fn write_launch(&self, record: &LaunchRecord) -> io::Result<()> {
        write(&self.file("launch.json"), &serde_json::to_vec_pretty(record)?, 0o644)
    }

    pub(super) fn write_machine(&self, record: &MachineRecord) -> io::Result<()> {
        write(&self.file("machine.json"), &serde_json::to_vec_pretty(record)?, 0o644)
    }
}

/// The directory that stands for an object store, which outlives the VMs, as a URL.
fn bucket(directory: &Path) -> String {
    let path = directory.join("bucket").display().to_string();
    let path = path.replace('%', "%25").replace('?', "%3F").replace('#', "%23");
    format!("file://{path}")
}

/// Homes under the provider's directory, in order of node id.
///
/// # Errors
/// When the directory exists and cannot be read.
pub fn homes(directory: &Path) -> io::Result<Vec<Home>> {
    let entries = match fs::read_dir(directory.join("nodes")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut homes = entries.map(|entry| Ok(Home(entry?.path()))).collect::<io::Result<Vec<_>>>()?;
    homes.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(homes)
}

/// Writes a whole file or nothing, and has it on disk before it returns.
pub(super) fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&part)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(serde_json::from_slice(&content)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
