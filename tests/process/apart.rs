//! A test in namespaces of its own: it starts itself once more there, as process 1. Its network reaches nothing else, and
//! mounts and processes end with it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

/// Says to the test in its namespaces where its files are to be.
const PLACE: &str = "CIC_APART_PLACE";

/// Made by the test in its namespaces: proof that it was run.
const ENTERED: &str = "entered";

const NAMESPACES: [&str; 6] = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// What a test needs of its namespaces.
#[derive(Debug)]
pub struct Apart {
    /// Run by `sh` in them, with the test's files in `$CIC_APART_PLACE`; `exec "$@"` goes on with the test.
    pub enter: &'static str,
    /// The variable that makes it a failure when the test cannot be run.
    pub required_by: &'static str,
}

impl Apart {
    /// Where the test's files are, if this is the test in its namespaces.
    ///
    /// Otherwise runs the calling test there with the variables that `prepare` returns for it, fails as it does, and returns
    /// nothing. Where something is lacking it says so.
    ///
    /// # Panics
    /// When the test fails, or cannot be run and has to be.
    #[must_use]
    pub fn place(
        &self,
        lack: impl FnOnce() -> anyhow::Result<()>,
        prepare: impl FnOnce(&Path) -> anyhow::Result<Vec<(&'static str, OsString)>>,
    ) -> Option<PathBuf> {
        if let Some(place) = std::env::var_os(PLACE) {
            let place = PathBuf::from(place);
            fs::write(place.join(ENTERED), "").expect("its place can be written");
            return Some(place);
        }
        if let Err(lack) = lack() {
            let is_required = std::env::var(self.required_by).is_ok_and(|value| value == "1");
            assert!(!is_required, "{}=1, but {lack}", self.required_by);
            eprintln!("skipped: {lack}");
            return None;
        }
        self.run_there(prepare).expect("passes in its namespaces");
        None
    }

    fn run_there(
        &self,
        prepare: impl FnOnce(&Path) -> anyhow::Result<Vec<(&'static str, OsString)>>,
    ) -> anyhow::Result<()> {
        let place = tempfile::tempdir()?;
        let variables = prepare(place.path())?;
        let thread = std::thread::current();
        let test = thread.name().context("a test's thread has its name")?;
        // Whoever kills this test leaves none of it.
        let status = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare"])
            .args(NAMESPACES)
            .args(["sh", "-c", self.enter, "sh"])
            .arg(std::env::current_exe()?)
            .args(["--exact", test, "--nocapture"])
            .env(PLACE, place.path())
            .envs(variables)
            .stdin(Stdio::null())
            .status()
            .context("start setpriv")?;
        ensure!(status.success(), "{test}: {status}");
        ensure!(place.path().join(ENTERED).exists(), "no test {test} was run");
        Ok(())
    }

    /// Whether `words` succeed in such namespaces.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn can_run(words: &[&str]) -> anyhow::Result<()> {
        ensure!(nix::unistd::geteuid().is_root(), "namespaces of its own need root");
        ensure!(succeeds("ip", &["-V"]), "no ip here; `apt-get install iproute2` brings it");
        ensure!(
            succeeds("setpriv", &["--version"]),
            "no setpriv here; `apt-get install util-linux` brings it"
        );
        let can_unshare = succeeds("unshare", &[&NAMESPACES[..], words].concat());
        ensure!(can_unshare, "no namespaces in which {} succeeds can be made here", words.join(" "));
        Ok(())
    }
}

/// Whether a program can be run and says that all is well.
#[must_use]
pub fn succeeds(program: &str, words: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
