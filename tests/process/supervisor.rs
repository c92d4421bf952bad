//! What one agent does on its own when its engine misbehaves: real processes on loopback, the stand-in engine for what
//! a real one cannot be made to show.

use std::time::{Duration, Instant};

use fleet_tests::process::{Solo, SoloOptions, StandInGpus, request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

/// A completion that keeps the engine busy while it is asked for.
const LONG: &str =
    r#"{"model": "tiny", "prompt": "1", "max_tokens": 4000, "ignore_eos": true, "stream": true}"#;

struct Stand {
    solo: Solo,
    _place: tempfile::TempDir,
}

/// The same on a machine with eight stand-in GPUs.
struct GpuStand {
    stand: Stand,
    gpus: StandInGpus,
    _place: tempfile::TempDir,
}

fn stand_on_gpus() -> GpuStand {
    let place = tempfile::tempdir().expect("a directory");
    let gpus = StandInGpus::new(place.path()).expect("stand-in GPUs");
    let stand = stand(|mut options| {
        options.env.extend(gpus.environment());
        options
    });
    GpuStand { stand, gpus, _place: place }
}

fn stand(change: impl FnOnce(SoloOptions) -> SoloOptions) -> Stand {
    let place = tempfile::tempdir().expect("a directory");
    let options = SoloOptions::standin(place.path()).expect("the stand-in");
    let options =
        options.with("CIC_TIMING_PROBE_SERVING_MS", "200").with("CIC_TIMING_PROBE_LOADING_MS", "50");
    Stand { solo: Solo::start(change(options)).expect("an agent"), _place: place }
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).expect("a signal");
}

fn is_alive(pid: u32) -> bool {
    cic_common::process::Process::read(pid).is_some_and(|process| !process.is_zombie)
}

fn state_of(report: &Value) -> &str {
    report["engine"]["state"].as_str().unwrap_or_default()
}

/// Keeps one long stream open on the engine itself.
fn occupy(solo: &Solo) -> std::net::TcpStream {
    stream_from(&solo.engine_address().expect("an address"))
}

/// Asks for the long completion and leaves its answer unread.
fn stream_from(address: &str) -> std::net::TcpStream {
    use std::io::Write as _;
    let mut socket = std::net::TcpStream::connect(address).expect("connect");
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{LONG}",
        LONG.len()
    );
    socket.write_all(head.as_bytes()).expect("sent");
    socket
}

/// Seconds until the agent powers its machine off, by its metrics.
fn power_off_in(solo: &Solo) -> Option<u64> {
    let page = request(&solo.address("metrics").ok()?, "GET", "/metrics", None, SOON).ok()?.body;
    let line = page.lines().find_map(|line| line.strip_prefix("cic_agent_power_off_in_seconds "))?;
    line.parse().ok()
}

#[test]
fn a_machine_that_nobody_counts_on_is_powered_off_though_its_agent_crashes_and_not_under_a_request() {
    const IDLE_S: u64 = 8;
    let place = tempfile::tempdir().expect("a directory");
    let off = place.path().join("off");
    let Stand { mut solo, _place } = stand(|options| {
        options
            .with("CIC_DEADMAN_ENABLED", "true")
            .with("CIC_DEADMAN_IDLE_S", IDLE_S.to_string())
            .with("CIC_DEADMAN_COMMAND", format!("touch,{}", off.display()))
            .with_engine("CIC_STANDIN_TOKEN_MS", "20")
    });
    let pid = solo.wait_serving(SOON).expect("serves");
    let busy = stream_from(&solo.address("edge").expect("an edge"));
    let began = Instant::now();
    solo.wait_for("a stream that outlasts the limit", SOON, |report| {
        assert!(!off.exists() && report["phase"] == "serving", "{report:#}");
        let is_held = report["edge"]["in_flight"] == 1 && began.elapsed() > Duration::from_secs(3);
        (began.elapsed() > Duration::from_secs(IDLE_S + 3)).then(|| assert!(is_held, "{report:#}"))
    })
    .expect("it is held");
    let left = power_off_in(&solo).unwrap_or_default();
    assert!(left + 2 >= IDLE_S, "{left} s are left under a request");
    drop(busy);
    let quiet_at = Instant::now();
    // Killed again and again, each run shorter than the limit: what was quiet before counts.
    while quiet_at.elapsed() < SOON && !off.exists() {
        if quiet_at.elapsed() < Duration::from_secs(IDLE_S - 1) {
            solo.end_agent(Signal::SIGKILL).expect("ended");
            solo.start_agent().expect("started");
        }
        // bounded wait: a run of two seconds is what is tested.
        std::thread::sleep(Duration::from_secs(2));
    }
    assert!(off.exists(), "{}", solo.log());
    assert!(quiet_at.elapsed() >= Duration::from_secs(IDLE_S - 2), "{:?}", quiet_at.elapsed());
    let report = solo.report().expect("a report");
    assert_eq!(report["phase"], "stopped", "{report:#}");
    assert!(report["reason"].as_str().is_some_and(|why| why.starts_with("dead-man switch")), "{report:#}");
    assert!(!is_alive(pid), "the engine ends before the power does");
}

