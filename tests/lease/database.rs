//! The row of the lease and what the store accepts, by the database's clock in ticks.

use std::time::Duration;

use cic_common::id::{ControllerId, Term};
use cic_controller::ha::{Answer, LeaseTiming, Request};
use cic_controller::store::{Holder, Lease, Renewed, Taken};

/// The database.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Database {
    /// Ticks since its start.
    pub(crate) now: u8,
    row: Option<Row>,
    /// The highest term under which something was recorded.
    pub(crate) recorded: Term,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Row {
    term: Term,
    holder: usize,
    /// 0 once it is over, so that two ways to be over are one state.
    expires_at: u8,
}

impl Database {
    pub(crate) fn new() -> Self {
        Self { now: 0, row: None, recorded: Term(0) }
    }

    pub(crate) fn term(&self) -> Term {
        self.row.as_ref().map_or(Term(0), |row| row.term)
    }

    pub(crate) fn pass(&mut self) {
        self.now += 1;
        if let Some(row) = &mut self.row
            && self.now >= row.expires_at
        {
            row.expires_at = 0;
        }
    }

    /// As `Database::take_lease` and its like do.
    pub(crate) fn apply(&mut self, from: usize, request: Request, timing: &LeaseTiming) -> Answer {
        let expires_at = self.now + in_ticks(timing.span);
        match request {
            Request::Take => match &self.row {
                Some(row) if self.is_held(row) && row.holder != from => {
                    Answer::Took(Taken::No(self.lease(row)))
                }
                Some(_) | None => {
                    let term = self.term().next();
                    self.row = Some(Row { term, holder: from, expires_at });
                    Answer::Took(Taken::Yes(term))
                }
            },
            Request::Renew { term } => match &mut self.row {
                Some(row) if row.term == term => {
                    row.expires_at = expires_at;
                    Answer::Renewed { term, renewed: Renewed::Yes }
                }
                Some(_) | None => match self.seen() {
                    Some(lease) => Answer::Renewed { term, renewed: Renewed::Lost(lease) },
                    None => Answer::Nothing,
                },
            },
            Request::Release { term } => {
                if let Some(row) = &mut self.row
                    && row.term == term
                {
                    row.expires_at = 0;
                }
                Answer::Released { term }
            }
            Request::Look => Answer::Saw(self.seen()),
        }
    }

    /// As `Database::store` does: false when the term is fenced off.
    pub(crate) fn record(&mut self, term: Term) -> bool {
        if self.term() != term {
            return false;
        }
        self.recorded = self.recorded.max(term);
        true
    }

    fn seen(&self) -> Option<Lease> {
        self.row.as_ref().map(|row| self.lease(row))
    }

    fn is_held(&self, row: &Row) -> bool {
        self.now < row.expires_at
    }

    fn lease(&self, row: &Row) -> Lease {
        let controller = ControllerId::new(["a", "b", "c"][row.holder]).expect("a label");
        let left = Duration::from_secs(u64::from(row.expires_at.saturating_sub(self.now)));
        Lease { term: row.term, holder: Holder { controller, api: String::new() }, left }
    }
}

fn in_ticks(span: Duration) -> u8 {
    u8::try_from(span.as_secs()).expect("few ticks")
}
