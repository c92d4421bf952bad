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

use anyhow::{Context as _, ensure};
use fleet_tests::process::{Apart, binary, succeeds};

/// Where the programs are, for what is run first.
const PROGRAMS: &str = "CIC_DETECT_PROGRAMS";

/// The group of the controller, and of the machines it starts; agents, gateway and tests have another.
pub(crate) const CONTROLLER_GROUP: u32 = 54_321;

/// That no other test has, and that nobody's files belong to.
const AGENT_GROUP: u32 = 54_322;

/// Mounts of a namespace of its own are seen by nobody else.
const APART: Apart = Apart {
    enter: r#"ip link set lo up && mount --bind "$CIC_DETECT_PROGRAMS" "$CIC_APART_PLACE/programs" || exit
for name in cic-controller cic-agent; do
    mount --bind "$CIC_APART_PLACE/$name" "$CIC_DETECT_PROGRAMS/$name" || exit
done
exec "$@""#,
    required_by: "CIC_REQUIRE_NETNS",
};

/// Whether this is the test in its namespaces; otherwise runs it there. See [`Apart::place`].
pub(crate) fn is_inside() -> bool {
    let lack = || {
        ensure!(succeeds("nft", &["--version"]), "no nft here; `apt-get install nftables` brings it");
        Apart::can_run(&["nft", "add", "table", "inet", "t"])
    };
    let prepare = |place: &Path| {
        let programs = binary("cic")?.parent().context("a program is in a directory")?.to_owned();
        fs::create_dir(place.join("programs"))?;
        script(place, "cic-controller", CONTROLLER_GROUP)?;
        script(place, "cic-agent", AGENT_GROUP)?;
        Ok(vec![(PROGRAMS, programs.into()), ("TMPDIR", place.into())])
    };
    APART.place(lack, prepare).is_some()
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
