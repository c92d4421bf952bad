//! Breaks the node that serves streams, again and again, each time at a random token.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use cic_common::process::Process;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::choir::Board;
use super::dev_fleet::{DevFleet, Fault};

/// Between two looks at a condition that is waited for.
const LOOK: Duration = Duration::from_millis(20);

/// For streams to begin again on a node where the last ones have just ended.
const CROWD_WITHIN: Duration = Duration::from_secs(10);

/// How a node is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// SIGKILL to the engine's API server: its connections close.
    Engine,
    /// SIGKILL to the engine's core: streams end with an error event and `[DONE]`.
    EngineCore,
    /// SIGTERM to the engine: streams end with finish reason `abort`.
    EngineStop,
    /// SIGKILL to the agent, which carries the streams; its engine stays.
    Agent,
    /// SIGKILL to everything of the node at once.
    Node,
    /// `cic drain`.
    Drain,
}

impl Strike {
    /// Breaks `node`.
    ///
    /// # Errors
    /// When it has nothing of the kind to break.
    pub fn perform(self, fleet: &DevFleet, node: &str) -> anyhow::Result<()> {
        let engine = || -> anyhow::Result<u32> {
            let pid = fleet.report_of(node)?["engine"]["pid"].as_u64().context("no engine")?;
            Ok(u32::try_from(pid)?)
        };
        let send = |pid: u32, signal| kill(Pid::from_raw(pid.cast_signed()), signal);
        match self {
            Self::Engine => send(engine()?, Signal::SIGKILL)?,
            Self::EngineCore => send(core_of(engine()?)?, Signal::SIGKILL)?,
            Self::EngineStop => send(engine()?, Signal::SIGTERM)?,
            Self::Agent => fleet.fault(node, Fault::KillAgent)?,
            Self::Node => fleet.fault(node, Fault::Kill)?,
            Self::Drain => fleet.drain(node)?,
        }
        Ok(())
    }
}

/// Which nodes are struck, when, and how.
#[derive(Debug)]
pub struct Striker {
    strikes: Vec<Strike>,
    turn: usize,
    /// A node is struck only while so many serve, itself included.
    serving_min: usize,
    /// From streams on the victim to the strike: a random share of this, a quarter at least.
    moment_max: Duration,
    /// For a node to serve again.
    heal_within: Duration,
    dice: fastrand::Rng,
    /// The node struck last, with its engine's pid, until it is seen that this engine is gone.
    falling: Option<(String, u64)>,
    /// The nodes struck so far, each with how and with the count of streams it cut.
    pub struck: Vec<(String, Strike, usize)>,
}

impl Striker {
    #[must_use]
    pub fn new(strikes: &[Strike], serving_min: usize, moment_max: Duration, heal_within: Duration) -> Self {
        let dice = fastrand::Rng::with_seed(serving_min as u64);
        Self {
            strikes: strikes.to_vec(),
            turn: 0,
            serving_min,
            moment_max,
            heal_within,
            dice,
            falling: None,
            struck: Vec::new(),
        }
    }

