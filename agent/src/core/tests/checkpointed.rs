//! Rules about checkpoints: when one is written, what is told of it, and what a predecessor's means.

use super::*;

fn occasions(actions: &[Action]) -> Vec<Occasion> {
    let occasion = |action: &Action| match action {
        Action::Checkpoint { occasion, .. } => Some(*occasion),
        _ => None,
    };
    actions.iter().filter_map(occasion).collect()
}

fn told(actions: &[Action]) -> Vec<&NodeEvent> {
    actions.iter().filter_map(of_checkpoints).collect()
}

fn of_checkpoints(action: &Action) -> Option<&NodeEvent> {
    match action {
        Action::Tell(event) if is_of_checkpoints(event) => Some(event),
        _ => None,
    }
}

fn is_of_checkpoints(event: &NodeEvent) -> bool {
    matches!(
        event,
        NodeEvent::CheckpointSaved { .. }
            | NodeEvent::CheckpointFailed { .. }
            | NodeEvent::Restored { .. }
            | NodeEvent::RestoreFailed { .. }
    )
}

fn saved(missed: &[&str]) -> Result<Saved, String> {
    let missed = missed.iter().map(|one| (*one).to_owned()).collect();
    Ok(Saved { occasion: Occasion::Periodic, bytes: 10, request_count: 2, took_ms: 3, missed })
}

/// A loading node with an object store.
fn loading() -> Bench {
    let mut bench = Bench::loading();
    bench.agent.spec.has_store = true;
    bench
}

/// A serving one, whose first checkpoint is written.
fn serving() -> Bench {
    let mut bench = loading();
    bench.give(probed(7, Ok(())));
    bench.give(Event::Checkpointed { occasion: Occasion::Periodic, result: saved(&[]) });
    bench
}

fn written(bench: &mut Bench, occasion: Occasion) -> Vec<Action> {
    bench.give(Event::Checkpointed { occasion, result: saved(&[]) }).to_vec()
}

#[test]
fn a_checkpoint_is_written_once_a_node_serves_and_every_five_minutes_then() {
    let mut bench = loading();
    assert_eq!(occasions(bench.pass(Duration::from_secs(60))), []);
    let actions = bench.give(probed(7, Ok(()))).to_vec();
    assert_eq!(occasions(&actions), [Occasion::Periodic]);
    written(&mut bench, Occasion::Periodic);
    assert_eq!(occasions(bench.pass(Duration::from_secs(299))), []);
    assert_eq!(occasions(bench.pass(Duration::from_secs(1))), [Occasion::Periodic]);
    assert_eq!(occasions(bench.pass(Duration::from_secs(600))), [], "one at a time");
    // A gateway's requests are lost with it too.
    let mut gateway = Bench::storing(Role::Gateway);
    let actions = gateway.give(Event::Booted(Booted::default())).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::Checkpoint { assignment: None, .. })), "{actions:?}");
}

#[test]
fn a_checkpoint_is_due_at_its_time_and_not_with_the_next_heartbeat() {
    let mut bench = Bench::storing(Role::Gateway);
    bench.give(Event::Booted(Booted::default()));
    written(&mut bench, Occasion::Periodic);
    let mut ticks = 0;
    while bench.now < Mono::from_millis(300_000) {
        bench.now = bench.agent.deadline().expect("a heartbeat at least");
        let is_due = bench.now == Mono::from_millis(300_000);
        let written = occasions(bench.give(Event::Tick));
        assert_eq!(written.is_empty(), !is_due, "at {:?}", bench.now);
        ticks += 1;
    }
    assert!(ticks <= 302, "{ticks}");
}

/// A node that was given notice and has nothing under way any more, and what it does then.
fn leaving() -> (Bench, Vec<Action>) {
    let mut bench = serving();
    bench.give(Event::EdgeCounted(EdgeReport { in_flight: 1, ..EdgeReport::default() }));
    let actions = bench.give(notice(NoticeKind::Stop, "a", Mono::from_millis(120_000))).to_vec();
    assert_eq!(occasions(&actions), [Occasion::Notice]);
    assert!(matches!(actions[0], Action::Tell(NodeEvent::NoticeSeen { .. })), "telling it comes first");
    let actions = bench.give(Event::EdgeCounted(EdgeReport::default())).to_vec();
    (bench, actions)
}

