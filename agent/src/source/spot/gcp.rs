//! Google Cloud: two keys of the metadata server, each asked with a request that hangs until its value changes.
//!
//! Sources: "Preemptible VM instances: handle preemption", "Query metadata: wait for change", "Host events: metadata
//! server" of Google's guides.

use std::time::Duration;

use cic_common::notice::{Confidence, NoticeKind};
use cic_common::time::{Clock, Mono};
use hyper::StatusCode;

use super::ledger::{Found, Reading};
use super::metadata::{Answer, Fault, Metadata, Question};

/// Without it every question is refused with 403, so that no page in a browser can ask.
const FLAVOR: (&str, &str) = ("metadata-flavor", "Google");

/// How long a question hangs when nothing changes. A connection that died without a word is found out by then, with most of a
/// notice's 30 s left.
pub(super) const HANGS_FOR: Duration = Duration::from_secs(10);

/// An answer that comes sooner did not hang: something in between does not know how. A real change costs a moment's pause, once.
const AT_ONCE: Duration = Duration::from_millis(500);

/// One key of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Preempted,
    Maintenance,
}

impl Key {
    pub(super) const ALL: [Self; 2] = [Self::Preempted, Self::Maintenance];

    pub(super) fn source(self) -> &'static str {
        match self {
            Self::Preempted => "gcp-preempted",
            Self::Maintenance => "gcp-maintenance",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Preempted => "/computeMetadata/v1/instance/preempted",
            Self::Maintenance => "/computeMetadata/v1/instance/maintenance-event",
        }
    }
}

/// The value as last understood, so that the next question hangs until there is another.
#[derive(Debug, Default)]
pub(super) struct Heard {
    etag: Option<String>,
    /// The last question should have hung and did not.
    is_hasty: bool,
}

impl Heard {
    /// Whether the next question hangs until there is news.
    pub(super) fn hangs(&self) -> bool {
        self.etag.is_some() && !self.is_hasty
    }
}

/// How long a question hangs, and how long its answer may take beyond that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) hangs_for: Duration,
    pub(super) answer_within: Duration,
    /// From `TRUE` to the VM's end.
    pub(super) window: Duration,
    /// From the word of host maintenance to its begin.
    pub(super) maintenance_window: Duration,
}

/// Asks for the value: at once the first time and after a fault, else when it has changed or the hanging is over.
pub(super) async fn read(
    key: Key,
    metadata: &mut Metadata,
    heard: &mut Heard,
    patience: Patience,
    clock: Clock,
) -> Result<Reading, Fault> {
    // Given back only once the value is understood: one that was lost is asked for again, and does not hang.
    let before = heard.etag.take();
    let began = clock.now();
    let answer = ask(key, metadata, before.as_deref(), patience).await?;
    let reading = understand(key, clock.now(), patience, &answer)?;
    heard.is_hasty = before.is_some() && clock.now().since(began) < AT_ONCE;
    heard.etag = answer.etag;
    Ok(reading)
}

async fn ask(
    key: Key,
    metadata: &mut Metadata,
    etag: Option<&str>,
    Patience { hangs_for, answer_within, .. }: Patience,
) -> Result<Answer, Fault> {
    let asked = match etag {
        None => key.path().to_owned(),
        // One that differs from the server's own is answered at once.
        Some(etag) => {
            let timeout_s = hangs_for.as_secs().max(1);
            format!("{}?wait_for_change=true&last_etag={etag}&timeout_sec={timeout_s}", key.path())
        }
    };
    let within = if etag.is_some() { hangs_for + answer_within } else { answer_within };
    let answer = metadata.ask(&Question::get(asked).with(FLAVOR.0, FLAVOR.1), within).await?;
    if answer.status == StatusCode::OK { Ok(answer) } else { Err(Fault::Status(answer.status)) }
}

/// What a value says.
fn understand(key: Key, now: Mono, patience: Patience, answer: &Answer) -> Result<Reading, Fault> {
    let Patience { window, maintenance_window, .. } = patience;
    // The server is the only one to say so, and says it whole: no blips.
    let nothing = Reading { is_complete: true, ..Reading::default() };
    let value = answer.text();
    let (kind, deadline) = match (key, value) {
        (Key::Preempted, "FALSE") | (Key::Maintenance, "NONE") => return Ok(nothing),
        (Key::Preempted, "TRUE") => (NoticeKind::Terminate, now + window),
        (Key::Maintenance, "TERMINATE_ON_HOST_MAINTENANCE") => (NoticeKind::Stop, now + maintenance_window),
        (Key::Maintenance, "MIGRATE_ON_HOST_MAINTENANCE") => {
            (NoticeKind::Maintenance, now + maintenance_window)
        }
        (_, other) => {
            let shown: String = other.chars().take(40).collect();
            return Err(Fault::NotUnderstood(format!("value {shown:?}")));
        }
    };
    let found = Found {
        kind,
        id: value.to_owned(),
        deadline,
        confidence: Confidence::Estimated,
        resources: Vec::new(),
    };
    Ok(Reading { found: vec![found], ..nothing })
}
