//! One task a source. Each reads, tells what is new, and reads again; no answer, however wrong, ends it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cic_common::notice::Cloud;
use cic_common::supervise::{Kind, Supervisor, TaskResult};
use cic_common::time::{Clock, Mono};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::ledger::Ledger;
use super::metadata::{Fault, Metadata};
use super::{aws, azure, detect, file, gcp};
use crate::core::Event;

/// Acknowledgements that wait for Azure's task. A VM has a handful of events in its life.
const ACKNOWLEDGEMENTS_MAX: usize = 16;

/// What is watched and how.
#[derive(Debug, Clone)]
pub struct SpotSpec {
    /// `None`: find out.
    pub cloud: Option<Cloud>,
    /// `host:port` of the metadata service.
    pub address: String,
    /// From GCP's word to the VM's end.
    pub preemption_window: Duration,
    /// From GCP's word of host maintenance to its begin.
    pub maintenance_window: Duration,
    /// The notice file is watched too.
    pub has_file: bool,
    /// Below which the firmware's files are.
    pub root: PathBuf,
    pub pace: Pace,
}

/// How often, and how patiently. Tests have less time.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two reads. AWS asks for 5 s; each second of a notice's two minutes counts, and one question a second on a
    /// kept connection costs nothing.
    pub poll: Duration,
    /// Between two good reads of what is announced days ahead.
    pub poll_scheduled: Duration,
    /// For an answer. A service on the same host answers in milliseconds.
    pub answer_within: Duration,
    pub first_answer_within: Duration,
    pub hangs_for: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(1),
            poll_scheduled: Duration::from_secs(60),
            answer_within: Duration::from_secs(1),
            first_answer_within: azure::FIRST_ANSWER_WITHIN,
            hangs_for: gcp::HANGS_FOR,
        }
    }
}

/// The way to what a cloud wants to be told.
#[derive(Debug, Clone)]
pub struct SpotWords {
    azure: mpsc::Sender<String>,
    cloud: watch::Receiver<Option<Cloud>>,
}

impl SpotWords {
    /// Whose machine this is, once that was found out.
    #[must_use]
    pub fn cloud(&self) -> watch::Receiver<Option<Cloud>> {
        self.cloud.clone()
    }

    /// Says of a notice that its event may begin: nothing is left here that it could break.
    pub fn acknowledge(&self, source: &str, id: &str) {
        if source == AZURE && self.azure.try_send(id.to_owned()).is_err() {
            warn!(id, "event is not acknowledged: Azure is not watched, or too many wait");
        }
    }
}

const AZURE: &str = "azure";

/// Finds out whose machine this is and starts a task for each of its sources.
pub fn start(spec: SpotSpec, clock: Clock, tasks: &Supervisor, events: mpsc::Sender<Event>) -> SpotWords {
    let (azure, acknowledged) = mpsc::channel(ACKNOWLEDGEMENTS_MAX);
    let (found, cloud) = watch::channel(spec.cloud);
    let inner = tasks.clone();
    tasks.spawn("spot", Kind::Passing, move |token| async move {
        let finding = match spec.cloud {
            Some(cloud) => detect::Finding { cloud, by: "[spot] cloud".to_owned() },
            // Cancel safe: nothing is kept of a detection that is dropped.
            None => tokio::select! {
                () = token.cancelled() => return Ok(()),
                finding = detect::detect(&spec.root, &spec.address, |name| std::env::var_os(name).is_some()) => finding,
            },
        };
        info!(cloud = %finding.cloud, by = finding.by, "cloud of this machine");
        found.send_replace(Some(finding.cloud));
        let file = spec.has_file.then_some(file::SOURCE);
        let sources = sources(finding.cloud).into_iter().chain(file).map(str::to_owned).collect();
        if events.send(Event::CloudFound { cloud: finding.cloud, sources }).await.is_err() {
            return Ok(());
        }
        watch_all(finding.cloud, spec, clock, &inner, &events, acknowledged);
        Ok(())
    });
    SpotWords { azure, cloud }
}

/// What a cloud says through.
fn sources(cloud: Cloud) -> Vec<&'static str> {
    match cloud {
        Cloud::Aws => aws::Key::ALL.map(aws::Key::source).to_vec(),
        Cloud::Gcp => gcp::Key::ALL.map(gcp::Key::source).to_vec(),
        Cloud::Azure => vec![AZURE],
        Cloud::Runpod | Cloud::None => Vec::new(),
    }
}

fn watch_all(
    cloud: Cloud,
    spec: SpotSpec,
    clock: Clock,
    tasks: &Supervisor,
    events: &mpsc::Sender<Event>,
    acknowledged: mpsc::Receiver<String>,
) {
    let teller =
        |source| Teller { ledger: Ledger::new(source), clock, events: events.clone(), pace: spec.pace };
    let metadata = || Metadata::new(&spec.address);
    match cloud {
        Cloud::Aws => {
            let session = Arc::new(aws::Token::new(clock));
            for key in aws::Key::ALL {
                let (teller, metadata, session) = (teller(key.source()), metadata(), Arc::clone(&session));
                tasks.spawn(key.source(), Kind::Vital, move |token| {
                    watch_aws(key, teller, metadata, session, token)
                });
            }
        }
        Cloud::Gcp => {
            for key in gcp::Key::ALL {
                let (teller, metadata) = (teller(key.source()), metadata());
                let patience = gcp::Patience {
                    hangs_for: spec.pace.hangs_for,
                    answer_within: spec.pace.answer_within,
                    window: spec.preemption_window,
                    maintenance_window: spec.maintenance_window,
                };
                tasks.spawn(key.source(), Kind::Vital, move |token| {
                    watch_gcp(key, teller, metadata, patience, token)
                });
            }
        }
        Cloud::Azure => {
            let (teller, metadata) = (teller(AZURE), metadata());
            tasks.spawn(AZURE, Kind::Vital, move |token| watch_azure(teller, metadata, acknowledged, token));
        }
        Cloud::Runpod | Cloud::None => {}
    }
}

