//! A model's directory and its sources: which is used, what is fetched, and what is said of it.

use cic_common::assignment::Source;
use cic_common::source::mount_name;
use cic_common::units::Bytes;

use super::*;

const STORE: &str = "s3://models/m";
const FILER: &str = "nfs://filer/m?nconnect=4";
const SHARE: &str = "/mnt/m";

fn sourced(sources: &[&str]) -> Assignment {
    let mut assignment = assignment("m");
    let source = |text: &&str| Source::try_from((*text).to_owned()).expect("a source");
    assignment.model.sources = sources.iter().map(source).collect();
    assignment
}

fn assigned(sources: &[&str]) -> Bench {
    let mut bench = Bench::new(Role::Replica);
    bench.give(Event::Booted(Booted::default()));
    bench.give(Event::Gpu(GpuEvent::Absent));
    bench.give(Event::Assigned { term: Term(1), assignment: sourced(sources) });
    bench
}

fn absent(path: &str) -> Result<(), ModelFault> {
    Err(ModelFault::NoDirectory { path: path.to_owned() })
}

fn damaged(path: &str) -> Result<(), ModelFault> {
    let path = format!("{path}/model.safetensors");
    Err(ModelFault::Damaged { path, cause: "cut off".to_owned() })
}

fn not_fetched(cause: &str) -> Result<(), ModelFault> {
    Err(ModelFault::NotFetched { url: STORE.to_owned(), cause: cause.to_owned() })
}

/// The step on files that is asked for, in short.
fn step(actions: &[Action]) -> Option<String> {
    actions.iter().find_map(|action| match action {
        Action::MountModel { model, .. } => Some(format!("mount {}", model.path)),
        Action::VerifyModel { model, .. } => Some(format!("verify {}", model.path)),
        Action::AttachModel { url, model, .. } => Some(format!("attach {url} at {}", model.path)),
        Action::FetchModel { url, model, .. } => Some(format!("fetch {url} to {}", model.path)),
        Action::CheckEngine { assignment, .. } => Some(format!("check {}", assignment.model.path)),
        _ => None,
    })
}

fn mounted(result: Result<(), ModelFault>) -> Event {
    Event::ModelMounted { attempt: 1, result }
}

fn verified(result: Result<(), ModelFault>) -> Event {
    Event::ModelVerified { attempt: 1, result }
}

fn fetched(result: Result<(), ModelFault>) -> Event {
    Event::ModelFetched { attempt: 1, result }
}

impl Bench {
    fn reason(&self) -> String {
        self.agent.report(self.now).reason
    }
}

