//! The proxies and routers that one would put in the edge's place, each set up as well as its manual says.
//!
//! All keep connections open on both sides, log nothing per request and take two threads, as the agent does. Proxies must
//! not hold a stream back: nginx is told so, HAProxy passes on what it has anyway. The LLM routers are measured as they
//! come (they look for the longest known prefix of each prompt) and once more deciding by turns, the cheapest of their
//! policies, which is what a plain proxy does.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use fleet_tests::process::{repository, request};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// A Python program imports for some seconds, and looks for its workers then.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Brings every peer.
const SCRIPT: &str = "tests/bench/edge/peers.sh";

/// Where the script puts the peers that are Python packages.
const VENV: &str = ".bench/venv";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    HaProxy,
    Nginx,
    VllmRouter(Policy),
    SglangRouter(Policy),
}

/// How an LLM router chooses among its engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    /// As it comes: `cache_aware` in both.
    Own,
    RoundRobin,
}

impl Peer {
    pub(super) const ALL: [Self; 6] = [
        Self::HaProxy,
        Self::Nginx,
        Self::VllmRouter(Policy::Own),
        Self::VllmRouter(Policy::RoundRobin),
        Self::SglangRouter(Policy::Own),
        Self::SglangRouter(Policy::RoundRobin),
    ];

    /// Also that of its files.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::VllmRouter(Policy::RoundRobin) => "vllm-router-rr",
            Self::SglangRouter(Policy::RoundRobin) => "sglang-router-rr",
            Self::HaProxy | Self::Nginx | Self::VllmRouter(_) | Self::SglangRouter(_) => self.program_name(),
        }
    }

    /// `None` for what is no LLM router.
    pub(super) fn policy(self) -> Option<Policy> {
        match self {
            Self::HaProxy | Self::Nginx => None,
            Self::VllmRouter(policy) | Self::SglangRouter(policy) => Some(policy),
        }
    }

    /// What it calls its version.
    ///
    /// # Errors
    /// When the peer is not on this machine; the error says what brings it.
    pub(super) fn version(self) -> anyhow::Result<String> {
        let program = self.program();
        if !program.exists() {
            bail!("no {}; `{SCRIPT}` brings it", program.display());
        }
        match self {
            Self::HaProxy | Self::Nginx => {
                let said = Command::new(program).arg("-v").stdin(Stdio::null()).output()?;
                let text = [said.stdout, said.stderr].concat();
                Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or("?").to_owned())
            }
            Self::VllmRouter(_) | Self::SglangRouter(_) => installed(&self.program_name().replace('-', "_")),
        }
    }

    /// Starts it in front of `upstream`, its files in `place`.
    ///
    /// # Errors
    /// When it does not answer as the upstream would within a minute.
    pub(super) fn start(self, place: &Path, upstream: SocketAddr) -> anyhow::Result<Running> {
        let address = free_port()?;
        let log = place.join(format!("{}.log", self.name()));
        let output = File::create(&log)?;
        let mut command = self.command(place, address, upstream)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // A group of its own, so that its workers end with it.
        let child = command.process_group(0).spawn().with_context(|| format!("start {}", self.name()))?;
        let mut running = Running { child, address };
        if let Err(error) = running.wait_ready() {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(8).collect();
            bail!("{error:#}; its log ends with:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        Ok(running)
    }

    fn program_name(self) -> &'static str {
        match self {
            Self::HaProxy => "haproxy",
            Self::Nginx => "nginx",
            Self::VllmRouter(_) => "vllm-router",
            Self::SglangRouter(_) => "sglang-router",
        }
    }

    fn program(self) -> PathBuf {
        let folder = match self {
            Self::HaProxy | Self::Nginx => PathBuf::from("/usr/sbin"),
            Self::VllmRouter(_) | Self::SglangRouter(_) => repository().join(VENV).join("bin"),
        };
        folder.join(self.program_name())
    }

    fn command(self, place: &Path, own: SocketAddr, upstream: SocketAddr) -> anyhow::Result<Command> {
        let mut command = Command::new(self.program());
        let config = place.join(format!("{}.conf", self.name()));
        match self {
            Self::HaProxy => {
                std::fs::write(&config, haproxy(own, upstream))?;
                command.arg("-db").arg("-f").arg(config);
            }
            Self::Nginx => {
                std::fs::write(&config, nginx(place, own, upstream))?;
                command.arg("-p").arg(place).arg("-e").arg("stderr").arg("-c").arg(config);
            }
            Self::VllmRouter(policy) => router(&mut command, policy, "warning", own, upstream)?,
            Self::SglangRouter(policy) => router(command.arg("launch"), policy, "warn", own, upstream)?,
        }
        Ok(command)
    }
}

