//! Clients that others wrote, while the node that answers them loses power: none of their requests fails.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use fleet_tests::process::{DevFleet, Options, SoloOptions, Strike, Striker, repository};
use serde_json::Value;

use crate::scenario::{CONTINUATIONS, NO_BRAKE, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// A listener shall not wait longer for the next word when a node dies. Told, not enforced: the machine may be busy.
const STALL_TARGET_S: f64 = 1.0;

/// Longer says that an edge waited for something else than the next replica.
const STALL_MAX_S: f64 = 5.0;

/// Nodes that lose power while a client runs.
const KILLS: usize = 3;

/// The streams last one to three seconds.
const MOMENT_MAX: Duration = Duration::from_millis(1500);

fn fleet_of_stand_ins() -> DevFleet {
    let env = NO_BRAKE.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let engine_args = vec!["--standin-token-ms=20".to_owned()];
    let options = Options { replicas: 3, engine_args, env, ..Options::default() };
    let mut fleet = DevFleet::start(&options).expect("a fleet");
    fleet.wait_serving(3, SOON).expect("three replicas serve");
    fleet
}

/// A client's process; killed when this is dropped.
struct Client {
    child: Child,
    out: PathBuf,
}

impl Client {
    fn start(command: &mut Command, out: &Path) -> anyhow::Result<Self> {
        let log = File::create(out)?;
        let errors = File::create(out.with_extension("err"))?;
        let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
        Ok(Self { child: child.context("start the client")?, out: out.to_owned() })
    }

    fn is_over(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// What it printed.
    fn wait(&mut self, within: Duration) -> anyhow::Result<String> {
        wait_until("the client ends", within, || self.is_over())?;
        let status = self.child.wait()?;
        let errors = std::fs::read_to_string(self.out.with_extension("err"))?;
        ensure!(status.success(), "the client ended with {status}: {errors}");
        Ok(std::fs::read_to_string(&self.out)?)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kills nodes under the client's requests until it ends; returns how many requests that cut.
fn kill_nodes_under(client: &mut Client, fleet: &DevFleet, striker: &mut Striker) -> anyhow::Result<usize> {
    let client = std::cell::RefCell::new(client);
    let is_over = || client.borrow_mut().is_over();
    while striker.struck.len() < KILLS && striker.strike(fleet, None, &is_over)? {}
    for (node, strike, cut) in &striker.struck {
        eprintln!("  {strike:?} of {node}: {cut} requests cut");
    }
    ensure!(striker.struck.len() == KILLS, "the client ended before {KILLS} nodes were killed");
    Ok(striker.struck.iter().map(|(_, _, cut)| cut).sum())
}

fn told(stall: f64) -> String {
    let verdict = if stall <= STALL_TARGET_S { "met" } else { "MISSED" };
    format!("longest stall {stall:.2} s (target {STALL_TARGET_S} s {verdict})")
}

fn continued(fleet: &DevFleet) -> String {
    let count = fleet.gateway_metric(CONTINUATIONS).ok().flatten();
    count.map_or("not counted".to_owned(), |count| count.to_string())
}

/// OpenAI's client; `None`, with a word, where it is not installed.
fn openai_client() -> Option<PathBuf> {
    let place = repository().join(".clients");
    if place.join("stamp").exists() {
        return Some(place.join("venv/bin/python"));
    }
    let is_required = std::env::var("CIC_REQUIRE_CLIENTS").is_ok_and(|value| value == "1");
    assert!(!is_required, "CIC_REQUIRE_CLIENTS=1, but there is no .clients/: run `cargo xtask clients`");
    eprintln!("skipped: no .clients/ here; `cargo xtask clients` installs OpenAI's client");
    None
}

/// `COUNT` requests at least, and on until there is a file `enough`.
fn openai_load(python: &Path, edge: &str, out: &Path, enough: &Path) -> anyhow::Result<Client> {
    const COUNT: &str = "64";
    const CLIENTS: &str = "16";
    let mut command = Command::new(python);
    command.arg(repository().join("tests/edge/clients/openai_load.py"));
    command.args([&format!("http://{edge}/v1"), "tiny", CLIENTS, COUNT]).arg(enough);
    Client::start(&mut command, out)
}

fn lines_of(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn openais_client_sees_no_failure_when_nodes_lose_power() {
    let Some(python) = openai_client() else { return };
    let fleet = fleet_of_stand_ins();
    let at = |name: &str| fleet.path().join(name);
    let mut client =
        openai_load(&python, &fleet.edge, &at("undisturbed.jsonl"), &fleet.path()).expect("starts");
    let key = |line: &Value| line["number"].as_u64().expect("a number");
    let same = |line: &Value| [line["text"].clone(), line["finish"].clone(), line["tokens"].clone()];
    let undisturbed = lines_of(&client.wait(SOON).expect("undisturbed"));
    assert!(undisturbed.iter().all(|line| line["error"].is_null()), "{undisturbed:?}");
    let undisturbed: BTreeMap<u64, _> = undisturbed.iter().map(|line| (key(line), same(line))).collect();

    let enough = at("enough");
    let mut client = openai_load(&python, &fleet.edge, &at("killed.jsonl"), &enough).expect("starts");
    let mut striker = Striker::new(&[Strike::Node], 2, MOMENT_MAX, SOON);
    let cut = kill_nodes_under(&mut client, &fleet, &mut striker).expect("killed");
    std::fs::write(&enough, "").expect("written");
    let heard = lines_of(&client.wait(SOON).expect("its end"));
    let failed: Vec<&Value> = heard.iter().filter(|line| !line["error"].is_null()).collect();
    let differ: Vec<&Value> = heard
        .iter()
        .filter(|line| line["error"].is_null() && undisturbed.get(&key(line)) != Some(&same(line)))
        .collect();
    let stall = heard.iter().filter_map(|line| line["stall"].as_f64()).fold(0.0, f64::max);
    println!(
        "OpenAI's client: {} requests, {KILLS} nodes lost power, {cut} requests cut, {} continued by the edge, {} failed, \
         {} differ; {}",
        heard.len(),
        continued(&fleet),
        failed.len(),
        differ.len(),
        told(stall)
    );
    assert!(failed.is_empty(), "{} failed, such as {:#?}", failed.len(), &failed[..failed.len().min(4)]);
    assert!(differ.is_empty(), "{} differ, such as {:#?}", differ.len(), &differ[..differ.len().min(2)]);
    assert!(heard.len() >= 64 && cut >= KILLS && stall <= STALL_MAX_S, "{cut} cut, {stall} s");
    fleet.stop().expect("nothing is left");
}

/// vLLM's own benchmark client, from the installation of the real engine.
pub(crate) fn vllm_bench(edge: &str, out: &Path, prompts: usize, output_len: usize) -> Option<Command> {
    let real = SoloOptions::real()?;
    let mut command = Command::new(&real.engine);
    command.args(["bench", "serve", "--backend", "openai", "--base-url", &format!("http://{edge}")]);
    command.args(["--model", "tiny", "--tokenizer", &real.model.display().to_string()]);
    command.args([
        "--dataset-name",
        "random",
        "--random-input-len",
        "32",
        "--ignore-eos",
        "--temperature",
        "0",
    ]);
    command.args(["--random-output-len", &output_len.to_string(), "--num-prompts", &prompts.to_string()]);
    command.args(["--max-concurrency", "16", "--disable-tqdm", "--save-result", "--save-detailed"]);
    command.arg("--result-dir").arg(out.parent()?).arg("--result-filename").arg(out.file_name()?);
    command.envs(real.engine_env.iter().map(|(key, value)| (key, value)));
    Some(command)
}

/// What vLLM's benchmark asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BenchSize {
    pub(crate) prompts: usize,
    pub(crate) output_len: usize,
    /// Requests a second; `None`: as fast as they are answered.
    pub(crate) rate: Option<u32>,
    pub(crate) stall_max_s: f64,
}

/// Runs vLLM's benchmark against `fleet` while nodes lose power, and says what it reported.
pub(crate) fn bench_under_kills(
    fleet: &DevFleet,
    striker: &mut Striker,
    size: BenchSize,
) -> anyhow::Result<()> {
    let BenchSize { prompts, output_len, rate, stall_max_s } = size;
    let result = fleet.path().join("vllm-bench.json");
    let mut command = vllm_bench(&fleet.edge, &result, prompts, output_len).context("no engine here")?;
    if let Some(rate) = rate {
        command.args(["--request-rate", &rate.to_string()]);
    }
    let mut client = Client::start(&mut command, &fleet.path().join("vllm-bench.out"))?;
    let began = Instant::now();
    let cut = kill_nodes_under(&mut client, fleet, striker)?;
    client.wait(SOON * 8)?;
    let result: Value = serde_json::from_slice(&std::fs::read(&result)?)?;
    let list = |key: &str| result[key].as_array().cloned().unwrap_or_default();
    let gaps = list("itls").into_iter().flat_map(|gaps| gaps.as_array().cloned().unwrap_or_default());
    let stall = gaps.filter_map(|gap| gap.as_f64()).fold(0.0, f64::max);
    let short =
        list("output_lens").iter().filter(|length| length.as_u64() != Some(output_len as u64)).count();
    println!(
        "vllm bench serve: {prompts} requests in {:.0} s, {KILLS} nodes lost power, {cut} requests cut, {} continued by the \
         edge, {} failed, {short} too short; {}",
        began.elapsed().as_secs_f64(),
        continued(fleet),
        result["failed"],
        told(stall)
    );
    // Each is a traceback: its end says what happened.
    let last_line = |error: &Value| error.as_str()?.trim().lines().last().map(str::to_owned);
    let errors: Vec<String> = list("errors").iter().filter_map(last_line).take(4).collect();
    ensure!(
        result["failed"] == 0 && result["completed"] == prompts,
        "{} failed: {errors:#?}",
        result["failed"]
    );
    ensure!(short == 0, "{short} answers have not {output_len} tokens");
    ensure!(cut >= KILLS && stall <= stall_max_s, "{cut} cut, {stall} s");
    Ok(())
}

#[test]
fn vllms_own_benchmark_sees_no_failure_when_nodes_lose_power() {
    if SoloOptions::real().is_none() {
        return;
    }
    let fleet = fleet_of_stand_ins();
    let mut striker = Striker::new(&[Strike::Node], 2, MOMENT_MAX, SOON);
    let size = BenchSize { prompts: 120, output_len: 100, rate: None, stall_max_s: STALL_MAX_S };
    bench_under_kills(&fleet, &mut striker, size).expect("no failure");
    fleet.stop().expect("nothing is left");
}
