//! The agent's rules, each driven from the outside by events.

use std::collections::BTreeMap;
use std::time::Duration;

use cic_common::assignment::{Assignment, EngineSpec, ModelSpec};
use cic_common::id::{DeploymentName, Incarnation, NodeId, OperationId, Term};
use cic_common::notice::{Confidence, NoticeKind};
use cic_common::report::{EdgeReport, EngineState, Phase, Role};
use cic_common::time::Mono;
use cic_common::wire::message::{Command, CommandOutcome, NodeEvent};

use self::noticed::{drained_by_command, notice, noticed};
use super::gpu::GpuEvent;
use super::*;

mod checkpointed;
mod files;
mod noticed;
mod on_gpu;
mod supervision;

struct Bench {
    agent: Agent,
    now: Mono,
    out: Vec<Action>,
}

impl Bench {
    fn new(role: Role) -> Self {
        let node = NodeId::new("n1").expect("label");
        let spec = AgentSpec {
            node,
            role,
            incarnation: Incarnation(1),
            timing: Timing::default(),
            mounts: "/state/mounts".to_owned(),
            has_store: false,
            deadman: None,
        };
        Self { agent: Agent::new(spec), now: Mono::ZERO, out: Vec::new() }
    }

    /// The same with an object store.
    fn storing(role: Role) -> Self {
        let mut bench = Self::new(role);
        bench.agent.spec.has_store = true;
        bench
    }

    fn give(&mut self, event: Event) -> &[Action] {
        self.out.clear();
        self.agent.step(self.now, event, &mut self.out);
        &self.out
    }

    fn pass(&mut self, span: Duration) -> &[Action] {
        self.now = self.now + span;
        self.give(Event::Tick)
    }

    fn phase(&self) -> Phase {
        self.agent.report(self.now).phase
    }

    fn loading() -> Self {
        let mut bench = Self::new(Role::Replica);
        bench.give(Event::Booted(Booted::default()));
        bench.give(Event::Assigned { term: Term(1), assignment: assignment("m") });
        bench.give(Event::ModelMounted { attempt: 1, result: Ok(()) });
        bench.give(Event::ModelVerified { attempt: 1, result: Ok(()) });
        bench.give(Event::Gpu(GpuEvent::Absent));
        bench.give(Event::EngineChecked { attempt: 1, result: Ok(()) });
        bench.give(Event::EngineStarted { attempt: 1, pid: 7 });
        bench
    }

    fn serving() -> Self {
        let mut bench = Self::loading();
        bench.give(probed(7, Ok(())));
        bench
    }

    fn end(&mut self) {
        self.give(exited(7, "signal 15", &[]));
    }

    fn fail_once(&mut self) {
        self.give(exited(7, "exit code 1", &["boom"]));
    }
}

/// A probe's answer; a completion moved the counter of iterations by one.
fn probed(pid: u32, result: Result<(), ProbeFault>) -> Event {
    let work = |iterations| Some(Work { iterations: Some(iterations), ..Work::default() });
    let is_completed = result.is_ok();
    let reading = Reading { before: work(0), after: work(u64::from(is_completed)), is_completed };
    Event::EngineProbed { pid, reading, result }
}

fn exited(pid: u32, how: &str, log_tail: &[&str]) -> Event {
    let log_tail = log_tail.iter().map(|line| (*line).to_owned()).collect();
    let end = EngineEnd { how: how.to_owned(), log_tail, pids: vec![pid], ..EngineEnd::default() };
    Event::EngineExited { pid, end }
}

fn assignment(model: &str) -> Assignment {
    Assignment {
        deployment: DeploymentName::new("d").expect("label"),
        model: ModelSpec::at(model, "/m"),
        engine: EngineSpec { program: "vllm".to_owned(), args: Vec::new(), env: BTreeMap::new() },
    }
}

fn stops(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::StopEngine { .. }))
}

fn tells_phase(actions: &[Action], wanted: Phase) -> bool {
    actions.iter().any(|a| matches!(a, Action::Tell(NodeEvent::PhaseChanged { to, .. }) if *to == wanted))
}