#[test]
fn a_notice_asks_for_one_at_once_and_for_another_before_the_engine_is_stopped() {
    let (mut bench, actions) = leaving();
    assert_eq!(occasions(&actions), [Occasion::Leaving]);
    assert!(!stops(&actions));
    // That of the notice is not it.
    assert!(!stops(&written(&mut bench, Occasion::Notice)));
    let actions = written(&mut bench, Occasion::Leaving);
    assert!(stops(&actions), "{actions:?}");
    bench.end();
    assert_eq!(bench.phase(), Phase::Stopped);
    assert_eq!(occasions(bench.pass(Duration::from_secs(600))), []);
}

#[test]
fn a_store_that_does_not_answer_holds_no_node_up() {
    let (mut bench, actions) = leaving();
    assert_eq!(occasions(&actions), [Occasion::Leaving]);
    assert!(!stops(bench.pass(Duration::from_millis(1_999))));
    let due = bench.agent.deadline().expect("a deadline");
    assert_eq!(due.since(bench.now), Duration::from_millis(1));
    assert!(stops(bench.pass(Duration::from_millis(1))));

    // A container has five seconds in all.
    let mut bench = serving();
    bench.give(Event::EdgeCounted(EdgeReport::default()));
    let deadline = bench.now + Duration::from_secs(5);
    let mut actions = bench.give(notice(NoticeKind::Terminate, "a", deadline)).to_vec();
    actions.extend_from_slice(bench.give(Event::EdgeCounted(EdgeReport::default())));
    assert_eq!(occasions(&actions), [Occasion::Notice, Occasion::Leaving]);
    assert!(stops(bench.pass(Duration::from_millis(1_250))));
}

#[test]
fn a_late_word_of_an_earlier_drain_stops_no_engine_under_its_requests() {
    let (mut bench, _) = leaving();
    bench.give(Event::NoticeLifted { source: "file".to_owned(), id: "a".to_owned() });
    bench.give(probed(7, Ok(())));
    assert_eq!(bench.phase(), Phase::Serving);
    let deadline = bench.now + Duration::from_secs(120);
    bench.give(notice(NoticeKind::Stop, "b", deadline));
    bench.give(Event::EdgeCounted(EdgeReport { in_flight: 1, ..EdgeReport::default() }));
    assert!(!stops(&written(&mut bench, Occasion::Leaving)));
    let actions = bench.give(Event::EdgeCounted(EdgeReport::default())).to_vec();
    assert_eq!(occasions(&actions), [Occasion::Leaving], "its own comes yet");
    assert!(stops(&written(&mut bench, Occasion::Leaving)));
}

#[test]
fn a_node_whose_engine_fails_goes_on_writing_what_its_edge_has() {
    let mut bench = serving();
    bench.fail_once();
    assert_ne!(bench.phase(), Phase::Serving);
    let mut seen = Vec::new();
    for _ in 0..400 {
        seen.extend(occasions(bench.pass(Duration::from_secs(1))));
    }
    assert_eq!(seen, [Occasion::Periodic]);
}

#[test]
fn advice_asks_for_none_and_an_operators_drain_for_the_last() {
    let mut bench = serving();
    let advice = notice(NoticeKind::Rebalance, "a", Mono::from_millis(0));
    assert_eq!(occasions(bench.give(advice)), []);
    assert_eq!(occasions(bench.give(drained_by_command())), []);
    let actions = bench.give(Event::EdgeCounted(EdgeReport::default())).to_vec();
    assert_eq!(occasions(&actions), [Occasion::Leaving]);
    assert!(stops(&written(&mut bench, Occasion::Leaving)));
}

