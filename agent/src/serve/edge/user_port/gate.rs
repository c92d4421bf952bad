//! What every user's request goes through before the edge, and its answer after it.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;

use cic_common::route::Class;
use cic_common::time::Clock;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, Version};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::access::{Asked, Entry};
use super::denial::Denial;
use super::keys::{API_KEY_HEADER, KeyRing};
use super::limits::{HEADERS_MAX, Limits};
use super::outflow::{Flows, Outflow};
use super::stopwatch::timed;
use super::upload::Room;
use super::visit::Visit;
use super::watched::Wire;
use crate::serve::edge::request::request_id_of;
use crate::serve::edge::{CLASS_HEADER, Edge, REQUEST_ID_HEADER};
use crate::serve::peer::PeerBody;

/// Our own time for a request until its answer's head, in microseconds.
pub const OVERHEAD_HEADER: HeaderName = HeaderName::from_static("x-cic-overhead-us");

/// The one path that needs no key: load balancers ask for it.
const OPEN_PATH: &str = "/healthz";

/// The way in and out of one port.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) edge: Edge,
    pub(super) clock: Clock,
    pub(super) limits: Limits,
    /// `None` where no key is needed.
    pub(super) keys: Option<watch::Receiver<KeyRing>>,
    pub(super) is_logged: bool,
    pub(super) room: Room,
}

/// The connection that a request came on.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) client: IpAddr,
    pub(super) wire: Wire,
    pub(super) flows: Flows,
    /// Cancelled when this agent stops.
    pub(super) stopping: Arc<CancellationToken>,
}

impl Gate {
    pub(super) async fn pass(&self, mut request: Request<Incoming>, line: Line) -> Response<Outflow> {
        let answering = line.wire.request(request.version() >= Version::HTTP_2);
        let request_id = request_id_of(request.headers());
        let asked = Asked {
            request_id: request_id.clone(),
            client: line.client,
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
        };
        request.headers_mut().insert(REQUEST_ID_HEADER, request_id.clone());
        // Written when this is dropped, if the client does not wait for the answer.
        let mut entry = Entry::new(self.is_logged, self.clock, asked, answering, line.stopping);
        let (mut response, overhead) = {
            let answer = pin!(self.answer(request, &mut entry));
            timed(self.clock, answer).await
        };
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID_HEADER, request_id);
        headers.insert(
            OVERHEAD_HEADER,
            HeaderValue::from(u64::try_from(overhead.as_micros()).unwrap_or(u64::MAX)),
        );
        entry.answers(response.status(), overhead);
        response.map(|body| line.flows.begin(body, entry))
    }

    async fn answer(&self, mut request: Request<Incoming>, entry: &mut Entry) -> Response<PeerBody> {
        let uri = request.uri().clone();
        match self.admit(uri.path(), request.headers_mut(), entry) {
            Ok(visit) => self.edge.answer_user(request, visit).await,
            Err(denial) => denial.into_response(),
        }
    }

    fn admit(&self, path: &str, headers: &mut HeaderMap, entry: &mut Entry) -> Result<Visit, Denial> {
        if headers.len() > HEADERS_MAX {
            return Err(Denial::HeadersTooMany);
        }
        let asked = headers.get(CLASS_HEADER).and_then(|value| Class::parse(value.to_str().ok()?));
        let ring = self.keys.as_ref().filter(|_| path != OPEN_PATH);
        let Some(ring) = ring else {
            let visit = Visit::new(None, asked.unwrap_or_default(), &self.limits, self.room.clone());
            entry.admits(visit.clone(), None, None);
            return Ok(visit);
        };
        let Some(key) = ring.borrow().find(headers) else {
            return Err(denied(headers));
        };
        // It is for this port: no engine and no peer is to see it.
        headers.remove(AUTHORIZATION);
        headers.remove(API_KEY_HEADER);
        let class = key.class(asked);
        headers.insert(CLASS_HEADER, HeaderValue::from_static(class.as_str()));
        let visit = Visit::new(Some(Arc::clone(&key)), class, &self.limits, self.room.clone());
        entry.admits(visit.clone(), Some(Arc::clone(&key)), None);
        let spent = key.allowance.take(key.bounds, self.clock.now())?;
        entry.admits(visit.clone(), Some(key), Some(spent));
        Ok(visit)
    }
}

fn denied(headers: &HeaderMap) -> Denial {
    match headers.contains_key(AUTHORIZATION) || headers.contains_key(API_KEY_HEADER) {
        true => Denial::UnknownKey,
        false => Denial::NoKey,
    }
}

#[cfg(test)]
mod tests {
    use cic_common::report::Role;
    use cic_common::supervise::Supervisor;
    use tokio::net::TcpStream;

    use super::super::new_key;
    use super::*;
    use crate::serve::edge::{EdgeSpec, Routes, ScarcitySpec};
    use crate::state::StateDir;

    #[tokio::test]
    async fn a_key_opens_the_gate_goes_no_further_and_decides_the_class() {
        let directory = tempfile::tempdir().unwrap();
        let (clock, supervisor) = (Clock::start(), Supervisor::new());
        let routes = Routes::remembered(&StateDir::open(directory.path()).unwrap());
        let node = cic_common::id::NodeId::new("n0").unwrap();
        let spec = EdgeSpec {
            node,
            role: Role::Gateway,
            zone: None,
            tls: None,
            continuation: true,
            scarcity: ScarcitySpec::default(),
            answers: None,
        };
        let edge = Edge::new(spec, routes, clock, &supervisor);
        let (key, file) = new_key("a").unwrap();
        let ring = KeyRing::parse(
            format!("{file}class_max = 'batch'\nclass = 'batch'\nin_flight_max = 1").as_bytes(),
        );
        let keys = watch::Sender::new(ring.unwrap());
        let (limits, room) = (Limits::default(), Room::default());
        let gate = Gate { edge, clock, limits, keys: Some(keys.subscribe()), is_logged: false, room };

        let listener = tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let wire = Wire::new(stream, &gate.limits, clock).unwrap();
        let entry = || {
            let asked = Asked {
                request_id: HeaderValue::from_static("a"),
                client: std::net::Ipv4Addr::LOCALHOST.into(),
                method: hyper::Method::POST,
                uri: hyper::Uri::default(),
                version: Version::HTTP_11,
            };
            Entry::new(false, clock, asked, wire.request(false), Arc::default())
        };
        let headers = |key: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {key}")).unwrap());
            headers.insert(API_KEY_HEADER, HeaderValue::from_str(key).unwrap());
            headers.insert(CLASS_HEADER, HeaderValue::from_static("latency_critical"));
            headers
        };
        let path = "/v1/completions";
        assert_eq!(gate.admit(path, &mut HeaderMap::new(), &mut entry()).unwrap_err(), Denial::NoKey);
        assert_eq!(gate.admit(path, &mut headers("sk-cic-"), &mut entry()).unwrap_err(), Denial::UnknownKey);
        assert!(gate.admit(OPEN_PATH, &mut HeaderMap::new(), &mut entry()).is_ok());

        let (mut first, mut shown) = (entry(), headers(&key));
        gate.admit(path, &mut shown, &mut first).unwrap();
        assert_eq!(shown.keys().collect::<Vec<_>>(), [CLASS_HEADER]);
        assert_eq!(shown[CLASS_HEADER], "batch");
        let second = gate.admit(path, &mut headers(&key), &mut entry()).unwrap_err();
        assert!(matches!(second, Denial::InFlight { .. }), "{second:?}");
        drop(first);
        gate.admit(path, &mut headers(&key), &mut entry()).unwrap();
    }
}
