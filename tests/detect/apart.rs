//! A test that runs in namespaces of its own: its network is one loopback, and its rules, mounts and processes end with it.
//!
//! ```text
//! test -> unshare -> the same test once more, as process 1 of its namespace -> a fleet
//!                       programs of this build, as they are: PLACE/programs
//!                       cic-controller, cic-agent where the fleet looks: scripts that set a group, then run those
//! ```
//! The group tells the controller's packets from those of edges, which reach a node by the same port.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use fleet_tests::process::binary;
use nix::unistd::geteuid;

/// Says to the test in its namespaces where its files are to be.
const PLACE: &str = "CIC_DETECT_PLACE";

/// Where the programs are, for [`ENTER`].
const PROGRAMS: &str = "CIC_DETECT_PROGRAMS";

/// The group of the controller, and of the machines it starts; agents, gateway and tests have another.
pub(crate) const CONTROLLER_GROUP: u32 = 54_321;

/// That no other test has, and that nobody's files belong to.
const AGENT_GROUP: u32 = 54_322;

/// Made by the test in its namespaces: proof that it was run.
const ENTERED: &str = "entered";

const NAMESPACES: [&str; 6] = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Mounts of a namespace of its own are seen by nobody else.
const ENTER: &str = r#"ip link set lo up && mount --bind "$CIC_DETECT_PROGRAMS" "$CIC_DETECT_PLACE/programs" || exit
for name in cic-controller cic-agent; do
    mount --bind "$CIC_DETECT_PLACE/$name" "$CIC_DETECT_PROGRAMS/$name" || exit
done
exec "$@""#;

/// Whether this is the test in its namespaces.
///
/// Otherwise runs the calling test there and fails as it does. Where that is not possible it says so.
///
/// # Panics
/// When the test fails, or cannot be run and CIC_REQUIRE_NETNS=1 says that it has to be.
pub(crate) fn is_inside() -> bool {
    if let Some(place) = std::env::var_os(PLACE) {
        fs::write(Path::new(&place).join(ENTERED), "").expect("its place can be written");
        return true;
    }
    if let Err(lack) = can_enter() {
        let is_required = std::env::var("CIC_REQUIRE_NETNS").is_ok_and(|value| value == "1");
        assert!(!is_required, "CIC_REQUIRE_NETNS=1, but {lack}");
        eprintln!("skipped: {lack}");
        return false;
    }
    run_there().expect("passes in its namespaces");
    false
}

/// # Errors
/// Names what is missing.
fn can_enter() -> anyhow::Result<()> {
    ensure!(geteuid().is_root(), "a network of its own needs root");
    ensure!(succeeds("ip", &["-V"]), "no ip here; `apt-get install iproute2` brings it");
    ensure!(succeeds("nft", &["--version"]), "no nft here; `apt-get install nftables` brings it");
    ensure!(succeeds("setpriv", &["--version"]), "no setpriv here; `apt-get install util-linux` brings it");
    let can_unshare = succeeds("unshare", &[&NAMESPACES[..], &["nft", "add", "table", "inet", "t"]].concat());
    ensure!(can_unshare, "no namespaces with rules of nft can be made here");
    Ok(())
}

fn succeeds(program: &str, words: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn run_there() -> anyhow::Result<()> {
    let place = tempfile::tempdir()?;
    let programs = binary("cic")?.parent().context("a program is in a directory")?.to_owned();
    fs::create_dir(place.path().join("programs"))?;
    script(place.path(), "cic-controller", CONTROLLER_GROUP)?;
    script(place.path(), "cic-agent", AGENT_GROUP)?;
    let thread = std::thread::current();
    let test = thread.name().context("a test's thread has its name")?;
    // Whoever kills this test leaves none of it.
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(NAMESPACES)
        .args(["sh", "-c", ENTER, "sh"])
        .arg(std::env::current_exe()?)
        .args(["--exact", test, "--nocapture"])
        .env(PLACE, place.path())
        .env(PROGRAMS, programs)
        .env("TMPDIR", place.path())
        .stdin(Stdio::null())
        .status()
        .context("start setpriv")?;
    ensure!(status.success(), "{test}: {status}");
    ensure!(place.path().join(ENTERED).exists(), "no test {test} was run");
    Ok(())
}

/// A program that runs `name` of this build in `group`.
fn script(place: &Path, name: &str, group: u32) -> anyhow::Result<()> {
    let program: PathBuf = place.join("programs").join(name);
    let path = place.join(name);
    let text = format!(
        "#!/bin/sh\nexec setpriv --regid {group} --keep-groups -- '{}' \"$@\"\n",
        program.to_str().context("the directory of temporary files has a name in UTF-8")?
    );
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
