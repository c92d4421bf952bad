//! What may go wrong, and how each fault strikes the world.

use std::time::Duration;

use cic_agent::core::Event as AgentEvent;
use cic_common::id::DeploymentName;
use cic_common::notice::{Confidence, NoticeKind};
use cic_common::wire::message::NodeEvent;
use cic_controller::core::Event;

use super::controller::CrashPoint;
use super::fact::Fact;
use super::happening::Happening;
use super::machine::{Host, PostedNotice};
use super::network::{Path, Way};
use super::world::World;

/// Seconds between two words of an edge on one model, as the real one has it.
const CRY_EVERY_S: usize = 5;

/// Whom a fault of the network strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Node,
    Zone,
    Fleet,
}

/// One fault. Its victim is drawn when it strikes, among those that are there.
#[derive(Debug, Clone)]
pub enum Fault {
    KillAgent,
    KillEngine,
    HangEngine,
    /// The engine answers and has work, and nothing of it moves for `span`.
    StallEngine {
        span: Duration,
    },
    /// Init ends the agent in order and starts it again; the engine stays.
    UpgradeAgent,
    KillHost {
        reboots_after: Option<Duration>,
        found_out_after: Option<Duration>,
    },
    Freeze {
        span: Duration,
    },
    Cut {
        scope: Scope,
        links: Vec<(Path, Way)>,
        span: Duration,
    },
    Storm {
        loss: f64,
        span: Duration,
    },
    Notice {
        kind: NoticeKind,
        left: Duration,
        is_lifted: bool,
    },
    Reclaim,
    CloudOutage {
        span: Duration,
    },
    Drought {
        span: Duration,
    },
    StoreOutage {
        span: Duration,
    },
    KillController {
        down_for: Duration,
    },
    KillControllerAt {
        point: CrashPoint,
        down_for: Duration,
    },
    StallController {
        span: Duration,
    },
    StaleWord,
    StaleTerm,
    Scale {
        deployment: DeploymentName,
        replicas: u16,
    },
    AskReplace,
    AskDrain,
    /// An edge says, again and again, that users ask for the deployment and it reaches no replica: rightly or not.
    EdgeCries {
        deployment: DeploymentName,
        /// The edge, as the nth node there is by then.
        nth: usize,
        span: Duration,
    },
}

impl Fault {
    /// Its name in the summary.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::KillAgent => "kill-agent",
            Self::KillEngine => "kill-engine",
            Self::HangEngine => "hang-engine",
            Self::StallEngine { .. } => "stall-engine",
            Self::UpgradeAgent => "upgrade-agent",
            Self::KillHost { .. } => "kill-host",
            Self::Freeze { .. } => "freeze",
            Self::Cut { scope: Scope::Node, links, .. } if links.len() < 4 => "cut-one-way",
            Self::Cut { scope: Scope::Node, .. } => "cut-node",
            Self::Cut { scope: Scope::Zone, .. } => "cut-zone",
            Self::Cut { scope: Scope::Fleet, .. } => "cut-fleet",
            Self::Storm { .. } => "storm",
            Self::Notice { .. } => "notice",
            Self::Reclaim => "reclaim",
            Self::CloudOutage { .. } => "cloud-outage",
            Self::Drought { .. } => "no-capacity",
            Self::StoreOutage { .. } => "store-outage",
            Self::KillController { .. } => "kill-controller",
            Self::KillControllerAt { .. } => "kill-controller-at",
            Self::StallController { .. } => "stall-controller",
            Self::StaleWord => "stale-word",
            Self::StaleTerm => "stale-term",
            Self::Scale { .. } => "scale",
            Self::AskReplace => "ask-replace",
            Self::AskDrain => "ask-drain",
            Self::EdgeCries { .. } => "edge-cries",
        }
    }
}

impl World {
    pub(super) fn strike(&mut self, fault: Fault) {
        if self.is_quiet {
            return;
        }
        let now = self.now();
        self.trace.line(now, || format!("fault {fault:?}"));
        let kind = fault.kind();
        if self.strikes(fault) {
            self.count(kind);
        }
    }

