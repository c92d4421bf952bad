//! Mounts a file system on a directory of this node's own: once, and again when it is dead.
//!
//! What is mounted below the agent's directory of mounts was mounted by an agent of this node, and nothing else is ever
//! unmounted.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cic_common::mounts::{detach, is_mounted};
use cic_common::source::{mount_command, without_options};
use cic_common::time::Clock;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::child::{STEP_COMMAND, Step};
use super::text;
use crate::core::ModelFault;
use crate::run::OWN_PROGRAM;

/// A mount that answers nothing for so long is dead: its server may be slow, and has answered before.
const ALIVE_WITHIN: Duration = Duration::from_secs(10);

/// For a daemon to show what it mounts.
const SHOWN_WITHIN: Duration = Duration::from_secs(30);

const LOOK: Duration = Duration::from_millis(50);

/// For the program that mounts. Those of network file systems try for minutes where a server is away.
const RUN_WITHIN: Duration = Duration::from_secs(60);

/// Has `url` mounted on `at`, and says what was done.
pub(super) fn attach(at: &Path, url: &str) -> Result<String, ModelFault> {
    let fault = |cause: String| ModelFault::NotMounted { url: without_options(url).to_owned(), cause };
    let words = mount_command(url, &text(at)).map_err(|error| fault(error.to_string()))?;
    let mounted = is_mounted(at).map_err(|error| fault(format!("/proc/self/mountinfo: {error}")))?;
    let mut dead = None;
    if mounted {
        match answers(at) {
            Ok(()) => return Ok("it was mounted".to_owned()),
            Err(cause) => dead = Some(cause),
        }
        detach(at).map_err(|error| fault(format!("a dead mount cannot be undone: {error}")))?;
    }
    std::fs::create_dir_all(at).map_err(|error| fault(format!("{}: {error}", at.display())))?;
    run(&words).map_err(fault)?;
    let clock = Clock::start();
    let began = clock.now();
    // Some daemons go into the background before they show anything.
    while !is_mounted(at).unwrap_or(false) {
        if clock.now().since(began) > SHOWN_WITHIN {
            return Err(fault(format!("{} ended well, and {} is no mount", words[0], at.display())));
        }
        std::thread::sleep(LOOK);
    }
    answers(at).map_err(|cause| fault(format!("mounted, and of no use: {cause}")))?;
    Ok(dead.map_or_else(|| "mounted".to_owned(), |cause| format!("mounted anew; it was dead: {cause}")))
}

/// Whether the mount can be listed in time, asked by a process of its own: a dead one may hold it for ever.
fn answers(at: &Path) -> Result<(), String> {
    let mut child = Command::new(OWN_PROGRAM)
        .args([STEP_COMMAND, Step::Mount.word(), "--"])
        .arg(at)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let clock = Clock::start();
    let began = clock.now();
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if clock.now().since(began) > ALIVE_WITHIN => {
                // One that the kernel holds is left.
                let _ = child.kill();
                return Err(format!("no answer within {} s", ALIVE_WITHIN.as_secs()));
            }
            Ok(None) => std::thread::sleep(LOOK),
            Err(error) => return Err(error.to_string()),
        }
    }
    let mut said = String::new();
    let output = child.stdout.as_mut().map(|output| output.read_to_string(&mut said));
    output.transpose().map_err(|error| error.to_string())?;
    if said.contains("\"Ok\"") { Ok(()) } else { Err(said.trim().to_owned()) }
}

/// Runs it to its end; a daemon that it leaves goes on. Its last words are the cause when it fails.
fn run(words: &[String]) -> Result<(), String> {
    let (program, arguments) = words.split_first().ok_or("there is nothing to run")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    // s3fs knows the variables of the other tools by older names alone.
    for (new, old) in
        [("AWS_ACCESS_KEY_ID", "AWSACCESSKEYID"), ("AWS_SECRET_ACCESS_KEY", "AWSSECRETACCESSKEY")]
    {
        if let Some(value) = std::env::var_os(new)
            && std::env::var_os(old).is_none()
        {
            command.env(old, value);
        }
    }
    // Into a file: a daemon keeps a pipe open for ever.
    let errors = memfd_create(c"errors", MFdFlags::MFD_CLOEXEC).map_err(|error| error.to_string())?;
    let mut errors = File::from(errors);
    let shared = errors.try_clone().map_err(|error| error.to_string())?;
    let mut child = command.stderr(shared).spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("no program {program:?} here; install it in the image"),
        _ => format!("{program}: {error}"),
    })?;
    let clock = Clock::start();
    let began = clock.now();
    let status = loop {
        match child.try_wait().map_err(|error| format!("{program}: {error}"))? {
            Some(status) => break status,
            None if clock.now().since(began) > RUN_WITHIN => {
                let _ = child.kill();
                return Err(format!("{program}: nothing is mounted within {} s", RUN_WITHIN.as_secs()));
            }
            None => std::thread::sleep(LOOK),
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    let _ = errors.rewind().and_then(|()| errors.read_to_string(&mut said));
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it says nothing");
    Err(format!("{program}: {status}: {last}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_mounted_is_named_with_its_cause() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().join("mounts/one");
        let fault = attach(&at, "bind:///no/such/directory").unwrap_err();
        assert!(fault.may_heal());
        let said = fault.to_string();
        assert!(said.starts_with("bind:///no/such/directory: mount: exit status: "), "{said}");
        assert!(attach(&at, "nfs://").is_err());
    }
}
