//! The model step on a mounted file system whose server is real and fails: s3fs (FUSE) on a server of the S3 protocol; and
//! a model fetched from such a server, by hand and by an agent.
//!
//! Each test of a mount has namespaces of its own: its mounts and processes end with it.

mod attached;
mod fetch;
mod sourced;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cic_agent::core::ModelFault;
use cic_agent::effect::model::{Depth, Models, Quiet, STEP_COMMAND};
use cic_common::assignment::ModelSpec;
use cic_common::process::Process;
use fleet_tests::process::{Apart, S3_KEYS, S3Server, binary, succeeds};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const APART: Apart = Apart { enter: r#"ip link set lo up && exec "$@""#, required_by: "CIC_REQUIRE_FUSE" };

/// One file of weights, in two pieces: a build for tests serves some megabytes a second.
const WEIGHT_BYTES: usize = 6 << 20;

/// Bytes of one file after which a fetch has whole pieces: eight (`STORE_UNDER_WAY`), of 4 MiB each, are under way at once.
const SOME_ARE_WHOLE: u64 = 33 << 20;

const MOUNTED_WITHIN: Duration = Duration::from_secs(20);

/// Where the test's files are, if this is the test in its namespaces; otherwise runs it there.
fn place() -> Option<PathBuf> {
    let lack = || {
        anyhow::ensure!(succeeds("s3fs", &["--version"]), "no s3fs here; `apt-get install s3fs` brings it");
        anyhow::ensure!(Path::new("/dev/fuse").exists(), "no FUSE in this kernel");
        Apart::can_run(&["true"])
    };
    APART.place(lack, |place| Ok(vec![("TMPDIR", place.into())]))
}

/// A bucket with a model in it, mounted.
struct Mounted {
    server: S3Server,
    s3fs: Child,
    directory: PathBuf,
    models: Models,
}

impl Mounted {
    fn begin(place: &Path) -> Self {
        let server = S3Server::start().expect("a server");
        let bucket = server.bucket();
        // In the bucket's root: this server fails where s3fs asks for the attributes of a folder.
        write_model(&bucket, WEIGHT_BYTES);
        let agent = binary("cic-agent").expect("built");
        let mut manifest = Command::new(&agent);
        manifest.arg("manifest").arg(&bucket).stdout(Stdio::null());
        assert!(manifest.status().expect("it runs").success());
        let models = Models {
            program: agent,
            ledger: place.join("verified.json"),
            depth: Depth::Content,
            quiet: Quiet { mount: secs(4), structure: secs(20), content: secs(20), ..Quiet::default() },
            badge: None,
        };
        let at = place.join("mounted");
        fs::create_dir(&at).expect("a directory");
        let s3fs = mount(&server, place, &at);
        let mounted = Self { server, s3fs, directory: at, models };
        mounted.wait_listed();
        mounted
    }

    fn spec(&self) -> ModelSpec {
        ModelSpec::at("tiny", self.directory.to_str().expect("UTF-8"))
    }

    fn wait_listed(&self) {
        let began = Instant::now();
        while !succeeds("test", &["-f", self.directory.join("config.json").to_str().expect("UTF-8")]) {
            assert!(began.elapsed() < MOUNTED_WITHIN, "s3fs shows nothing");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.s3fs.kill();
        let _ = self.s3fs.wait();
    }
}

fn mount(server: &S3Server, place: &Path, at: &Path) -> Child {
    let [(_, access), (_, secret)] = S3_KEYS;
    let passwords = place.join("passwd-s3fs");
    fs::write(&passwords, format!("{access}:{secret}")).expect("written");
    fs::set_permissions(&passwords, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("private");
    let options = format!(
        "passwd_file={},url=http://{},use_path_request_style,retries=1,connect_timeout=3,readwrite_timeout=10,\
         stat_cache_expire=1",
        passwords.display(),
        server.address()
    );
    Command::new("s3fs")
        .args(["fleet", at.to_str().expect("UTF-8"), "-f", "-o", &options])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("s3fs starts")
}

fn write_model(directory: &Path, weight_bytes: usize) {
    fs::create_dir_all(directory).expect("a directory");
    let header =
        json!({ "w": { "dtype": "U8", "shape": [weight_bytes], "data_offsets": [0, weight_bytes] } })
            .to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    let mut random = fastrand::Rng::with_seed(3);
    let begin = bytes.len();
    bytes.resize(begin + weight_bytes, 0);
    random.fill(&mut bytes[begin..]);
    fs::write(directory.join("model.safetensors"), bytes).expect("written");
    fs::write(directory.join("config.json"), "{}").expect("written");
}

const fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Runs a step of the agent's, and says how long it took.
async fn timed<T>(step: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    (step.await, began.elapsed())
}

fn is_for_now(result: Result<(), ModelFault>) -> String {
    let fault = result.expect_err("a dead file system");
    assert!(fault.may_heal(), "{fault}");
    fault.to_string()
}

#[tokio::test]
async fn a_model_in_a_bucket_is_verified_through_its_mount_and_a_flipped_byte_is_found() {
    let Some(place) = place() else { return };
    let mounted = Mounted::begin(&place);
    let spec = mounted.spec();
    mounted.models.mount(&spec).await.expect("it is there");
    let (verified, first) = timed(mounted.models.verify(&spec, |_, _| {})).await;
    verified.expect("it is whole");
    let (verified, again) = timed(mounted.models.verify(&spec, |_, _| {})).await;
    verified.expect("it is whole still");
    println!(
        "s3fs, {WEIGHT_BYTES} bytes: verified in {first:.2?}, again in {again:.2?} by what was remembered"
    );
    let weights = mounted.server.bucket().join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("read");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&weights, bytes).expect("written");
    // s3fs looks at the object's attributes once a second.
    let began = Instant::now();
    let fault = loop {
        match mounted.models.verify(&spec, |_, _| {}).await {
            Err(fault) => break fault,
            Ok(()) => assert!(began.elapsed() < MOUNTED_WITHIN, "the flipped byte is not seen"),
        }
    };
    assert!(!fault.may_heal(), "{fault}");
    assert!(fault.to_string().contains("model.safetensors: has not the bytes of the manifest"), "{fault}");
}

#[tokio::test]
async fn a_mount_whose_server_hangs_is_given_up_in_time_and_serves_again_once_it_goes_on() {
    let Some(place) = place() else { return };
    let mut mounted = Mounted::begin(&place);
    let spec = mounted.spec();
    // The daemon of the mount hangs: whoever asks the mount waits in the kernel.
    kill(pid(&mounted.s3fs), Signal::SIGSTOP).expect("stopped");
    let (result, took) = timed(mounted.models.mount(&spec)).await;
    let said = is_for_now(result);
    println!("hanging daemon: {said}, after {took:.2?}");
    assert!(said.contains("no answer from the file system within 4 s"), "{said}");
    assert!(took < secs(6), "{took:?}");
    kill(pid(&mounted.s3fs), Signal::SIGCONT).expect("goes on");
    mounted.models.mount(&spec).await.expect("it answers again");
    mounted.models.verify(&spec, |_, _| {}).await.expect("it is whole");
    assert!(mounted.s3fs.try_wait().expect("asked").is_none(), "it was not killed by that");
}

#[tokio::test]
async fn a_mount_whose_daemon_was_killed_is_named_with_its_cause() {
    let Some(place) = place() else { return };
    let mut mounted = Mounted::begin(&place);
    let spec = mounted.spec();
    // While its files are looked at: the server gives nothing, so that the step waits in the kernel.
    mounted.server.pause(true);
    let verifying = mounted.models.clone();
    let reading = tokio::spawn({
        let spec = spec.clone();
        async move { verifying.verify(&spec, |_, _| {}).await }
    });
    wait_in_fuse().await;
    mounted.s3fs.kill().expect("killed");
    mounted.s3fs.wait().expect("ended");
    let said = is_for_now(reading.await.expect("the step ends"));
    println!("daemon killed under way: {said}");
    assert!(said.contains("connection abort") || said.contains("not connected"), "{said}");
    let (result, took) = timed(mounted.models.mount(&spec)).await;
    let said = is_for_now(result);
    println!("dead mount: {said}, after {took:.2?}");
    assert!(said.contains("Transport endpoint is not connected"), "{said}");
    assert!(took < secs(2), "{took:?}");
}

/// Until a step of the agent's waits for the daemon.
async fn wait_in_fuse() {
    let began = Instant::now();
    let is_waiting = |process: &Process| {
        let of = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", process.pid)).unwrap_or_default();
        of("cmdline").contains(STEP_COMMAND)
            && ["fuse", "request_wait_answer"].iter().any(|place| of("wchan").contains(place))
    };
    while !Process::all().expect("processes").iter().any(is_waiting) {
        assert!(began.elapsed() < MOUNTED_WITHIN, "no step waits for the mount");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
