//! The API outside itself: whether it may be asked, and the asking.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cic_common::id::NodeId;
use cic_common::route::Class;
use cic_common::supervise::{Kind, Supervisor};
use cic_common::time::Clock;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Response, StatusCode};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;
use tracing::{info, warn};

use super::super::super::attempt::{Failure, Held, attempt};
use super::super::super::counts::InFlight;
use super::super::super::errand::{Errand, REQUEST_MAX};
use super::super::super::front::Edge;
use super::super::super::pool::{Pool, Upstream};
use super::super::super::relay::{Cut, Guards, Relay};
use super::asking::Asking;
use super::metered::Metered;
use super::purse::{Purse, Stop};
use super::spec::SurgeSpec;
use super::usage::Reading;
use crate::serve::peer::PeerBody;

/// What `x-cic-node` says of an answer from outside.
const NAME: &str = "surge";

/// The API outside. Clones share it.
#[derive(Debug, Clone)]
pub(in super::super) struct Surge {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    spec: SurgeSpec,
    clock: Clock,
    pool: Pool,
    upstream: Upstream,
    purse: Mutex<Purse>,
    /// The budget stopped the last request: that is logged when it begins and when it ends.
    is_stopped: Mutex<bool>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    failures: AtomicU64,
    stops_full: AtomicU64,
    stops_spent: AtomicU64,
    unmetered: AtomicU64,
    input_tokens: AtomicU64,
    output_tokens: AtomicU64,
    cost_microusd: AtomicU64,
}

/// Money set aside for one request. Dropped unsettled, it costs what is known to be used by then.
#[derive(Debug)]
pub(super) struct Bill {
    surge: Surge,
    estimate_microusd: u64,
    input_tokens_guess: u64,
    output_tokens_guess: u64,
    /// The API has the request, and reads its prompt whatever becomes of the answer.
    is_sent: bool,
    is_settled: bool,
}

impl Surge {
    pub(in super::super) fn new(spec: SurgeSpec, clock: Clock, supervisor: &Supervisor) -> Self {
        let pool = Pool::new(clock, supervisor.clone(), spec.url.is_tls.then(public_tls));
        let swept = pool.clone();
        supervisor.spawn("surge connections", Kind::Vital, |token| swept.sweep(token));
        let upstream = Upstream::Outside {
            node: NodeId::new(NAME).expect("a label"),
            host: spec.url.host.clone(),
            port: spec.url.port,
            is_tls: spec.url.is_tls,
        };
        let purse = Mutex::new(Purse::new(spec.budget_microusd_per_hour, spec.in_flight_max));
        let (is_stopped, counts) = (Mutex::new(false), Counts::default());
        Self { shared: Arc::new(Shared { spec, clock, pool, upstream, purse, is_stopped, counts }) }
    }

    /// Prometheus's text format.
    pub(in super::super) fn write(&self, text: &mut String) {
        let counts = &self.shared.counts;
        let purse = self.purse();
        let (in_flight, left) = (purse.in_flight(), purse.left(self.shared.clock.now()));
        drop(purse);
        for (name, value) in [
            ("cic_agent_surge_in_flight_requests", u64::from(in_flight)),
            ("cic_agent_surge_budget_left_microdollars", left),
        ] {
            let _ = writeln!(text, "{name} {value}");
        }
        for (name, count) in [
            ("cic_agent_surge_requests_total", &counts.requests),
            ("cic_agent_surge_failures_total", &counts.failures),
            ("cic_agent_surge_stops_total{reason=\"full\"}", &counts.stops_full),
            ("cic_agent_surge_stops_total{reason=\"budget\"}", &counts.stops_spent),
            ("cic_agent_surge_unmetered_requests_total", &counts.unmetered),
            ("cic_agent_surge_input_tokens_total", &counts.input_tokens),
            ("cic_agent_surge_output_tokens_total", &counts.output_tokens),
            ("cic_agent_surge_cost_microdollars_total", &counts.cost_microusd),
        ] {
            let _ = writeln!(text, "{name} {}", count.load(Ordering::Relaxed));
        }
    }

    fn takes(&self, class: Class) -> bool {
        match class {
            Class::LatencyCritical | Class::Standard => true,
            Class::Batch => self.shared.spec.is_for_batch,
        }
    }