/// A peer at work, ended with this.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    pub(super) address: SocketAddr,
}

impl Running {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let body = r#"{"model":"tiny","messages":[{"role":"user","content":"1"}],"max_tokens":1}"#;
        let began = Instant::now();
        let mut last = String::new();
        while began.elapsed() < READY_WITHIN {
            let address = self.address.to_string();
            let within = Duration::from_secs(5);
            match request(&address, "POST", "/v1/chat/completions", Some(body), within) {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => last = format!("answered {}: {}", answer.status, answer.body),
                Err(error) => last = format!("{error:#}"),
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("ended with {status}");
            }
            std::thread::sleep(Duration::from_millis(50)); // bounded wait: one pause
        }
        bail!("not ready within {} s: {last}", READY_WITHIN.as_secs())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone_already = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// The flags that both LLM routers have. `quiet` is the level at which they log no request.
fn router(
    command: &mut Command,
    policy: Policy,
    quiet: &str,
    own: SocketAddr,
    upstream: SocketAddr,
) -> anyhow::Result<()> {
    let url = format!("http://{upstream}");
    command.args(["--worker-urls", &url, "--host", "127.0.0.1", "--log-level", quiet]);
    command.args(["--port", &own.port().to_string(), "--prometheus-host", "127.0.0.1"]);
    // Else both would take the port 29000.
    command.args(["--prometheus-port", &free_port()?.port().to_string()]);
    if policy == Policy::RoundRobin {
        command.args(["--policy", "round_robin"]);
    }
    Ok(())
}

/// HAProxy 2.6 configuration manual: sections 4.2 (http-keep-alive, http-reuse) and 3.2 (nbthread).
fn haproxy(own: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        "global\n  nbthread 2\n  maxconn 4096\n\
         defaults\n  mode http\n  option http-keep-alive\n  http-reuse always\n\
         \x20 timeout connect 2s\n  timeout client 75s\n  timeout server 600s\n\
         frontend users\n  bind {own}\n  default_backend engine\n\
         backend engine\n  server one {upstream}\n"
    )
}

/// nginx: ngx_http_upstream_module (keepalive), ngx_http_proxy_module (proxy_buffering, proxy_http_version).
fn nginx(place: &Path, own: SocketAddr, upstream: SocketAddr) -> String {
    let bodies = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let bodies: String =
        bodies.iter().map(|name| format!("  {name}_temp_path {}/{name};\n", place.display())).collect();
    format!(
        "worker_processes 2;\ndaemon off;\npid {}/nginx.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 4096; }}\nhttp {{\n{bodies}\
         \x20 access_log off;\n  keepalive_requests 1000000000;\n  client_max_body_size 8m;\n\
         \x20 upstream engine {{ server {upstream}; keepalive 256; keepalive_requests 1000000000; }}\n\
         \x20 server {{\n    listen {own};\n    location / {{\n      proxy_pass http://engine;\n\
         \x20     proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n\
         \x20     proxy_buffering off;\n      proxy_read_timeout 600s;\n    }}\n  }}\n}}\n",
        place.display()
    )
}

/// The version of a Python package of the environment, from the name of the folder that pip keeps about it.
fn installed(package: &str) -> anyhow::Result<String> {
    let lib = repository().join(VENV).join("lib");
    let pythons = std::fs::read_dir(&lib)?.flatten().map(|python| python.path().join("site-packages"));
    let names = pythons.flat_map(|packages| std::fs::read_dir(packages).into_iter().flatten().flatten());
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .into_iter()
        .find_map(|name| {
            Some(name.strip_prefix(package)?.strip_prefix('-')?.strip_suffix(".dist-info")?.to_owned())
        })
        .with_context(|| format!("no {package} in {}", lib.display()))
}

fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