#[test]
fn an_engine_that_stands_still_is_passed_over_then_killed_and_started_anew() {
    let Stand { mut solo, _place } = stand(|options| {
        options
            .with("CIC_ENGINE_STALL_SUSPECT_MS", "1500")
            .with("CIC_ENGINE_STALL_KILL_MS", "4000")
            .with("CIC_ENGINE_STOP_GRACE_MS", "1000")
            .with_engine("CIC_STANDIN_TOKEN_MS", "20")
    });
    let pid = solo.wait_serving(SOON).expect("serves");
    let busy = occupy(&solo);
    signal(pid, Signal::SIGUSR1);
    let began = Instant::now();
    solo.wait_for("a stall", SOON, |report| (state_of(report) == "stalled").then_some(())).expect("stalled");
    let report = solo.report().expect("a report");
    assert_eq!(report["phase"], "serving", "it is passed over, not stopped: {report:#}");
    let next = solo
        .wait_for("a new engine", SOON, |report| {
            let now = report["engine"]["pid"].as_u64().filter(|now| *now != u64::from(pid))?;
            (report["phase"] == "serving").then_some(now)
        })
        .expect("started anew");
    assert!(began.elapsed() >= Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(!is_alive(pid) && next != u64::from(pid));
    let crash = solo.crashes().expect("records").pop().expect("a record");
    assert!(crash["reason"].as_str().is_some_and(|reason| reason.contains("nothing moved")), "{crash:#}");
    assert!(crash["stacks"].as_array().is_some_and(|stacks| !stacks.is_empty()), "{crash:#}");
    drop(busy);
}

#[test]
fn an_engine_that_moves_again_before_the_kill_is_kept() {
    let Stand { mut solo, _place } = stand(|options| {
        options
            .with("CIC_ENGINE_STALL_SUSPECT_MS", "1000")
            .with("CIC_ENGINE_STALL_KILL_MS", "60000")
            .with_engine("CIC_STANDIN_TOKEN_MS", "20")
    });
    let pid = solo.wait_serving(SOON).expect("serves");
    let busy = occupy(&solo);
    signal(pid, Signal::SIGUSR1);
    solo.wait_for("a stall", SOON, |report| (state_of(report) == "stalled").then_some(())).expect("stalled");
    signal(pid, Signal::SIGUSR1);
    solo.wait_for("progress", SOON, |report| (state_of(report) == "ready").then_some(())).expect("moves");
    assert_eq!(solo.engine_pid().expect("a pid"), pid);
    assert!(solo.crashes().expect("records").is_empty());
    drop(busy);
}

#[test]
fn the_last_replica_takes_requests_though_it_stands_still() {
    let Stand { mut solo, _place } = stand(|options| {
        options.with("CIC_ENGINE_STALL_SUSPECT_MS", "1000").with_engine("CIC_STANDIN_TOKEN_MS", "20")
    });
    let pid = solo.wait_serving(SOON).expect("serves");
    let busy = occupy(&solo);
    signal(pid, Signal::SIGUSR1);
    solo.wait_for("a stall", SOON, |report| (state_of(report) == "stalled").then_some(())).expect("stalled");
    let edge = solo.address("edge").expect("an edge");
    let asked = std::thread::spawn(move || {
        let body = r#"{"model": "tiny", "prompt": "1", "max_tokens": 2}"#;
        request(&edge, "POST", "/v1/completions", Some(body), SOON)
    });
    // It moves again while the request waits in it: a request that was refused would have failed by now.
    solo.wait_for("the request in the edge", SOON, |report| {
        report["edge"]["in_flight"].as_u64().filter(|count| *count > 0)
    })
    .expect("let in");
    signal(pid, Signal::SIGUSR1);
    let answer = asked.join().expect("a thread").expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    drop(busy);
}

#[test]
fn a_killed_core_is_an_end_with_exit_code_0_that_leaves_nothing_and_is_healed() {
    let Stand { mut solo, _place } = stand(|options| options);
    let pid = solo.wait_serving(SOON).expect("serves");
    let core = child_of(pid).expect("an engine core");
    signal(core, Signal::SIGKILL);
    let next = solo
        .wait_for("a new engine", SOON, |report| {
            let now = report["engine"]["pid"].as_u64().filter(|now| *now != u64::from(pid))?;
            (report["phase"] == "serving").then_some(now)
        })
        .expect("started anew");
    assert!(!is_alive(pid) && !is_alive(core) && next != u64::from(pid));
    let report = solo.report().expect("a report");
    assert!(
        report["engine"]["last_exit"].as_str().is_some_and(|exit| exit.contains("exit code 0")),
        "{report:#}"
    );
}

fn child_of(pid: u32) -> Option<u32> {
    let all = cic_common::process::Process::all().ok()?;
    all.into_iter().find(|process| process.parent == pid).map(|process| process.pid)
}

#[test]
fn a_flag_that_the_engine_lacks_is_found_before_the_start_and_named_with_its_replacement() {
    let began = Instant::now();
    let Stand { mut solo, _place } = stand(|mut options| {
        options.args = vec!["--engine-use-ray".to_owned(), "--disable-log-requests".to_owned()];
        options
    });
    let reason = solo
        .wait_for("a failure", SOON, |report| {
            let reason = report["reason"].as_str()?.to_owned();
            (report["phase"] == "failed").then_some(reason)
        })
        .expect("failed");
    assert!(
        reason.contains("--engine-use-ray") && reason.contains("--distributed-executor-backend ray"),
        "{reason}"
    );
    assert!(reason.contains("--no-enable-log-requests is the default"), "{reason}");
    assert!(!solo.state().join("engine.log").exists(), "no engine was started; {:?}", began.elapsed());
    let report = solo.report().expect("a report");
    assert_eq!(report["wants_replacement"], reason, "another node may have another vLLM");
}

#[test]
fn a_log_flood_costs_neither_the_disk_nor_the_agent() {
    const MB_PER_S: u64 = 100;
    const BOUND: u64 = (64 << 20) + (100 << 20);
    let Stand { mut solo, _place } =
        stand(|options| options.with_engine("CIC_STANDIN_LOG_FLOOD", MB_PER_S.to_string()));
    solo.wait_serving(SOON).expect("serves");
    let (rss_before, began) = (rss(solo.agent_pid()), Instant::now());
    let mut largest = 0;
    // Written by the time the flood has cut it twice.
    while began.elapsed() < Duration::from_secs(4) {
        let log = std::fs::metadata(solo.state().join("engine.log")).map_or(0, |found| found.len());
        largest = largest.max(log);
        std::thread::sleep(Duration::from_millis(50)); // bounded wait: 4 s of flood
    }
    let kept: u64 = std::fs::read_dir(solo.state())
        .expect("the state directory")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("engine.log"))
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum();
    assert!(largest < BOUND && kept < BOUND, "{largest} bytes at most, {kept} kept");
    assert!(largest > 32 << 20, "the flood was one: {largest}");
    let grown = rss(solo.agent_pid()).saturating_sub(rss_before);
    assert!(grown < 8 << 20, "the agent grew by {grown} bytes");
    assert_eq!(solo.report().expect("an answer")["phase"], "serving");
}

