//! The lease protocol of one controller: when it may act as the leader, and when it must doubt that it still is.
//!
//! ```text
//!              took                      not renewed in time
//!   Standby ----------> Leader <----------------------------> Distrusting
//!    ^  ^                 |  |          renewed                    |  |
//!    |  '------ lost -----'  '------ told to hand over ------------'  | lost
//!    |                                       |                        |
//!    |  its time is over                     v                        |
//!    '-------------------------------- StandingBack                   |
//!    '----------------------------------------------------------------'
//! ```
//! Pure: it is told the time and what the database answered, and says what to ask next. One request is under way at a
//! time. The shell answers each, with [`Answer::Nothing`] when its deadline passes; such a request may reach the database
//! all the same, however late.
//!
//! Why two never act at once: the database counts the span from the moment at which it takes a renewal, which is never
//! before the moment of its sending, from which the leader counts. The leader's count ends a margin earlier, so its clock
//! may run slower than the database's by [`LeaseTiming::margin`] of [`LeaseTiming::span`], an eighth.

use std::time::Duration;

use cic_common::id::Term;
use cic_common::time::Mono;

use crate::store::{Holder, Lease, Renewed, Taken};

/// The times of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseTiming {
    /// From a renewal to its expiry, by the database's clock.
    pub span: Duration,
    /// What a leader leaves unused of it.
    pub margin: Duration,
    /// Between renewals.
    pub renew_every: Duration,
    /// Between questions of a standby, and after a request that brought nothing.
    pub look_every: Duration,
    /// Between questions of one that stands back, and would not lead if it could.
    pub watch_every: Duration,
    /// How long one that was told to hand over leaves the lease to others.
    pub stand_back: Duration,
    /// Whether trust counts from the sending of a renewal. It must: `false` is for the model check, which has to fail then.
    pub trust_from_sending: bool,
}

/// Shortest wait between two questions, so that a lease about to expire is not asked for in a busy loop.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(5);

