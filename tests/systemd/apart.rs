//! A test that runs in namespaces of its own: its network reaches nothing else, and every process in it ends with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::unistd::geteuid;

/// Says to the test in its namespaces where its files are to be.
const PLACE: &str = "CIC_MACHINE_PLACE";

/// Cgroups of the machine, which would share the caller's with any other; names without spaces.
const GROUPS: &str = "CIC_MACHINE_GROUPS";

const NAMESPACES: [&str; 6] = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// What systemd-nspawn leaves in `/run` goes with the mount namespace.
const ENTER: &str = r#"for group in $CIC_MACHINE_GROUPS; do echo 0 >"$group/cgroup.procs" || exit; done
mount -t tmpfs tmpfs /run && exec "$@""#;

/// The kernel empties a cgroup a moment after its last process.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// Where the machine's files are to be, if this is the test in its namespaces.
///
/// Otherwise runs the calling test there, fails as it does, and returns nothing. Where that is not possible it says so.
///
/// # Panics
/// When the test fails, or cannot be run and CIC_REQUIRE_SYSTEMD=1 says that it has to be.
pub(crate) fn place() -> Option<PathBuf> {
    if let Some(place) = std::env::var_os(PLACE) {
        return Some(place.into());
    }
    if let Err(lack) = can_boot() {
        let is_required = std::env::var("CIC_REQUIRE_SYSTEMD").is_ok_and(|value| value == "1");
        assert!(!is_required, "CIC_REQUIRE_SYSTEMD=1, but {lack}");
        eprintln!("skipped: {lack}");
        return None;
    }
    run_there().expect("passes in its namespaces");
    None
}

/// # Errors
/// Names what is missing.
fn can_boot() -> anyhow::Result<()> {
    ensure!(geteuid().is_root(), "a machine in a container needs root");
    ensure!(
        succeeds("systemd-nspawn", &["--version"]) && Path::new("/usr/lib/systemd/systemd").exists(),
        "no systemd-nspawn here; `apt-get install systemd-container` brings it"
    );
    ensure!(succeeds("ip", &["-V"]), "no ip here; `apt-get install iproute2` brings it");
    ensure!(Path::new("/lib").is_symlink(), "this system has more than /usr");
    let can_unshare = succeeds("unshare", &[&NAMESPACES[..], &["true"]].concat());
    ensure!(can_unshare, "no namespaces can be made here");
    Ok(())
}

fn succeeds(program: &str, words: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn run_there() -> anyhow::Result<()> {
    let place = tempfile::tempdir()?;
    // `.tmpAbCdEf`, which no other has.
    let name = place.path().file_name().context("a directory has a name")?.to_string_lossy().into_owned();
    let groups = Groups::make(&format!("cic-machine{name}"))?;
    let thread = std::thread::current();
    let test = thread.name().context("a test's thread has its name")?;
    let status = Command::new("unshare")
        .args(NAMESPACES)
        .args(["sh", "-c", ENTER, "sh"])
        .arg(std::env::current_exe()?)
        .args(["--exact", test, "--nocapture"])
        .env(PLACE, place.path())
        .env(GROUPS, groups.words())
        .stdin(Stdio::null())
        .status()
        .context("start unshare")?;
    ensure!(status.success(), "{test}: {status}");
    ensure!(fs::read_dir(place.path())?.next().is_some(), "no test {test} was run");
    Ok(())
}

/// Cgroups, removed when this is dropped.
struct Groups(Vec<PathBuf>);

impl Groups {
    /// One below this process's own in the hierarchy of systemd, and in that of version 2.
    fn make(name: &str) -> anyhow::Result<Self> {
        let text = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
        let mut made = Self(Vec::new());
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(hierarchy), Some(path)) = (fields.next(), fields.next()) else { continue };
            let mounted: &[&str] = match hierarchy {
                "name=systemd" => &["/sys/fs/cgroup/systemd"],
                "" => &["/sys/fs/cgroup/unified", "/sys/fs/cgroup"],
                _ => continue,
            };
            let mut own = mounted.iter().map(|mounted| PathBuf::from(format!("{mounted}{path}")));
            let Some(own) = own.find(|own| own.join("cgroup.procs").exists()) else { continue };
            let group = own.join(name);
            fs::create_dir(&group).with_context(|| group.display().to_string())?;
            made.0.push(group);
        }
        Ok(made)
    }

    fn words(&self) -> String {
        self.0.iter().map(|group| group.display().to_string()).collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let began = Instant::now();
        for group in &self.0 {
            while !remove_tree(group) && began.elapsed() < EMPTY_WITHIN {
                std::thread::sleep(Duration::from_millis(20)); // bounded wait: EMPTY_WITHIN
            }
        }
    }
}

/// Removes a cgroup and all below it; tells whether it is gone.
fn remove_tree(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    fs::remove_dir(group).is_ok() || !group.exists()
}
