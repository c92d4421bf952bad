//! What a person sees while a fleet runs, and what it says about getting ready.

use std::collections::BTreeMap;

use cic_common::id::NodeId;
use cic_common::report::{EngineState, Phase, Role};

use super::super::nodes;
use super::super::screen::Screen;
use super::super::shown::{self, Shown};
use super::super::span;
use super::super::style::Tone;
use super::child::last_lines;
use super::fleet::Fleet;
use crate::core::NodeView;
use crate::provision::local::Home;

/// Lines of an engine's log shown when it does not start.
pub(super) const LOG_LINES_SHOWN: usize = 12;

const SPINNER: [char; 4] = ['|', '/', '-', '\\'];

/// How far the fleet is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Readiness {
    Coming,
    /// Every replica serves and the gateway takes requests.
    Ready,
    /// A replica cannot come up: what it says, and the end of its engine's log.
    Failed {
        what: String,
        log: Vec<String>,
    },
}

/// Whether `fleet` as `shown` is ready.
pub(super) fn readiness(fleet: &Fleet, shown: &Shown) -> Readiness {
    let replicas = || shown.view.nodes.iter().filter(|node| node.role == Role::Replica);
    if let Some((node, what)) = replicas().find_map(|node| Some((node, breakdown(node)?))) {
        let log = Home::of(&fleet.place.dir, &node.node).state().join("engine.log");
        return Readiness::Failed {
            what: format!("{}: {what}", node.node),
            log: last_lines(&log, LOG_LINES_SHOWN),
        };
    }
    let is_serving =
        |node: &&NodeView| node.report.as_ref().is_some_and(|report| report.phase == Phase::Serving);
    let serving_count = replicas().filter(is_serving).filter(|node| node.is_routed).count();
    let has_gateway =
        shown.view.nodes.iter().filter(|node| node.role == Role::Gateway).any(|node| is_serving(&node));
    if serving_count >= usize::from(fleet.plan.replicas) && has_gateway {
        Readiness::Ready
    } else {
        Readiness::Coming
    }
}

/// Why a node that has never served will not.
fn breakdown(node: &NodeView) -> Option<String> {
    let report = node.report.as_ref()?;
    if report.phase == Phase::Failed {
        return Some(format!("failed: {}", report.reason));
    }
    let has_ended = report.engine.state == EngineState::Exited || report.engine.restart_count > 0;
    let how = report.engine.last_exit.as_deref().unwrap_or("without a word");
    (has_ended && report.phase.is_starting()).then(|| format!("its engine ended at its start: {how}"))
}

/// Draws a table in place on a terminal; elsewhere says each change in a line.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) screen: Screen,
    seen: BTreeMap<NodeId, String>,
    /// The controller's silence was said already.
    is_silent: bool,
    frame: usize,
}

impl Live {
    pub(super) fn new(screen: Screen) -> Self {
        Self { screen, seen: BTreeMap::new(), is_silent: false, frame: 0 }
    }

    /// Says a line that stays, with the time since the start.
    pub(super) fn say(&mut self, fleet: &Fleet, line: &str) {
        let elapsed = fleet.clock.now().since(fleet.began);
        self.screen.say(&format!("{:>7.1} s  {line}", elapsed.as_secs_f64()));
    }

    pub(super) fn show(&mut self, fleet: &Fleet, shown: &Shown, readiness: &Readiness) {
        if !self.screen.style.is_terminal {
            self.say_changes(fleet, shown);
            return;
        }
        let mut lines = nodes::lines(shown, &self.screen.style);
        lines.push(String::new());
        let last = match readiness {
            Readiness::Ready => {
                "Ctrl-C stops everything; `cic nodes`, `cic why` and `cic fault` work in another terminal"
                    .to_owned()
            }
            Readiness::Coming | Readiness::Failed { .. } => {
                self.frame = (self.frame + 1) % SPINNER.len();
                format!("{} {}", SPINNER[self.frame], progress(fleet, shown))
            }
        };
        let style = self.screen.style;
        lines.push(style.paint(&style.fit(&last), Tone::Faint));
        self.screen.draw(&lines);
    }

    /// The controller does not answer; what was drawn stays true as far as is known.
    pub(super) fn show_silence(&mut self, fleet: &Fleet, why: &str) {
        if self.screen.style.is_terminal {
            let line = self.screen.style.fit(why);
            self.screen.draw(&[self.screen.style.paint(&line, Tone::Bad)]);
        } else if !self.is_silent {
            self.is_silent = true;
            self.say(fleet, why);
        }
    }

    fn say_changes(&mut self, fleet: &Fleet, shown: &Shown) {
        self.is_silent = false;
        let short = shown.short_names();
        let mut said = Vec::new();
        for node in &shown.view.nodes {
            let (phase, belief) = (shown::phase(node).0, shown::belief(node.belief).0);
            let routed = if node.is_routed { ", routed" } else { "" };
            let leaving = node.leaving.as_ref().map(|why| format!(", leaving: {why}")).unwrap_or_default();
            let state = format!("{phase}, {belief}{routed}{leaving}");
            if self.seen.get(&node.node) != Some(&state) {
                let name = short.get(&node.node).copied().unwrap_or(node.node.as_str());
                said.push(format!("{name}: {state} ({})", shown::why(node)));
                self.seen.insert(node.node.clone(), state);
            }
        }
        let gone: Vec<NodeId> = self
            .seen
            .keys()
            .filter(|known| !shown.view.nodes.iter().any(|node| node.node == **known))
            .cloned()
            .collect();
        for node in gone {
            self.seen.remove(&node);
            said.push(format!("{node}: given back"));
        }
        said.iter().for_each(|line| self.say(fleet, line));
    }
}

/// `1 of 2 replicas serve; node002 loading for 34 s: INFO 11-24 model loaded`
fn progress(fleet: &Fleet, shown: &Shown) -> String {
    let short = shown.short_names();
    let replicas: Vec<&NodeView> =
        shown.view.nodes.iter().filter(|node| node.role == Role::Replica).collect();
    let is_serving =
        |node: &NodeView| node.report.as_ref().is_some_and(|report| report.phase == Phase::Serving);
    let serving_count = replicas.iter().filter(|node| is_serving(node)).count();
    let mut text = format!("{serving_count} of {} replicas serve", fleet.plan.replicas);
    let coming =
        replicas.iter().find_map(|node| Some((node, node.report.as_ref()?)).filter(|_| !is_serving(node)));
    if let Some((node, report)) = coming {
        let name = short.get(&node.node).copied().unwrap_or(node.node.as_str());
        let for_span = span::text(std::time::Duration::from_millis(report.phase_for_ms));
        text.push_str(&format!("; {name} {} for {for_span}", report.phase));
        let log = Home::of(&fleet.place.dir, &node.node).state().join("engine.log");
        if let Some(line) = last_lines(&log, 1).first() {
            let plain: String = line.chars().filter(|c| !c.is_control()).collect();
            text.push_str(&format!(": {}", plain.trim()));
        }
    }
    text
}
