//! The watcher over a FIFO in place of `/dev/kmsg`, and over the real one where it can be read.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use cic_common::gpu::XidSource;
use cic_common::time::Clock;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{KmsgSpec, STATE_FILE, watch};
use crate::core::Event;
use crate::core::gpu::GpuEvent;
use crate::state::StateDir;

/// For what takes milliseconds, on a machine that does other things too.
const SOON: Duration = Duration::from_secs(10);

/// From a line in the log to the event in the queue. Generous: the machine may be busy.
const LATENCY_MAX: Duration = Duration::from_secs(1);

/// A kernel log that the test writes, over several runs of the agent.
struct Log {
    directory: TempDir,
    state: StateDir,
    /// Held open for both ways, so that the reader finds no end between two writers.
    fifo: File,
}

struct Run {
    events: mpsc::Receiver<Event>,
    token: CancellationToken,
    task: JoinHandle<()>,
}

impl Log {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(&directory.path().join("state")).unwrap();
        let path = directory.path().join("kmsg");
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let fifo = File::options().read(true).write(true).open(&path).unwrap();
        Self { directory, state, fifo }
    }

    fn run(&self, boot_id: &str) -> Run {
        start(&self.directory.path().join("kmsg"), boot_id, &self.state)
    }

    fn print(&mut self, text: &str) {
        self.fifo.write_all(text.as_bytes()).unwrap();
    }
}

fn start(path: &Path, boot_id: &str, state: &StateDir) -> Run {
    let (sender, events) = mpsc::channel(64);
    let token = CancellationToken::new();
    let spec = KmsgSpec { path: path.to_owned(), boot_id: boot_id.to_owned(), state: state.clone() };
    let (stop, clock) = (token.clone(), Clock::start());
    let task = tokio::spawn(async move { watch(spec, clock, sender, stop).await.unwrap() });
    Run { events, token, task }
}

impl Run {
    async fn next(&mut self) -> Event {
        tokio::time::timeout(SOON, self.events.recv()).await.expect("an event in time").expect("a watcher")
    }

    async fn next_xid(&mut self) -> u32 {
        match self.next().await {
            Event::Gpu(GpuEvent::Xid(seen)) => seen.code,
            other => panic!("{other:?}"),
        }
    }

    async fn stop(mut self) -> Vec<Event> {
        self.token.cancel();
        tokio::time::timeout(SOON, self.task).await.expect("stops in time").unwrap();
        let mut left = Vec::new();
        while let Some(event) = self.events.recv().await {
            left.push(event);
        }
        left
    }
}

