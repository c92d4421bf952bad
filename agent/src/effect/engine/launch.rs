//! Starting the engine: in a session of its own, its output to a file, its environment tagged.
//!
//! Making a session needs a moment between fork and exec. The agent starts itself once more as
//! `cic-agent engine-exec`, which makes the session, enters the cgroup and becomes the engine: same pid, same
//! start time, and no unsafe code.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use cic_common::assignment::Assignment;
use tokio::process::{Child, Command};

use super::{Tag, cgroup};
use crate::config::{is_credential, is_setting};

/// Name of the hidden subcommand.
pub const EXEC_COMMAND: &str = "engine-exec";

/// Exit code of a shell that cannot execute a command (POSIX); the log says why.
const EXIT_CANNOT_EXECUTE: u8 = 126;

/// Where programs are looked for when the environment does not say.
pub(super) const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Arguments of `engine-exec`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct ExecArgs {
    /// Cgroup to enter first.
    #[arg(long)]
    pub cgroup: Option<PathBuf>,
    /// Program and its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Becomes the engine; returns only when that fails, with the exit code.
#[must_use]
pub fn exec(args: &ExecArgs) -> u8 {
    if let Err(error) = nix::unistd::setsid() {
        eprintln!("cic-agent: no session for the engine: {error}");
        return EXIT_CANNOT_EXECUTE;
    }
    // The agent may be shielded from the OOM killer; what takes the memory must not be.
    if let Err(error) = std::fs::write(OOM_SCORE, "0") {
        eprintln!("cic-agent: the engine keeps the agent's oom_score_adj: {error}");
    }
    if let Some(path) = &args.cgroup
        && let Err(error) = cgroup::join(path)
    {
        eprintln!("cic-agent: engine stays in the agent's cgroup: {error}");
    }
    let [program, arguments @ ..] = args.command.as_slice() else {
        return EXIT_CANNOT_EXECUTE;
    };
    let error = std::process::Command::new(program).args(arguments).exec();
    eprintln!("cic-agent: cannot execute {}: {error}", Path::new(program).display());
    EXIT_CANNOT_EXECUTE
}

/// Why no engine was started.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error(
        "engine program {program:?} was not found{}: install it on this node, or give its absolute path as the \
         deployment's engine.program", .looked_in.as_ref().map(|path| format!(" in PATH ({path})")).unwrap_or_default()
    )]
    NoProgram { program: String, looked_in: Option<String> },
    #[error("engine program {} may not be executed: check its mode and its owner", .path.display())]
    NotExecutable { path: PathBuf },
    #[error("engine log {} cannot be opened", .path.display())]
    Log {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("engine process cannot be made")]
    Spawn(#[source] io::Error),
}

impl LaunchError {
    /// Whether trying again can help: a full disk or process table empties, a program does not appear by waiting.
    pub(super) fn may_heal(&self) -> bool {
        match self {
            Self::NoProgram { .. } | Self::NotExecutable { .. } => false,
            Self::Log { .. } | Self::Spawn(_) => true,
        }
    }
}

/// Where and how one engine is to run.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    /// The agent's own program.
    pub(super) launcher: &'a Path,
    pub(super) tag: &'a Tag,
    pub(super) assignment: &'a Assignment,
    /// Where the model's files are.
    pub(super) directory: &'a str,
    pub(super) port: u16,
    pub(super) cgroup: Option<&'a Path>,
    pub(super) log: &'a Path,
}

impl Launch<'_> {
    pub(super) async fn start(&self) -> Result<Child, LaunchError> {
        let engine = &self.assignment.engine;
        let path = engine.env.get("PATH").cloned().or_else(|| std::env::var("PATH").ok());
        let program = find_program(&engine.program, path.as_deref().unwrap_or(DEFAULT_PATH))?;
        let open = |source| LaunchError::Log { path: self.log.to_owned(), source };
        let output = super::log::open_new(self.log).await.map_err(open)?;
        let errors = output.try_clone().map_err(open)?;

        let mut command = Command::new(self.launcher);
        command.arg0("cic-agent").arg(EXEC_COMMAND);
        if let Some(cgroup) = self.cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        command.arg("--").arg(program).args(arguments(self.assignment, self.directory, self.port));
        for (key, _) in std::env::vars_os() {
            let name = key.to_string_lossy();
            if is_setting(&name) || is_credential(&name) {
                command.env_remove(key);
            }
        }
        command.envs(&engine.env);
        command.env(Tag::NODE, self.tag.node.as_str()).env(Tag::STATE_DIR, &self.tag.state_dir);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        command.kill_on_drop(false).spawn().map_err(LaunchError::Spawn)
    }
}

/// `serve MODEL --served-model-name NAME --host 127.0.0.1 --port PORT ARGS…`
fn arguments(assignment: &Assignment, directory: &str, port: u16) -> Vec<String> {
    let model = &assignment.model;
    let port = port.to_string();
    let fixed =
        ["serve", directory, "--served-model-name", &model.name, "--host", "127.0.0.1", "--port", &port];
    fixed.into_iter().map(str::to_owned).chain(assignment.engine.args.iter().cloned()).collect()
}

/// Resolves a program as a shell would, so that a missing one is told apart from one that fails.
pub(super) fn find_program(program: &str, path: &str) -> Result<PathBuf, LaunchError> {
    let is_executable = |path: &Path| {
        path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        let path = PathBuf::from(program);
        return match path.exists() {
            true if is_executable(&path) => Ok(path),
            true => Err(LaunchError::NotExecutable { path }),
            false => Err(LaunchError::NoProgram { program: program.to_owned(), looked_in: None }),
        };
    }
    std::env::split_paths(path)
        .map(|directory| directory.join(program))
        .find(|path| is_executable(path))
        .ok_or_else(|| LaunchError::NoProgram {
            program: program.to_owned(),
            looked_in: Some(path.to_owned()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_the_way_out() {
        for (program, names) in [("no-such-vllm", "PATH (/bin:/nowhere)"), ("/nowhere/vllm", "/nowhere/vllm")]
        {
            let error = find_program(program, "/bin:/nowhere").unwrap_err();
            let text = error.to_string();
            assert!(!error.may_heal());
            assert!(
                text.contains(program) && text.contains(names) && text.contains("engine.program"),
                "{text}"
            );
        }
        assert_eq!(find_program("sh", "/nowhere:/bin").unwrap(), Path::new("/bin/sh"));
    }

    #[test]
    fn a_file_that_may_not_be_executed_is_no_program() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("vllm");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        let found = find_program(&path.display().to_string(), "");
        assert!(matches!(found, Err(LaunchError::NotExecutable { .. })));
    }
}