    /// Waits for enough nodes to serve and for requests on one of them, then breaks it. False when `is_over` came first.
    ///
    /// What it cut is counted on the `board`, or is what the victim's engine had in flight.
    ///
    /// # Errors
    /// When too few nodes serve for too long, or a node cannot be broken.
    pub fn strike(
        &mut self,
        fleet: &DevFleet,
        board: Option<&Board>,
        is_over: &dyn Fn() -> bool,
    ) -> anyhow::Result<bool> {
        let Some(victim) = self.victim(fleet, is_over)? else { return Ok(false) };
        // Never at once: a stream that is cut at each of its tokens is no case that any edge should survive.
        let share = f64::midpoint(self.dice.f64(), 0.5);
        std::thread::sleep(self.moment_max.mul_f64(share)); // bounded wait: a random moment is the point
        let began = Instant::now();
        while board.is_some_and(|board| !board.is_crowded(&victim)) && began.elapsed() < CROWD_WITHIN {
            std::thread::sleep(LOOK); // bounded wait: by `CROWD_WITHIN`
        }
        let strike = self.strikes[self.turn % self.strikes.len()];
        self.turn += 1;
        let cut = match board {
            // A drain lets streams go on for a while: how many it cuts is not known yet.
            _ if strike == Strike::Drain => 0,
            Some(board) => board.cut(&victim),
            None => fleet.in_flight_of(&victim),
        };
        // An agent that is killed leaves its engine as it was.
        let engine = engine_of(fleet, &victim).filter(|_| strike != Strike::Agent);
        match strike.perform(fleet, &victim) {
            Ok(()) => self.struck.push((victim, strike, cut)),
            // A node that is one too many is given back at any moment.
            Err(_) if fleet.view().is_ok_and(|view| !view.is_routed(&victim)) => {}
            Err(error) => return Err(error.context(format!("{strike:?} of {victim}"))),
        }
        self.falling = self.struck.last().map(|(node, ..)| node.clone()).zip(engine);
        Ok(true)
    }

    /// Waits until what was struck last is seen to be gone, and enough nodes serve. False when `is_over` came first.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_healed(&mut self, fleet: &DevFleet, is_over: &dyn Fn() -> bool) -> anyhow::Result<bool> {
        let began = Instant::now();
        while began.elapsed() < self.heal_within {
            if is_over() {
                return Ok(false);
            }
            // An engine whose core is gone says for seconds that it is well, and must not count as one that serves.
            if self.falling.as_ref().is_some_and(|(node, pid)| engine_of(fleet, node) != Some(*pid)) {
                self.falling = None;
            }
            if self.falling.is_none() && fleet.serving_by_their_word().len() >= self.serving_min {
                return Ok(true);
            }
            std::thread::sleep(LOOK); // bounded wait: by `heal_within`
        }
        bail!("of {:?} only {:?} serve", fleet.nodes(), fleet.serving_by_their_word())
    }

    /// Of those on which requests run the one that was struck longest ago, and never the last one again.
    ///
    /// An edge repeats for nothing what a replica's death cut, once in ten seconds and replica: one that dies again and
    /// again is a fault of its own. By turns none of three does.
    fn victim(&mut self, fleet: &DevFleet, is_over: &dyn Fn() -> bool) -> anyhow::Result<Option<String>> {
        let began = Instant::now();
        while began.elapsed() < self.heal_within {
            if !self.wait_healed(fleet, is_over)? {
                return Ok(None);
            }
            let struck_at = |node: &String| self.struck.iter().rposition(|(struck, ..)| struck == node);
            let last = self.struck.len().checked_sub(1);
            let is_next =
                |node: &String| (last.is_none() || struck_at(node) != last) && fleet.in_flight_of(node) > 0;
            let candidates = fleet.serving_by_their_word().into_iter().filter(is_next);
            if let Some(victim) = candidates.min_by_key(struck_at) {
                return Ok(Some(victim));
            }
            std::thread::sleep(LOOK); // bounded wait: by `heal_within`
        }
        bail!("nobody asks another of {:?} than the one struck last", fleet.nodes())
    }
}

/// The pid of the engine that serves on `node`, by its agent's word.
fn engine_of(fleet: &DevFleet, node: &str) -> Option<u64> {
    let report = fleet.report_of(node).ok()?;
    report["engine"]["pid"].as_u64().filter(|_| report["phase"] == "serving")
}

/// The engine's core: the child of that title in a vLLM, which has others too, and the only one of the stand-in.
fn core_of(engine: u32) -> anyhow::Result<u32> {
    let children =
        Process::all()?.into_iter().filter(|process| process.parent == engine).map(|child| child.pid);
    let title = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let mut children: Vec<u32> = children.collect();
    children.sort_by_key(|pid| !title(*pid).contains("EngineCor"));
    children.first().copied().context("it has no child")
}