/// Waits until the place was saved as `seq`.
async fn wait_until_kept(state: &StateDir, seq: u64) {
    let begun = Instant::now();
    while state.read::<serde_json::Value>(STATE_FILE).is_none_or(|kept| kept["seq"] != seq) {
        assert!(begun.elapsed() < SOON, "seq {seq} is not kept");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn xid(seq: u64, code: u32) -> String {
    format!("3,{seq},1,-;NVRM: Xid (PCI:0000:3b:00): {code}, pid=7, name=python3, text\n SUBSYSTEM=pci\n")
}

#[tokio::test]
async fn a_fault_in_the_kernel_log_is_an_event_at_once() {
    let mut log = Log::new();
    let mut run = log.run("boot-1");
    // The first run of a boot counts from the end: a line that it takes in shows that it is there.
    log.print("6,1,1,-;hello\n");
    wait_until_kept(&log.state, 1).await;
    let mut longest = Duration::ZERO;
    for seq in 2..22 {
        let written = Instant::now();
        log.print(&xid(seq, 31));
        assert_eq!(run.next_xid().await, 31);
        longest = longest.max(written.elapsed());
    }
    println!("longest from the line to the event: {longest:?}");
    assert!(longest < LATENCY_MAX, "{longest:?}");
    log.print("6,22,1,-;Memory cgroup out of memory: Killed process 41 (python3) total-vm:1kB\n");
    match run.next().await {
        Event::OomKilled { pid, text } => assert_eq!((pid, text.starts_with("Memory cgroup")), (41, true)),
        other => panic!("{other:?}"),
    }
    assert_eq!(run.stop().await, []);
}

#[tokio::test]
async fn what_happened_while_no_agent_ran_counts_once() {
    let mut log = Log::new();
    log.print(&(xid(1, 13) + &xid(2, 13)));
    let run = log.run("boot-1");
    wait_until_kept(&log.state, 2).await;
    assert_eq!(run.stop().await, [], "from before the first run of the boot");

    // The real device shows the same records to every reader; a FIFO is written them again.
    log.print(&(xid(1, 13) + &xid(2, 13) + &xid(3, 79)));
    let mut run = log.run("boot-1");
    assert_eq!(run.next_xid().await, 79, "while no agent ran");
    wait_until_kept(&log.state, 3).await;
    log.print(&xid(4, 95));
    assert_eq!(run.next_xid().await, 95);
    wait_until_kept(&log.state, 4).await;
    assert_eq!(run.stop().await, []);

    log.print(&(xid(1, 13) + &xid(2, 13) + &xid(3, 79) + &xid(4, 95) + &xid(5, 48)));
    let mut run = log.run("boot-1");
    assert_eq!(run.next_xid().await, 48);
    wait_until_kept(&log.state, 5).await;
    assert_eq!(run.stop().await, []);

    log.print(&xid(3, 79));
    let run = log.run("boot-2");
    wait_until_kept(&log.state, 3).await;
    assert_eq!(run.stop().await, [], "another boot, another count");
}

#[tokio::test]
async fn lines_that_are_split_or_forged_are_read_right() {
    let mut log = Log::new();
    let mut run = log.run("boot-1");
    log.print("6,1,1,-;hello\n");
    wait_until_kept(&log.state, 1).await;
    log.print("11,2,1,-;NVRM: Xid (PCI:0000:3b:00): 79, forged\n3,3,1,-;NVRM: Xid (PCI:0000:");
    log.print("3b:00): 94, pid=7, name=x, Contained\n");
    assert_eq!(run.next_xid().await, 94);
    assert_eq!(run.stop().await, []);
}

#[tokio::test]
async fn lost_records_are_told_once_with_their_count() {
    let mut log = Log::new();
    let mut run = log.run("boot-1");
    log.print("6,1,1,-;hello\n");
    wait_until_kept(&log.state, 1).await;
    log.print("6,2,1,-;a\n6,12,1,-;b\n");
    match run.next().await {
        Event::Gpu(GpuEvent::XidsBlind { source, reason }) => {
            assert_eq!((source, reason.starts_with("9 records")), (XidSource::Kmsg, true), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    log.print("6,20,1,-;c\n");
    log.print(&xid(21, 31));
    assert_eq!(run.next_xid().await, 31, "the next note has to wait");
    assert_eq!(run.stop().await, []);
}

#[tokio::test]
async fn a_log_that_cannot_be_read_is_told_once_and_ends_the_task() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(&directory.path().join("state")).unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "6,1,1,-;a\n").unwrap();
    for path in [directory.path().join("missing"), file, directory.path().to_owned()] {
        let mut run = start(&path, "boot-1", &state);
        match run.next().await {
            Event::Gpu(GpuEvent::XidsBlind { source: XidSource::Kmsg, reason }) => {
                assert!(reason.contains(&path.display().to_string()), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(run.events.recv().await, None, "told once");
        tokio::time::timeout(SOON, run.task).await.expect("ends in time").unwrap();
    }
}

#[tokio::test]
async fn the_log_of_this_machine_can_be_followed() {
    let path = Path::new("/dev/kmsg");
    if let Err(error) = File::open(path) {
        println!("skipped: {} cannot be read: {error}", path.display());
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    let run = start(path, "boot-1", &state);
    let begun = Instant::now();
    while state.read::<serde_json::Value>(STATE_FILE).is_none() && !run.task.is_finished() {
        assert!(begun.elapsed() < SOON, "the end of the log was not reached");
        // bounded wait: until the place in the log is saved
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let left = run.stop().await;
    let blind = |event: &Event| matches!(event, Event::Gpu(GpuEvent::XidsBlind { .. }));
    assert!(!left.iter().any(blind), "{left:?}");
    println!("place: {}", state.read::<serde_json::Value>(STATE_FILE).unwrap());
}
