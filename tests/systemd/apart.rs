//! A test of a machine in namespaces of its own, and in cgroups of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use fleet_tests::process::{Apart, succeeds};

/// Cgroups of the machine, which would share the caller's with any other; names without spaces.
const GROUPS: &str = "CIC_MACHINE_GROUPS";

/// What systemd-nspawn leaves in `/run` goes with the mount namespace.
const APART: Apart = Apart {
    enter: r#"for group in $CIC_MACHINE_GROUPS; do echo 0 >"$group/cgroup.procs" || exit; done
mount -t tmpfs tmpfs /run && exec "$@""#,
    required_by: "CIC_REQUIRE_SYSTEMD",
};

/// The kernel empties a cgroup a moment after its last process.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// Where the machine's files are to be, if this is the test in its namespaces; otherwise runs it there. See
/// [`Apart::place`].
pub(crate) fn place() -> Option<PathBuf> {
    let lack = || {
        ensure!(
            succeeds("systemd-nspawn", &["--version"]) && Path::new("/usr/lib/systemd/systemd").exists(),
            "no systemd-nspawn here; `apt-get install systemd-container` brings it"
        );
        ensure!(Path::new("/lib").is_symlink(), "this system has more than /usr");
        Apart::can_run(&["true"])
    };
    let mut made = None;
    let prepare = |place: &Path| {
        // `.tmpAbCdEf`, which no other has.
        let name = place.file_name().context("a directory has a name")?.to_string_lossy().into_owned();
        let groups = made.insert(Groups::make(&format!("cic-machine{name}"))?);
        Ok(vec![(GROUPS, groups.words().into())])
    };
    APART.place(lack, prepare)
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
