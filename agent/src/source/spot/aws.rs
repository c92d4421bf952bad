//! AWS: the instance metadata service, version 2. Four keys, each with a task and a connection of its own; they share the
//! session token.
//!
//! Sources: "Spot Instance interruption notices", "EC2 instance rebalance recommendations", "View scheduled events",
//! "Retrieve the target lifecycle state through instance metadata" and "Use IMDS" of AWS's guides.

use std::sync::Arc;
use std::time::Duration;

use cic_common::notice::{Confidence, NoticeKind};
use cic_common::time::{Clock, Mono};
use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::ledger::{Found, Reading};
use super::metadata::{Answer, Fault, Metadata, Question};
use super::moment::{deadline, unix_ms_of};

/// The longest that AWS gives.
const TOKEN_TTL: Duration = Duration::from_secs(21_600);

const TOKEN_PATH: &str = "/latest/api/token";
const TOKEN_TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";

/// A Spot notice comes two minutes ahead; more is a clock that is wrong.
const SPOT_WINDOW: Duration = Duration::from_secs(120);

/// Auto Scaling ends an instance without a lifecycle hook within about a minute of this word, and names no moment.
const LIFECYCLE_WINDOW: Duration = Duration::from_secs(60);

/// Scheduled events are named two weeks ahead and more.
const SCHEDULED_WINDOW: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// For a scheduled event whose moment cannot be read: time to drain, and no reason to leave at once.
const SCHEDULED_UNREADABLE: Duration = Duration::from_secs(600);

/// One key of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Spot,
    Rebalance,
    Scheduled,
    Lifecycle,
}

impl Key {
    pub(super) const ALL: [Self; 4] = [Self::Spot, Self::Rebalance, Self::Scheduled, Self::Lifecycle];

    pub(super) fn source(self) -> &'static str {
        match self {
            Self::Spot => "aws-spot",
            Self::Rebalance => "aws-rebalance",
            Self::Scheduled => "aws-scheduled",
            Self::Lifecycle => "aws-lifecycle",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Spot => "/latest/meta-data/spot/instance-action",
            Self::Rebalance => "/latest/meta-data/events/recommendations/rebalance",
            Self::Scheduled => "/latest/meta-data/events/maintenance/scheduled",
            Self::Lifecycle => "/latest/meta-data/autoscaling/target-lifecycle-state",
        }
    }

    /// What an answer with content says.
    pub(super) fn understand(self, now: Mono, answer: &Answer) -> Result<Reading, Fault> {
        match self {
            Self::Spot => spot(now, answer),
            Self::Rebalance => rebalance(now, answer),
            Self::Scheduled => scheduled(now, answer),
            Self::Lifecycle => lifecycle(now, answer),
        }
    }
}

/// The session token, made anew at 80 % of its life or when the service refuses it.
#[derive(Debug)]
pub(super) struct Token {
    clock: Clock,
    kept: Mutex<Option<Kept>>,
}

#[derive(Debug, Clone)]
struct Kept {
    text: Arc<str>,
    renew_at: Mono,
}

impl Token {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, kept: Mutex::new(None) }
    }

    /// The kept token, or a new one where it is old or is the `refused` one.
    async fn get(
        &self,
        metadata: &mut Metadata,
        deadline: Duration,
        refused: Option<&str>,
    ) -> Result<Arc<str>, Fault> {
        let is_good = |kept: &&Kept| self.clock.now() < kept.renew_at && Some(&*kept.text) != refused;
        if let Some(kept) = self.kept.lock().await.as_ref().filter(is_good) {
            return Ok(Arc::clone(&kept.text));
        }
        // Not under the lock: a source that waits for its token must hold none of the others up.
        let question = Question { method: Method::PUT, ..Question::get(TOKEN_PATH) }
            .with(TOKEN_TTL_HEADER, TOKEN_TTL.as_secs().to_string());
        let answer =
            metadata.ask(&question, deadline).await.map_err(|fault| Fault::Token(fault.to_string()))?;
        let text = answer.text();
        let is_token = !text.is_empty() && HeaderValue::from_str(text).is_ok();
        if answer.status != StatusCode::OK || !is_token {
            let hint = match answer.status {
                StatusCode::FORBIDDEN => " (the instance's metadata endpoint is switched off)",
                StatusCode::OK => " and no token",
                _ => "",
            };
            return Err(Fault::Token(format!("status {}{hint}", answer.status)));
        }
        let ttl = answer.headers.get(TOKEN_TTL_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        let ttl = ttl.map_or(TOKEN_TTL, Duration::from_secs).min(TOKEN_TTL);
        let kept = Kept { text: text.into(), renew_at: self.clock.now() + ttl * 4 / 5 };
        let text = Arc::clone(&kept.text);
        *self.kept.lock().await = Some(kept);
        Ok(text)
    }
}

