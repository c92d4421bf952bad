//! A real server of the S3 protocol on loopback, over a directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::dev_fleet::binary;

const LOOK: Duration = Duration::from_millis(5);

const OPENS_WITHIN: Duration = Duration::from_secs(10);

/// Its only user.
pub const S3_KEYS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "fleet"), ("AWS_SECRET_ACCESS_KEY", "not-a-secret")];

/// A running server with one bucket, `fleet`.
#[derive(Debug)]
pub struct S3Server {
    child: Child,
    dir: tempfile::TempDir,
    address: String,
}

impl S3Server {
    /// Starts one.
    ///
    /// # Errors
    /// When it was not built, or does not open its port.
    pub fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir_all(dir.path().join("buckets/fleet"))?;
        let (child, address) = serve(dir.path(), 0)?;
        Ok(Self { child, dir, address })
    }

    /// The bucket as an agent's configuration names it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("s3://fleet/test?endpoint=http://{}&allow_http=true&region=us-east-1", self.address)
    }

    /// Its `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The directory that the bucket's objects lie in.
    #[must_use]
    pub fn bucket(&self) -> PathBuf {
        self.dir.path().join("buckets/fleet")
    }

    /// What it takes to be let in, as an environment.
    #[must_use]
    pub fn keys(&self) -> Vec<(String, String)> {
        S3_KEYS.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    /// Settings of an agent that writes there.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        [("CIC_CHECKPOINT_URL".to_owned(), self.url())].into_iter().chain(self.keys()).collect()
    }

    /// Files of the objects below `folder`, sorted by name.
    #[must_use]
    pub fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.path().join("buckets/fleet/test").join(folder));
        let mut files: Vec<PathBuf> = entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|p| p.is_file())
            .collect();
        files.sort();
        files
    }

    /// Ends it, as a region's outage would.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Takes requests and answers none, or goes on.
    ///
    /// # Panics
    /// When it has ended.
    pub fn pause(&self, is_paused: bool) {
        let signal = if is_paused { Signal::SIGSTOP } else { Signal::SIGCONT };
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it runs");
    }

    /// The same server on the same port, with what it had.
    ///
    /// # Errors
    /// As [`S3Server::start`].
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let port = self.address.rsplit(':').next().and_then(|port| port.parse().ok()).context("its port")?;
        (self.child, self.address) = serve(self.dir.path(), port)?;
        Ok(())
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(dir: &Path, port: u16) -> anyhow::Result<(Child, String)> {
    let place = dir.join("address");
    let _ = std::fs::remove_file(&place);
    let [(_, access), (_, secret)] = S3_KEYS;
    let mut child = Command::new(binary("cic-s3")?)
        .arg("--dir")
        .arg(dir.join("buckets"))
        .args(["--access-key", access, "--secret-key", secret, "--port", &port.to_string(), "--port-file"])
        .arg(&place)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("start cic-s3")?;
    let began = Instant::now();
    loop {
        if let Ok(address) = std::fs::read_to_string(&place) {
            return Ok((child, address));
        }
        let is_late = began.elapsed() > OPENS_WITHIN;
        if is_late || child.try_wait()?.is_some() {
            let _ = child.kill();
            let _ = child.wait();
            ensure!(!is_late, "cic-s3 opened no port within {OPENS_WITHIN:?}");
            anyhow::bail!("cic-s3 ended at once");
        }
        std::thread::sleep(LOOK); // bounded wait: OPENS_WITHIN
    }
}