fn rss(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

#[test]
fn an_engine_that_will_not_stop_is_killed_and_its_clients_are_closed() {
    let Stand { mut solo, _place } = stand(|options| {
        options
            .with("CIC_ENGINE_STOP_GRACE_MS", "500")
            .with("CIC_ENGINE_TERM_MODE", "stop_engine")
            .with_engine("CIC_STANDIN_STOP_WITH", "hang")
            .with_engine("CIC_STANDIN_TOKEN_MS", "20")
    });
    let pid = solo.wait_serving(SOON).expect("serves");
    let busy = occupy(&solo);
    solo.end_agent(Signal::SIGTERM).expect("ends");
    assert!(!is_alive(pid), "the engine hung and was killed");
    assert_eq!(solo.processes(), Vec::<u32>::new());
    busy.set_read_timeout(Some(SOON)).expect("a deadline");
    let mut rest = Vec::new();
    let closed = std::io::Read::read_to_end(&mut &busy, &mut rest);
    assert!(closed.is_ok() || closed.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
}

#[test]
fn an_agent_killed_again_and_again_under_streams_keeps_its_engine_and_breaks_no_stream_once_it_is_back() {
    const KILLS: u32 = 100;
    let Stand { mut solo, _place } = stand(|options| options.with_engine("CIC_STANDIN_TOKEN_MS", "2"));
    let pid = solo.wait_serving(SOON).expect("serves");
    let whole = solo.kill_under_streams(KILLS, 4, 20).expect("adopted each time");
    println!("{KILLS} kills: engine pid {pid} throughout; {whole} streams read to their end, none broken");
    assert!(solo.crashes().expect("records").is_empty());
}

#[test]
fn a_driver_that_hangs_is_told_by_15_s_while_the_engine_serves_and_the_agent_answers() {
    let GpuStand { stand: Stand { mut solo, _place: _engine }, gpus, _place } = stand_on_gpus();
    let pid = solo.wait_serving(SOON).expect("serves");
    solo.wait_for("GPUs", SOON, |report| report["gpu"]["seen"]["gpus"].as_array().map(Vec::len))
        .expect("seen");
    gpus.script(&json!({ "hang": ["nvmlDeviceGetUtilizationRates"] })).expect("scripted");
    // The hang is met at the next round of samples, ten seconds later at most.
    let began = Instant::now();
    let reason = solo
        .wait_for("a wedged driver", SOON, |report| {
            report["gpu"]["wedged"]["reason"].as_str().map(str::to_owned)
        })
        .expect("wedged");
    assert!(began.elapsed() < Duration::from_secs(10 + 15 + 1), "{:?}", began.elapsed());
    assert!(reason.contains("gpu 0"), "the call is named: {reason}");
    let report = solo.report().expect("it answers");
    assert_eq!((&report["phase"], &report["engine"]["pid"]), (&json!("serving"), &json!(pid)), "{report:#}");
    gpus.script(&json!({})).expect("scripted");
    solo.wait_for("GPUs again", SOON, |report| report["gpu"]["seen"].as_object().map(drop))
        .expect("seen again");
}

#[test]
fn a_condemned_gpu_asks_for_another_node_until_an_operator_clears_it() {
    let GpuStand { stand: Stand { mut solo, _place: _engine }, mut gpus, _place } = stand_on_gpus();
    let pid = solo.wait_serving(SOON).expect("serves");
    gpus.kernel_says("NVRM: Xid (PCI:0000:39:00): 95, pid='<unknown>', name=<unknown>, Uncontained")
        .expect("said");
    let wish = solo
        .wait_for("a wish", SOON, |report| report["wants_replacement"].as_str().map(str::to_owned))
        .expect("asked for");
    assert!(wish.contains("gpu 2") && wish.contains("95") && wish.contains("until"), "{wish}");
    assert_eq!(solo.engine_pid().expect("a pid"), pid, "it serves on");
    // A new run of the agent still knows what it cannot see again, once that is on the disk.
    let memory = solo.state().join("gpu.json");
    let is_remembered = |_: &Value| std::fs::read_to_string(&memory).ok().filter(|text| text.contains("95"));
    solo.wait_for("the fault on the disk", SOON, is_remembered).expect("remembered");
    solo.end_agent(Signal::SIGKILL).expect("killed");
    solo.start_agent().expect("started again");
    solo.wait_serving(SOON).expect("serves again");
    solo.wait_for("the wish of the run before", SOON, |report| {
        report["wants_replacement"].as_str().map(drop)
    })
    .expect("remembered");
    let cleared = solo.command(&["gpu-clear"]).expect("runs");
    assert!(cleared.status.success(), "{cleared:?}");
    solo.wait_for("no wish", SOON, |report| report["wants_replacement"].is_null().then_some(()))
        .expect("cleared");
}

#[test]
fn memory_that_an_engine_leaves_behind_is_told_with_its_holders_and_nothing_is_started_on_to_it() {
    let GpuStand { stand: Stand { mut solo, _place: _engine }, gpus, _place } = stand_on_gpus();
    let used = |bytes: u64, pids: &[u32]| {
        let processes: Vec<Value> = pids.iter().map(|pid| json!({ "pid": pid, "memory": bytes })).collect();
        let gpu = json!({ "memory_used": bytes, "processes": processes });
        json!({ "gpus": (0..8).map(|number| (number.to_string(), gpu.clone())).collect::<serde_json::Map<_, _>>() })
    };
    gpus.script(&used(4 << 20, &[])).expect("scripted");
    let pid = solo.wait_serving(SOON).expect("serves");
    // The default script was there for a moment; what counts is the baseline of this boot.
    let baseline = std::fs::read_to_string(solo.state().join("gpu.json")).expect("remembered");
    assert!(baseline.contains("baseline"), "{baseline}");
    gpus.script(&used(78 << 30, &[4242])).expect("scripted");
    let is_held =
        |report: &Value| (report["gpu"]["seen"]["gpus"][0]["memory_used"] == 78_u64 << 30).then_some(());
    solo.wait_for("the memory in use", SOON, is_held).expect("sampled");
    signal(pid, Signal::SIGKILL);
    let reason = solo
        .wait_for("a leak", SOON, |report| {
            report["reason"].as_str().filter(|reason| reason.contains("gpu_leaked")).map(str::to_owned)
        })
        .expect("told");
    assert!(reason.contains("4242") && reason.contains("78.0 GiB"), "{reason}");
    assert_eq!(solo.report().expect("a report")["phase"], "failed");
    gpus.script(&used(4 << 20, &[])).expect("scripted");
    let next = solo.wait_serving(SOON).expect("its way back");
    assert_ne!(next, pid);
}
