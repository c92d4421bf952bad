//! What is on the disk of the machine: `/usr` of this one, with the agent, its unit and the stand-in engine laid over it
//! as a package would install them, and a few files of its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Context as _;
use fleet_tests::process::{binary, repository};
use serde_json::json;

use super::machine::{AGENT_UNIT, METRICS_PORT, THERE};

/// What the machine does without: nobody logs in, and init is spoken to without a bus.
const MASKED: [&str; 9] = [
    "console-getty.service",
    "dbus.service",
    "dbus.socket",
    "getty.target",
    "systemd-firstboot.service",
    "systemd-logind.service",
    "systemd-sysusers.service",
    "systemd-tmpfiles-setup.service",
    "systemd-update-utmp.service",
];

/// Its network, up and down at the moments of ifupdown's `networking.service`.
const WIRE_UNIT: &str = "wire.service";

/// Writes the machine's own files below `root`, and what is laid over `/usr` below `over`.
pub(crate) fn lay(root: &Path, over: &Path) -> anyhow::Result<()> {
    for path in ["usr", "etc/cic", "etc/systemd/system", "var/log/journal", "var/lib/cic", "srv/model"] {
        fs::create_dir_all(root.join(path))?;
    }
    for path in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{path}"), root.join(path))?;
    }
    let config = format!(
        "[node]\nid = 'n1'\nstate_dir = '/var/lib/cic'\n[metrics]\nlisten = '0.0.0.0:{METRICS_PORT}'\n\
         [spot]\ncloud = 'none'\n"
    );
    // As a controller would have told it before.
    let assignment = json!([1, {
        "deployment": "d1",
        "model": { "name": "tiny", "path": "/srv/model" },
        "engine": {
            "program": "/usr/bin/cic-standin-engine", "args": [], "env": { "CIC_STANDIN_TOKEN_MS": "50" },
        },
    }]);
    let wire = format!(
        "[Unit]\nDefaultDependencies=no\nConflicts=shutdown.target\nWants=network.target\n\
         Before=network.target network-online.target shutdown.target\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\n\
         ExecStart=ip address add {THERE}/30 dev host0\nExecStart=ip link set host0 up\n\
         ExecStop=ip link set host0 down\n"
    );
    for (path, text) in [
        ("etc/os-release", fs::read_to_string("/usr/lib/os-release").context("/usr/lib/os-release")?),
        ("etc/machine-id", format!("{:032x}\n", 1)),
        ("etc/passwd", "root:x:0:0::/:/bin/sh\n".to_owned()),
        ("etc/group", "root:x:0:\n".to_owned()),
        ("etc/cic/agent.toml", config),
        ("etc/systemd/system/wire.service", wire),
        ("var/lib/cic/assignment.json", assignment.to_string()),
        ("srv/model/config.json", r#"{"max_position_embeddings": 4096}"#.to_owned()),
        ("srv/model/model.safetensors", "\u{8}\0\0\0\0\0\0\0{}      ".to_owned()),
    ] {
        fs::write(root.join(path), text).with_context(|| path.to_owned())?;
    }
    let units = root.join("etc/systemd/system");
    for unit in MASKED {
        symlink("/dev/null", units.join(unit))?;
    }
    symlink("/usr/lib/systemd/system/multi-user.target", units.join("default.target"))?;
    for (target, unit, of) in [
        ("multi-user.target", AGENT_UNIT, "/usr/lib/systemd/system"),
        ("network-online.target", WIRE_UNIT, "/etc/systemd/system"),
    ] {
        let wants = units.join(format!("{target}.wants"));
        fs::create_dir(&wants)?;
        symlink(format!("{of}/{unit}"), wants.join(unit))?;
    }

    let (programs, packaged) = (over.join("bin"), over.join("lib/systemd/system"));
    fs::create_dir_all(&programs)?;
    fs::create_dir_all(&packaged)?;
    for name in ["cic-agent", "cic-gpu-probe", "cic-standin-engine"] {
        let (from, to) = (binary(name)?, programs.join(name));
        fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop))?;
    }
    fs::copy(repository().join("systemd").join(AGENT_UNIT), packaged.join(AGENT_UNIT))?;
    Ok(())
}
