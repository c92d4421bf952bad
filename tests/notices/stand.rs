//! The sources of one cloud, a fake service, and what the core would be told.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use cic_agent::core::Event;
use cic_agent::source::spot::{Pace, SpotSpec, SpotWords, start};
use cic_common::notice::{Cloud, NoticeKind};
use cic_common::supervise::Supervisor;
use cic_common::time::{Clock, Mono};
use fleet_tests::fakes::MetadataFake;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longest for what must happen; a loaded machine is slow.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Reads follow each other quickly, so that a row takes a fraction of a second.
pub(crate) const PACE: Pace = Pace {
    poll: Duration::from_millis(20),
    poll_scheduled: Duration::from_millis(20),
    answer_within: Duration::from_millis(300),
    first_answer_within: Duration::from_secs(5),
    hangs_for: Duration::from_secs(1),
};

/// What one source said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Seen { kind: NoticeKind, id: String, deadline: Mono, resources: Vec<String> },
    Lifted { id: String },
    Blind { cause: String },
    Sees,
}

pub(crate) struct Stand {
    pub(crate) fake: MetadataFake,
    pub(crate) clock: Clock,
    pub(crate) words: SpotWords,
    events: mpsc::Receiver<Event>,
    tasks: Supervisor,
    /// Sources that said so and did not see since.
    blind: BTreeSet<String>,
}

impl Stand {
    /// Sources of `cloud` in front of a fake that `prepare` has set up before they ask.
    pub(crate) async fn start(cloud: Cloud, pace: Pace, prepare: impl FnOnce(&MetadataFake)) -> Self {
        let fake = MetadataFake::start(0).await.expect("a free port");
        prepare(&fake);
        Self::around(fake, cloud, pace)
    }

    pub(crate) fn around(fake: MetadataFake, cloud: Cloud, pace: Pace) -> Self {
        let (clock, tasks) = (Clock::start(), Supervisor::new());
        let (sender, events) = mpsc::channel(1024);
        let spec = SpotSpec {
            cloud: Some(cloud),
            address: fake.address(),
            preemption_window: Duration::from_secs(30),
            maintenance_window: Duration::from_secs(60),
            has_file: false,
            root: PathBuf::from("/nowhere"),
            pace,
        };
        let words = start(spec, clock, &tasks, sender);
        Self { fake, clock, words, events, tasks, blind: BTreeSet::new() }
    }

    /// The next word of `source`; other sources' are skipped, and so is that it was read for the first time.
    pub(crate) async fn next(&mut self, source: &str) -> Said {
        let next = async {
            loop {
                let event = self.events.recv().await.expect("the sources run");
                if let Some(said) = self.said(event, source) {
                    return said;
                }
            }
        };
        timeout(SOON, next).await.unwrap_or_else(|_| panic!("{source} says nothing for {SOON:?}"))
    }

    /// That `source` has nothing to say in `reads` more reads of `path`.
    pub(crate) async fn quiet(&mut self, source: &str, path: &str, reads: usize) {
        let before = self.count(path);
        let began = self.clock.now();
        // A loaded machine reads more slowly than it is asked to.
        let within = SOON + PACE.poll * u32::try_from(reads).unwrap_or(u32::MAX) * 5;
        while self.count(path) < before + reads {
            assert!(self.clock.now().since(began) < within, "{path} is not read");
            tokio::time::sleep(PACE.poll / 2).await; // bounded wait: SOON
            while let Ok(event) = self.events.try_recv() {
                if let Some(said) = self.said(event, source) {
                    panic!("{source} said {said:?}");
                }
            }
        }
    }

    /// How often `path` was asked for.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.fake.log().iter().filter(|asked| asked.path == path).count()
    }

    /// Waits until `is_so` of the fake.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&MetadataFake) -> bool) {
        let began = self.clock.now();
        while !is_so(&self.fake) {
            assert!(self.clock.now().since(began) < SOON, "not in time: {what}");
            tokio::time::sleep(PACE.poll / 2).await; // bounded wait: SOON
        }
    }

    pub(crate) async fn stop(self) {
        self.tasks.stop(SOON).await.expect("every source ends when it is told to");
    }
}

impl Stand {
    fn said(&mut self, event: Event, wanted: &str) -> Option<Said> {
        let (source, said) = said(event)?;
        let is_news = match said {
            Said::Blind { .. } => self.blind.insert(source.clone()),
            Said::Sees => self.blind.remove(&source),
            Said::Seen { .. } | Said::Lifted { .. } => true,
        };
        (source == wanted && is_news).then_some(said)
    }
}

fn said(event: Event) -> Option<(String, Said)> {
    Some(match event {
        Event::NoticeSeen { kind, source, id, deadline, resources, .. } => {
            (source, Said::Seen { kind, id, deadline, resources })
        }
        Event::NoticeLifted { source, id } => (source, Said::Lifted { id }),
        Event::SpotBlind { source, cause, .. } => (source, Said::Blind { cause }),
        Event::SpotSeen { source } => (source, Said::Sees),
        _ => return None,
    })
}

impl Said {
    /// Kind and seconds left at `now`, of a notice.
    pub(crate) fn notice(&self, now: Mono) -> Option<(NoticeKind, f64)> {
        match self {
            Self::Seen { kind, deadline, .. } => Some((*kind, deadline.since(now).as_secs_f64())),
            Self::Lifted { .. } | Self::Blind { .. } | Self::Sees => None,
        }
    }

    pub(crate) fn is_blind(&self, cause: &str) -> bool {
        matches!(self, Self::Blind { cause: said } if said.contains(cause))
    }
}
