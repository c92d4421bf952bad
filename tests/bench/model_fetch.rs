//! The set fetched from a local server of the S3 protocol, by our agent and by other clients in turn.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use fleet_tests::process::{S3Server, binary};

use crate::model::seconds;

/// Clients that are measured where they are installed. They hash nothing, and leave it to the kernel when what they wrote
/// is on the disk: they are timed twice, at their end and when `sync` has ended too. Ours has both in its time.
pub(crate) const PEERS: [&str; 3] = ["s5cmd", "rclone", "aws"];

/// Each with as many requests under way as our agent has.
const UNDER_WAY: &str = "8";

/// Seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    /// Until the client ended.
    pub(crate) ended: f64,
    /// Until all was on the disk too.
    pub(crate) synced: f64,
}

/// A peer's run, and the run of ours that came after it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    pub(crate) peer: Took,
    /// Seconds.
    pub(crate) ours: f64,
}

/// A server that has the set.
#[derive(Debug)]
pub(crate) struct Stand {
    server: S3Server,
    root: tempfile::TempDir,
    bytes: u64,
}

impl Stand {
    /// Publishes the files of `set`, as an operator does.
    pub(crate) fn begin(set: &Path) -> anyhow::Result<Self> {
        let server = S3Server::start()?;
        let files = fs::read_dir(set)?.collect::<io::Result<Vec<_>>>()?;
        let lengths = files.iter().map(|entry| Ok(entry.metadata()?.len())).collect::<io::Result<Vec<_>>>();
        let mut push = Command::new(binary("cic")?);
        push.args(["model", "push"]).arg(set).arg(server.url()).envs(server.keys());
        seconds(&mut push)?;
        Ok(Self { server, root: tempfile::tempdir()?, bytes: lengths?.iter().sum() })
    }

    /// Seconds for the whole set.
    pub(crate) fn ours(&self, agent: &Path) -> anyhow::Result<f64> {
        let took =
            self.timed(Command::new(agent).arg("fetch").arg(self.server.url()).arg(self.directory()))?;
        Ok(took.synced)
    }

    /// The same of each peer, and each time one of ours after it: a machine that is shared has good and bad moments.
    pub(crate) fn beside(
        &self,
        agent: &Path,
        rounds: usize,
    ) -> anyhow::Result<Vec<(&'static str, Vec<Round>)>> {
        let mut peers = Vec::new();
        for peer in PEERS {
            let mut took = Vec::new();
            for _ in 0..rounds {
                match self.timed(&mut self.peer(peer)) {
                    Ok(peer) => took.push(Round { peer, ours: self.ours(agent)? }),
                    Err(error) => {
                        eprintln!("{peer} is left out: {error:#}");
                        break;
                    }
                }
            }
            peers.push((peer, took));
        }
        Ok(peers)
    }

    /// Percent of the bytes that a flipped byte costs.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn repaired(&self, agent: &Path) -> anyhow::Result<f64> {
        let fetch = || -> anyhow::Result<String> {
            let mut command = Command::new(agent);
            command.arg("fetch").arg(self.server.url()).arg(self.directory()).envs(self.server.keys());
            let output = command.output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        fetch()?;
        let shards = fs::read_dir(self.directory())?.flatten().map(|entry| entry.path());
        let shard = shards.filter(|path| path.extension().is_some_and(|kind| kind == "safetensors")).min();
        let file = File::options().read(true).write(true).open(shard.context("a shard")?)?;
        let (at, mut byte) = (file.metadata()?.len() / 3, [0]);
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 1], at)?;
        let said = fetch()?;
        let moved =
            said.split("; ").nth(1).and_then(|rest| rest.split(" fetched").next()).context("a figure")?;
        let mib: f64 = moved.strip_suffix(" MiB").with_context(|| said.clone())?.parse()?;
        fs::remove_dir_all(self.directory())?;
        Ok(mib * f64::from(1 << 20) / self.bytes as f64 * 100.0)
    }

    fn directory(&self) -> PathBuf {
        self.root.path().join("model")
    }

    fn timed(&self, command: &mut Command) -> anyhow::Result<Took> {
        // What an earlier client wrote is not to be written out in the time of a later one.
        if self.directory().exists() {
            fs::remove_dir_all(self.directory())?;
        }
        nix::unistd::sync();
        let began = Instant::now();
        let ended = seconds(command.envs(self.server.keys()).env("AWS_REGION", "us-east-1"))?;
        for entry in fs::read_dir(self.directory())? {
            File::open(entry?.path())?.sync_all()?;
        }
        let took = Took { ended, synced: began.elapsed().as_secs_f64() };
        fs::remove_dir_all(self.directory())?;
        Ok(took)
    }

    fn peer(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        let (endpoint, directory) = (format!("http://{}", self.server.address()), self.directory());
        match name {
            "s5cmd" => {
                command.args(["--endpoint-url", &endpoint, "--numworkers", UNDER_WAY, "cp"]);
                command.args(["--concurrency", UNDER_WAY, "s3://fleet/test/*"]);
                command.arg(format!("{}/", directory.display()));
            }
            "rclone" => {
                command.args(["copy", ":s3:fleet/test"]).arg(directory);
                command.args(["--s3-provider", "Other", "--s3-env-auth", "--s3-endpoint", &endpoint]);
                command.args(["--s3-force-path-style", "--transfers", UNDER_WAY, "--config", "/dev/null"]);
            }
            _ => {
                command.args(["s3", "cp", "--recursive", "--no-progress", "--endpoint-url", &endpoint]);
                command.arg("s3://fleet/test").arg(directory);
            }
        }
        command
    }
}