#[test]
fn an_agent_that_is_started_anew_writes_none_and_one_without_a_store_waits_for_nothing() {
    let mut bench = serving();
    let asked = Event::StopAsked { with_engine: false, reason: "SIGTERM".to_owned() };
    bench.give(asked);
    let actions = bench.give(Event::EdgeCounted(EdgeReport::default())).to_vec();
    assert!(matches!(actions[..], [.., Action::Exit { code: 0, .. }]), "{actions:?}");
    assert_eq!(occasions(&actions), []);
    let mut bench = Bench::serving();
    bench.give(notice(NoticeKind::Stop, "a", Mono::from_millis(120_000)));
    assert!(stops(bench.give(Event::EdgeCounted(EdgeReport::default()))));
}

#[test]
fn a_store_that_fails_is_told_once_and_that_it_is_back() {
    let mut bench = serving();
    let mut give = |occasion, result| {
        let actions = bench.give(Event::Checkpointed { occasion, result }).to_vec();
        told(&actions).into_iter().cloned().collect::<Vec<NodeEvent>>()
    };
    let periodic = Occasion::Periodic;
    assert_eq!(give(periodic, saved(&[])), []);
    let failed = give(periodic, saved(&["second: no answer"]));
    assert!(matches!(&failed[..], [NodeEvent::CheckpointFailed { is_lost: false, .. }]), "{failed:?}");
    assert_eq!(give(periodic, Err("no answer".to_owned())), []);
    assert_eq!(give(periodic, saved(&["first: no answer"])), []);
    let back = give(periodic, saved(&[]));
    assert!(matches!(&back[..], [NodeEvent::CheckpointSaved { .. }]), "{back:?}");
    // Whoever looks into a node's end wants to know of its last ones.
    assert_eq!(give(Occasion::Notice, saved(&[])).len(), 1);
    for _ in 0..2 {
        let lost = give(Occasion::Leaving, Err("no answer".to_owned()));
        assert!(matches!(&lost[..], [NodeEvent::CheckpointFailed { is_lost: true, .. }]), "{lost:?}");
    }
}

fn left_by(args: &[&str], model_digest: Option<&str>) -> Restored {
    let mut assignment = assignment("m");
    assignment.engine.args = args.iter().map(|arg| (*arg).to_owned()).collect();
    Restored {
        age_ms: 4_000,
        took_ms: 38,
        assignment: Some(assignment),
        model_digest: model_digest.map(str::to_owned),
        unfinished_count: 3,
        rerun_count: 1,
        skipped: Vec::new(),
        is_last: true,
    }
}

fn predecessor() -> NodeId {
    NodeId::new("n0").expect("label")
}

fn takes(is_gone: bool) -> Event {
    Event::TakesPlaceOf { term: Term(1), predecessor: predecessor(), is_gone }
}

const NONE: [bool; 0] = [];

fn restores(actions: &[Action]) -> Vec<bool> {
    let restore = |action: &Action| match action {
        Action::Restore { is_gone, .. } => Some(*is_gone),
        _ => None,
    };
    actions.iter().filter_map(restore).collect()
}