    fn strikes(&mut self, fault: Fault) -> bool {
        let now = self.now();
        match fault {
            Fault::KillAgent => self.on_victim(Self::agent_dies),
            Fault::KillEngine => self.on_victim(|world, node| {
                if let Some(pid) = world.machines[node].engine.as_ref().map(|engine| engine.pid) {
                    world.engine_ends(node, pid, "signal 9");
                }
            }),
            Fault::HangEngine => self.on_victim(|world, node| {
                if let Some(engine) = &mut world.machines[node].engine {
                    engine.is_hung = true;
                }
            }),
            Fault::StallEngine { span } => self.on_victim(|world, node| {
                if let Some(engine) = &mut world.machines[node].engine {
                    engine.is_stalled = true;
                    let pid = engine.pid;
                    world.later(span, Happening::EngineMoves { node, pid });
                }
            }),
            Fault::UpgradeAgent => self.on_victim(|world, node| {
                let Some(run) = world.machines[node].process.as_ref().map(|process| process.run) else {
                    return;
                };
                let reason = "upgrade".to_owned();
                let event = Box::new(AgentEvent::StopAsked { with_engine: false, reason });
                world.happen(Happening::AgentHears { node, run, event });
            }),
            Fault::KillHost { reboots_after, found_out_after } => self.on_victim(|world, node| {
                world.host_dies(node, Host::Down);
                if let Some(wait) = reboots_after {
                    world.later(wait, Happening::HostBoots { node });
                }
                if let Some(wait) = found_out_after {
                    let vm = world.machines[node].vm;
                    world.later(wait, Happening::VmStops { vm });
                }
            }),
            Fault::Freeze { span } => self.on_victim(|world, node| {
                world.machines[node].is_frozen = true;
                world.later(span, Happening::NodeThaws { node });
            }),
            Fault::Cut { scope, links, span } => self.on_victim(|world, node| {
                for victim in world.within(scope, node) {
                    world.facts.push(Fact::Blemished { node: victim });
                    for &(path, way) in &links {
                        world.network.cut(victim, path, way, now + span);
                    }
                }
            }),
            Fault::Storm { loss, span } => self.on_victim(|world, node| {
                for (path, way) in LINKS {
                    world.network.storm(node, path, way, loss, now + span);
                }
            }),
            Fault::Notice { kind, left, is_lifted } => {
                self.on_victim(|world, node| world.post_notice(node, kind, left, is_lifted))
            }
            Fault::Reclaim => self.on_victim(|world, node| {
                let vm = world.machines[node].vm;
                world.vm_ends(vm);
            }),
            Fault::CloudOutage { span } => {
                self.cloud.fail_until(now + span);
                true
            }
            Fault::Drought { span } => {
                self.cloud.run_dry_until(now + span);
                true
            }
            Fault::StoreOutage { span } => {
                self.store.fail_until(now + span);
                true
            }
            Fault::KillController { down_for } => {
                self.controller_dies(down_for);
                true
            }
            Fault::KillControllerAt { point, down_for } => {
                self.controller.armed = Some((point, down_for));
                true
            }
            Fault::StallController { span } => self.stall_controller(span),
            Fault::StaleWord => self.feed_stale_word(),
            Fault::StaleTerm => self.feed_stale_term(),
            Fault::Scale { deployment, replicas } => self.scale(&deployment, replicas),
            Fault::AskReplace => self.on_victim(|world, node| world.operator_asks(node, false)),
            Fault::AskDrain => self.on_victim(|world, node| world.operator_asks(node, true)),
            Fault::EdgeCries { deployment, nth, span } => self.edge_cries(&deployment, nth, span),
        }
    }

    /// Draws a node whose host is up and lets `strike` do its worst.
    fn on_victim(&mut self, strike: impl FnOnce(&mut Self, usize)) -> bool {
        let up: Vec<usize> =
            (0..self.machines.len()).filter(|&node| self.machines[node].host == Host::Up).collect();
        if up.is_empty() {
            return false;
        }
        let node = up[self.rng.index(up.len())];
        let (now, name) = (self.now(), self.machines[node].node.clone());
        self.trace.line(now, || format!("it strikes {name}"));
        self.facts.push(Fact::Blemished { node });
        strike(self, node);
        true
    }

    fn within(&self, scope: Scope, node: usize) -> Vec<usize> {
        let zone = &self.machines[node].zone;
        (0..self.machines.len())
            .filter(|&other| match scope {
                Scope::Node => other == node,
                Scope::Zone => self.machines[other].zone == *zone,
                Scope::Fleet => true,
            })
            .collect()
    }

