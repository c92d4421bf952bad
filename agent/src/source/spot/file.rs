//! Notices from a file: `{"kind":"terminate","id":"…","in_s":30}`.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use cic_common::notice::{Confidence, NoticeKind};
use cic_common::supervise::TaskResult;
use cic_common::time::{Clock, Mono};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::core::Event;

/// How long a notice can lie unread. The shortest notice of any cloud is 5 s (RunPod).
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A notice is one line; anything longer is not read.
const NOTICE_BYTES_MAX: usize = 4096;

/// A file system that takes longer is looked at again at the next turn.
const READ_DEADLINE: Duration = Duration::from_secs(2);

/// What the events of this source are marked with.
pub const SOURCE: &str = "file";

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoticeFile {
    kind: NoticeKind,
    id: String,
    /// Seconds from the moment the file is first read.
    in_s: u64,
}

/// Looks at `path` until cancelled.
///
/// # Errors
/// Never; the signature is that of a task.
pub async fn watch(
    path: PathBuf,
    clock: Clock,
    events: mpsc::Sender<Event>,
    token: CancellationToken,
) -> TaskResult {
    let mut desk = Desk::default();
    let mut is_told = false;
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        // Both arms are cancel safe: a tick that is dropped comes again.
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let content = match tokio::time::timeout(READ_DEADLINE, tokio::fs::read(&path)).await {
            Ok(content) => content,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        let mut told = desk.read(clock.now(), content);
        if desk.is_read && !std::mem::replace(&mut is_told, true) {
            told.push(Event::SpotSeen { source: SOURCE.to_owned() });
        }
        for event in told {
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Which notice lies there, so that each is reported once.
#[derive(Debug, Default)]
struct Desk {
    lying: Option<String>,
    /// It was seen that none lies there, or what does.
    is_read: bool,
    complained: Option<String>,
}

impl Desk {
    fn read(&mut self, now: Mono, content: io::Result<Vec<u8>>) -> Vec<Event> {
        let notice = match content {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.complained = None;
                self.is_read = true;
                return self.lift().into_iter().collect();
            }
            Err(error) => Err(error.to_string()),
            Ok(bytes) if bytes.len() > NOTICE_BYTES_MAX => {
                Err(format!("longer than {NOTICE_BYTES_MAX} bytes"))
            }
            Ok(bytes) => serde_json::from_slice::<NoticeFile>(&bytes).map_err(|error| error.to_string()),
        };
        match notice {
            Ok(notice) => {
                self.complained = None;
                self.is_read = true;
                self.see(now, notice)
            }
            Err(cause) => {
                self.complain(cause);
                Vec::new()
            }
        }
    }

    fn see(&mut self, now: Mono, notice: NoticeFile) -> Vec<Event> {
        if self.lying.as_deref() == Some(notice.id.as_str()) {
            return Vec::new();
        }
        let before = self.lying.replace(notice.id.clone());
        let lifted = before.map(|id| Event::NoticeLifted { source: SOURCE.to_owned(), id });
        let seen = Event::NoticeSeen {
            kind: notice.kind,
            source: SOURCE.to_owned(),
            id: notice.id,
            deadline: now + Duration::from_secs(notice.in_s),
            confidence: Confidence::Announced,
            resources: Vec::new(),
        };
        // The new one first, so that the node takes up no work in between.
        [seen].into_iter().chain(lifted).collect()
    }

    fn lift(&mut self) -> Option<Event> {
        let id = self.lying.take()?;
        Some(Event::NoticeLifted { source: SOURCE.to_owned(), id })
    }

    fn complain(&mut self, cause: String) {
        if self.complained.as_ref() != Some(&cause) {
            warn!(%cause, r#"notice file is no notice: expected {{"kind":"terminate","id":"…","in_s":30}}"#);
            self.complained = Some(cause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> io::Result<Vec<u8>> {
        Ok(text.as_bytes().to_vec())
    }

    fn seen(id: &str, deadline_ms: u64) -> Event {
        Event::NoticeSeen {
            kind: NoticeKind::Terminate,
            source: SOURCE.to_owned(),
            id: id.to_owned(),
            deadline: Mono::from_millis(deadline_ms),
            confidence: Confidence::Announced,
            resources: Vec::new(),
        }
    }

    fn lifted(id: &str) -> Event {
        Event::NoticeLifted { source: SOURCE.to_owned(), id: id.to_owned() }
    }

    #[test]
    fn a_notice_is_told_once_and_lifted_when_its_file_is_gone() {
        let mut desk = Desk::default();
        let now = Mono::from_millis;
        let a = r#"{"kind":"terminate","id":"a","in_s":30}"#;
        let b = r#"{"kind":"terminate","id":"b","in_s":5}"#;
        let gone = || Err(io::ErrorKind::NotFound.into());
        assert_eq!(desk.read(now(0), gone()), []);
        assert_eq!(desk.read(now(250), file(a)), [seen("a", 30_250)]);
        assert_eq!(desk.read(now(500), file(a)), []);
        assert_eq!(desk.read(now(750), file(b)), [seen("b", 5_750), lifted("a")]);
        assert_eq!(desk.read(now(1000), gone()), [lifted("b")]);
        assert_eq!(desk.read(now(1250), gone()), []);
    }

    #[test]
    fn what_is_no_notice_changes_nothing_and_is_complained_of_once() {
        let mut desk = Desk::default();
        let a = r#"{"kind":"terminate","id":"a","in_s":30}"#;
        assert_eq!(desk.read(Mono::ZERO, file("{")), []);
        assert!(!desk.is_read, "half a notice is no reading");
        assert_eq!(desk.read(Mono::ZERO, file(a)), [seen("a", 30_000)]);
        assert!(desk.is_read);
        for bad in ["", "{", r#"{"kind":"party","id":"x","in_s":1}"#, r#"{"kind":"stop"}"#] {
            assert_eq!(desk.read(Mono::ZERO, file(bad)), []);
            let complained = desk.complained.clone();
            assert!(complained.is_some());
            assert_eq!(desk.read(Mono::ZERO, file(bad)), []);
            assert_eq!(desk.complained, complained);
        }
        assert_eq!(desk.read(Mono::ZERO, file(&" ".repeat(NOTICE_BYTES_MAX + 1))), []);
        assert_eq!(desk.read(Mono::ZERO, file(a)), []);
    }
}
