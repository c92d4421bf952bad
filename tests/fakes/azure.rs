//! Scheduled events of Azure's instance metadata service.

use serde_json::{Value, json};

use super::server::{Asked, Reply, http_date};

pub(super) const EVENTS_PATH: &str = "/metadata/scheduledevents";
const NAME_PATH: &str = "/metadata/instance/compute/name";
const ID_PATH: &str = "/metadata/instance/compute/vmId";

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AzureEvent {
    pub id: String,
    /// `Preempt`, `Terminate`, `Reboot`, `Redeploy`, `Freeze`.
    pub kind: String,
    pub resources: Vec<String>,
    /// `None`: it has begun.
    pub not_before_unix_ms: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Azure {
    pub(super) vm: String,
    pub(super) events: Vec<AzureEvent>,
    pub(super) incarnation: u64,
    /// Ids of acknowledged events.
    pub(super) started: Vec<String>,
    pub(super) refuses_start: bool,
}

impl Default for Azure {
    fn default() -> Self {
        Self {
            vm: "vm-0".to_owned(),
            events: Vec::new(),
            incarnation: 1,
            started: Vec::new(),
            refuses_start: false,
        }
    }
}

impl Azure {
    pub(super) fn answer(&mut self, asked: &Asked) -> Reply {
        if asked.values("metadata").next() != Some("true") {
            return Reply::status(400);
        }
        if asked.query("api-version").is_none() {
            return Reply::status(400);
        }
        match (asked.method.as_str(), asked.path.as_str()) {
            ("GET", NAME_PATH) => Reply::ok("text/plain", self.vm.clone()),
            ("GET", ID_PATH) => Reply::ok("text/plain", "02aab8a4-74ef-476e-8182-f6d2ba4166a6".to_owned()),
            ("GET", EVENTS_PATH) => Reply::ok("application/json", self.document().to_string()),
            ("POST", EVENTS_PATH) => self.start(asked),
            _ => Reply::status(404),
        }
    }

    fn document(&self) -> Value {
        let events = self.events.iter().map(|event| {
            json!({
                "EventId": event.id,
                "EventType": event.kind,
                "ResourceType": "VirtualMachine",
                "Resources": event.resources,
                "EventStatus": if event.not_before_unix_ms.is_some() { "Scheduled" } else { "Started" },
                "NotBefore": event.not_before_unix_ms.map(http_date).unwrap_or_default(),
                "EventSource": "Platform",
                "DurationInSeconds": -1,
            })
        });
        json!({ "DocumentIncarnation": self.incarnation, "Events": events.collect::<Vec<_>>() })
    }

    fn start(&mut self, asked: &Asked) -> Reply {
        let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
        let ids = body["StartRequests"].as_array().into_iter().flatten();
        let ids: Vec<String> = ids.filter_map(|one| Some(one["EventId"].as_str()?.to_owned())).collect();
        let is_known = |id: &String| self.events.iter().any(|event| event.id == *id);
        if self.refuses_start || ids.is_empty() || !ids.iter().all(is_known) {
            return Reply::status(400);
        }
        self.started.extend(ids);
        Reply::status(200)
    }
}
