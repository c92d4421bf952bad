//! Requests of a lost node that are run again in its place, and the answers that wait for their clients.

use std::time::Duration;

use bytes::Bytes;
use cic_common::route::Class;
use cic_common::time::unix_ms;
use http_body_util::BodyExt as _;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::{UnderWay, Unfinished};
use crate::effect::checkpoint::{KeptAnswer, Question};
use crate::serve::edge::answer::{CLASS_HEADER, NODE_HEADER, REQUEST_ID_HEADER, RESTORED_HEADER, full};
use crate::serve::edge::errand::Errand;
use crate::serve::edge::front::Edge;
use crate::serve::edge::request::{Buffered, IDEMPOTENCY_HEADER};
use crate::serve::edge::resume::Plan;
use crate::serve::edge::user_port::{Upload, Visit};
use crate::serve::peer::PeerBody;

/// Longest answer that is kept.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// Between two tries of a request that no replica took.
const PAUSE: Duration = Duration::from_secs(2);

/// A fleet that has just lost a node may be short of room for minutes; after that its client has long given up.
const RUN_WITHIN: Duration = Duration::from_secs(600);

/// An answer and the question that asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub question: Question,
    pub answer: KeptAnswer,
}

/// Why there is no answer. Nothing more is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAnswered {
    #[error("its client cannot ask for it: a stream, no POST of JSON, or without an idempotency key")]
    NotAsked,
    #[error("it cannot be sent again: {why}")]
    Unsendable { why: String },
    #[error("it was answered {status}")]
    Refused { status: StatusCode },
    #[error("its answer cannot be kept: {why}")]
    Unkept { why: String },
}

impl Edge {
    /// The requests of users that this edge holds now.
    #[must_use]
    pub fn under_way(&self) -> UnderWay {
        self.shared.journal.under_way(self.shared.clock)
    }

    /// Runs a lost node's request again, on whichever replica takes it, after everything that users wait for.
    ///
    /// # Errors
    /// When it cannot be sent again, no replica has room for it within minutes, or the answer is not a good one. One that
    /// reached an engine and failed there is not tried again: it may be what broke the node.
    pub async fn run_again(&self, lost: &Unfinished) -> Result<Answered, NotAnswered> {
        let (Some(question), Some(body)) = (lost.question(), &lost.body) else {
            return Err(NotAnswered::NotAsked);
        };
        let body = Bytes::from(body.clone());
        let began = self.now();
        let response = loop {
            let request = sendable(lost, body.clone())
                .map_err(|error| NotAnswered::Unsendable { why: error.to_string() })?;
            let errand = Errand::new(lost.model.clone(), request, self.now()).in_background();
            let response = self.run(Box::new(errand), Plan::Plain).await;
            let has_no_room =
                matches!(response.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
            if response.status() == StatusCode::OK {
                break response;
            }
            if !has_no_room || self.now().since(began) >= RUN_WITHIN {
                return Err(NotAnswered::Refused { status: response.status() });
            }
            tokio::time::sleep(PAUSE).await;
        };
        let (head, body) = response.into_parts();
        let body = whole(body).await.map_err(|why| NotAnswered::Unkept { why })?;
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let answer = KeptAnswer {
            request_digest: question.request_digest.clone(),
            request_id: lost.request_id.clone(),
            kept_at_ms: unix_ms(),
            content_type: content_type.map(str::to_owned),
            body,
            node: self.shared.spec.node.clone(),
        };
        Ok(Answered { question, answer })
    }

    /// The answer of a lost node's successor to the very request that comes again.
    pub(in crate::serve::edge) async fn kept_answer(&self, request: &Buffered) -> Option<Response<PeerBody>> {
        let answers = self.shared.spec.answers.as_ref()?;
        let key =
            request.idempotency_key().filter(|_| !request.prompt().is_stream && request.is_json_post())?;
        let question = Question::new(request.visit.client(), key, request.path_and_query(), request.body());
        let kept = answers.find(&question).await?;
        let mut response = Response::new(full(Bytes::from(kept.body)));
        let headers = response.headers_mut();
        let content_type = kept.content_type.and_then(|text| HeaderValue::from_str(&text).ok());
        headers.extend(content_type.map(|value| (CONTENT_TYPE, value)));
        let node = HeaderValue::from_str(kept.node.as_str()).ok();
        headers.extend(node.map(|value| (NODE_HEADER, value)));
        let first_id = HeaderValue::from_str(&kept.request_id).ok();
        headers.extend(first_id.map(|value| (RESTORED_HEADER, value)));
        Some(response)
    }
}

impl Unfinished {
    /// As its client would ask for the answer; `None` where it cannot.
    #[must_use]
    pub fn question(&self) -> Option<Question> {
        let (key, body) = (self.idempotency_key.as_deref()?, self.body.as_deref()?);
        let client = self.client.as_deref();
        self.can_be_rerun().then(|| Question::new(client, key, &self.path, body.as_bytes()))
    }
}

async fn whole(mut body: PeerBody) -> Result<String, String> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(format!("it is longer than {ANSWER_BYTES_MAX} bytes"));
        }
    }
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

fn sendable(lost: &Unfinished, body: Bytes) -> Result<Buffered, hyper::http::Error> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(lost.path.as_str())
        .header(CONTENT_TYPE, "application/json")
        .header(REQUEST_ID_HEADER, lost.request_id.as_str())
        .header(CLASS_HEADER, Class::Batch.as_str())
        .header(IDEMPOTENCY_HEADER, lost.idempotency_key.as_deref().unwrap_or_default())
        .body(())?;
    Ok(Buffered::new(request.into_parts().0, Upload::of(body), Visit::default()))
}
