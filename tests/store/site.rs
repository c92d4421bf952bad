//! A controller's commands over a database of either kind, with a real S3 server for its snapshots.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use cic_common::tls::CertificateAuthority;
use fleet_tests::process::{S3Server, binary};
use tempfile::TempDir;

use crate::place::Place;

/// A time at which every certificate of these tests is good.
const NOW_MS: u64 = 1_795_478_400_000;

pub(crate) struct Site {
    pub(crate) s3: S3Server,
    directory: TempDir,
}

impl Site {
    /// With the fleet's authority already there.
    pub(crate) fn new(place: &Place, settings: &str) -> Self {
        let site = Self {
            s3: S3Server::start().expect("a server"),
            directory: tempfile::tempdir().expect("a directory"),
        };
        let root = site.directory.path().display();
        let password = match place {
            Place::Sqlite(_) => String::new(),
            Place::Postgres(server) => {
                std::fs::write(site.path("password"), server.password()).expect("written");
                format!("password_file = '{root}/password'\n")
            }
        };
        let text = format!(
            "[controller]\nid = 'c1'\nstate_dir = '{root}/state'\n[quic]\nlisten = '127.0.0.1:0'\n[api]\nlisten = '127.0.0.1:0'\n\
             [store]\nurl = '{}'\n{password}[backup]\nurl = '{}'\n{settings}\n",
            place.url(),
            site.s3.url()
        );
        std::fs::write(site.path("controller.toml"), text).expect("written");
        site.found_fleet();
        site
    }

    /// An authority where there is none yet.
    fn found_fleet(&self) {
        CertificateAuthority::open(&self.path("state/tls"), NOW_MS).expect("an authority");
    }

    /// From now on it is of another fleet. The way back.
    pub(crate) fn leave_fleet(&self) -> impl FnOnce() {
        let (own, kept) = (self.path("state/tls"), self.path("kept"));
        std::fs::rename(&own, &kept).expect("moved");
        self.found_fleet();
        move || {
            std::fs::remove_dir_all(&own).expect("removed");
            std::fs::rename(&kept, &own).expect("moved back");
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(binary("cic-controller").expect("built"));
        command.args(words).arg("--config").arg(self.path("controller.toml")).envs(self.s3.keys());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("runs")
    }

    /// What it says when it does as it is told.
    pub(crate) fn does(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{words:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }

    /// What it says when it does not.
    pub(crate) fn refuses(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(!output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub(crate) fn serve(&self) -> Serving {
        let mut command = self.command(&["serve"]);
        Serving(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts"))
    }

    /// Names of the snapshots in the object store, oldest first.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        self.s3.objects("snapshots").iter().map(|path| name_of(path)).collect()
    }
}

pub(crate) fn name_of(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

/// A controller, ended when this is dropped.
pub(crate) struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
