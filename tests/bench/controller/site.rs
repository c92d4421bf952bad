//! A controller's whole belongings on disk, made before it starts: authority, rows, its cloud's VMs, configuration.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use cic_common::assignment::{EngineSpec, ModelSpec};
use cic_common::id::{ControllerId, DeploymentName, FleetName, Incarnation, NodeId, OperationId};
use cic_common::name::ClusterName;
use cic_common::report::Role;
use cic_common::routing::Routing;
use cic_common::time::unix_ms;
use cic_common::tls::CertificateAuthority;
use cic_controller::core::{Deployment, NodeRecord};
use cic_controller::ports::Ports;
use cic_controller::provision::local::{self, Cable, Home, MachineRecord};
use cic_controller::store::{Database, Holder, Taken, Write};
use fleet_tests::process::binary;

/// The lease under which the store is filled; given back afterwards.
const FILL_WITHIN: Duration = Duration::from_secs(60);

/// Zones of the fleet, each with a deployment of its own.
pub(super) const ZONES: usize = 20;

/// Rows of one transaction, which must be done within the store's deadline.
const ROWS_AT_ONCE: usize = 1000;

const READY_WITHIN: Duration = Duration::from_secs(30);

/// Name of the `number`th zone, which is also that of its deployment.
pub(super) fn zone(number: usize) -> String {
    format!("zone-{number:02}")
}

/// Zone of the `place`th of `count` nodes: neighbours share one.
fn zone_of(place: usize, count: usize) -> usize {
    place * ZONES / count.max(1)
}

/// Name of the `place`th of `count` nodes, as the controller would have named it.
pub(super) fn node(place: usize, count: usize) -> anyhow::Result<NodeId> {
    let zone = zone_of(place, count);
    let number = place - first_of(zone, count) + 1;
    Ok(cluster(zone)?.node(u16::try_from(number)?)?)
}

/// The first place in a zone; of the zone after the last one, the count.
fn first_of(zone: usize, count: usize) -> usize {
    (zone * count).div_ceil(ZONES)
}

fn cluster(zone: usize) -> anyhow::Result<ClusterName> {
    Ok(ClusterName::new(local::NAME, "here", "h100", "spot", "20261126", u16::try_from(zone + 1)?)?)
}

/// The directory, removed with this.
pub(super) struct Site {
    dir: tempfile::TempDir,
    count: usize,
}

