//! The steps on a model's directory, each asked of a process of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cic_common::assignment::ModelSpec;
use cic_common::source::without_options;
use cic_common::units::Bytes;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tracing::info;

use super::child::{Line, STEP_COMMAND, Step};
use super::fetch::Address;
use crate::core::ModelFault;

/// Of the lines that say how far a step has come, one in so many is logged.
const LOG_EVERY: u32 = 10;

/// How closely a model is looked at before an engine is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// Lengths and headers.
    Structure,
    /// Every byte too, where there is a manifest.
    #[default]
    Content,
}

/// How long a step may say nothing, by its kind: it is stuck then, and is tried again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet {
    pub mount: Duration,
    /// To find a mount dead, and to mount anew: helpers of network file systems try for a minute.
    pub attach: Duration,
    /// Hundreds of headers of a network's file system, beside other loads.
    pub structure: Duration,
    pub content: Duration,
    /// Three tries of a piece, each given up after a minute, and the comparison of what is there.
    pub fetch: Duration,
    /// Thousands of small reads; nothing but a word waits for them.
    pub digest: Duration,
    /// All of a large model from a slow disk; nothing waits for it.
    pub warm: Duration,
}

impl Default for Quiet {
    fn default() -> Self {
        let [mount, attach, structure, content, fetch, digest, warm] =
            [10, 120, 60, 60, 240, 180, 3600].map(Duration::from_secs);
        Self { mount, attach, structure, content, fetch, digest, warm }
    }
}

/// Asks the steps of `program`.
#[derive(Debug, Clone)]
pub struct Models {
    /// A `cic-agent`. Outside tests this very one.
    pub program: PathBuf,
    /// Where it is kept what was right.
    pub ledger: PathBuf,
    pub depth: Depth,
    pub quiet: Quiet,
    /// What this node shows to others, once it has it.
    pub badge: Option<Badge>,
}

/// Files by which nodes know each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Badge {
    /// Certificate and key.
    pub identity: PathBuf,
    pub ca: PathBuf,
}

impl Models {
    /// Whether the model's directory is there and can be read.
    ///
    /// # Errors
    /// What is wrong with it, for the core to weigh.
    pub async fn mount(&self, model: &ModelSpec) -> Result<(), ModelFault> {
        self.ask(Step::Mount, &model.path, self.quiet.mount).await.map(drop)
    }

    /// Has `url` mounted on the model's directory.
    ///
    /// # Errors
    /// Why it cannot be.
    pub async fn attach(&self, url: &str, model: &ModelSpec) -> Result<(), ModelFault> {
        let said =
            self.ask_on(Step::Attach, &model.path, &["--url", url], self.quiet.attach, |_, _| {}).await;
        let seen = said.map_err(|fault| match fault {
            // Of the process, not of the files.
            ModelFault::Unreadable { cause, .. } => {
                ModelFault::NotMounted { url: without_options(url).to_owned(), cause }
            }
            other => other,
        })?;
        info!(model = model.name, path = model.path, url = without_options(url), seen, "mounted");
        Ok(())
    }

    /// Whether the directory holds the model that it promises: by lengths and headers, and to the last byte where it has a
    /// manifest and that is wanted.
    ///
    /// # Errors
    /// What is wrong, for the core to weigh.
    pub async fn verify(
        &self,
        model: &ModelSpec,
        progress: impl FnMut(u64, u64) + Send,
    ) -> Result<(), ModelFault> {
        let seen = self.ask(Step::Structure, &model.path, self.quiet.structure).await?;
        info!(model = model.name, path = model.path, seen, "whole by its headers");
        if self.depth == Depth::Content {
            let seen = self.ask_on(Step::Content, &model.path, &[], self.quiet.content, progress).await?;
            info!(model = model.name, path = model.path, seen, "compared with its manifest");
        }
        Ok(())
    }

    /// Makes the model's directory what is published at `url`, with what `neighbours` give of it.
    ///
    /// # Errors
    /// What cannot be had, and why; the next try goes on from there.
    pub async fn fetch(
        &self,
        url: &str,
        model: &ModelSpec,
        neighbours: &[Address],
        progress: impl FnMut(u64, u64) + Send,
    ) -> Result<(), ModelFault> {
        let mut more = vec!["--url".to_owned(), url.to_owned()];
        if let (Some(Badge { identity, ca }), false) = (&self.badge, neighbours.is_empty()) {
            let (identity, ca) = (identity.display().to_string(), ca.display().to_string());
            more.extend(["--model".to_owned(), model.name.clone(), "--identity".to_owned(), identity]);
            more.extend(["--ca".to_owned(), ca]);
            neighbours.iter().for_each(|one| more.extend(["--neighbour".to_owned(), one.to_string()]));
        }
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let said = self.ask_on(Step::Fetch, &model.path, &more, self.quiet.fetch, progress).await;
        let seen = said.map_err(|fault| match fault {
            // Of the process, not of the files.
            ModelFault::Unreadable { cause, .. } => {
                ModelFault::NotFetched { url: without_options(url).to_owned(), cause }
            }
            other => other,
        })?;
        info!(model = model.name, path = model.path, url = without_options(url), seen, "fetched");
        Ok(())
    }

