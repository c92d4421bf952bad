//! Which packets are lost: rules of nft on the one loopback that all nodes share.
//!
//! ```text
//! agent --UDP--> up (its cable) --> controller          controller, edges --TCP--> peer (its cable) --> agent
//! ```
//! Rules drop where packets arrive: whoever sent one learns nothing of it, as on a real network.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use cic_common::id::NodeId;
use cic_controller::provision::local::Home;
use fleet_tests::process::DevFleet;

use crate::apart::CONTROLLER_GROUP;

/// The mark survives the loopback; the sender's group does not.
const MARK: u32 = CONTROLLER_GROUP;

/// One node's ports.
#[derive(Debug, Clone, Copy)]
struct Ends {
    /// Where its agent sends its datagrams to the controller.
    up: u16,
    /// Where controller and edges reach its agent.
    peer: u16,
}

/// Every port that a rule may name.
#[derive(Debug)]
pub(crate) struct Wires {
    controller: u16,
    nodes: BTreeMap<String, Ends>,
}

impl Wires {
    /// Looks the ports up and has nft mark what the controller sends.
    pub(crate) fn of(fleet: &DevFleet, nodes: &[String]) -> anyhow::Result<Self> {
        let ends = |node: &String| -> anyhow::Result<(String, Ends)> {
            let home = Home::of(&fleet.path(), &NodeId::new(node.clone())?);
            let cable = home.machine()?.with_context(|| format!("{node} has no machine"))?.cable;
            let up = port(cable.controllers.first().context("one controller")?)?;
            Ok((node.clone(), Ends { up, peer: port(&cable.peer)? }))
        };
        let nodes = nodes.iter().map(ends).collect::<anyhow::Result<_>>()?;
        nft(&format!(
            "table inet fault {{
                chain sent {{ type filter hook output priority 0; meta skgid {CONTROLLER_GROUP} meta mark set {MARK}; }}
                chain lost {{ type filter hook input priority 0; }}
            }}\n"
        ))?;
        Ok(Self { controller: controller_port(fleet)?, nodes })
    }

    /// So many of a hundred packets of every node are lost, each way.
    pub(crate) fn loss(&self, percent: u32) -> Vec<String> {
        let of_node = |node: &String| self.all_of(node);
        let lost = |packets| format!("{packets} numgen random mod 100 < {percent}");
        self.nodes.keys().flat_map(of_node).map(lost).collect()
    }

    /// Nothing that the node sends by itself reaches the controller.
    pub(crate) fn pushes(&self, node: &str) -> Vec<String> {
        vec![format!("udp dport {}", self.nodes[node].up)]
    }

    /// Nothing that the controller sends to the node's port arrives; edges still reach it.
    pub(crate) fn polls(&self, node: &str) -> Vec<String> {
        vec![format!("meta mark {MARK} tcp dport {}", self.nodes[node].peer)]
    }

    /// Controller and node hear nothing of each other; edges still reach it.
    pub(crate) fn partition(&self, node: &str) -> Vec<String> {
        let up = self.nodes[node].up;
        [self.polls(node), vec![format!("udp dport {up}"), format!("udp sport {up}")]].concat()
    }

    /// Nobody reaches the node.
    pub(crate) fn all_of(&self, node: &str) -> Vec<String> {
        let Ends { up, peer } = self.nodes[node];
        let ends = [("udp", up), ("tcp", peer)];
        ends.iter()
            .flat_map(|(kind, port)| ["dport", "sport"].map(|end| format!("{kind} {end} {port}")))
            .collect()
    }

    /// Nothing passes on the connections that are open to the node now; new ones do.
    pub(crate) fn open_to(&self, node: &str) -> anyhow::Result<Vec<String>> {
        let peer = self.nodes[node].peer;
        let sockets = std::fs::read_to_string("/proc/net/tcp")?;
        // sl local_address rem_address st …; addresses are HEX:PORT, and 01 is ESTABLISHED.
        let port_of = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
        let connection = |line: &str| {
            let mut fields = line.split_whitespace().skip(1);
            let (own, other, state) = (port_of(fields.next()?)?, port_of(fields.next()?)?, fields.next()?);
            (other == peer && state == "01").then_some(own)
        };
        let rules = |own: u16| {
            [format!("tcp sport {own} tcp dport {peer}"), format!("tcp sport {peer} tcp dport {own}")]
        };
        Ok(sockets.lines().filter_map(connection).flat_map(rules).collect())
    }

    /// The controller hears nothing of any agent, the gateway's included, and reaches none; they reach each other.
    pub(crate) fn all_to_the_controller(&self) -> Vec<String> {
        let controller = self.controller;
        let polls = self.nodes.keys().flat_map(|node| self.polls(node));
        polls.chain(["dport", "sport"].map(|end| format!("udp {end} {controller}"))).collect()
    }
}

/// From now on these packets are lost, and no others.
pub(crate) fn lose(packets: &[String]) -> anyhow::Result<()> {
    let rules = packets.iter().map(|packets| format!("add rule inet fault lost {packets} counter drop\n"));
    nft(&format!("flush chain inet fault lost\n{}", rules.collect::<String>()))
}

/// How many packets the rules of now have lost.
pub(crate) fn lost() -> anyhow::Result<u64> {
    let output = Command::new("nft").args(["list", "chain", "inet", "fault", "lost"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let counts =
        text.split("counter packets ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    Ok(counts.sum())
}

/// Where the controller hears agents.
pub(crate) fn controller_port(fleet: &DevFleet) -> anyhow::Result<u16> {
    let text = std::fs::read_to_string(fleet.path().join("controller.toml"))?;
    let quic = text.split("[quic]").nth(1).context("no [quic]")?;
    let listen = quic.lines().find_map(|line| line.strip_prefix("listen = ")).context("no listen")?;
    port(listen.trim_matches('"'))
}

fn port(address: &str) -> anyhow::Result<u16> {
    let (_, port) = address.rsplit_once(':').with_context(|| format!("{address:?} has no port"))?;
    Ok(port.parse()?)
}

/// All of it or nothing.
fn nft(commands: &str) -> anyhow::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start nft")?;
    child.stdin.take().context("its stdin is piped")?.write_all(commands.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{commands}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
