//! Azure: scheduled events of the instance metadata service, and their acknowledgement.
//!
//! Source: "Azure Metadata Service: Scheduled Events for Linux VMs".

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use cic_common::notice::{Confidence, NoticeKind};
use cic_common::time::Mono;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::ledger::{Found, Reading};
use super::metadata::{Answer, Fault, Metadata, Question};
use super::moment::{deadline, unix_ms_of};

const EVENTS_PATH: &str = "/metadata/scheduledevents?api-version=2020-07-01";
const NAME_PATH: &str = "/metadata/instance/compute/name?api-version=2021-02-01&format=text";
const FLAVOR: (&str, &str) = ("metadata", "true");

/// The first question of a VM switches the service on, which takes up to two minutes.
pub(super) const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(130);

/// Events are named at most some days ahead.
const WINDOW: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// What the service said last.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// The VM's name, by which events name it.
    name: Option<String>,
    incarnation: Option<i64>,
    /// Names of all that each event concerns, for the acknowledgement.
    resources: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    document_incarnation: i64,
    #[serde(default)]
    events: Vec<Event>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    event_id: String,
    event_type: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    event_status: String,
    #[serde(default)]
    not_before: String,
}

/// Asks for the document. `None` when it is the one that was read before.
pub(super) async fn read(
    metadata: &mut Metadata,
    heard: &mut Heard,
    (first_answer_within, answer_within): (Duration, Duration),
    now: impl Fn() -> Mono,
) -> Result<Option<Reading>, Fault> {
    if heard.name.is_none() {
        let answer = ask(metadata, Question::get(NAME_PATH), answer_within).await?;
        let name = answer.text();
        if name.is_empty() {
            return Err(Fault::NotUnderstood("the VM's own name is empty".to_owned()));
        }
        heard.name = Some(name.to_owned());
    }
    let within = if heard.incarnation.is_none() { first_answer_within } else { answer_within };
    let answer = ask(metadata, Question::get(EVENTS_PATH), within).await?;
    heard.understand(now(), &answer)
}

/// Says that the event may begin: it does so at once, for all that it concerns. `Ok(false)` where it concerns others too, or is
/// gone, and nothing was said.
pub(super) async fn acknowledge(
    metadata: &mut Metadata,
    heard: &Heard,
    id: &str,
    within: Duration,
) -> Result<bool, Fault> {
    let is_ours_alone = heard.resources.get(id).is_some_and(|names| names.len() == 1);
    if !is_ours_alone {
        return Ok(false);
    }
    let body = json!({ "StartRequests": [{ "EventId": id }] }).to_string();
    let question = Question { method: Method::POST, body: Bytes::from(body), ..Question::get(EVENTS_PATH) };
    ask(metadata, question.with("content-type", "application/json"), within).await?;
    Ok(true)
}

async fn ask(metadata: &mut Metadata, question: Question, within: Duration) -> Result<Answer, Fault> {
    let answer = metadata.ask(&question.with(FLAVOR.0, FLAVOR.1), within).await?;
    if answer.status == StatusCode::OK { Ok(answer) } else { Err(Fault::Status(answer.status)) }
}

impl Heard {
    fn understand(&mut self, now: Mono, answer: &Answer) -> Result<Option<Reading>, Fault> {
        let document: Document =
            serde_json::from_slice(&answer.body).map_err(|error| Fault::NotUnderstood(error.to_string()))?;
        if self.incarnation == Some(document.document_incarnation) {
            return Ok(None);
        }
        let mut reading = Reading { is_complete: true, ..Reading::default() };
        let mut resources = BTreeMap::new();
        for event in document.events {
            let name = self.name.as_deref().unwrap_or_default();
            // The service tells every VM of a set what becomes of any of them.
            if !event.resources.iter().any(|one| one.eq_ignore_ascii_case(name)) {
                continue;
            }
            resources.insert(event.event_id.clone(), event.resources.clone());
            reading.found.push(event.found(now, answer.at_unix_ms));
        }
        self.resources = resources;
        self.incarnation = Some(document.document_incarnation);
        Ok(Some(reading))
    }
}

impl Event {
    fn found(self, now: Mono, said_unix_ms: Option<u64>) -> Found {
        let kind = match self.event_type.as_str() {
            "Preempt" | "Terminate" => NoticeKind::Terminate,
            "Reboot" => NoticeKind::Reboot,
            "Redeploy" => NoticeKind::Redeploy,
            "Freeze" => NoticeKind::Freeze,
            // A kind that came after this was written; what it does to the VM is not known.
            _ => NoticeKind::Maintenance,
        };
        // One that has begun names no moment: broken hardware is told like that, without a word before.
        let moment = unix_ms_of(&self.not_before).filter(|_| self.event_status != "Started");
        let (deadline, confidence) = match moment {
            Some(moment) => (deadline(now, said_unix_ms, moment, WINDOW), Confidence::Announced),
            None => (now, Confidence::Estimated),
        };
        Found { kind, id: self.event_id, deadline, confidence, resources: self.resources }
    }
}