#[test]
fn the_first_place_that_is_whole_is_used_and_the_report_says_what_lost() {
    type Steps = Vec<(Event, Option<&'static str>)>;
    let whole = || vec![(mounted(Ok(())), Some("verify /m")), (verified(Ok(())), Some("check /m"))];
    let table: Vec<(&str, &[&str], Steps, &str)> = vec![
        ("its directory is whole: no source is looked at", &[SHARE, STORE], whole(), ""),
        (
            "a share has it",
            &[SHARE, STORE],
            vec![
                (mounted(absent("/m")), Some("mount /mnt/m")),
                (mounted(Ok(())), Some("verify /mnt/m")),
                (verified(Ok(())), Some("check /mnt/m")),
            ],
            "found at /mnt/m, passed over: no model directory /m",
        ),
        (
            "a damaged one is passed over like one that is not there",
            &[SHARE],
            vec![
                (mounted(Ok(())), Some("verify /m")),
                (verified(damaged("/m")), Some("mount /mnt/m")),
                (mounted(Ok(())), Some("verify /mnt/m")),
                (verified(Ok(())), Some("check /mnt/m")),
            ],
            "found at /mnt/m, passed over: /m/model.safetensors: cut off",
        ),
        (
            "it is fetched into its directory, and looked at there",
            &[STORE],
            vec![
                (mounted(absent("/m")), Some("fetch s3://models/m to /m")),
                (fetched(Ok(())), Some("verify /m")),
                (verified(Ok(())), Some("check /m")),
            ],
            "found at /m, passed over: no model directory /m",
        ),
        (
            "what is mounted is looked at where it is mounted",
            &[FILER],
            vec![
                (
                    mounted(absent("/m")),
                    Some("attach nfs://filer/m?nconnect=4 at /state/mounts/nfs---filer-m-e0"),
                ),
                (mounted(Ok(())), Some("verify /state/mounts/nfs---filer-m-e0")),
                (verified(Ok(())), Some("check /state/mounts/nfs---filer-m-e0")),
            ],
            "passed over: no model directory /m",
        ),
        (
            "the order is that of the sources",
            &[STORE, SHARE],
            vec![
                (mounted(Ok(())), Some("verify /m")),
                (verified(damaged("/m")), Some("fetch s3://models/m to /m")),
                (fetched(not_fetched("no answer")), Some("mount /mnt/m")),
                (mounted(Ok(())), Some("verify /mnt/m")),
                (verified(Ok(())), Some("check /mnt/m")),
            ],
            "passed over: /m/model.safetensors: cut off; s3://models/m: no answer",
        ),
    ];
    for (rule, sources, steps, said) in table {
        let mut bench = assigned(sources);
        for (event, expected) in steps {
            let shown = format!("{event:?}");
            let named = mount_name(FILER);
            let expected = expected.map(|step| step.replace("nfs---filer-m-e0", &named));
            assert_eq!(step(bench.give(event)), expected, "{rule}: {shown}");
        }
        let reason = bench.reason();
        assert_eq!(reason.contains("passed over"), !said.is_empty(), "{rule}: {reason}");
        assert!(reason.contains(said), "{rule}: {reason}");
    }
}

#[test]
fn what_is_nowhere_is_said_to_be_not_cached_and_tried_again() {
    let mut bench = assigned(&[SHARE, STORE]);
    bench.give(mounted(absent("/m")));
    bench.give(mounted(absent(SHARE)));
    let at = "ModelNotCached: no model directory /m; no model directory /mnt/m";
    assert_eq!(bench.reason(), format!("{at}; fetching from {STORE}"));
    assert_eq!(bench.phase(), Phase::Mounting);
    bench.give(fetched(not_fetched("no answer")));
    assert!(bench.reason().starts_with(&format!("{at}; {STORE}: no answer; try 2")), "{}", bench.reason());
    let actions = bench.pass(Duration::from_secs(2)).to_vec();
    assert_eq!(step(&actions).as_deref(), Some("mount /m"), "from the beginning");
}

#[test]
fn damage_everywhere_is_given_up_and_one_that_may_heal_is_not() {
    let mut bench = assigned(&[SHARE]);
    bench.give(mounted(Ok(())));
    bench.give(verified(damaged("/m")));
    bench.give(mounted(Ok(())));
    bench.give(verified(damaged(SHARE)));
    assert_eq!(bench.phase(), Phase::Failed);
    let mut bench = assigned(&[SHARE]);
    bench.give(mounted(Ok(())));
    bench.give(verified(damaged("/m")));
    bench.give(mounted(absent(SHARE)));
    assert_eq!(bench.phase(), Phase::Mounting, "the share may come");
}

#[test]
fn the_engine_is_started_on_what_was_found_and_keeps_its_assignment() {
    let mut bench = assigned(&[SHARE]);
    bench.give(mounted(absent("/m")));
    bench.give(mounted(Ok(())));
    bench.give(verified(Ok(())));
    let actions = bench.give(Event::EngineChecked { attempt: 1, result: Ok(()) }).to_vec();
    let started = actions.iter().find_map(|action| match action {
        Action::StartEngine { assignment, directory, .. } => Some((assignment.clone(), directory.clone())),
        _ => None,
    });
    assert_eq!(started, Some((sourced(&[SHARE]), SHARE.to_owned())));
}

#[test]
fn a_regional_source_is_that_of_the_nodes_region() {
    let mut bench = Bench::new(Role::Replica);
    bench.agent.spec.node = NodeId::new("cic-aws-eu-west-1-h100-spot-20261127-001-node001").expect("label");
    bench.give(Event::Booted(Booted::default()));
    bench.give(Event::Assigned { term: Term(1), assignment: sourced(&["s3://models-{region}/m"]) });
    let asked = step(bench.give(mounted(absent("/m"))));
    assert_eq!(asked.as_deref(), Some("fetch s3://models-eu-west-1/m to /m"));
}

#[test]
fn another_assignment_during_the_check_is_looked_for_and_not_left() {
    let mut bench = assigned(&[]);
    bench.give(mounted(Ok(())));
    bench.give(verified(Ok(())));
    let actions = bench.give(Event::Assigned { term: Term(1), assignment: sourced(&[SHARE]) }).to_vec();
    let at = |is_it: fn(&Action) -> bool| actions.iter().rposition(is_it);
    let mount = at(|action| matches!(action, Action::MountModel { .. }));
    assert!(mount.is_some() && at(|action| *action == Action::LeaveModel) < mount, "{actions:?}");
}

#[test]
fn verified_files_are_read_ahead_until_the_engine_serves() {
    let mut bench = assigned(&[]);
    bench.give(mounted(Ok(())));
    let warm = Action::WarmModel { model: ModelSpec::at("m", "/m") };
    let is_asked = |actions: &[Action]| {
        let at = |wanted: &Action| actions.iter().rposition(|action| action == wanted);
        at(&warm).is_some() && at(&warm) > at(&Action::LeaveModel)
    };
    assert!(is_asked(bench.give(verified(Ok(())))));
    let actions = bench.give(Event::EngineChecked { attempt: 1, result: Ok(()) });
    assert!(!actions.contains(&Action::LeaveModel), "{actions:?}");
    let actions = bench.give(Event::EngineStarted { attempt: 1, pid: 7 });
    assert!(!actions.contains(&Action::LeaveModel), "{actions:?}");
    let actions = bench.give(probed(7, Ok(())));
    assert!(actions.contains(&Action::LeaveModel), "{actions:?}");
}

#[test]
fn progress_is_reported_while_it_is_made_and_work_that_nobody_wants_is_left() {
    let mut bench = assigned(&[STORE]);
    bench.give(mounted(absent("/m")));
    let moved = |done_bytes| Event::ModelProgress { attempt: 1, done_bytes, all_bytes: 1000 };
    assert_eq!(bench.agent.report(bench.now).model, None);
    bench.give(moved(100));
    bench.pass(Duration::from_secs(2));
    bench.give(moved(500));
    let progress = bench.agent.report(bench.now).model.expect("progress");
    assert_eq!((progress.done, progress.all, progress.rate), (Bytes(500), Bytes(1000), Bytes(200)));
    assert_eq!(progress.left(), Some(Duration::from_secs(2)));
    // Other work: its own pace.
    bench.give(Event::ModelProgress { attempt: 1, done_bytes: 90, all_bytes: 300 });
    let rate = bench.agent.report(bench.now).model.map(|progress| (progress.all, progress.rate));
    assert_eq!(rate, Some((Bytes(300), Bytes(0))));
    let progress = bench.agent.report(bench.now).model.expect("progress");
    // Of an attempt before.
    bench.give(Event::ModelProgress { attempt: 0, done_bytes: 7, all_bytes: 7 });
    assert_eq!(bench.agent.report(bench.now).model, Some(progress));

    let changed = Event::Assigned { term: Term(2), assignment: sourced(&[SHARE]) };
    assert_eq!(step(bench.give(changed)).as_deref(), Some("mount /m"));
    assert_eq!(bench.agent.report(bench.now).model, None);
    assert_eq!(step(bench.give(fetched(Ok(())))), None, "nobody waits for it any more");
    let actions = bench.give(Event::StopAsked { with_engine: true, reason: "asked".to_owned() }).to_vec();
    assert!(actions.contains(&Action::LeaveModel), "{actions:?}");
}
