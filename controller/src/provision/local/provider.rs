//! The provider: launches, lists and gives back VMs, each found again by its directory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cic_common::id::{FleetName, NodeId};
use cic_common::mounts::detach_below;
use cic_common::time::unix_ms;
use nix::sys::signal::Signal;

use super::process::{self, wait_until};
use super::record::{Hardware, Home, LaunchRecord, homes, write};
use crate::core::{CloudFault, Instance, InstanceState};
use crate::provision::LaunchOrder;
use crate::store::Database;

/// What deployments call this provider.
pub const NAME: &str = "local";

/// A machine that has not written its record by then does not run. It takes some 20 ms.
const START_WITHIN: Duration = Duration::from_secs(5);

/// What a machine is given to shut down before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// After SIGKILL a process goes unless it hangs in the kernel.
const KILL_WITHIN: Duration = Duration::from_secs(2);

/// How long a new node may take to enrol: longer than any boot that is waited for.
const TOKEN_VALID_FOR: Duration = Duration::from_secs(3600);

/// Nodes whose logs are kept after they were given back.
const GRAVES_MAX: usize = 20;

/// What every VM of this provider gets.
#[derive(Debug, Clone)]
pub struct LocalSpec {
    /// Absolute.
    pub directory: PathBuf,
    /// The program that knows `machine --dir`: this one.
    pub machine_program: PathBuf,
    pub agent_program: PathBuf,
    pub controller_addresses: Vec<String>,
    /// The fleet's certificate authority, PEM.
    pub ca_pem: String,
    pub agent_timing: toml::Table,
    pub hardware: Hardware,
    /// Whose VMs these are.
    pub fleet: FleetName,
}

/// The provider.
#[derive(Debug)]
pub struct Local {
    spec: LocalSpec,
    store: Database,
}

impl Local {
    #[must_use]
    pub fn new(spec: LocalSpec, store: Database) -> Self {
        Self { spec, store }
    }

    /// Launches the VM of `order.node`, or finds the one that an earlier try of the same operation made. A process on
    /// this machine has no price, so that any price limit is kept.
    ///
    /// # Errors
    /// [`CloudFault::NoAnswer`] when asking again may help.
    pub async fn launch(&self, order: &LaunchOrder) -> Result<(), CloudFault> {
        let node = &order.node;
        let home = Home::of(&self.spec.directory, node);
        match home.launch().map_err(no_answer("read the launch record"))? {
            Some(earlier) if earlier.operation != order.operation || earlier.fleet != self.spec.fleet => {
                let LaunchRecord { operation, fleet, .. } = earlier;
                let text = format!("{node} was launched by operation {operation} of fleet {fleet}");
                return Err(CloudFault::Refused(text));
            }
            Some(_) => {}
            None => self.intend(&home, order).map_err(no_answer("write the intent"))?,
        }
        if has_machine(&home)? {
            return Ok(());
        }
        self.hand_over_secrets(&home, node).await?;
        self.start(&home, node).await
    }

    /// Every VM that was started and not given back.
    ///
    /// # Errors
    /// When some record cannot be read: a VM that cannot be seen is not absent.
    pub async fn list(&self) -> Result<Vec<Instance>, CloudFault> {
        let mut instances = Vec::new();
        for home in homes(&self.spec.directory).map_err(no_answer("list the nodes"))? {
            // A launch that has not come to a machine is no VM yet; its operation is still open.
            let Some(machine) = home.machine().map_err(no_answer("read a machine record"))? else { continue };
            let state = if machine.is_running() { InstanceState::Running } else { InstanceState::Stopped };
            let (fleet, node, operation) = (machine.fleet, machine.node, machine.operation);
            instances.push(Instance { fleet, node, operation, state });
        }
        Ok(instances)
    }

    /// Ends every process of the VM of `node` and removes its directory; a VM that is absent counts as done, and so does
    /// one of that name of another fleet, which stays.
    ///
    /// # Errors
    /// [`CloudFault::NoAnswer`] when processes or files remain; asking again goes on where this stopped.
    pub async fn terminate(&self, node: &NodeId) -> Result<(), CloudFault> {
        let home = Home::of(&self.spec.directory, node);
        if !home.path().exists() {
            return Ok(());
        }
        if let Ok(Some(launch)) = home.launch()
            && launch.fleet != self.spec.fleet
        {
            return Ok(());
        }
        if let Ok(Some(machine)) = home.machine()
            && machine.is_running()
        {
            process::send(machine.pid, Signal::SIGTERM);
            wait_until(STOP_WITHIN, || !machine.is_running()).await;
        }
        let tag = home.tag(node);
        if !process::kill_all(KILL_WITHIN, || tag.processes()).await {
            return Err(CloudFault::NoAnswer(format!("processes of {node} remain after SIGKILL")));
        }
        bury(&self.spec.directory, &home, node).map_err(no_answer("remove the directory"))
    }

