//! Which controller a command speaks to, and how it was found.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::failure::Failure;
use crate::provision::local::process;

/// Where a controller's API listens unless configured otherwise.
const DEFAULT: &str = "127.0.0.1:7480";

/// The base of every request, and how it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `host:port`.
    pub(super) authority: String,
    origin: Origin,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Given,
    Dev(PathBuf),
    Default,
}

impl Endpoint {
    /// What was given, else the running `cic dev`, else the default.
    ///
    /// # Errors
    /// When what was given is no `http://HOST:PORT`.
    pub(super) fn find(given: Option<&str>) -> Result<Self, Failure> {
        match given {
            Some(text) => Self::parse(text),
            None => Ok(match DevRecord::running() {
                Some(dev) => Self { authority: dev.api, origin: Origin::Dev(dev.dir) },
                None => Self { authority: DEFAULT.to_owned(), origin: Origin::Default },
            }),
        }
    }

    pub(super) fn at(authority: impl fmt::Display) -> Self {
        Self { authority: authority.to_string(), origin: Origin::Given }
    }

    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let authority = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if has_port && !authority.contains('/') {
            return Ok(Self::at(authority));
        }
        Err(Failure::mistakes(vec![format!("--api: expected http://HOST:PORT, found {text:?}")]))
    }

    /// What to try when it does not answer.
    pub(super) fn way_out(&self) -> String {
        match &self.origin {
            Origin::Given => "is a controller running there? --api and CIC_API name another".to_owned(),
            Origin::Dev(dir) => format!("`cic dev` runs it from {}: see controller.log there", dir.display()),
            Origin::Default => "is `cic dev` running? pass --api".to_owned(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

/// A running `cic dev`, as it describes itself in `DIR/dev.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DevRecord {
    pub(super) dir: PathBuf,
    /// The directory goes when the fleet ends.
    pub(super) is_temporary: bool,
    pub(super) pid: u32,
    /// Tells the process from a later one with the same pid.
    pub(super) start_time: u64,
    pub(super) api: String,
    pub(super) edge: String,
}

impl DevRecord {
    /// The `cic dev` of this user that was started last, if it still runs.
    pub(super) fn running() -> Option<Self> {
        Self::last().filter(Self::is_running)
    }

    /// The `cic dev` of this user that was started last and has not cleaned up after itself.
    pub(super) fn last() -> Option<Self> {
        let pointer = pointer();
        // Others can write to the directory for temporary files too.
        if fs::symlink_metadata(&pointer).ok()?.uid() != nix::unistd::geteuid().as_raw() {
            return None;
        }
        Self::read(Path::new(fs::read_to_string(pointer).ok()?.trim()))
    }

    pub(super) fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join("dev.json")).ok()?).ok()
    }

    pub(super) fn is_running(&self) -> bool {
        process::is_alive(self.pid, self.start_time)
    }

    /// Writes it to its directory and points at it.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn announce(&self) -> std::io::Result<()> {
        fs::write(self.dir.join("dev.json"), serde_json::to_vec_pretty(self)?)?;
        let pointer = pointer();
        let part = pointer.with_extension(format!("{}.part", self.pid));
        fs::write(&part, self.dir.display().to_string())?;
        fs::rename(part, pointer)
    }

    /// Takes both files away; a pointer to another fleet stays.
    pub(super) fn withdraw(&self) {
        if Self::last().is_some_and(|last| last.dir == self.dir) {
            let _ = fs::remove_file(pointer());
        }
        let _ = fs::remove_file(self.dir.join("dev.json"));
    }
}

fn pointer() -> PathBuf {
    std::env::temp_dir().join(format!("cic-dev-{}", nix::unistd::geteuid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_and_a_port() {
        for good in ["http://127.0.0.1:7480", "127.0.0.1:7480/", "http://[::1]:1", "controller:80"] {
            assert!(Endpoint::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "7480", "https://x:1", "http://x", "http://x:1/v1", "x:99999"] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_given_is_used_whatever_runs() {
        let endpoint = Endpoint::find(Some("http://10.0.0.7:7480")).expect("parses");
        assert_eq!(endpoint.to_string(), "http://10.0.0.7:7480");
        assert!(endpoint.way_out().contains("--api"));
    }
}
