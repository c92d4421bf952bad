//! Rules about an engine that stands still, loads slowly, fails for a cause, or leaves something behind.

use cic_common::report::EngineState;

use super::*;

fn reads(pid: u32, running: u64, iterations: u64) -> Event {
    let after = Some(Work { running, iterations: Some(iterations), ..Work::default() });
    Event::EngineProbed { pid, reading: Reading { after, ..Reading::default() }, result: Ok(()) }
}

impl Bench {
    /// Lets `span` pass with a probe every two seconds that shows `running` requests at the same iteration.
    fn stand_still(&mut self, running: u64, span: Duration) -> Vec<Action> {
        let mut all = Vec::new();
        let until = self.now + span;
        while self.now < until {
            all.extend_from_slice(self.pass(Duration::from_secs(2)));
            all.extend_from_slice(self.give(reads(7, running, 9)));
        }
        all
    }

    fn engine_state(&self) -> EngineState {
        self.agent.report(self.now).engine.state
    }
}

#[test]
fn an_engine_that_stands_still_is_passed_over_at_30_s_and_killed_with_an_autopsy_at_120_s() {
    let mut bench = Bench::serving();
    bench.give(reads(7, 1, 9));
    let early = bench.stand_still(1, Duration::from_secs(28));
    assert!(bench.engine_state() == EngineState::Ready && !stops(&early));
    let late = bench.stand_still(1, Duration::from_secs(2));
    assert_eq!((bench.engine_state(), bench.phase()), (EngineState::Stalled, Phase::Serving));
    assert!(late.iter().any(|a| matches!(a, Action::SetEdge(EdgeMode::Reluctant { .. }))));
    assert!(late.iter().any(|a| matches!(a, Action::Tell(NodeEvent::EngineStalled { is_over: false, .. }))));
    let longer = bench.stand_still(1, Duration::from_secs(88));
    assert!(!stops(&longer), "not before 120 s");
    let last = bench.stand_still(1, Duration::from_secs(2));
    assert!(last.iter().any(|a| matches!(a, Action::StopEngine { autopsy: true, .. })));
    let exit = exited(7, "signal 9", &["last words"]);
    let actions = bench.give(exit).to_vec();
    let record =
        actions.iter().find_map(|a| if let Action::SaveCrash(record) = a { Some(record) } else { None });
    assert!(record.is_some_and(|record| record.reason.contains("nothing moved for 120 s")), "{record:?}");
    assert!(bench.agent.report(bench.now).engine.restart_count == 1, "it is started anew");
}

#[test]
fn a_compilation_of_70_s_is_passed_over_and_not_killed() {
    let mut bench = Bench::serving();
    bench.give(reads(7, 1, 9));
    let actions = bench.stand_still(1, Duration::from_secs(70));
    assert!(!stops(&actions));
    assert_eq!(bench.engine_state(), EngineState::Stalled);
    let actions = bench.give(reads(7, 1, 10)).to_vec();
    assert!(actions.contains(&Action::SetEdge(EdgeMode::Admit)));
    assert!(
        actions.iter().any(|a| matches!(a, Action::Tell(NodeEvent::EngineStalled { is_over: true, .. })))
    );
    assert_eq!(bench.engine_state(), EngineState::Ready);
}

#[test]
fn an_idle_engine_is_never_passed_over() {
    let mut bench = Bench::serving();
    let actions = bench.stand_still(0, Duration::from_secs(600));
    assert!(!stops(&actions) && !actions.iter().any(|a| matches!(a, Action::SetEdge(_))));
}

#[test]
fn an_engine_without_counters_is_asked_for_a_token_from_time_to_time() {
    let mut bench = Bench::loading();
    let reading = Reading { is_completed: true, ..Reading::default() };
    bench.give(Event::EngineProbed { pid: 7, reading, result: Ok(()) });
    let mut depths = Vec::new();
    for _ in 0..10 {
        let actions = bench.pass(Duration::from_secs(2)).to_vec();
        depths.extend(actions.into_iter().filter_map(|a| match a {
            Action::ProbeEngine { depth, .. } => Some(depth),
            _ => None,
        }));
        bench.give(Event::EngineProbed { pid: 7, reading: Reading::default(), result: Ok(()) });
    }
    assert_eq!(depths.iter().filter(|depth| **depth == Depth::Canary).count(), 2, "{depths:?}");
    bench.stand_still(1, Duration::from_secs(14));
    assert_eq!(bench.engine_state(), EngineState::Stalled, "no canary came back for 30 s");
}

