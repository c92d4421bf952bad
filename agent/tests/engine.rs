#![allow(clippy::unwrap_used)]
//! The keeper with real processes: start, adopt, stop, and nothing left behind.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cic_agent::core::Event;
use cic_agent::effect::engine::{Keeper, KeeperSpec, Record};
use cic_agent::state::{StateDir, name};
use cic_common::assignment::{Assignment, EngineSpec, ModelSpec};
use cic_common::id::{DeploymentName, NodeId};
use cic_common::supervise::Supervisor;
use cic_common::time::Clock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;

/// Far longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Names the test's directory in the environment of what it started; scripts write there.
const TAG: &str = "ROOT";

/// A test's directory. What a test started names it in its environment, wherever it moved its session to, and dies
/// with it: a test that panicked leaves nothing behind.
struct Root {
    dir: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// For the environment of everything the test starts.
    fn tag(&self) -> (String, String) {
        (TAG.to_owned(), self.path().display().to_string())
    }

    fn processes(&self) -> Vec<Pid> {
        let (name, value) = self.tag();
        let tag = format!("{name}={value}").into_bytes();
        let has_tag = |pid: &i32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == tag)
        };
        let entries = std::fs::read_dir("/proc").into_iter().flatten();
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(has_tag).map(Pid::from_raw).collect()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let began = Instant::now();
        // Again and again: one may have forked between the look and the signal.
        while began.elapsed() < PATIENCE {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for pid in left {
                let _ = kill(pid, Signal::SIGKILL);
            }
            std::thread::sleep(LOOK_EVERY); // bounded wait: by PATIENCE
        }
    }
}

/// One run of an agent, as far as the engine sees it.
struct Run {
    supervisor: Supervisor,
    keeper: Keeper,
    events: mpsc::Receiver<Event>,
    state: StateDir,
}

impl Run {
    fn begin(root: &Root) -> Self {
        let state = StateDir::open(&root.path().join("state")).unwrap();
        let supervisor = Supervisor::new();
        let (send, events) = mpsc::channel(16);
        let spec = KeeperSpec {
            node: NodeId::new("n1").unwrap(),
            host_port: 0,
            launcher: PathBuf::from(env!("CARGO_BIN_EXE_cic-agent")),
        };
        let keeper = Keeper::new(spec, state.clone(), Clock::start(), supervisor.clone(), send);
        Self { supervisor, keeper, events, state }
    }

    /// Ends the run as SIGTERM to an agent would: the engine stays.
    async fn end(self) {
        self.supervisor.stop(PATIENCE).await.unwrap();
    }

    async fn next(&mut self) -> Event {
        tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("a keeper")
    }

    async fn started(&mut self, assignment: Assignment) -> u32 {
        let directory = assignment.model.path.clone();
        self.keeper.start(1, assignment, directory);
        match self.next().await {
            Event::EngineStarted { attempt: 1, pid } => pid,
            other => panic!("{other:?}"),
        }
    }

    async fn exited(&mut self) -> (u32, String, Vec<String>) {
        match self.next().await {
            Event::EngineExited { pid, end } => (pid, end.how, end.log_tail),
            other => panic!("{other:?}"),
        }
    }
}

