//! Reads the kernel log as it is written.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use cic_common::descriptor::Descriptor;
use cic_common::gpu::XidSource;
use cic_common::supervise::TaskResult;
use cic_common::time::{Clock, Mono};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::read;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::news::KernelNews;
use super::reader::Reader;
use crate::core::Event;
use crate::core::gpu::GpuEvent;
use crate::state::StateDir;

/// Where the kernel log is read, and where the place in it is kept.
#[derive(Debug, Clone)]
pub struct KmsgSpec {
    /// `/dev/kmsg`; in tests a FIFO.
    pub path: PathBuf,
    /// Of this boot: numbers of records of another boot mean nothing.
    pub boot_id: String,
    pub state: StateDir,
}

/// File of the state directory that keeps the place.
pub const STATE_FILE: &str = "kmsg.json";

/// A record is at most 8 KiB as it is printed here (Linux, `PRINTK_MESSAGE_MAX` escaped); a read with less room fails.
const READ_BYTES: usize = 16 * 1024;

/// Records handled before the place is saved though more lie there.
const SAVE_EVERY: u32 = 256;

/// Lost records are told at most so often.
const TELL_LOST_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    /// Records up to this one were handled.
    seq: u64,
}

/// What the log or its reading tells.
#[derive(Debug)]
enum Heard {
    News(KernelNews),
    /// Records that were overwritten before they were read.
    Lost(u64),
    /// Nothing more can be read.
    Blind(String),
}

impl Heard {
    fn event(self) -> Event {
        let blind = |reason| Event::Gpu(GpuEvent::XidsBlind { source: XidSource::Kmsg, reason });
        match self {
            Self::News(KernelNews::Xid(seen)) => Event::Gpu(GpuEvent::Xid(seen)),
            Self::News(KernelNews::Oom { pid, text }) => Event::OomKilled { pid, text },
            Self::Lost(count) => blind(format!("{count} records of the kernel log were overwritten unread")),
            Self::Blind(reason) => blind(reason),
        }
    }
}

/// Reads until cancelled, or until the log cannot be read, which is told once and is no failure.
///
/// # Errors
/// Never; the type is that of a supervised task.
pub async fn watch(
    spec: KmsgSpec,
    clock: Clock,
    events: mpsc::Sender<Event>,
    token: CancellationToken,
) -> TaskResult {
    let kept: Option<Kept> = spec.state.read(STATE_FILE);
    let handled = kept.filter(|kept| kept.boot_id == spec.boot_id).map(|kept| kept.seq);
    let watch = Watch {
        reader: Reader::new(handled),
        pending: Vec::new(),
        record_count: 0,
        lost_count: 0,
        lost_told_at: None,
        spec,
        clock,
        events,
    };
    watch.run(token).await;
    Ok(())
}

/// The receiver of the events is gone: the agent ends.
struct Gone;

struct Watch {
    spec: KmsgSpec,
    clock: Clock,
    events: mpsc::Sender<Event>,
    reader: Reader,
    /// The beginning of a line whose end was not read yet: a FIFO splits where it likes.
    pending: Vec<u8>,
    record_count: u32,
    lost_count: u64,
    lost_told_at: Option<Mono>,
}

impl Watch {
    async fn run(mut self, token: CancellationToken) {
        let reason = match self.descriptor() {
            Ok(descriptor) => match self.follow(&descriptor, &token).await {
                Ok(None) | Err(Gone) => return,
                Ok(Some(reason)) => reason,
            },
            Err(error) => error.to_string(),
        };
        let reason = format!("{}: {reason}", self.spec.path.display());
        info!(reason, "kernel log is not read");
        let _agent_ends = self.tell(Heard::Blind(reason)).await;
    }

    fn descriptor(&self) -> io::Result<Descriptor> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        Descriptor::new(open(&self.spec.path, flags, Mode::empty())?)
    }

    /// Returns why nothing more can be read; `None` when cancelled.
    async fn follow(
        &mut self,
        descriptor: &Descriptor,
        token: &CancellationToken,
    ) -> Result<Option<String>, Gone> {
        let mut buffer = vec![0; READ_BYTES];
        // Without this look the first record of a log in which nothing lies would pass for one that lay there.
        loop {
            match read(descriptor, &mut buffer) {
                Ok(count) if count > 0 => self.take(&buffer[..count]).await?,
                Err(Errno::EPIPE | Errno::EINTR) => {}
                Ok(_) | Err(_) => break,
            }
        }
        self.reader.drained();
        self.save().await;
        loop {
            // Both arms are cancel safe: readiness stays until a read finds nothing.
            let ready = tokio::select! {
                () = token.cancelled() => return Ok(None),
                ready = descriptor.readable() => ready,
            };
            let mut ready = match ready {
                Ok(ready) => ready,
                Err(error) => return Ok(Some(error.to_string())),
            };
            match ready.try_io(|inner| Ok(read(inner.get_ref(), &mut buffer)?)) {
                Ok(Ok(0)) => return Ok(Some("it has ended".to_owned())),
                Ok(Ok(count)) => self.take(&buffer[..count]).await?,
                // Overwritten while it was read; the gap in the numbers tells how much.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::EPIPE as i32) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Ok(Some(error.to_string())),
                Err(_nothing_left) => {
                    self.reader.drained();
                    self.save().await;
                }
            }
            self.tell_lost().await?;
        }
    }

    async fn take(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.pending.extend_from_slice(bytes);
        let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') else {
            if self.pending.len() > READ_BYTES {
                self.pending.clear();
            }
            return Ok(());
        };
        let rest = self.pending.split_off(end + 1);
        let lines = std::mem::replace(&mut self.pending, rest);
        for line in String::from_utf8_lossy(&lines).lines() {
            if let Some(news) = self.reader.read(line) {
                self.tell(Heard::News(news)).await?;
            }
            self.record_count += 1;
        }
        if self.record_count >= SAVE_EVERY {
            self.save().await;
        }
        Ok(())
    }

    /// Saved after what was handled was told: a crash between the two tells a fault twice rather than never.
    async fn save(&mut self) {
        self.record_count = 0;
        let Some(seq) = self.reader.take_handled() else { return };
        let kept = Kept { boot_id: self.spec.boot_id.clone(), seq };
        if let Err(error) = self.spec.state.write(STATE_FILE, &kept).await {
            warn!(%error, "place in the kernel log is not kept");
        }
    }

    async fn tell_lost(&mut self) -> Result<(), Gone> {
        self.lost_count += self.reader.take_lost();
        let now = self.clock.now();
        let is_due = self.lost_told_at.is_none_or(|at| now.since(at) >= TELL_LOST_EVERY);
        if self.lost_count == 0 || !is_due {
            return Ok(());
        }
        self.lost_told_at = Some(now);
        let count = std::mem::take(&mut self.lost_count);
        self.tell(Heard::Lost(count)).await
    }

    async fn tell(&self, heard: Heard) -> Result<(), Gone> {
        self.events.send(heard.event()).await.map_err(|_| Gone)
    }
}