/// Reads one key. A refused token is made anew and the question asked once more.
pub(super) async fn read(
    key: Key,
    metadata: &mut Metadata,
    token: &Token,
    clock: Clock,
    deadline: Duration,
) -> Result<Reading, Fault> {
    let mut text = token.get(metadata, deadline, None).await?;
    let mut is_renewed = false;
    loop {
        let question = Question::get(key.path()).with(TOKEN_HEADER, &*text);
        let answer = metadata.ask(&question, deadline).await?;
        match answer.status {
            StatusCode::OK => return key.understand(clock.now(), &answer),
            // Scheduled events have two forms of none, and are known for no blips.
            StatusCode::NOT_FOUND => {
                return Ok(Reading { is_complete: key == Key::Scheduled, ..Reading::default() });
            }
            StatusCode::UNAUTHORIZED if !is_renewed => {
                is_renewed = true;
                text = token.get(metadata, deadline, Some(&text)).await?;
            }
            status => return Err(Fault::Status(status)),
        }
    }
}

#[derive(Debug, Deserialize)]
struct InstanceAction {
    action: String,
    #[serde(default)]
    time: String,
}

fn spot(now: Mono, answer: &Answer) -> Result<Reading, Fault> {
    let InstanceAction { action, time } = json(answer)?;
    let kind = match action.as_str() {
        "terminate" => NoticeKind::Terminate,
        "stop" => NoticeKind::Stop,
        "hibernate" => NoticeKind::Hibernate,
        other => return Err(Fault::NotUnderstood(format!("action {other:?}"))),
    };
    let (deadline, confidence) = match unix_ms_of(&time) {
        // Hibernation begins with the notice.
        _ if kind == NoticeKind::Hibernate => (now, Confidence::Announced),
        Some(moment) => (deadline(now, answer.at_unix_ms, moment, SPOT_WINDOW), Confidence::Announced),
        // The instance is taken all the same.
        None => (now + SPOT_WINDOW, Confidence::Estimated),
    };
    Ok(Reading::of(Found { kind, id: action, deadline, confidence, resources: Vec::new() }))
}

#[derive(Debug, Deserialize)]
struct Rebalance {
    #[serde(rename = "noticeTime")]
    notice_time: String,
}

fn rebalance(now: Mono, answer: &Answer) -> Result<Reading, Fault> {
    let Rebalance { notice_time } = json(answer)?;
    if unix_ms_of(&notice_time).is_none() {
        return Err(Fault::NotUnderstood(format!("noticeTime {notice_time:?}")));
    }
    Ok(Reading::of(Found {
        kind: NoticeKind::Rebalance,
        id: "rebalance".to_owned(),
        deadline: now,
        confidence: Confidence::Advice,
        resources: Vec::new(),
    }))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Scheduled {
    code: String,
    event_id: String,
    state: String,
    #[serde(default)]
    not_before: String,
}

fn scheduled(now: Mono, answer: &Answer) -> Result<Reading, Fault> {
    let mut reading = Reading { is_complete: true, ..Reading::default() };
    for Scheduled { code, event_id, state, not_before } in json::<Vec<Scheduled>>(answer)? {
        if state != "active" {
            reading.lifted.push(event_id);
            continue;
        }
        let kind = match code.as_str() {
            "instance-stop" => NoticeKind::Stop,
            "instance-retirement" => NoticeKind::Terminate,
            "instance-reboot" | "system-reboot" => NoticeKind::Reboot,
            // Maintenance of network or power, and whatever comes after it: the instance goes on, for all that is known.
            _ => NoticeKind::Maintenance,
        };
        let (deadline, confidence) = match unix_ms_of(&not_before) {
            Some(moment) => {
                (deadline(now, answer.at_unix_ms, moment, SCHEDULED_WINDOW), Confidence::Announced)
            }
            None => (now + SCHEDULED_UNREADABLE, Confidence::Estimated),
        };
        reading.found.push(Found { kind, id: event_id, deadline, confidence, resources: Vec::new() });
    }
    Ok(reading)
}

fn lifecycle(now: Mono, answer: &Answer) -> Result<Reading, Fault> {
    let state = answer.text();
    let kind = match state {
        "Terminated" | "Warmed:Terminated" => NoticeKind::Terminate,
        "Warmed:Stopped" | "Warmed:Hibernated" => NoticeKind::Stop,
        "InService" | "Standby" | "Detached" | "Warmed:Running" => return Ok(Reading::default()),
        other => {
            let shown: String = other.chars().take(40).collect();
            return Err(Fault::NotUnderstood(format!("lifecycle state {shown:?}")));
        }
    };
    Ok(Reading::of(Found {
        kind,
        id: state.to_owned(),
        deadline: now + LIFECYCLE_WINDOW,
        confidence: Confidence::Estimated,
        resources: Vec::new(),
    }))
}

fn json<T: for<'de> Deserialize<'de>>(answer: &Answer) -> Result<T, Fault> {
    serde_json::from_slice(&answer.body).map_err(|error| Fault::NotUnderstood(error.to_string()))
}