/// What is told of what the predecessor left, when `known` is said of the model here.
fn compared(left: Restored, known: Result<&str, &str>) -> Vec<String> {
    let mut bench = serving();
    assert_eq!(restores(bench.give(takes(false))), [false]);
    let restored = Event::Restored { from: predecessor(), result: Ok(left) };
    assert!(told(bench.give(restored)).is_empty(), "the model here is not known yet");
    let result = known.map(str::to_owned).map_err(str::to_owned);
    assert!(bench.give(Event::ModelKnown { attempt: 7, result: result.clone() }).is_empty());
    let actions = bench.give(Event::ModelKnown { attempt: 1, result }).to_vec();
    match told(&actions)[..] {
        [NodeEvent::Restored { from, differs, unfinished_count: 3, rerun_count: 1, is_last: true, .. }] => {
            assert_eq!(*from, predecessor());
            differs.clone()
        }
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn a_successor_says_whether_model_and_arguments_are_those_of_its_predecessor() {
    assert_eq!(compared(left_by(&[], Some("abc")), Ok("abc")), Vec::<String>::new());
    let model = compared(left_by(&[], Some("abc")), Ok("def"));
    assert_eq!(model, ["the model's files are others: abc there, def here"]);
    let args = compared(left_by(&["--seed", "1"], Some("abc")), Ok("abc"));
    assert_eq!(args, ["it ran args --seed 1, wanted "]);
    // What is not known is not the same.
    assert_eq!(compared(left_by(&[], None), Ok("abc")).len(), 1);
    assert_eq!(compared(left_by(&[], Some("abc")), Err("no answer")).len(), 1);
}

#[test]
fn a_predecessors_checkpoint_is_read_once_and_once_more_is_said_that_it_is_gone() {
    let mut bench = serving();
    assert_eq!(restores(bench.give(takes(false))), [false]);
    assert_eq!(restores(bench.give(takes(false))), NONE, "each controller says so, at each connection");
    assert_eq!(restores(bench.give(takes(true))), [true]);
    assert_eq!(restores(bench.give(takes(true))), NONE);
    let other =
        Event::TakesPlaceOf { term: Term(1), predecessor: NodeId::new("n9").expect("label"), is_gone: true };
    assert_eq!(restores(bench.give(other)), [true], "one node can stand for two");
    let mut gateway = Bench::storing(Role::Gateway);
    gateway.give(Event::Booted(Booted::default()));
    assert_eq!(restores(gateway.give(takes(true))), NONE);
    assert_eq!(restores(Bench::serving().give(takes(true))), NONE, "there is no store");
}

#[test]
fn a_predecessor_that_is_named_again_after_its_end_is_read_again_and_none_is_passed_over_in_silence() {
    let mut bench = serving();
    bench.give(Event::ModelKnown { attempt: 1, result: Ok("abc".to_owned()) });
    bench.give(takes(false));
    let restored = Event::Restored { from: predecessor(), result: Ok(left_by(&[], Some("abc"))) };
    assert_eq!(told(bench.give(restored)).len(), 1);
    assert_eq!(restores(bench.give(takes(true))), [true], "it served again, and was lost then");
    for number in 0..100 {
        let node = NodeId::new(format!("m{number}")).expect("label");
        let actions =
            bench.give(Event::TakesPlaceOf { term: Term(1), predecessor: node, is_gone: true }).to_vec();
        assert_eq!(restores(&actions).len() + told(&actions).len(), 1, "{number}: {actions:?}");
    }
}

#[test]
fn a_predecessor_that_left_nothing_is_told() {
    let mut bench = serving();
    bench.give(takes(true));
    let result = Err("there is no checkpoint of n0".to_owned());
    let actions = bench.give(Event::Restored { from: predecessor(), result }).to_vec();
    assert!(matches!(told(&actions)[..], [NodeEvent::RestoreFailed { .. }]), "{actions:?}");
}

#[test]
fn no_secret_leaves_the_node() {
    let mut bench = serving();
    let running = bench.agent.assignment.as_mut().expect("an assignment");
    running.engine.env.insert("HF_TOKEN".to_owned(), "s1".to_owned());
    let args = ["--api-key", "s2", "s3", "--hf-token=s4", "--seed", "7", "--tokenizer-mode", "auto"];
    running.engine.args = args.map(str::to_owned).into();
    let actions = bench.pass(Duration::from_secs(300)).to_vec();
    let written = actions.iter().find_map(|action| match action {
        Action::Checkpoint { assignment, .. } => assignment.clone(),
        _ => None,
    });
    let written = written.expect("a checkpoint").engine;
    let shown = ["--api-key", "…", "…", "--hf-token=…", "--seed", "7", "--tokenizer-mode", "auto"];
    assert_eq!(written.args, shown);
    assert_eq!(written.env["HF_TOKEN"], "");
}

#[test]
fn a_predecessor_that_a_leader_of_the_past_names_is_somebody_elses() {
    let mut bench = serving();
    let names = |term| Event::TakesPlaceOf { term: Term(term), predecessor: predecessor(), is_gone: true };
    assert_eq!(restores(bench.give(names(0))), NONE, "term 1 assigned what runs");
    assert_eq!(restores(bench.give(names(2))), [true]);
}
