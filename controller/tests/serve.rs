//! The controller as a process: starts, mistakes, stops and crashes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use cic_common::time::Clock;
use cic_controller::ports::Ports;
use cic_controller::provision::local::{homes, process};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

struct World {
    directory: tempfile::TempDir,
    running: Option<Child>,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let world = Self { directory, running: None };
        std::fs::create_dir(world.path("model")).expect("creates");
        std::fs::write(world.path("model/config.json"), "{}").expect("writes");
        // `sleep` takes no such arguments, so the agent is a script.
        std::fs::write(world.path("agent"), "#!/bin/sh\nexec sleep 600\n").expect("writes");
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(world.path("agent"), executable).expect("sets");
        world.configure("127.0.0.1:0");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn configure(&self, api: &str) {
        let root = self.directory.path().display();
        let text = format!(
            "[controller]\nstate_dir = '{root}/state'\n[quic]\nlisten = '127.0.0.1:0'\n[api]\nlisten = '{api}'\n\
             [local]\ndir = '{root}/local'\nagent_program = '{root}/agent'\n"
        );
        std::fs::write(self.path("controller.toml"), text).expect("writes");
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cic-controller"));
        command.args(["serve", "--config"]).arg(self.path("controller.toml"));
        command.arg("--record").arg(self.path("record")).stderr(Stdio::piped());
        command
    }

    fn refused(&self) -> Output {
        self.command().output().expect("runs")
    }

    async fn start(&mut self) {
        self.running = Some(self.command().stderr(Stdio::null()).spawn().expect("spawns"));
        let clock = Clock::start();
        while self.try_call(Method::GET, "/healthz", "").await.is_none() {
            assert!(clock.now().as_millis() < 30_000, "does not serve");
            // bounded wait: 30 s by the line above
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn end(&mut self, signal: Signal) -> Option<i32> {
        let mut child = self.running.take().expect("runs");
        process::send(child.id(), signal);
        child.wait().expect("ends").code()
    }

    async fn call(&self, method: Method, path: &str, body: &str) -> Value {
        self.try_call(method, path, body).await.expect("answers")
    }

    async fn try_call(&self, method: Method, path: &str, body: &str) -> Option<Value> {
        let port = Ports::read(&self.path("state"))?.api;
        let request = Request::builder().method(method).uri(format!("http://127.0.0.1:{port}{path}"));
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("valid");
        let client = Client::builder(TokioExecutor::new()).build_http();
        let response = tokio::time::timeout(SOON, client.request(request)).await.expect("in time").ok()?;
        serde_json::from_slice(&response.into_body().collect().await.ok()?.to_bytes()).ok()
    }

    /// Pids of the machines that run.
    fn machines(&self) -> Vec<u32> {
        let homes = homes(&self.path("local")).expect("lists");
        let machines = homes.iter().filter_map(|home| home.machine().expect("reads"));
        machines.filter(|machine| machine.is_running()).map(|machine| machine.pid).collect()
    }

    async fn machines_are(&self, count: usize) -> Vec<u32> {
        let clock = Clock::start();
        loop {
            let machines = self.machines();
            if machines.len() == count {
                return machines;
            }
            assert!(clock.now().as_millis() < 30_000, "{machines:?}");
            // bounded wait: 30 s by the line above
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(child) = &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
        for home in homes(&self.path("local")).unwrap_or_default() {
            if let Ok(Some(launch)) = home.launch() {
                while home.tag(&launch.node).signal_all(Signal::SIGKILL) > 0 {
                    std::thread::yield_now();
                }
            }
        }
    }
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect()
}

fn wish(model: &Path) -> String {
    json!({"model": {"name": "tiny", "path": model}, "engine": {"program": "sh"}, "replicas": 2}).to_string()
}

#[tokio::test]
async fn a_killed_controller_finds_its_machines_again_and_a_stopped_one_leaves_them_alone() {
    let mut world = World::new();
    world.start().await;
    let answer = world.call(Method::PUT, "/v1/deployments/chat", &wish(&world.path("model"))).await;
    assert_eq!(answer["replicas"], 2, "{answer}");
    let machines = world.machines_are(2).await;
    assert_eq!(world.end(Signal::SIGKILL), None);

    world.start().await;
    let view = world.call(Method::GET, "/v1/view", "").await;
    assert_eq!(view["nodes"].as_array().map(Vec::len), Some(2), "{view}");
    assert_eq!(view["term"], 2);
    assert_eq!(world.end(Signal::SIGTERM), Some(0));
    assert_eq!(world.machines(), machines);
}

#[tokio::test]
async fn a_second_controller_on_the_same_state_is_refused_in_one_line() {
    let mut world = World::new();
    world.start().await;
    let second = world.refused();
    assert_eq!(second.status.code(), Some(1));
    assert!(matches!(&lines(&second)[..], [line] if line.contains("another controller runs")), "{second:?}");
    assert_eq!(world.end(Signal::SIGTERM), Some(0));
}

#[test]
fn a_port_in_use_is_one_line_that_names_the_port_and_the_key() {
    let world = World::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = taken.local_addr().expect("bound").to_string();
    world.configure(&address);
    let refused = world.refused();
    assert_eq!(refused.status.code(), Some(1));
    let named = |line: &String| line.contains(&address) && line.contains("api.listen");
    assert!(matches!(&lines(&refused)[..], [line] if named(line)), "{refused:?}");
    assert!(!world.path("state/controller.db").exists(), "nothing was half started");
}

#[test]
fn mistakes_in_the_configuration_are_all_listed() {
    let world = World::new();
    std::fs::write(
        world.path("controller.toml"),
        "[controler]\n[controller]\nid = 'A'\n[api]\nlisten = 'x'\n",
    )
    .expect("writes");
    let refused = world.refused();
    assert_eq!(refused.status.code(), Some(78));
    assert_eq!(lines(&refused).len(), 4, "{refused:?}");
}
