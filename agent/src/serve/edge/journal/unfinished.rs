//! One request that was under way, as a checkpoint holds it.

use cic_common::route::Class;
use serde::{Deserialize, Serialize};

/// One request that was under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    pub request_id: String,
    /// By which its client can ask for the answer.
    pub idempotency_key: Option<String>,
    /// Name of the client's API key.
    pub client: Option<String>,
    pub model: String,
    /// With its query.
    pub path: String,
    pub class: Class,
    pub is_stream: bool,
    /// A POST of JSON: its body is all there is to it.
    pub is_json_post: bool,
    /// Since it came.
    pub for_ms: u64,
    /// As it was sent; `None` where there was no room, or where it is no text.
    pub body: Option<String>,
    /// Of a stream that can be continued: what its client has had so far, all told.
    pub tokens: Vec<u32>,
}

impl Unfinished {
    /// Whether running it again is of use: its client can ask for the answer, which a stream's cannot.
    #[must_use]
    pub fn can_be_rerun(&self) -> bool {
        !self.is_stream && self.is_json_post && self.idempotency_key.is_some() && self.body.is_some()
    }
}
