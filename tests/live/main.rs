//! One agent and the real vLLM: what a stand-in cannot prove. Skipped, with a word, where `.engine/` is not installed.
//!
//! Starting a vLLM takes 25 s of CPU, so the cases that break a running one share it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cic_common::process::Process;
use fleet_tests::process::{Solo, SoloOptions, Streams, binary, repository, request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A vLLM on two cores beside other tests.
const LOADED: Duration = Duration::from_secs(300);

const SOON: Duration = Duration::from_secs(60);

/// Kills of the agent under streams. The stand-in's test does a hundred.
const KILLS: u32 = 20;

fn is_alive(pid: u32) -> bool {
    Process::read(pid).is_some_and(|process| !process.is_zombie)
}

/// Processes with a file of the engine's installation in memory: a vLLM hides its command line and environment, not that.
fn users_of_the_engine() -> Vec<u32> {
    let installation = repository().join(".engine").display().to_string();
    let maps = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let all = Process::all().expect("/proc");
    all.iter().map(|process| process.pid).filter(|pid| maps(*pid).contains(&installation)).collect()
}

fn wait_until(what: &str, within: Duration, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < within, "{what} within {within:?}");
        std::thread::sleep(Duration::from_millis(20)); // bounded wait: by `within`
    }
}

fn wait_failed(solo: &mut Solo) -> String {
    solo.wait_for("a failure", LOADED, |report| {
        let reason = report["reason"].as_str()?.to_owned();
        (report["phase"] == "failed").then_some(reason)
    })
    .expect("failed")
}

#[test]
fn a_running_vllm_is_adopted_stalls_dies_and_stops_as_the_agent_expects() {
    let Some(options) = SoloOptions::real() else { return };
    let options = options
        .with("CIC_ENGINE_STALL_SUSPECT_MS", "5000")
        .with("CIC_ENGINE_STALL_KILL_MS", "60000")
        .with("CIC_TIMING_PROBE_SERVING_MS", "500")
        .with_engine("VLLM_SERVER_DEV_MODE", "1");
    let mut solo = Solo::start(options).expect("an agent");
    let began = Instant::now();
    let pid = solo.wait_serving(LOADED).expect("serves");
    println!("ready after {:.1} s", began.elapsed().as_secs_f64());
    the_plan_reckons_with_the_same_cache(&solo);

    let whole = solo.kill_under_streams(KILLS, 2, 16).expect("adopted each time");
    println!(
        "adopt: {KILLS} kills, pid {pid} throughout; {whole} streams whole, none broken once it was back"
    );
    stall_and_move_again(&mut solo, pid);
    kill_the_api_server(&mut solo, pid);
    stop_with_a_stream_running(&mut solo);
}

/// What a token takes of the cache is what `cic plan` says: the engine has as many blocks as its gibibyte holds by that.
fn the_plan_reckons_with_the_same_cache(solo: &Solo) {
    let engine = solo.engine_address().expect("an address");
    let page = request(&engine, "GET", "/metrics", None, SOON).expect("an answer").body;
    let info = page
        .lines()
        .find(|line| line.starts_with("vllm:cache_config_info{"))
        .expect("what it says of its cache");
    let label = |name: &str| -> u64 {
        let value = info.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {info}"))
    };
    let (block, blocks) = (label("block_size"), label("num_gpu_blocks"));
    let model = repository().join(".engine/tiny-llama");
    let mut plan = Command::new(binary("cic").expect("built"));
    let plan = plan.arg("plan").arg(model).args(["--gpu", "H100:1", "--json"]).output().expect("it runs");
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).expect("JSON");
    let token = plan["context"]["bytes_per_token"].as_u64().expect("a figure");
    println!(
        "KV cache: {token} bytes a token by the plan; vLLM has {blocks} blocks of {block} tokens in 1 GiB"
    );
    assert_eq!(blocks, (1 << 30) / (block * token));
}

/// A paused vLLM answers `/health` with 200, has a request running and moves no token.
fn stall_and_move_again(solo: &mut Solo, pid: u32) {
    let engine = solo.engine_address().expect("an address");
    // One after the other: a single request may be over before its engine is seen at work.
    let streams = Streams::start(&engine, "tiny", 1, 900);
    wait_until("a pause with a request under way", SOON, || {
        if !is_at_work(&engine) {
            return false;
        }
        let paused = request(&engine, "POST", "/pause?mode=keep", None, SOON).expect("an answer");
        assert_eq!(paused.status, 200, "{paused:?}");
        // Between two requests there is no work that could stall.
        let is_under_way = is_at_work(&engine);
        if !is_under_way {
            request(&engine, "POST", "/resume", None, SOON).expect("an answer");
        }
        is_under_way
    });
    let began = Instant::now();
    solo.wait_for("a stall", SOON, |report| (report["engine"]["state"] == "stalled").then_some(()))
        .expect("stalled");
    println!("stall: seen {:.1} s after the pause", began.elapsed().as_secs_f64());
    let health = request(&engine, "GET", "/health", None, SOON).expect("an answer");
    assert_eq!(health.status, 200, "its own word is that it is well");
    request(&engine, "POST", "/resume", None, SOON).expect("an answer");
    solo.wait_for("progress", SOON, |report| (report["engine"]["state"] == "ready").then_some(()))
        .expect("moves");
    assert_eq!(solo.engine_pid().expect("a pid"), pid, "it was not killed");
    let seen = streams.stop();
    assert!(seen.whole > 0 && seen.refused.is_empty() && seen.broken.is_empty(), "{seen:?}");
}

