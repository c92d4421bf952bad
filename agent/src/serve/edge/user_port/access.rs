//! The access log: one line when a request is over, however it ended.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cic_common::time::{Clock, Mono};
use hyper::header::HeaderValue;
use hyper::{Method, StatusCode, Uri};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::allowance::Spent;
use super::keys::Key;
use super::visit::{Told, Visit};
use super::watched::Answering;

/// What is said for the status of an answer that ended before its head: nginx's number for a client that left.
const CLIENT_LEFT: u16 = 499;

/// Of a method or a path, which the client has chosen.
const CHOSEN_CHARS_MAX: usize = 128;

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Whole,
    /// The client closed or reset it.
    Gone,
    /// The client took nothing for too long.
    Stalled,
    /// No replica went on with it.
    Cut,
    /// This agent stops.
    Stopped,
}

/// Who asks for what.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request_id: HeaderValue,
    pub(super) client: IpAddr,
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) version: hyper::Version,
}

/// The line of one request, written when this is dropped. It also holds what lasts as long as the request.
#[derive(Debug)]
pub(super) struct Entry {
    is_logged: bool,
    clock: Clock,
    began: Mono,
    asked: Asked,
    visit: Visit,
    key: Option<Arc<Key>>,
    status: Option<StatusCode>,
    overhead: Duration,
    first_byte_at: Option<Mono>,
    bytes_out: u64,
    end: Option<End>,
    stopping: Arc<CancellationToken>,
    _answering: Answering,
    _spent: Option<Spent>,
}

impl Entry {
    /// `stopping` is cancelled when this agent stops.
    pub(super) fn new(
        is_logged: bool,
        clock: Clock,
        asked: Asked,
        answering: Answering,
        stopping: Arc<CancellationToken>,
    ) -> Self {
        Self {
            is_logged,
            clock,
            began: clock.now(),
            asked,
            visit: Visit::default(),
            key: None,
            status: None,
            overhead: Duration::ZERO,
            first_byte_at: None,
            bytes_out: 0,
            end: None,
            stopping,
            _answering: answering,
            _spent: None,
        }
    }

    pub(super) fn admits(&mut self, visit: Visit, key: Option<Arc<Key>>, spent: Option<Spent>) {
        (self.visit, self.key, self._spent) = (visit, key, spent);
    }

    /// The head of the answer is there.
    pub(super) fn answers(&mut self, status: StatusCode, overhead: Duration) {
        (self.status, self.overhead) = (Some(status), overhead);
        if self.asked.method == Method::HEAD.as_str() {
            // Its body is never asked for.
            self.end = Some(End::Whole);
        }
    }

    pub(super) fn sends(&mut self, bytes: usize, now: Mono) {
        self.first_byte_at.get_or_insert(now);
        self.bytes_out += bytes as u64;
    }

    pub(super) fn ends(&mut self, end: End) {
        self.end.get_or_insert(end);
    }
}

impl End {
    fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Gone => "client_gone",
            Self::Stalled => "client_stalled",
            Self::Cut => "cut",
            Self::Stopped => "stopped",
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.is_logged {
            return;
        }
        let now = self.clock.now();
        let told = self.visit.told();
        let Told { model, class, nodes, attempt_count, bytes_in, continuation_count, is_cut } = told;
        let unended = if self.stopping.is_cancelled() { End::Stopped } else { End::Gone };
        let end = if is_cut { End::Cut } else { self.end.unwrap_or(unended) };
        let Asked { request_id, client, method, uri, version } = &self.asked;
        let request_id = String::from_utf8_lossy(request_id.as_bytes());
        let shortened = |text: &str| text.chars().take(CHOSEN_CHARS_MAX).collect::<String>();
        let (method, path) = (shortened(method.as_str()), shortened(uri.path()));
        let nodes: Vec<&str> = nodes.iter().map(cic_common::id::NodeId::as_str).collect();
        info!(
            target: "access",
            request_id = &*request_id,
            key = self.key.as_ref().map(|key| key.name.as_str()),
            %client,
            %method,
            path,
            ?version,
            model,
            class = class.as_str(),
            status = self.status.map_or(CLIENT_LEFT, |status| status.as_u16()),
            nodes = nodes.join(","),
            attempt_count,
            continuation_count,
            bytes_in,
            bytes_out = self.bytes_out,
            first_byte_ms = self.first_byte_at.map(|at| ms(at.since(self.began))),
            total_ms = ms(now.since(self.began)),
            overhead_us = u64::try_from(self.overhead.as_micros()).unwrap_or(u64::MAX),
            ended = end.as_str(),
            "request"
        );
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