    fn post_notice(&mut self, node: usize, kind: NoticeKind, left: Duration, is_lifted: bool) {
        let deadline = self.now() + left;
        if self.machines[node].notice.is_some() {
            return;
        }
        let id = format!("n{}", self.rng.range(0, 999_999));
        self.machines[node].notice = Some(PostedNotice { kind, id: id.clone(), deadline });
        self.machines[node].was_advised |= kind == NoticeKind::Rebalance;
        let wait = self.rng.ms(0, 2000);
        self.tell_notice(node, wait);
        let vm = self.machines[node].vm;
        if is_lifted {
            let Some(run) = self.machines[node].process.as_ref().map(|process| process.run) else { return };
            self.machines[node].notice = None;
            let event = Box::new(AgentEvent::NoticeLifted { source: SOURCE.to_owned(), id });
            self.later(left / 2, Happening::AgentHears { node, run, event });
        } else if kind == NoticeKind::Stop {
            self.later(left, Happening::VmStops { vm });
        } else if kind.takes_the_node() {
            self.later(left, Happening::VmEnds { vm });
        }
    }

    /// The agent's source of notices reads what is posted.
    pub(super) fn tell_notice(&mut self, node: usize, wait: Duration) {
        let machine = &self.machines[node];
        let (Some(notice), Some(process)) = (&machine.notice, &machine.process) else { return };
        let event = Box::new(AgentEvent::NoticeSeen {
            kind: notice.kind,
            source: SOURCE.to_owned(),
            id: notice.id.clone(),
            deadline: process.origin.local(notice.deadline),
            confidence: Confidence::Announced,
            resources: Vec::new(),
        });
        let run = process.run;
        self.later(wait, Happening::AgentHears { node, run, event });
    }

    fn stall_controller(&mut self, span: Duration) -> bool {
        if !self.controller.answers() {
            return false;
        }
        self.controller.is_frozen = true;
        let run = self.controller.run;
        self.later(span, Happening::ControllerThaws { run });
        true
    }

    fn scale(&mut self, deployment: &DeploymentName, replicas: u16) -> bool {
        let Some(wanted) = self.wanted.get_mut(deployment) else { return false };
        wanted.replicas = replicas;
        wanted.replicas_min = wanted.replicas_min.min(replicas);
        let order = wanted.clone();
        self.facts.push(Fact::Scaled { deployment: deployment.clone(), replicas });
        self.operator_looks();
        // Also where the store has this count already: another order may wait for it in the controller.
        let run = self.controller.run;
        self.happen(Happening::ControllerHears { run, event: Box::new(Event::Deployed(order)) });
        true
    }

    /// The words reach the controller whatever befalls the nodes, as those of a gateway beside it would: the more they
    /// are heard, the more harm they may do. They are no sign of life of the node whose name they come under.
    fn edge_cries(&mut self, deployment: &DeploymentName, nth: usize, span: Duration) -> bool {
        let Some(wanted) = self.wanted.get(deployment) else { return false };
        if self.machines.is_empty() {
            return false;
        }
        let machine = &self.machines[nth % self.machines.len()];
        let (node, incarnation) = (machine.node.clone(), machine.incarnation);
        let (model, run) = (wanted.model.name.clone(), self.controller.run);
        for after in (0..span.as_secs()).step_by(CRY_EVERY_S) {
            let event = NodeEvent::ReplicasMissing { model: model.clone() };
            let event = Box::new(Event::Told { node: node.clone(), incarnation, event });
            self.later(Duration::from_secs(after), Happening::ControllerHears { run, event });
        }
        true
    }

    /// The operator applies what the store does not hold.
    pub(super) fn operator_looks(&mut self) {
        let missing: Vec<_> = self
            .wanted
            .values()
            .filter(|wanted| {
                self.store
                    .deployments()
                    .get(&wanted.name)
                    .is_none_or(|stored| stored.replicas != wanted.replicas)
            })
            .cloned()
            .collect();
        for deployment in missing {
            let run = self.controller.run;
            self.happen(Happening::ControllerHears { run, event: Box::new(Event::Deployed(deployment)) });
        }
    }

    fn operator_asks(&mut self, node: usize, is_drain: bool) {
        self.facts.push(Fact::OperatorAsked { node, is_drain });
        let (id, reason) = (self.machines[node].node.clone(), "operator".to_owned());
        let event = if is_drain {
            Event::DrainAsked { node: id, reason }
        } else {
            Event::ReplaceAsked { node: id, reason }
        };
        let run = self.controller.run;
        self.happen(Happening::ControllerHears { run, event: Box::new(event) });
    }
}

/// All links of a node.
pub const LINKS: [(Path, Way); 4] =
    [(Path::Push, Way::Up), (Path::Push, Way::Down), (Path::Poll, Way::Up), (Path::Poll, Way::Down)];

/// Who tells of notices in this world.
pub(super) const SOURCE: &str = "metadata";