impl Default for LeaseTiming {
    /// The design's table: lease 4 s, renewed each 1 s. A leader that is lost is followed within the span and one look.
    fn default() -> Self {
        Self {
            span: Duration::from_secs(4),
            // Clocks of machines differ by parts per million; what this is for is a pause between the check and the act.
            margin: Duration::from_millis(500),
            // Two in a row may be lost before the third is late.
            renew_every: Duration::from_secs(1),
            // A clean hand-over is seen within this. A row read four times a second costs the database nothing.
            look_every: Duration::from_millis(250),
            watch_every: Duration::from_secs(1),
            // Longer than a standby needs, and than a person needs to see what came of it.
            stand_back: Duration::from_secs(10),
            trust_from_sending: true,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LeaseEvent {
    /// Nothing but time.
    Tick,
    /// The outcome of the request under way, and when that was sent.
    Answered { sent: Mono, answer: Answer },
    /// Somebody else shall lead for a while.
    HandOver,
    /// The program ends.
    Stop,
    /// The store refused to write for this term.
    Fenced { term: Term },
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Answer {
    Took(Taken),
    Renewed {
        term: Term,
        renewed: Renewed,
    },
    Released {
        term: Term,
    },
    Saw(Option<Lease>),
    /// No answer in time, or an error: it may have been done, or be done later.
    Nothing,
}

/// A question to the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    Take,
    Renew {
        term: Term,
    },
    /// What the term left to be stored is stored first.
    Release {
        term: Term,
    },
    Look,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeaseAction {
    /// Ask, and bring back the answer.
    Ask(Request),
    /// This controller leads: read what the store holds, and decide from now on.
    Lead { term: Term },
    /// It leads no more: whatever is not stored yet is dropped, unless [`Request::Release`] of the term follows.
    StepDown { term: Term },
}

/// Who leads, as far as this controller knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// This one. It may act before `trusted_until`, and only then.
    Leader { term: Term, trusted_until: Mono },
    /// `leader`: whose lease was not over when it was last seen.
    Standby { leader: Option<Holder> },
}

impl Role {
    /// The term under which this controller may act at `now`.
    #[must_use]
    pub fn may_act(&self, now: Mono) -> Option<Term> {
        match self {
            Self::Leader { term, trusted_until } => (now < *trusted_until).then_some(*term),
            Self::Standby { .. } => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Standby,
    Leader {
        term: Term,
        trusted_until: Mono,
    },
    /// Its lease may be over. It acts no more, and renews or learns that another leads.
    Distrusting {
        term: Term,
        trusted_until: Mono,
    },
    /// Would not lead if it could. `until`: for ever when `None`. `holds`: the lease it has still to release.
    StandingBack {
        until: Option<Mono>,
        holds: Option<Term>,
    },
}

/// The lease as this controller saw it last.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Seen {
    holder: Holder,
    until: Mono,
}

/// The protocol.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LeaseProtocol {
    timing: LeaseTiming,
    state: State,
    is_asked: bool,
    ask_at: Mono,
    seen: Option<Seen>,
}

impl LeaseProtocol {
    /// A controller that has just started.
    #[must_use]
    pub fn new(timing: LeaseTiming, now: Mono) -> Self {
        Self { timing, state: State::Standby, is_asked: false, ask_at: now, seen: None }
    }

    /// Takes in one event and appends what is to be done.
    pub fn step(&mut self, now: Mono, event: LeaseEvent, out: &mut Vec<LeaseAction>) {
        match event {
            LeaseEvent::Tick => {}
            LeaseEvent::Answered { sent, answer } => {
                self.is_asked = false;
                self.answered(now, sent, answer, out);
            }
            LeaseEvent::HandOver => self.stand_back(now, Some(now + self.timing.stand_back), out),
            LeaseEvent::Stop => self.stand_back(now, None, out),
            LeaseEvent::Fenced { term } => {
                if self.term() == Some(term) {
                    self.step_down(now, out);
                }
            }
        }
        self.turn(now);
        self.ask(now, out);
    }

    /// When a tick is wanted if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        let ask = (!self.is_asked && self.has_question()).then_some(self.ask_at);
        let turn = match self.state {
            State::Leader { trusted_until, .. } => Some(trusted_until),
            State::StandingBack { until, holds: None } => until,
            State::Standby | State::Distrusting { .. } | State::StandingBack { .. } => None,
        };
        let seen = self.seen.as_ref().map(|seen| seen.until);
        [ask, turn, seen].into_iter().flatten().min()
    }

    /// Who leads. A leader that distrusts its lease stays one, with a trust that is over.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.state {
            State::Leader { term, trusted_until } | State::Distrusting { term, trusted_until } => {
                Role::Leader { term, trusted_until }
            }
            State::Standby | State::StandingBack { .. } => {
                Role::Standby { leader: self.seen.as_ref().map(|seen| seen.holder.clone()) }
            }
        }
    }