#[test]
fn a_replica_goes_through_every_phase_to_serving_and_admits_only_there() {
    let mut bench = Bench::new(Role::Replica);
    let refuses =
        |actions: &[Action]| actions.iter().any(|a| matches!(a, Action::SetEdge(EdgeMode::Refuse { .. })));
    assert!(refuses(bench.give(Event::Booted(Booted::default()))));
    assert_eq!(bench.phase(), Phase::Booting);
    let steps = [
        (Event::Assigned { term: Term(1), assignment: assignment("m") }, Phase::Mounting),
        (Event::ModelMounted { attempt: 1, result: Ok(()) }, Phase::Verifying),
        (Event::ModelVerified { attempt: 1, result: Ok(()) }, Phase::Verifying),
        (Event::Gpu(GpuEvent::Absent), Phase::Verifying),
        (Event::EngineChecked { attempt: 1, result: Ok(()) }, Phase::Loading),
        (Event::EngineStarted { attempt: 1, pid: 7 }, Phase::Loading),
    ];
    for (event, phase) in steps {
        let actions = bench.give(event);
        assert!(!actions.contains(&Action::SetEdge(EdgeMode::Admit)));
        assert_eq!(bench.phase(), phase);
    }
    let actions = bench.give(probed(7, Ok(())));
    assert!(actions.contains(&Action::SetEdge(EdgeMode::Admit)) && tells_phase(actions, Phase::Serving));
}

#[test]
fn a_gateway_serves_at_once_and_takes_no_assignment() {
    let mut bench = Bench::new(Role::Gateway);
    bench.give(Event::Booted(Booted::default()));
    assert_eq!(bench.phase(), Phase::Serving);
    bench.give(Event::Assigned { term: Term(1), assignment: assignment("m") });
    assert_eq!(bench.agent.report(bench.now).deployment, None);
}

#[test]
fn an_engine_found_running_is_probed_not_started() {
    let mut bench = Bench::new(Role::Replica);
    let engine = Some(EngineFound { pid: 9, assignment: assignment("m") });
    let remembered = Some((Term(3), assignment("m")));
    let actions = bench.give(Event::Booted(Booted { engine, remembered, ..Booted::default() })).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::ProbeEngine { pid: 9, depth: Depth::Deep, .. })));
    let actions = bench.give(probed(9, Ok(()))).to_vec();
    assert!(!actions.iter().any(|a| matches!(a, Action::StartEngine { .. } | Action::StopEngine { .. })));
    let report = bench.agent.report(bench.now);
    assert!(report.engine.is_adopted && report.phase == Phase::Serving);
}

#[test]
fn a_changed_assignment_never_stops_a_running_engine() {
    let mut bench = Bench::serving();
    let actions = bench.give(Event::Assigned { term: Term(2), assignment: assignment("other") }).to_vec();
    assert!(!actions.iter().any(|a| matches!(a, Action::StopEngine { .. } | Action::StartEngine { .. })));
    assert_eq!(bench.phase(), Phase::Serving);
}

#[test]
fn a_crashed_engine_is_started_again_after_a_growing_wait() {
    let mut bench = Bench::serving();
    bench.fail_once();
    assert_ne!(bench.phase(), Phase::Serving);
    assert!(bench.agent.report(bench.now).reason.contains("boom"), "the last log line is the reason");
    assert!(!bench.pass(Duration::from_millis(740)).iter().any(|a| matches!(a, Action::MountModel { .. })));
    let actions = bench.pass(Duration::from_millis(520)).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::MountModel { attempt: 2, .. })));
}

#[test]
fn an_exit_code_of_zero_is_a_crash_too() {
    let mut bench = Bench::serving();
    bench.give(exited(7, "exit code 0", &[]));
    assert_eq!(bench.phase(), Phase::Loading);
}

#[test]
fn the_third_failure_in_the_window_asks_for_a_replacement_once() {
    let mut bench = Bench::loading();
    let mut asked = 0;
    for attempt in 1..=4 {
        bench.give(Event::EngineStarted { attempt, pid: 7 });
        bench.fail_once();
        asked += bench
            .out
            .iter()
            .filter(|a| matches!(a, Action::Tell(NodeEvent::ReplacementWanted { .. })))
            .count();
        assert_eq!(asked, usize::from(attempt >= 3), "after {attempt}");
        bench.pass(Duration::from_secs(400));
        let attempt = attempt + 1;
        bench.give(Event::ModelMounted { attempt, result: Ok(()) });
        bench.give(Event::ModelVerified { attempt, result: Ok(()) });
        bench.give(Event::EngineChecked { attempt, result: Ok(()) });
    }
}

