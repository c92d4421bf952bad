//! All that is scarce about one edge, as it was set up.

use std::time::Duration;

use cic_common::supervise::Supervisor;
use cic_common::time::Clock;
use cic_common::wire::message::NodeEvent;
use tokio::sync::mpsc;

use super::admission::{Admission, AdmissionLimits};
use super::budget::Budget;
use super::figures::Figures;
use super::missing::Missing;
use super::seats::Seats;
use super::surge::{Surge, SurgeSpec};

/// Longest a request waits for a replica because its client said that it would, unless configured: a replacement that
/// is launched for it boots and loads in minutes, and the usual proxies give up a silent request after one or two.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// How an edge deals with scarcity.
#[derive(Debug, Clone)]
pub struct ScarcitySpec {
    pub limits: AdmissionLimits,
    /// Longest wait that a request may ask for.
    pub wait_max: Duration,
    /// The API outside; `None` where there is none.
    pub surge: Option<SurgeSpec>,
    /// Words for the controllers; `None` where there are none.
    pub tell: Option<mpsc::Sender<NodeEvent>>,
}

impl Default for ScarcitySpec {
    fn default() -> Self {
        Self { limits: AdmissionLimits::default(), wait_max: WAIT_MAX, surge: None, tell: None }
    }
}

/// The state of it.
#[derive(Debug)]
pub(in super::super) struct Scarcity {
    pub(in super::super) admission: Admission,
    pub(in super::super) budget: Budget,
    pub(in super::super) figures: Figures,
    pub(super) missing: Missing,
    pub(super) seats: Seats,
    pub(super) surge: Option<Surge>,
    pub(super) wait_max: Duration,
}

impl Scarcity {
    pub(in super::super) fn new(spec: ScarcitySpec, clock: Clock, supervisor: &Supervisor) -> Self {
        Self {
            admission: Admission::new(clock, spec.limits),
            budget: Budget::new(clock),
            figures: Figures::default(),
            missing: Missing::new(clock, spec.tell),
            seats: Seats::default(),
            surge: spec.surge.map(|spec| Surge::new(spec, clock, supervisor)),
            wait_max: spec.wait_max,
        }
    }

    /// Prometheus's text format.
    pub(in super::super) fn text(&self) -> String {
        let mut text = String::new();
        let (at_engine, in_line) = self.admission.occupancy();
        for (name, value) in [
            ("cic_agent_edge_engine_in_flight_requests", u64::from(at_engine)),
            ("cic_agent_edge_in_line_requests", in_line as u64),
            ("cic_agent_edge_waiting_requests", u64::from(self.seats.taken())),
            ("cic_agent_edge_retry_budget_left_retries", self.budget.left()),
        ] {
            text.push_str(&format!("{name} {value}\n"));
        }
        self.figures.write(&mut text);
        if let Some(surge) = &self.surge {
            surge.write(&mut text);
        }
        text
    }

    /// Requests of users that wait for a replica.
    pub(in super::super) fn waiting(&self) -> u32 {
        self.seats.taken()
    }
}