/// Tells the core what a source's reads bring.
struct Teller {
    ledger: Ledger,
    clock: Clock,
    events: mpsc::Sender<Event>,
    pace: Pace,
}

impl Teller {
    /// False when nobody listens any more.
    async fn tell(&self, events: Vec<Event>) -> bool {
        for event in events {
            if self.events.send(event).await.is_err() {
                return false;
            }
        }
        true
    }

    /// The same of a read that failed and began at `began`.
    async fn failed(&mut self, source: &'static str, began: Mono, fault: &Fault) -> bool {
        let events = self.ledger.failed(began, self.clock.now(), &fault.to_string());
        if !events.is_empty() {
            warn!(source, %fault, "source of notices is blind");
        }
        self.tell(events).await
    }
}

async fn watch_aws(
    key: aws::Key,
    mut teller: Teller,
    mut metadata: Metadata,
    session: Arc<aws::Token>,
    token: CancellationToken,
) -> TaskResult {
    loop {
        let within = teller.pace.answer_within;
        let began = teller.clock.now();
        // Cancel safe: a read that is dropped is lost with its connection, and the task ends.
        let read = tokio::select! {
            () = token.cancelled() => return Ok(()),
            read = aws::read(key, &mut metadata, &session, teller.clock, within) => read,
        };
        let (is_heard, wait) = match read {
            Ok(reading) => {
                let events = teller.ledger.read(reading);
                let pace = match key {
                    aws::Key::Spot | aws::Key::Rebalance | aws::Key::Lifecycle => teller.pace.poll,
                    aws::Key::Scheduled => teller.pace.poll_scheduled,
                };
                (teller.tell(events).await, pace)
            }
            Err(fault) => (teller.failed(key.source(), began, &fault).await, teller.pace.poll),
        };
        if !is_heard || !rest(wait, began, &teller, &token).await {
            return Ok(());
        }
    }
}

async fn watch_gcp(
    key: gcp::Key,
    mut teller: Teller,
    mut metadata: Metadata,
    patience: gcp::Patience,
    token: CancellationToken,
) -> TaskResult {
    let mut heard = gcp::Heard::default();
    loop {
        let (began, clock) = (teller.clock.now(), teller.clock);
        // Cancel safe: as above.
        let read = tokio::select! {
            () = token.cancelled() => return Ok(()),
            read = gcp::read(key, &mut metadata, &mut heard, patience, clock) => read,
        };
        let is_heard = match read {
            Ok(reading) => {
                let events = teller.ledger.read(reading);
                teller.tell(events).await
            }
            Err(fault) => teller.failed(key.source(), began, &fault).await,
        };
        // A question that hangs is its own pause.
        let is_on = is_heard && (heard.hangs() || rest(teller.pace.poll, began, &teller, &token).await);
        if !is_on {
            return Ok(());
        }
    }
}

async fn watch_azure(
    mut teller: Teller,
    mut metadata: Metadata,
    mut acknowledged: mpsc::Receiver<String>,
    token: CancellationToken,
) -> TaskResult {
    let mut heard = azure::Heard::default();
    let (clock, pace) = (teller.clock, teller.pace);
    let within = (pace.first_answer_within, pace.answer_within);
    loop {
        let began = clock.now();
        // Cancel safe: as above.
        let read = tokio::select! {
            () = token.cancelled() => return Ok(()),
            read = azure::read(&mut metadata, &mut heard, within, || clock.now()) => read,
        };
        let is_heard = match read {
            Ok(Some(reading)) => {
                let events = teller.ledger.read(reading);
                teller.tell(events).await
            }
            Ok(None) => {
                let events = teller.ledger.unchanged();
                teller.tell(events).await
            }
            Err(fault) => teller.failed(AZURE, began, &fault).await,
        };
        if !is_heard {
            return Ok(());
        }
        let left = pace.poll.saturating_sub(clock.now().since(began));
        // Cancel safe: what waits in the queue stays there.
        let id = tokio::select! {
            () = token.cancelled() => return Ok(()),
            () = tokio::time::sleep(left) => continue,
            Some(id) = acknowledged.recv() => id,
        };
        match azure::acknowledge(&mut metadata, &heard, &id, pace.answer_within).await {
            Ok(true) => info!(id, "event acknowledged: it may begin"),
            Ok(false) => info!(id, "event not acknowledged: it concerns others too, or is gone"),
            // It comes at its time all the same.
            Err(fault) => warn!(id, %fault, "event could not be acknowledged"),
        }
    }
}

/// Waits until `wait` has passed since `began`. False when the task is to end.
async fn rest(wait: Duration, began: Mono, teller: &Teller, token: &CancellationToken) -> bool {
    let left = wait.saturating_sub(teller.clock.now().since(began));
    // Cancel safe: only waits.
    tokio::select! {
        () = token.cancelled() => false,
        () = tokio::time::sleep(left) => true,
    }
}