#[test]
fn what_waiting_cannot_heal_is_not_tried_again() {
    let mut bench = Bench::new(Role::Replica);
    bench.give(Event::Booted(Booted::default()));
    bench.give(Event::Assigned { term: Term(1), assignment: assignment("m") });
    bench.give(Event::ModelMounted { attempt: 1, result: Ok(()) });
    let fault = ModelFault::MissingShard { path: "/m".to_owned(), shard: "b.safetensors".to_owned() };
    bench.give(Event::ModelVerified { attempt: 1, result: Err(fault) });
    assert_eq!(bench.phase(), Phase::Failed);
    assert!(bench.agent.report(bench.now).reason.contains("b.safetensors"));
    assert!(!bench.pass(Duration::from_secs(3600)).iter().any(|a| matches!(a, Action::MountModel { .. })));
}

#[test]
fn an_engine_not_ready_within_the_start_gate_is_stopped_and_counted() {
    let mut bench = Bench::loading();
    let actions = bench.pass(Duration::from_secs(600)).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::StopEngine { pid: 7, .. })));
    bench.give(exited(7, "signal 9", &[]));
    assert_eq!(bench.agent.report(bench.now).engine.restart_count, 1);
}

#[test]
fn a_serving_engine_is_refused_requests_after_three_failed_probes_not_after_two() {
    let mut bench = Bench::serving();
    let fault = || ProbeFault::Health("503".to_owned());
    for _ in 0..2 {
        bench.give(probed(7, Err(fault())));
        assert_eq!(bench.phase(), Phase::Serving);
    }
    let actions = bench.give(probed(7, Err(fault()))).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::SetEdge(EdgeMode::Refuse { .. }))));
    assert_eq!(bench.phase(), Phase::Loading);
}

#[test]
fn an_answer_of_an_earlier_attempt_or_process_changes_nothing() {
    let mut bench = Bench::serving();
    for event in [
        Event::ModelMounted { attempt: 0, result: Err(ModelFault::NoDirectory { path: "/x".to_owned() }) },
        exited(6, "signal 9", &[]),
        probed(6, Err(ProbeFault::Health("refused".to_owned()))),
        Event::EngineStartFailed { attempt: 0, reason: "old".to_owned(), may_heal: false },
    ] {
        bench.give(event);
        assert_eq!(bench.phase(), Phase::Serving);
    }
}

#[test]
fn a_command_of_a_lower_term_is_refused_and_changes_nothing() {
    let mut bench = Bench::serving();
    bench.give(Event::Assigned { term: Term(5), assignment: assignment("m") });
    let command = Command::Drain { within_ms: 0, reason: "old leader".to_owned() };
    let actions = bench.give(Event::Commanded { operation: OperationId(1), term: Term(4), command }).to_vec();
    let outcome = CommandOutcome::RefusedTerm { newest: Term(5) };
    assert!(actions.contains(&Action::Tell(NodeEvent::CommandDone { operation: OperationId(1), outcome })));
    assert_eq!(bench.phase(), Phase::Serving);
}

#[test]
fn a_restart_is_answered_however_often_and_done_once_by_this_run_and_the_next() {
    let restart = |operation| Event::Commanded {
        operation: OperationId(operation),
        term: Term(5),
        command: Command::RestartAgent { reason: "no push".to_owned() },
    };
    let is_accepted = |actions: &[Action], operation| {
        let (operation, outcome) = (OperationId(operation), CommandOutcome::Accepted);
        actions.contains(&Action::Tell(NodeEvent::CommandDone { operation, outcome }))
    };
    let exits = |actions: &[Action]| actions.iter().any(|a| matches!(a, Action::Exit { code: 75, .. }));
    let mut bench = Bench::serving();
    let actions = bench.give(restart(7)).to_vec();
    assert!(is_accepted(&actions, 7) && exits(&actions));
    let remembered = Action::RememberRestart { term: Term(5), operation: OperationId(7) };
    assert!(actions.contains(&remembered), "{actions:?}");
    let actions = bench.give(restart(7)).to_vec();
    assert!(is_accepted(&actions, 7) && !exits(&actions));

    let mut next = Bench::new(Role::Replica);
    let restarted_for = Some((Term(5), OperationId(7)));
    next.give(Event::Booted(Booted { restarted_for, ..Booted::default() }));
    for (operation, is_done) in [(7, false), (6, false), (8, true)] {
        let actions = next.give(restart(operation)).to_vec();
        assert!(is_accepted(&actions, operation));
        assert_eq!(exits(&actions), is_done, "{operation}");
    }
}

