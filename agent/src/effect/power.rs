//! The machine's end, by the command that it was given for that.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// It only has to be taken by the init system, which then stops this program too.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// Why the machine goes on.
#[derive(Debug, thiserror::Error)]
pub enum PowerError {
    #[error("there is no command ([deadman] command)")]
    NoCommand,
    #[error("{program:?} cannot be run")]
    Run { program: String, source: io::Error },
    #[error("{program:?} ended with {status}")]
    Failed { program: String, status: ExitStatus },
    #[error("{program:?} was not done within {TAKEN_WITHIN:?}")]
    Late { program: String },
}

/// Runs `command`, a program and its arguments.
///
/// # Errors
/// When it was not run to a good end; it may be run again.
pub async fn off(command: &[String]) -> Result<(), PowerError> {
    let (program, arguments) = command.split_first().ok_or(PowerError::NoCommand)?;
    let program = program.clone();
    let mut command = Command::new(&program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    match timeout(TAKEN_WITHIN, command.status()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(PowerError::Failed { program, status }),
        Ok(Err(source)) => Err(PowerError::Run { program, source }),
        Err(_) => Err(PowerError::Late { program }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_is_run_and_its_end_is_told() {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("off");
        off(&list(&["touch", file.to_str().unwrap()])).await.unwrap();
        assert!(file.exists());
        for (command, end) in [
            (list(&["false"]), "\"false\" ended with exit status: 1"),
            (list(&["/no/such/program"]), "\"/no/such/program\" cannot be run"),
            (list(&[]), "there is no command ([deadman] command)"),
        ] {
            assert_eq!(off(&command).await.unwrap_err().to_string(), end);
        }
    }
}