impl Site {
    pub(super) async fn new(count: usize) -> anyhow::Result<Self> {
        let site = Self { dir: tempfile::tempdir()?, count };
        for folder in ["state", "tls", "local/nodes", "model"] {
            fs::create_dir_all(site.path().join(folder))?;
        }
        fs::write(site.model().join("config.json"), "{}")?;
        CertificateAuthority::open(&site.tls(), unix_ms())?;
        fs::write(site.config(), site.config_text()?)?;
        site.fill_store().await?;
        Ok(site)
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn tls(&self) -> PathBuf {
        self.path().join("tls")
    }

    pub(super) fn model(&self) -> PathBuf {
        self.path().join("model")
    }

    fn config(&self) -> PathBuf {
        self.path().join("controller.toml")
    }

    fn config_text(&self) -> anyhow::Result<String> {
        let at = |name: &str| self.path().join(name).display().to_string();
        // Nobody is launched: what is played here are agents, not machines. The settle time ends when all are heard, however long so many handshakes take on this machine. The grace is
        // short, so that a silence has its full consequences while it is watched.
        Ok(format!(
            "[brake]\nlaunches_max = 0\n[controller]\nid = 'c1'\nstate_dir = '{}'\n[tls]\ndir = '{}'\n[quic]\nlisten = '127.0.0.1:0'\n\
             [api]\nlisten = '127.0.0.1:0'\n[local]\ndir = '{}'\nagent_program = '{}'\n\
             [timing]\nsettle_ms = 300000\npartition_grace_ms = 5000\n",
            at("state"),
            at("tls"),
            at("local"),
            binary("cic-bench")?.display()
        ))
    }

    pub(super) fn deployment(&self, zone_number: usize) -> anyhow::Result<Deployment> {
        let members = first_of(zone_number + 1, self.count) - first_of(zone_number, self.count);
        let replicas = u16::try_from(members)?;
        Ok(Deployment {
            name: DeploymentName::new(zone(zone_number))?,
            model: ModelSpec::at("tiny", &self.model().display().to_string()),
            engine: EngineSpec {
                program: binary("cic-bench")?.display().to_string(),
                args: Vec::new(),
                env: std::collections::BTreeMap::new(),
            },
            replicas,
            replicas_min: 0,
            provider: local::NAME.to_owned(),
            zone: zone(zone_number),
            cluster: cluster(zone_number)?,
            node_next: replicas + 1,
            routing: Routing::default(),
            price_limit_usd_per_hour: None,
        })
    }

    fn record(&self, place: usize) -> anyhow::Result<NodeRecord> {
        let zone = zone(zone_of(place, self.count));
        Ok(NodeRecord {
            node: node(place, self.count)?,
            role: Role::Replica,
            deployment: Some(DeploymentName::new(zone.clone())?),
            zone,
            address: None,
            incarnation: Incarnation(1),
            launched_by: Some(OperationId(0)),
            predecessors: Vec::new(),
            keeps_checkpoints: false,
            is_read: false,
            asked: None,
        })
    }

    async fn fill_store(&self) -> anyhow::Result<()> {
        let mut writes = Vec::new();
        for zone in 0..ZONES.min(self.count) {
            writes.push(Write::SaveDeployment(self.deployment(zone)?));
        }
        for place in 0..self.count {
            writes.push(Write::SaveNode(self.record(place)?));
        }
        let url = format!("sqlite:{}", self.path().join("state/controller.db").display());
        let database = Database::open(&url, None).await?;
        database.migrate().await?;
        let holder = Holder { controller: ControllerId::new("bench")?, api: String::new() };
        let Taken::Yes(term) = database.take_lease(&holder, FILL_WITHIN).await? else {
            bail!("a database that nobody has known is led by another");
        };
        for some in writes.chunks(ROWS_AT_ONCE) {
            database.store(term, some, &[]).await?;
        }
        database.release_lease(term).await?;
        database.close().await;
        Ok(())
    }

    /// Has the cloud say that every VM runs, as long as the process `pid` does.
    pub(super) fn run_machines(&self, pid: u32) -> anyhow::Result<()> {
        let start_time = local::process::start_time(pid).context("the agents run")?;
        for place in 0..self.count {
            let node = node(place, self.count)?;
            let home = Home::of(&self.path().join("local"), &node);
            fs::create_dir_all(home.path())?;
            let cable = Cable { controllers: Vec::new(), peer: String::new() };
            let operation = OperationId(0);
            let record = MachineRecord {
                fleet: FleetName::default(),
                node,
                operation,
                pid,
                start_time,
                cable,
                created_unix_ms: unix_ms(),
            };
            fs::write(home.file("machine.json"), serde_json::to_vec(&record)?)?;
        }
        Ok(())
    }
}

/// A controller at work, ended with this.
pub(super) struct Controller {
    child: Child,
    log: PathBuf,
    pub(super) quic: SocketAddr,
    pub(super) api: String,
}

impl Controller {
    pub(super) fn start(site: &Site) -> anyhow::Result<Self> {
        let log = site.path().join("controller.log");
        let output = File::create(&log)?;
        let mut child = Command::new(binary("cic-controller")?)
            .arg("serve")
            .arg("--config")
            .arg(site.config())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("start cic-controller")?;
        let began = Instant::now();
        let ports = loop {
            if let Some(ports) = Ports::read(&site.path().join("state")) {
                break ports;
            }
            let ended = child.try_wait()?;
            if ended.is_some() || began.elapsed() > READY_WITHIN {
                let _ = child.kill();
                let _ = child.wait();
                let text = fs::read_to_string(&log).unwrap_or_default();
                anyhow::bail!("the controller does not serve ({ended:?}):\n{text}");
            }
            std::thread::sleep(Duration::from_millis(20)); // bounded wait: READY_WITHIN
        };
        let api = format!("127.0.0.1:{}", ports.api);
        Ok(Self { child, log, quic: SocketAddr::from(([127, 0, 0, 1], ports.quic)), api })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last lines of its log, for a failure.
    pub(super) fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<&str> = text.lines().rev().take(12).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    pub(super) fn ensure_runs(&mut self) -> anyhow::Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "the controller ended with {ended:?}:\n{}", self.log());
        Ok(())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_zone_and_no_two_nodes_a_name() {
        for count in [20, 200, 210, 1000] {
            let names: std::collections::BTreeSet<NodeId> =
                (0..count).map(|place| node(place, count).unwrap()).collect();
            assert_eq!(names.len(), count);
            assert_eq!((zone_of(0, count), zone_of(count - 1, count)), (0, ZONES - 1));
            for zone in 0..ZONES {
                let members = (0..count).filter(|place| zone_of(*place, count) == zone).count();
                assert_eq!(members, first_of(zone + 1, count) - first_of(zone, count));
            }
        }
    }
}