#[test]
fn an_engine_adopted_under_load_is_ready_when_it_makes_tokens_for_others() {
    let mut bench = Bench::new(Role::Replica);
    let engine = Some(EngineFound { pid: 9, assignment: assignment("m") });
    bench.give(Event::Booted(Booted { engine, ..Booted::default() }));
    let work = |iterations| Some(Work { running: 256, iterations: Some(iterations), ..Work::default() });
    let late = || Err(ProbeFault::Completion("no answer within 10 s".to_owned()));
    let still = Reading { before: work(5), after: work(5), is_completed: false };
    bench.give(Event::EngineProbed { pid: 9, reading: still, result: late() });
    assert_eq!(bench.phase(), Phase::Loading);
    let moving = Reading { before: work(5), after: work(6), is_completed: false };
    bench.give(Event::EngineProbed { pid: 9, reading: moving, result: late() });
    assert_eq!(bench.phase(), Phase::Serving);
}

#[test]
fn a_loading_engine_that_makes_progress_is_given_more_than_the_gate_and_less_than_the_cap() {
    let mut bench = Bench::loading();
    for second in (5..3600).step_by(5) {
        let actions = bench.pass(Duration::from_secs(5)).to_vec();
        assert!(!stops(&actions), "at {second} s");
        assert!(actions.contains(&Action::LookAtEngine { pid: 7 }), "at {second} s");
        let activity = Activity { log_bytes: second, read_bytes: 0 };
        bench.give(Event::EngineSeen { pid: 7, activity });
    }
    assert!(stops(bench.pass(Duration::from_secs(5))));
}

#[test]
fn a_failure_that_a_restart_cannot_heal_is_given_up_with_its_cause() {
    let mut bench = Bench::loading();
    bench.give(exited(7, "exit code 2", &["vllm: error: unrecognized arguments: --engine-use-ray"]));
    assert_eq!(bench.phase(), Phase::Failed);
    let report = bench.agent.report(bench.now);
    assert!(
        report.reason.contains("bad flag") && report.reason.contains("--engine-use-ray"),
        "{}",
        report.reason
    );
    assert!(report.wants_replacement.is_some());
    assert!(report.engine.last_exit.is_some_and(|exit| exit.starts_with("exit code 2: bad flag")));
}

#[test]
fn an_oom_kill_of_any_of_its_processes_is_the_cause_and_is_tried_again() {
    let mut bench = Bench::serving();
    let text = "Out of memory: Killed process 8 (VLLM::Worker)".to_owned();
    bench.give(Event::OomKilled { pid: 8, text });
    let end = EngineEnd { how: "exit code 0".to_owned(), pids: vec![7, 8], ..EngineEnd::default() };
    bench.give(Event::EngineExited { pid: 7, end });
    let report = bench.agent.report(bench.now);
    assert!(report.reason.contains("out of host memory"), "{}", report.reason);
    assert_eq!(report.wants_replacement, None);
}

#[test]
fn an_oom_kill_of_another_process_explains_nothing() {
    let mut bench = Bench::serving();
    bench.give(Event::OomKilled { pid: 99, text: "Out of memory: Killed process 99 (cron)".to_owned() });
    bench.give(exited(7, "exit code 1", &["boom"]));
    assert!(!bench.agent.report(bench.now).reason.contains("memory"));
}

#[test]
fn a_wish_for_a_replacement_ends_when_no_failure_lies_in_the_window_any_more() {
    let mut bench = Bench::loading();
    for attempt in 1..=3 {
        bench.give(Event::EngineStarted { attempt, pid: 7 });
        bench.fail_once();
        bench.pass(Duration::from_secs(400));
        let attempt = attempt + 1;
        bench.give(Event::ModelMounted { attempt, result: Ok(()) });
        bench.give(Event::ModelVerified { attempt, result: Ok(()) });
        bench.give(Event::EngineChecked { attempt, result: Ok(()) });
    }
    bench.give(Event::EngineStarted { attempt: 4, pid: 7 });
    bench.give(probed(7, Ok(())));
    assert!(bench.agent.report(bench.now).wants_replacement.is_some());
    bench.pass(Duration::from_secs(1300));
    assert!(bench.agent.report(bench.now).wants_replacement.is_some());
    bench.pass(Duration::from_secs(200));
    assert_eq!(bench.agent.report(bench.now).wants_replacement, None);
}

#[test]
fn processes_that_survive_sigkill_are_a_leak_too() {
    let mut bench = Bench::serving();
    let end =
        EngineEnd { how: "signal 9".to_owned(), pids: vec![7, 8], left: vec![8], ..EngineEnd::default() };
    bench.give(Event::EngineExited { pid: 7, end });
    assert_eq!(bench.phase(), Phase::Failed);
    assert!(bench.agent.report(bench.now).reason.contains("[8]"));
}