    /// Whether it was told to stop and holds nothing any more.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::StandingBack { until: None, holds: None } && !self.is_asked
    }

    /// Whether there is a lease of its own that it is about to release.
    #[must_use]
    pub fn holds(&self) -> bool {
        match self.state {
            State::StandingBack { holds, .. } => holds.is_some(),
            State::Standby | State::Leader { .. } | State::Distrusting { .. } => false,
        }
    }

    fn term(&self) -> Option<Term> {
        match self.state {
            State::Leader { term, .. } | State::Distrusting { term, .. } => Some(term),
            State::Standby | State::StandingBack { .. } => None,
        }
    }

    fn answered(&mut self, now: Mono, sent: Mono, answer: Answer, out: &mut Vec<LeaseAction>) {
        match answer {
            Answer::Nothing => self.ask_at = now + self.timing.look_every,
            Answer::Took(Taken::Yes(term)) => self.took(now, sent, term, out),
            Answer::Took(Taken::No(lease)) => self.saw(now, Some(lease)),
            Answer::Saw(lease) => self.saw(now, lease),
            Answer::Renewed { term, renewed: Renewed::Yes } => {
                if self.term() == Some(term) {
                    self.trust(now, sent, term);
                }
            }
            Answer::Renewed { term, renewed: Renewed::Lost(lease) } => {
                if self.term() == Some(term) {
                    self.step_down(now, out);
                }
                self.saw(now, Some(lease));
            }
            Answer::Released { term } => {
                if let State::StandingBack { holds, .. } = &mut self.state {
                    holds.take_if(|held| *held == term);
                }
                self.ask_at = now + self.timing.look_every;
            }
        }
    }

    fn took(&mut self, now: Mono, sent: Mono, term: Term, out: &mut Vec<LeaseAction>) {
        match &mut self.state {
            State::Standby => {
                self.seen = None;
                self.trust(now, sent, term);
                out.push(LeaseAction::Lead { term });
            }
            // Told to leave it to others while the request was under way.
            State::StandingBack { holds, .. } => {
                *holds = Some(term);
                self.ask_at = now;
            }
            // A leader asks for no other lease.
            State::Leader { .. } | State::Distrusting { .. } => {}
        }
    }

    fn trust(&mut self, now: Mono, sent: Mono, term: Term) {
        let from = if self.timing.trust_from_sending { sent } else { now };
        let trusted_until = from + self.timing.span.saturating_sub(self.timing.margin);
        self.state = State::Leader { term, trusted_until };
        self.ask_at = sent + self.timing.renew_every;
    }

    fn saw(&mut self, now: Mono, lease: Option<Lease>) {
        let pause = match self.state {
            State::StandingBack { .. } => self.timing.watch_every,
            State::Standby | State::Leader { .. } | State::Distrusting { .. } => self.timing.look_every,
        };
        let left = lease.as_ref().map_or(Duration::ZERO, |lease| lease.left);
        self.ask_at = now + left.clamp(LOOK_INTERVAL_MIN, pause.max(LOOK_INTERVAL_MIN));
        self.seen = lease
            .filter(|lease| !lease.left.is_zero())
            .map(|lease| Seen { holder: lease.holder, until: now + lease.left });
    }

    fn step_down(&mut self, now: Mono, out: &mut Vec<LeaseAction>) {
        if let Some(term) = self.term() {
            self.state = State::Standby;
            self.ask_at = now;
            out.push(LeaseAction::StepDown { term });
        }
    }

    fn stand_back(&mut self, now: Mono, until: Option<Mono>, out: &mut Vec<LeaseAction>) {
        let holds = match self.state {
            State::Leader { term, .. } | State::Distrusting { term, .. } => {
                out.push(LeaseAction::StepDown { term });
                Some(term)
            }
            // Whoever was told to stop stays so.
            State::StandingBack { until: None, .. } => return,
            State::StandingBack { holds, .. } => holds,
            State::Standby => None,
        };
        self.state = State::StandingBack { until, holds };
        self.ask_at = now;
    }

    /// What time alone changes.
    fn turn(&mut self, now: Mono) {
        self.seen.take_if(|seen| now >= seen.until);
        match self.state {
            State::Leader { term, trusted_until } if now >= trusted_until => {
                self.state = State::Distrusting { term, trusted_until };
            }
            // A lease that it could not release is over by then.
            State::StandingBack { until: Some(until), .. } if now >= until => {
                self.state = State::Standby;
                self.ask_at = now;
            }
            State::Standby
            | State::Leader { .. }
            | State::Distrusting { .. }
            | State::StandingBack { .. } => {}
        }
    }

    /// One that ends, and has nothing to give back, wants to know nothing.
    fn has_question(&self) -> bool {
        self.state != State::StandingBack { until: None, holds: None }
    }

    fn ask(&mut self, now: Mono, out: &mut Vec<LeaseAction>) {
        if self.is_asked || now < self.ask_at || !self.has_question() {
            return;
        }
        self.is_asked = true;
        out.push(LeaseAction::Ask(match self.state {
            State::Standby => Request::Take,
            State::Leader { term, .. } | State::Distrusting { term, .. } => Request::Renew { term },
            State::StandingBack { holds: Some(term), .. } => Request::Release { term },
            State::StandingBack { holds: None, .. } => Request::Look,
        }));
    }
}

#[cfg(test)]
mod tests;