#[test]
fn a_drain_waits_for_running_requests_then_stops_the_engine_and_says_farewell() {
    let mut bench = Bench::serving();
    bench.give(Event::EdgeCounted(EdgeReport { in_flight: 2, ..EdgeReport::default() }));
    let command = Command::Drain { within_ms: 30_000, reason: "surplus".to_owned() };
    bench.give(Event::Commanded { operation: OperationId(1), term: Term(1), command });
    assert_eq!(bench.phase(), Phase::Draining);
    assert!(!bench.pass(Duration::from_secs(5)).iter().any(|a| matches!(a, Action::StopEngine { .. })));
    let actions = bench.give(Event::EdgeCounted(EdgeReport::default())).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::StopEngine { pid: 7, .. })));
    let exit = exited(7, "exit code 0", &[]);
    let actions = bench.give(exit).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::Tell(NodeEvent::Farewell { .. }))));
    assert_eq!(bench.phase(), Phase::Stopped);
}

#[test]
fn a_count_from_before_the_drain_does_not_end_it() {
    let mut bench = Bench::serving();
    bench.give(Event::EdgeCounted(EdgeReport::default()));
    let command = Command::Drain { within_ms: 30_000, reason: "surplus".to_owned() };
    let actions = bench.give(Event::Commanded { operation: OperationId(1), term: Term(1), command }).to_vec();
    assert!(!actions.iter().any(|a| matches!(a, Action::StopEngine { .. })));
    let actions = bench.give(Event::EdgeCounted(EdgeReport::default())).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::StopEngine { .. })));
}

#[test]
fn a_drain_does_not_wait_beyond_its_deadline() {
    let mut bench = Bench::serving();
    bench.give(Event::EdgeCounted(EdgeReport { in_flight: 1, ..EdgeReport::default() }));
    let command = Command::Drain { within_ms: 1000, reason: "asked".to_owned() };
    bench.give(Event::Commanded { operation: OperationId(1), term: Term(1), command });
    let actions = bench.pass(Duration::from_secs(1)).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::StopEngine { .. })));
}

#[test]
fn what_has_not_finished_shortly_before_a_drains_end_is_handed_over_once() {
    let mut bench = Bench::serving();
    bench.give(Event::EdgeCounted(EdgeReport { in_flight: 1, ..EdgeReport::default() }));
    let command = Command::Drain { within_ms: 30_000, reason: "asked".to_owned() };
    bench.give(Event::Commanded { operation: OperationId(1), term: Term(1), command });
    bench.give(Event::EdgeCounted(EdgeReport { in_flight: 1, ..EdgeReport::default() }));
    let hands_over = |actions: &[Action]| actions.contains(&Action::HandOver);
    for (span_ms, is_now) in [(26_900, false), (100, true), (100, false), (2800, false), (100, false)] {
        let actions = bench.pass(Duration::from_millis(span_ms)).to_vec();
        assert_eq!(hands_over(&actions), is_now, "{span_ms}: {actions:?}");
    }
    assert_eq!(bench.agent.report(bench.now).engine.state, EngineState::Stopping);
}

#[test]
fn an_engine_that_survives_sigkill_is_given_up_with_its_node() {
    let timing = Timing::default();
    let mut bench = Bench::loading();
    bench.pass(timing.start_gate);
    let actions = bench.pass(timing.stop_grace + timing.kill_grace).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::Tell(NodeEvent::ReplacementWanted { .. }))));
    assert_eq!(bench.phase(), Phase::Failed);

    let mut leaving = noticed(Phase::Loading);
    leaving.pass(timing.stop_grace + timing.kill_grace);
    assert_eq!(leaving.phase(), Phase::Stopped, "it goes with the VM");
}

#[test]
fn a_stopping_agent_leaves_the_engine_for_its_next_run() {
    let mut bench = Bench::serving();
    bench.give(Event::StopAsked { with_engine: false, reason: "upgrade".to_owned() });
    let actions = bench.give(Event::EdgeCounted(EdgeReport::default())).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::Exit { code: 0, .. })));
    assert!(!actions.iter().any(|a| matches!(a, Action::StopEngine { .. })));
    assert_ne!(bench.phase(), Phase::Stopped, "its node has not stopped, so nobody may take it for lost");
}

#[test]
fn heartbeats_keep_their_interval_in_every_phase() {
    for mut bench in [Bench::new(Role::Gateway), Bench::loading(), Bench::serving()] {
        bench.give(Event::Tick);
        let mut beats = 0;
        for _ in 0..100 {
            let at = bench.agent.deadline().expect("always one");
            bench.now = bench.now.max(at);
            beats += bench.give(Event::Tick).iter().filter(|a| **a == Action::Heartbeat).count();
            if bench.now >= Mono::from_millis(10_000) {
                break;
            }
        }
        assert!((9..=11).contains(&beats), "{beats} in 10 s");
    }
}