/// An engine that is a shell script; `$0 $@` is its command line.
fn engine(root: &Root, script: &str) -> Assignment {
    use std::os::unix::fs::PermissionsExt as _;
    let program = root.path().join("engine.sh");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    Assignment {
        deployment: DeploymentName::new("d").unwrap(),
        model: ModelSpec::at("tiny", "/models/tiny"),
        engine: EngineSpec {
            program: program.display().to_string(),
            args: vec!["--flag".to_owned()],
            env: std::iter::once(root.tag()).collect(),
        },
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

async fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

async fn pid_in(path: PathBuf) -> u32 {
    let read = || std::fs::read_to_string(&path).unwrap_or_default().trim().parse().ok();
    wait_for("a pid is written", || read().is_some()).await;
    read().unwrap()
}

#[tokio::test]
async fn an_engine_runs_in_its_own_session_with_the_fixed_command_line() {
    let root = Root::new();
    let mut run = Run::begin(&root);
    let script = r#"echo "$@" > $ROOT/args; echo $CIC_NODE > $ROOT/node; echo out; echo err >&2; exit 3"#;
    let pid = run.started(engine(&root, script)).await;
    let (ended, how, tail) = run.exited().await;
    assert_eq!((ended, how.as_str()), (pid, "exit code 3"));
    assert_eq!(tail, ["out", "err"]);
    let args = std::fs::read_to_string(root.path().join("args")).unwrap();
    let (fixed, port_and_rest) = args.split_once("--port ").unwrap();
    assert_eq!(fixed, "serve /models/tiny --served-model-name tiny --host 127.0.0.1 ");
    assert!(port_and_rest.trim_end().ends_with(" --flag"), "{args}");
    assert_eq!(std::fs::read_to_string(root.path().join("node")).unwrap(), "n1\n");
    assert!(!run.state.path(name::ENGINE).exists());
    run.end().await;
}

#[tokio::test]
async fn an_engine_outlives_the_agent_and_is_adopted_with_the_same_pid() {
    let root = Root::new();
    let mut run = Run::begin(&root);
    let assignment = engine(&root, "exec sleep 1000");
    let pid = run.started(assignment.clone()).await;
    run.end().await;
    assert!(is_alive(pid));

    let mut next = Run::begin(&root);
    let found = next.keeper.find().await.unwrap().expect("the engine is found");
    assert_eq!((found.pid, &found.assignment), (pid, &assignment));
    next.keeper.stop(pid, PATIENCE, false);
    assert_eq!(next.exited().await.0, pid);
    assert!(!is_alive(pid));
    assert_eq!(next.keeper.find().await.unwrap(), None);
    next.end().await;
}

#[tokio::test]
async fn a_pid_that_now_means_another_process_is_not_adopted_and_not_killed() {
    let root = Root::new();
    let mut run = Run::begin(&root);
    let pid = run.started(engine(&root, "exec sleep 1000")).await;
    let mut record: Record = run.state.read(name::ENGINE).unwrap();
    run.keeper.stop(pid, PATIENCE, false);
    run.exited().await;
    let mut innocent = std::process::Command::new("sleep").arg("1000").envs([root.tag()]).spawn().unwrap();
    record.pid = innocent.id();
    run.state.write(name::ENGINE, &record).await.unwrap();
    assert_eq!(run.keeper.find().await.unwrap(), None);
    assert!(innocent.try_wait().unwrap().is_none(), "the innocent process lives");
    innocent.kill().unwrap();
    innocent.wait().unwrap();
    run.end().await;
}

#[tokio::test]
async fn an_engine_that_ignores_sigterm_is_killed_with_its_whole_session() {
    let root = Root::new();
    let mut run = Run::begin(&root);
    let script = "trap '' TERM\n(trap '' TERM; while :; do sleep 1; done) &\necho $! > $ROOT/worker\nwhile :; do sleep 1; done";
    let pid = run.started(engine(&root, script)).await;
    let worker = pid_in(root.path().join("worker")).await;
    run.keeper.stop(pid, Duration::from_millis(50), false);
    let (ended, how, _) = run.exited().await;
    assert_eq!((ended, how.as_str()), (pid, "signal 9"));
    assert!(!is_alive(worker));
    run.end().await;
}

#[tokio::test]
async fn workers_that_left_the_session_are_gone_before_the_exit_is_reported() {
    let root = Root::new();
    let mut run = Run::begin(&root);
    let script = "setsid sh -c 'echo $$ > $ROOT/worker; exec sleep 1000' &\nwhile ! [ -s $ROOT/worker ]; do sleep 0.01; done; exit 0";
    let pid = run.started(engine(&root, script)).await;
    let (ended, how, _) = run.exited().await;
    let worker = pid_in(root.path().join("worker")).await;
    assert_eq!((ended, how.as_str()), (pid, "exit code 0"));
    assert!(!is_alive(worker));
    run.end().await;
}

#[tokio::test]
async fn an_engine_nobody_recorded_is_found_by_its_tag_and_killed() {
    let root = Root::new();
    let mut run = Run::begin(&root);
    let pid = run.started(engine(&root, "exec sleep 1000")).await;
    run.state.remove(name::ENGINE).await;
    run.end().await;
    assert!(is_alive(pid));

    let next = Run::begin(&root);
    assert_eq!(next.keeper.find().await.unwrap(), None);
    assert!(!is_alive(pid));
    next.end().await;
}

#[tokio::test]
async fn an_engine_that_died_while_no_agent_ran_leaves_no_workers() {
    let root = Root::new();
    let mut run = Run::begin(&root);
    let pid = run.started(engine(&root, "sleep 1000 & echo $! > $ROOT/worker; wait")).await;
    let worker = pid_in(root.path().join("worker")).await;
    run.end().await;
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    wait_for("the engine is dead", || !is_alive(pid)).await;
    assert!(is_alive(worker));

    let next = Run::begin(&root);
    assert_eq!(next.keeper.find().await.unwrap(), None);
    assert!(!is_alive(worker));
    next.end().await;
}

#[tokio::test]
async fn a_missing_program_is_one_line_that_will_not_heal() {
    let root = Root::new();
    let mut run = Run::begin(&root);
    let mut assignment = engine(&root, "exit 0");
    assignment.engine.program = "/no/such/vllm".to_owned();
    let directory = assignment.model.path.clone();
    run.keeper.start(7, assignment, directory);
    match run.next().await {
        Event::EngineStartFailed { attempt: 7, reason, may_heal: false } => {
            assert!(reason.contains("/no/such/vllm") && reason.contains("engine.program"), "{reason}");
            assert!(!reason.contains('\n'), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    run.end().await;
}

#[tokio::test]
async fn a_test_that_gives_up_leaves_no_engine_and_no_worker_of_another_session() {
    let root = Root::new();
    let mut run = Run::begin(&root);
    let script = "setsid sh -c 'echo $$ > $ROOT/worker; exec sleep 1000' &\nwait";
    let pid = run.started(engine(&root, script)).await;
    let worker = pid_in(root.path().join("worker")).await;
    drop(run);
    drop(root);
    assert!(!is_alive(pid) && !is_alive(worker));
}
