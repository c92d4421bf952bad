//! One controller: the real protocol, its clock, its request on the way, and an act in its hand.

use cic_common::id::Term;
use cic_common::time::Mono;
use cic_controller::ha::{Answer, LeaseAction, LeaseEvent, LeaseProtocol, LeaseTiming, Request};

/// A controller's machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Machine {
    /// Ticks by which its clock is ahead of the database's.
    pub(crate) ahead: u8,
    /// `None` while it is dead.
    pub(crate) process: Option<Process>,
    /// The last term it led, in this life or an earlier one.
    pub(crate) led: Term,
}

/// A running controller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) protocol: LeaseProtocol,
    pub(crate) way: Option<Way>,
    /// The term that its core decides under.
    pub(crate) leads: Option<Term>,
    /// The term that it was trusted in when it took up an act, then it was paused.
    pub(crate) hand: Option<Term>,
}

/// A request under way, or the answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Way {
    pub(crate) request: Request,
    sent: Mono,
    /// `None` until the database has applied it.
    pub(crate) answer: Option<Answer>,
}

impl Machine {
    pub(crate) fn new(now: u8, timing: LeaseTiming) -> Self {
        let mut machine = Self { ahead: 0, process: None, led: Term(0) };
        machine.start(now, timing);
        machine
    }

    /// Its own clock.
    pub(crate) fn clock(&self, now: u8) -> Mono {
        Mono::from_millis(1000 * u64::from(now + self.ahead))
    }

    /// A protocol starts when its process does, and asks at once.
    pub(crate) fn start(&mut self, now: u8, timing: LeaseTiming) {
        let protocol = LeaseProtocol::new(timing, self.clock(now));
        self.process = Some(Process { protocol, way: None, leads: None, hand: None });
    }

    /// The term it may act under now.
    pub(crate) fn acts(&self, now: u8) -> Option<Term> {
        let process = self.process.as_ref()?;
        process.protocol.role().may_act(self.clock(now)).filter(|term| process.leads == Some(*term))
    }

    /// Whether its protocol has something to do at this time.
    pub(crate) fn is_due(&self, now: u8) -> bool {
        let due = self.process.as_ref().and_then(|process| process.protocol.deadline());
        due.is_some_and(|due| due <= self.clock(now))
    }

    /// Gives the protocol an event. False when it leads a term that is no higher than one it led before.
    #[must_use]
    pub(crate) fn hear(&mut self, now: u8, event: LeaseEvent) -> bool {
        let clock = self.clock(now);
        let Some(process) = &mut self.process else { return true };
        let mut out = Vec::new();
        process.protocol.step(clock, event, &mut out);
        let mut is_forward = true;
        for action in out {
            match action {
                LeaseAction::Ask(request) => {
                    assert!(process.way.is_none(), "one request at a time");
                    process.way = Some(Way { request, sent: clock, answer: None });
                }
                LeaseAction::Lead { term } => {
                    is_forward &= term > self.led;
                    self.led = term;
                    process.leads = Some(term);
                }
                LeaseAction::StepDown { term } => {
                    assert_eq!(process.leads, Some(term), "it leads what it gives up");
                    process.leads = None;
                }
            }
        }
        is_forward
    }

    /// The answer arrives, or the wait for it ends. What was not applied yet is on its way still.
    #[must_use]
    pub(crate) fn answered(&mut self, now: u8, is_given_up: bool) -> (bool, Option<Request>) {
        let Some(way) = self.process.as_mut().and_then(|process| process.way.take()) else {
            return (true, None);
        };
        let stray = way.answer.is_none().then_some(way.request);
        let answer = way.answer.filter(|_| !is_given_up).unwrap_or(Answer::Nothing);
        (self.hear(now, LeaseEvent::Answered { sent: way.sent, answer }), stray)
    }
}