fn is_at_work(engine: &str) -> bool {
    let page = request(engine, "GET", "/metrics", None, SOON).map(|answer| answer.body).unwrap_or_default();
    page.lines().any(|line| line.starts_with("vllm:num_requests_running") && !line.ends_with(" 0.0"))
}

/// Engine core and worker of a vLLM live on for ever when only the API server is killed.
fn kill_the_api_server(solo: &mut Solo, pid: u32) {
    let before = users_of_the_engine();
    assert!(before.len() >= 3, "API server, engine core and worker: {before:?}");
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("killed");
    wait_until("the end of every process of it", SOON, || before.iter().all(|pid| !is_alive(*pid)));
    let next = solo
        .wait_for("a new engine", LOADED, |report| {
            let now = report["engine"]["pid"].as_u64().filter(|now| *now != u64::from(pid))?;
            (report["phase"] == "serving").then_some(now)
        })
        .expect("started anew");
    println!("SIGKILL of API server {pid}: none of {before:?} left; pid {next} serves");
    let crash = solo.crashes().expect("records").pop().expect("a record");
    assert!(crash["log_tail"].as_array().is_some_and(|lines| !lines.is_empty()), "{crash:#}");
}

fn stop_with_a_stream_running(solo: &mut Solo) {
    let engine = solo.engine_address().expect("an address");
    let streams = Streams::start(&engine, "tiny", 1, 2000);
    wait_until("a running request", SOON, || is_at_work(&engine));
    let pid = solo.engine_pid().expect("a pid");
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).expect("asked");
    wait_until("its end", SOON, || !is_alive(pid));
    let seen = streams.stop();
    assert!(!seen.broken.is_empty(), "an aborted stream is no whole one: {seen:?}");
    solo.wait_for("the exit in the report", SOON, |report| {
        report["engine"]["last_exit"].as_str().map(str::to_owned)
    })
    .expect("told");
    println!("SIGTERM with a stream running: {:?}", seen.broken.first());
}

#[test]
fn a_flag_that_the_installed_vllm_lacks_is_named_with_its_replacement() {
    let Some(mut options) = SoloOptions::real() else { return };
    options.args =
        ["--enforce-eager", "--engine-use-ray", "--disable-log-requests", "--tensor-paralel-size", "1"]
            .map(str::to_owned)
            .into();
    let began = Instant::now();
    let mut solo = Solo::start(options).expect("an agent");
    let reason = wait_failed(&mut solo);
    println!("bad flags, {:.1} s, help asked for: {reason}", began.elapsed().as_secs_f64());
    for part in [
        "--engine-use-ray is no flag of this vLLM any more: use --distributed-executor-backend ray",
        "--disable-log-requests is no flag of this vLLM any more: leave it out",
        "--tensor-paralel-size: unknown flag; did you mean --tensor-parallel-size?",
    ] {
        assert!(reason.contains(part), "{reason}");
    }
    assert!(!solo.state().join("engine.log").exists(), "none was started");
}

#[test]
fn a_wrong_model_path_is_named_at_once_and_not_as_a_bad_repository() {
    let Some(mut options) = SoloOptions::real() else { return };
    options.model = Path::new("/nowhere/model").to_owned();
    let began = Instant::now();
    let mut solo = Solo::start(options).expect("an agent");
    let reason = solo
        .wait_for("the cause", SOON, |report| {
            report["reason"].as_str().filter(|reason| reason.contains("/nowhere/model")).map(str::to_owned)
        })
        .expect("named");
    println!(
        "wrong path, {:.2} s (vLLM: 8 to 41 s, HFValidationError): {reason}",
        began.elapsed().as_secs_f64()
    );
    assert!(began.elapsed() < Duration::from_secs(5) && !reason.contains("HFValidationError"), "{reason}");
}

#[test]
fn a_shard_that_was_cut_off_is_named_before_any_engine_is_started() {
    let Some(mut options) = SoloOptions::real() else { return };
    let place = tempfile::tempdir().expect("a directory");
    let copy = place.path().join("model");
    std::fs::create_dir(&copy).expect("made");
    for entry in std::fs::read_dir(&options.model).expect("the model").flatten() {
        std::fs::copy(entry.path(), copy.join(entry.file_name())).expect("copied");
    }
    let shards = std::fs::read_dir(&copy).expect("the copy").flatten().map(|entry| entry.path());
    let shard =
        shards.into_iter().find(|path| path.extension().is_some_and(|e| e == "safetensors")).expect("one");
    std::fs::File::options().write(true).open(shard).expect("opens").set_len(20_000).expect("cut");
    options.model = copy;
    let mut solo = Solo::start(options).expect("an agent");
    let reason = wait_failed(&mut solo);
    println!("truncated shard: {reason}");
    assert!(reason.contains(".safetensors: ") && reason.contains("cut off"), "{reason}");
    assert!(solo.crashes().expect("records").is_empty(), "no engine was started");
}