#[test]
fn what_is_asked_for_in_place_of_the_running_engine_is_started_next() {
    let mut bench = Bench::serving();
    let actions = bench.give(Event::Assigned { term: Term(2), assignment: assignment("other") }).to_vec();
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Remember { assignment, .. } if assignment.model.name == "other"))
    );
    bench.fail_once();
    let actions = bench.pass(Duration::from_secs(2)).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::MountModel { model, .. } if model.name == "other")));
    bench.give(Event::ModelMounted { attempt: 2, result: Ok(()) });
    bench.give(Event::ModelVerified { attempt: 2, result: Ok(()) });
    bench.give(Event::EngineChecked { attempt: 2, result: Ok(()) });
    bench.give(Event::EngineStarted { attempt: 2, pid: 8 });
    assert_eq!(bench.agent.report(bench.now).engine.drift, None);
}

#[test]
fn out_of_gpu_memory_is_final_at_the_start_and_not_after_days() {
    let line = &["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"];
    let mut loading = Bench::loading();
    loading.give(exited(7, "exit code 1", line));
    assert_eq!(loading.phase(), Phase::Failed);
    let mut serving = Bench::serving();
    serving.give(exited(7, "exit code 0", line));
    assert_ne!(serving.phase(), Phase::Failed);
}

#[test]
fn an_engine_that_hangs_on_its_first_step_is_found_by_a_token_that_does_not_come() {
    let mut bench = Bench::serving();
    bench.give(Event::EngineOccupied { in_flight: 1 });
    let mut canary_count = 0;
    for _ in 0..60 {
        let actions = bench.pass(Duration::from_secs(2)).to_vec();
        canary_count +=
            actions.iter().filter(|a| matches!(a, Action::ProbeEngine { depth: Depth::Canary, .. })).count();
        bench.give(reads(7, 0, 1));
        if bench.engine_state() == EngineState::Stalled {
            break;
        }
    }
    assert!(canary_count >= 2 && bench.now <= Mono::from_millis(32_000), "{canary_count} at {:?}", bench.now);
}

#[test]
fn a_cloud_that_takes_the_node_does_not_wait_for_vllms_own_timeout() {
    let mut bench = Bench::serving();
    bench.give(notice(NoticeKind::Terminate, "a", Mono::from_millis(9_000)));
    let actions = bench.give(Event::EdgeCounted(EdgeReport::default())).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::StopEngine { grace_ms: 3_000, .. })), "{actions:?}");
}

#[test]
fn a_different_spec_is_reported_as_drift_and_its_engine_kept() {
    let mut bench = Bench::serving();
    let mut wanted = assignment("m");
    wanted.engine.args = vec!["--max-model-len".to_owned(), "512".to_owned()];
    wanted.engine.env.insert("HF_TOKEN".to_owned(), "secret".to_owned());
    let actions = bench.give(Event::Assigned { term: Term(2), assignment: wanted }).to_vec();
    assert!(!stops(&actions));
    let drift = bench.agent.report(bench.now).engine.drift.expect("reported");
    assert!(drift.contains("--max-model-len 512") && drift.contains("HF_TOKEN"), "{drift}");
    assert!(!drift.contains("secret"), "{drift}");
    bench.give(Event::Assigned { term: Term(2), assignment: assignment("m") });
    assert_eq!(bench.agent.report(bench.now).engine.drift, None);
}

#[test]
fn vllms_own_shutdown_timeout_is_waited_for_before_the_kill() {
    let mut bench = Bench::new(Role::Replica);
    bench.give(Event::Booted(Booted::default()));
    let mut wanted = assignment("m");
    wanted.engine.args = vec!["--shutdown_timeout=30".to_owned()];
    bench.give(Event::Assigned { term: Term(1), assignment: wanted });
    bench.give(Event::ModelMounted { attempt: 1, result: Ok(()) });
    bench.give(Event::ModelVerified { attempt: 1, result: Ok(()) });
    bench.give(Event::Gpu(GpuEvent::Absent));
    bench.give(Event::EngineChecked { attempt: 1, result: Ok(()) });
    bench.give(Event::EngineStarted { attempt: 1, pid: 7 });
    bench.give(probed(7, Ok(())));
    bench.give(drained_by_command());
    let actions = bench.give(Event::EdgeCounted(EdgeReport::default())).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::StopEngine { grace_ms: 32_000, .. })), "{actions:?}");
}

#[test]
fn the_states_number_rises_with_every_change_and_with_nothing_else() {
    let mut bench = Bench::serving();
    let before = bench.agent.report(bench.now).state;
    bench.pass(Duration::from_secs(1));
    bench.give(reads(7, 1, 9));
    assert_eq!(bench.agent.report(bench.now).state, before);
    bench.fail_once();
    let after = bench.agent.report(bench.now);
    assert!(after.state.version > before.version);
    assert_eq!(after.state.digest, after.digest());
}
