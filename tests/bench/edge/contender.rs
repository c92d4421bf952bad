//! Who is measured: the upstream itself, our edge, and each peer that is here.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use cic_common::process::{Process, family};
use fleet_tests::process::{Solo, SoloOptions};

use super::peers::{Peer, Running};
use crate::rig::Usage;

/// From the agent's start to a serving engine.
const SERVING_WITHIN: Duration = Duration::from_secs(60);

/// What the agents are measured with: each value of `[edge] continuation`, the first of which is held against the
/// targets. `None` leaves the setting out.
pub(super) const CONTINUATIONS: &[Option<bool>] = &[Some(true), Some(false)];

/// Where a contender belongs in a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// No proxy at all: what the others add to.
    Direct,
    Ours {
        continuation: Option<bool>,
    },
    Peer(Peer),
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Ours { continuation: None } => "ours",
            Self::Ours { continuation: Some(true) } => "ours, ids kept",
            Self::Ours { continuation: Some(false) } => "ours, no ids",
            Self::Peer(peer) => peer.name(),
        }
    }
}

/// One of those measured. Its processes end with it.
#[derive(Debug)]
pub(super) struct Contender {
    pub(super) kind: Kind,
    pub(super) address: SocketAddr,
    process: Processes,
}

/// What a contender's memory and time on a core are read from.
#[derive(Debug)]
enum Processes {
    None,
    /// Without the engine it started.
    Agent(Solo),
    Family(Running),
}

impl Contender {
    /// Our edge, in front of an engine of its own that is this very program. `place` is for the model's directory.
    pub(super) fn ours(place: &Path, continuation: Option<bool>) -> anyhow::Result<Self> {
        let mut options = SoloOptions::standin(place)?;
        options.engine = std::env::current_exe()?;
        // No peer logs its requests here either.
        options = options.with("CIC_EDGE_ACCESS_LOG", "false");
        if let Some(continuation) = continuation {
            options = options.with("CIC_EDGE_CONTINUATION", continuation.to_string());
        }
        let mut agent = Solo::start(options)?;
        agent.wait_serving(SERVING_WITHIN)?;
        let address = agent.address("edge")?.parse()?;
        Ok(Self { kind: Kind::Ours { continuation }, address, process: Processes::Agent(agent) })
    }

    /// The engine of `ours`, asked without any proxy.
    pub(super) fn behind(ours: &Self) -> anyhow::Result<Self> {
        let Processes::Agent(agent) = &ours.process else { anyhow::bail!("only an agent has an engine") };
        let address = agent.engine_address()?.parse()?;
        Ok(Self { kind: Kind::Direct, address, process: Processes::None })
    }

    /// The engine's process, where it has one of its own.
    pub(super) fn engine_pid(&self) -> anyhow::Result<Option<u32>> {
        match &self.process {
            Processes::Agent(agent) => agent.engine_pid().map(Some),
            Processes::None | Processes::Family(_) => Ok(None),
        }
    }

    pub(super) fn peer(peer: Peer, running: Running) -> Self {
        let address = running.address;
        Self { kind: Kind::Peer(peer), address, process: Processes::Family(running) }
    }

    /// All its processes added up; `None` for the upstream, which is behind everyone.
    pub(super) fn usage(&self) -> anyhow::Result<Option<Usage>> {
        match &self.process {
            Processes::None => Ok(None),
            Processes::Agent(agent) => Usage::of(agent.agent_pid()).map(Some),
            Processes::Family(running) => {
                let all = Process::all()?;
                let members = family(&all, |process| process.pid == running.pid());
                let mut usages = members.iter().map(|process| Usage::of(process.pid));
                let sum = |sum: Usage, one: anyhow::Result<Usage>| Ok::<_, anyhow::Error>(sum.plus(one?));
                usages.try_fold(Usage::default(), sum).map(Some).context("read what a peer uses")
            }
        }
    }
}
