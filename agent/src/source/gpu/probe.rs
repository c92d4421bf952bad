//! The probe as a child process.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use cic_common::gpu::{ProbeMessage, ProbeRequest};
use cic_common::wire::frame::{FrameError, FrameReader, FrameWriter};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::spec::{GpuSpans, GpuSpec};

/// The probe reads its requests at once. When it does not, it is stuck or gone and the request is void.
const REQUEST_WITHIN: Duration = Duration::from_millis(200);

/// A probe that runs. It ends with its standard input, so it does not outlive this process; it is killed when this is
/// dropped.
#[derive(Debug)]
pub(super) struct Probe {
    child: Child,
    says: FrameReader<ChildStdout>,
    hears: FrameWriter<ChildStdin>,
}

impl Probe {
    /// # Errors
    /// When the program cannot be started.
    pub(super) fn start(spec: &GpuSpec) -> io::Result<Self> {
        let ms = |span: Duration| span.as_millis().to_string();
        let mut child = Command::new(&spec.probe)
            .args(["--cheap-ms", &ms(spec.spans.cheap_every), "--full-ms", &ms(spec.spans.full_every)])
            .arg("--lock")
            .arg(&spec.lock)
            .envs(spec.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => {
                Ok(Self { child, says: FrameReader::new(stdout), hears: FrameWriter::new(stdin) })
            }
            _ => Err(io::Error::other("the probe has no pipes")),
        }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The next thing it says. Cancel safe.
    ///
    /// # Errors
    /// [`FrameError::Closed`] when it ended; any other when it makes no sense.
    pub(super) async fn next(&mut self) -> Result<ProbeMessage, FrameError> {
        self.says.next().await
    }

    /// Asks for a sample; a probe that does not listen is not waited for. Not cancel safe: half a request ends it.
    pub(super) async fn ask_sample(&mut self) {
        let _ = timeout(REQUEST_WITHIN, self.hears.write(&ProbeRequest::Sample)).await;
    }

    /// Sends SIGKILL, which a process inside the driver obeys when it comes out of it.
    pub(super) fn kill(&mut self) {
        let _ = self.child.start_kill();
    }

    /// How it ended; `None` when it has not within `span`. Cancel safe.
    pub(super) async fn ended_within(&mut self, span: Duration) -> Option<io::Result<ExitStatus>> {
        timeout(span, self.child.wait()).await.ok()
    }

    /// Ends it: by closing its pipes, by SIGTERM, by SIGKILL. Returns whether it has ended.
    pub(super) async fn stop(self, spans: &GpuSpans) -> bool {
        let Self { mut child, says, hears } = self;
        // It may be writing: without a reader that fails and it goes on to its end.
        drop((says, hears));
        if timeout(spans.end_within, child.wait()).await.is_ok() {
            return true;
        }
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if timeout(spans.term_within, child.wait()).await.is_ok() {
            return true;
        }
        let _ = child.start_kill();
        timeout(spans.kill_within, child.wait()).await.is_ok()
    }
}