    /// Sets money aside for `asking`, or says why there is none.
    fn open(&self, asking: &Asking) -> Option<Bill> {
        let Shared { spec, clock, counts, is_stopped, .. } = &*self.shared;
        let estimate_microusd = spec.price.cost(asking.input_tokens_guess, asking.output_tokens_max);
        let reserved = self.purse().reserve(clock.now(), estimate_microusd);
        let mut is_stopped = is_stopped.lock().unwrap_or_else(PoisonError::into_inner);
        match reserved {
            Ok(()) => {
                if std::mem::take(&mut *is_stopped) {
                    info!("surge goes on: the hour's budget has room again");
                }
                let (input_tokens_guess, output_tokens_guess) =
                    (asking.input_tokens_guess, asking.output_tokens_max);
                let surge = self.clone();
                Some(Bill {
                    surge,
                    estimate_microusd,
                    input_tokens_guess,
                    output_tokens_guess,
                    is_sent: false,
                    is_settled: false,
                })
            }
            Err(Stop::Full { .. }) => {
                counts.stops_full.fetch_add(1, Ordering::Relaxed);
                None
            }
            Err(Stop::Spent { spent_microusd, aside_microusd }) => {
                counts.stops_spent.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut *is_stopped, true) {
                    let budget_microusd = spec.budget_microusd_per_hour;
                    warn!(
                        spent_microusd,
                        aside_microusd,
                        estimate_microusd,
                        budget_microusd,
                        "surge stops: the request would exceed the hour's budget"
                    );
                }
                None
            }
        }
    }

    fn purse(&self) -> std::sync::MutexGuard<'_, Purse> {
        self.shared.purse.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bill {
    /// The answer has ended, whole or not.
    pub(super) fn settle(mut self, reading: &Reading) {
        let tokens = reading.tokens(self.input_tokens_guess);
        let unmetered = u64::from(!tokens.is_said);
        self.surge.shared.counts.unmetered.fetch_add(unmetered, Ordering::Relaxed);
        self.pay(tokens.input, tokens.output);
    }

    fn pay(&mut self, input_tokens: u64, output_tokens: u64) {
        self.is_settled = true;
        let Shared { spec, clock, counts, .. } = &*self.surge.shared;
        let cost_microusd = spec.price.cost(input_tokens, output_tokens);
        counts.input_tokens.fetch_add(input_tokens, Ordering::Relaxed);
        counts.output_tokens.fetch_add(output_tokens, Ordering::Relaxed);
        counts.cost_microusd.fetch_add(cost_microusd, Ordering::Relaxed);
        self.surge.purse().settle(clock.now(), self.estimate_microusd, cost_microusd);
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        if !self.is_settled {
            // Whoever left before the answer told its usage may have left a whole one behind.
            let sent = u64::from(self.is_sent);
            self.pay(sent * self.input_tokens_guess, sent * self.output_tokens_guess);
        }
    }
}

impl Edge {
    /// Has the API outside answer, where there is one and the route, the class and the budget allow it. `None` when it
    /// did not: the request goes on waiting for a replica.
    pub(in super::super) async fn ask_outside(&self, errand: &mut Errand) -> Option<Response<PeerBody>> {
        let surge = self.shared.scarcity.surge.as_ref()?;
        errand.flight.as_ref()?;
        if !self.shared.routes.allows_surge(&errand.model) || !surge.takes(errand.request.class) {
            return None;
        }
        let Shared { spec, pool, upstream, counts, clock, .. } = &*surge.shared;
        let asking = Asking::new(&errand.request, &errand.model, spec)?;
        let mut bill = surge.open(&asking)?;
        counts.requests.fetch_add(1, Ordering::Relaxed);
        bill.is_sent = true;
        let left = REQUEST_MAX.saturating_sub(clock.now().since(errand.started));
        let result =
            timeout(left, attempt(pool, &self.shared.choice, upstream, &upstream.host(), &asking.request))
                .await;
        let why = match result {
            Ok(Ok(held)) if is_for_user(held.head.status) => {
                let flight = errand.flight.take();
                return Some(self.answer_of(flight, held, &asking, bill, upstream));
            }
            Ok(Ok(held)) => format!("answered {}", held.head.status),
            Ok(Err(Failure::NotTaken(why) | Failure::Refused(why) | Failure::Full { why, .. })) => {
                bill.is_sent = false;
                why
            }
            Ok(Err(Failure::Broken { why, .. })) => why,
            Err(_) => "no answer in time".to_owned(),
        };
        counts.failures.fetch_add(1, Ordering::Relaxed);
        warn!(why, request_id = ?errand.request.request_id, "the API outside did not answer");
        None
    }

    fn answer_of(
        &self,
        flight: Option<InFlight>,
        held: Held,
        asking: &Asking,
        bill: Bill,
        upstream: &Upstream,
    ) -> Response<PeerBody> {
        let reading = Reading::new(asking.is_stream && held.head.status.is_success(), asking.strips_usage);
        let guards = Guards { user: flight, ..Guards::default() };
        let relay =
            Relay::new(held.frames, held.rest, Cut::never(), guards, Some(self.shared.counts.clone()));
        let body = http_body_util::BodyExt::boxed_unsync(Metered::new(relay, reading, bill));
        let mut response = Response::new(body);
        *response.status_mut() = held.head.status;
        // The others speak of an account that is not the user's: limits, organisation, cookies.
        let mut headers = HeaderMap::new();
        if let Some(content) = held.head.headers.get(CONTENT_TYPE) {
            headers.insert(CONTENT_TYPE, content.clone());
        }
        *response.headers_mut() = headers;
        self.mark(&mut response, upstream.node());
        response
    }
}

/// An answer. What is refused there may be right here: other fields are known, other lengths allowed.
fn is_for_user(status: StatusCode) -> bool {
    status == StatusCode::OK
}

/// Trusts the public web's authorities, and nobody of this fleet.
fn public_tls() -> Arc<ClientConfig> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has every version that rustls has")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}
