//! The metadata server of Google Cloud.

use super::server::{Asked, Reply};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GcpKey {
    Preempted,
    Maintenance,
}

impl GcpKey {
    pub const ALL: [Self; 2] = [Self::Preempted, Self::Maintenance];

    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Preempted => "/computeMetadata/v1/instance/preempted",
            Self::Maintenance => "/computeMetadata/v1/instance/maintenance-event",
        }
    }
}

const INSTANCE_ID_PATH: &str = "/computeMetadata/v1/instance/id";

#[derive(Debug)]
pub(super) struct Gcp {
    preempted: (String, u64),
    maintenance: (String, u64),
}

impl Default for Gcp {
    fn default() -> Self {
        Self { preempted: ("FALSE".to_owned(), 1), maintenance: ("NONE".to_owned(), 1) }
    }
}

impl Gcp {
    /// Value and version of a key.
    pub(super) fn value(&mut self, key: GcpKey) -> &mut (String, u64) {
        match key {
            GcpKey::Preempted => &mut self.preempted,
            GcpKey::Maintenance => &mut self.maintenance,
        }
    }

    /// `None` while the question is to hang.
    pub(super) fn answer(&mut self, asked: &Asked) -> Option<Reply> {
        if asked.values("metadata-flavor").next() != Some("Google") {
            return Some(Reply::status(403));
        }
        if asked.path == INSTANCE_ID_PATH {
            return Some(Reply::ok("application/text", "4711".to_owned()).with("metadata-flavor", "Google"));
        }
        let Some(key) = GcpKey::ALL.into_iter().find(|key| key.path() == asked.path) else {
            return Some(Reply::status(404));
        };
        let (value, version) = self.value(key).clone();
        let etag = format!("{version:016x}");
        let waits = asked.query("wait_for_change") == Some("true");
        if waits && asked.query("last_etag").is_none_or(|last| last == etag) {
            return None;
        }
        Some(Reply::ok("application/text", value).with("etag", etag).with("metadata-flavor", "Google"))
    }
}