    fn intend(&self, home: &Home, order: &LaunchOrder) -> io::Result<()> {
        fs::create_dir_all(home.path())?;
        home.write_launch(&LaunchRecord {
            fleet: self.spec.fleet.clone(),
            node: order.node.clone(),
            operation: order.operation,
            deployment: order.deployment.clone(),
            zone: order.zone.clone(),
            created_unix_ms: unix_ms(),
            agent_program: self.spec.agent_program.clone(),
            controller_addresses: self.spec.controller_addresses.clone(),
            agent_timing: self.spec.agent_timing.clone(),
            hardware: self.spec.hardware.clone(),
        })
    }

    async fn hand_over_secrets(&self, home: &Home, node: &NodeId) -> Result<(), CloudFault> {
        let failed = |error: &dyn std::error::Error| CloudFault::NoAnswer(format!("no join token: {error}"));
        let token =
            self.store.create_join_token(node, TOKEN_VALID_FOR).await.map_err(|error| failed(&error))?;
        write(&home.file("join-token"), token.to_string().as_bytes(), 0o600)
            .map_err(no_answer("write the token"))?;
        write(&home.file("ca.pem"), self.spec.ca_pem.as_bytes(), 0o644).map_err(no_answer("write the CA"))
    }

    async fn start(&self, home: &Home, node: &NodeId) -> Result<(), CloudFault> {
        let log = append(&home.file("machine.log")).map_err(no_answer("open the machine's log"))?;
        let errors = log.try_clone().map_err(no_answer("open the machine's log"))?;
        let mut command = tokio::process::Command::new(&self.spec.machine_program);
        command.arg("machine").arg("--dir").arg(home.path()).envs(home.tag(node).variables());
        command.stdin(Stdio::null()).stdout(log).stderr(errors).kill_on_drop(false);
        let mut child = command.spawn().map_err(no_answer("start the machine"))?;
        let mut ended = None;
        let answered = wait_until(START_WITHIN, || {
            ended = child.try_wait().ok().flatten();
            ended.is_some() || home.machine().is_ok_and(|machine| machine.is_some())
        })
        .await;
        if has_machine(home)? {
            return Ok(());
        }
        let log = home.file("machine.log");
        Err(CloudFault::NoAnswer(match ended {
            Some(status) => format!("the machine ended at its start ({status}): see {}", log.display()),
            None if answered => format!("the machine's record is gone: see {}", log.display()),
            None => format!("the machine did not start within {START_WITHIN:?}: see {}", log.display()),
        }))
    }
}

fn has_machine(home: &Home) -> Result<bool, CloudFault> {
    Ok(home.machine().map_err(no_answer("read the machine record"))?.is_some())
}

fn no_answer(act: &'static str) -> impl FnOnce(io::Error) -> CloudFault {
    move |error| CloudFault::NoAnswer(format!("cannot {act}: {error}"))
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Keeps the logs of a VM and removes the rest.
fn bury(directory: &Path, home: &Home, node: &NodeId) -> io::Result<()> {
    let graves = directory.join("graveyard");
    let grave = graves.join(node.as_str());
    fs::create_dir_all(&grave)?;
    for entry in fs::read_dir(home.path())? {
        let path = entry?.path();
        if let Some(name) = path.file_name()
            && path.extension().is_some_and(|extension| extension == "log")
        {
            fs::rename(&path, grave.join(name))?;
        }
    }
    // What the node mounted goes with its VM, and nothing of what is behind it.
    detach_below(home.path())?;
    fs::remove_dir_all(home.path())?;
    let mut all = fs::read_dir(&graves)?.flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    all.sort_by_key(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok());
    let excess = all.len().saturating_sub(GRAVES_MAX);
    all.iter().take(excess).try_for_each(fs::remove_dir_all)
}