    /// Has the weights in the page cache.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub async fn warm(&self, model: &ModelSpec) -> Result<String, ModelFault> {
        self.ask(Step::Warm, &model.path, self.quiet.warm).await
    }

    /// Names what the directory holds: SHA-256 over each file's name and length, over small files whole, and over the header
    /// of each safetensors file, which lists its tensors, and a megabyte of its weights. To read them all takes minutes.
    ///
    /// # Errors
    /// When a file cannot be read in time.
    pub async fn digest(&self, model: &ModelSpec) -> Result<String, ModelFault> {
        self.ask(Step::Digest, &model.path, self.quiet.digest).await
    }

    async fn ask(&self, step: Step, path: &str, quiet_max: Duration) -> Result<String, ModelFault> {
        self.ask_on(step, path, &[], quiet_max, |_, _| {}).await
    }

    async fn ask_on(
        &self,
        step: Step,
        path: &str,
        more: &[&str],
        quiet_max: Duration,
        mut progress: impl FnMut(u64, u64) + Send,
    ) -> Result<String, ModelFault> {
        let unreadable = |cause: String| ModelFault::Unreadable { path: path.to_owned(), cause };
        let mut child = Command::new(&self.program)
            .args([STEP_COMMAND, step.word()])
            .arg("--ledger")
            .arg(&self.ledger)
            .args(more)
            .arg("--")
            .arg(Path::new(path))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Killed when it is given up: one that a dead file system holds is not waited for.
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| unreadable(format!("the process that looks cannot be started: {error}")))?;
        let stdout = child.stdout.take().ok_or_else(|| unreadable("its output is not piped".to_owned()))?;
        let mut lines = BufReader::new(stdout).lines();
        let mut count = 0_u32;
        loop {
            let Ok(line) = tokio::time::timeout(quiet_max, lines.next_line()).await else {
                let quiet_s = quiet_max.as_secs_f64();
                return Err(unreadable(format!("no answer from the file system within {quiet_s} s")));
            };
            let line = line.map_err(|error| unreadable(error.to_string()))?;
            let Some(line) = line else {
                let ended = tokio::time::timeout(quiet_max, child.wait()).await;
                let ended = ended.map_or_else(
                    |_| "and did not end".to_owned(),
                    |ended| ended.map_or_else(|error| error.to_string(), |status| status.to_string()),
                );
                return Err(unreadable(format!("the process that looks ended without an answer: {ended}")));
            };
            match serde_json::from_str(&line) {
                Ok(Line::Answer(answer)) => return answer,
                Ok(Line::Progress { done_bytes, all_bytes }) => {
                    count += 1;
                    progress(done_bytes, all_bytes);
                    if count.is_multiple_of(LOG_EVERY) {
                        let (done, all) = (Bytes(done_bytes), Bytes(all_bytes));
                        info!(path, %done, %all, step = step.word(), "under way");
                    }
                }
                Err(error) => {
                    return Err(unreadable(format!("the process that looks said {line:?}: {error}")));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Steps by a script, which is given the step as `$2`.
    async fn asked(script: &str, quiet: Duration) -> Result<String, String> {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("cic-agent");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let models = Models {
            program,
            ledger: "ledger".into(),
            depth: Depth::Content,
            quiet: Quiet::default(),
            badge: None,
        };
        models.ask(Step::Content, "/model", quiet).await.map_err(|fault| {
            assert!(fault.may_heal(), "{fault}");
            fault.to_string()
        })
    }

    #[tokio::test]
    async fn a_step_that_answers_is_heard_and_progress_keeps_it_alive() {
        let steps = r#"for i in 1 2 3 4; do echo '{"progress":{"done_bytes":1,"all_bytes":2}}'; sleep 0.3; done
            echo "{\"answer\":{\"Ok\":\"$1 $2 $3 $4 $5 $6\"}}""#;
        let said = asked(steps, Duration::from_millis(1100)).await;
        assert_eq!(said.as_deref(), Ok("model-step content --ledger ledger -- /model"));
    }

    #[tokio::test]
    async fn a_step_that_says_nothing_is_given_up_and_killed() {
        let place = tempfile::NamedTempFile::new().unwrap();
        let script = format!("echo $$ > {}; exec sleep 1000", place.path().display());
        let said = asked(&script, Duration::from_millis(500)).await.unwrap_err();
        assert!(said.contains("no answer from the file system within 0.5 s"), "{said}");
        let pid: u32 = fs::read_to_string(place.path()).unwrap().trim().parse().unwrap();
        wait_ended(pid).await;
    }

    async fn wait_ended(pid: u32) {
        while cic_common::process::Process::read(pid).is_some_and(|process| !process.is_zombie) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_step_that_breaks_says_how() {
        for (script, cause) in [
            ("exit 7", "ended without an answer: exit status: 7"),
            ("kill -9 $$", "ended without an answer: signal: 9"),
            ("echo hello", "said \"hello\""),
        ] {
            let said = asked(script, Duration::from_secs(20)).await.unwrap_err();
            assert!(said.contains(cause), "{said}");
        }
    }
}
