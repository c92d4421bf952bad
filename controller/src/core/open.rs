//! An operation on its way: what was done about it so far, and when more is due.

use std::time::Duration;

use cic_common::time::Mono;

use super::operation::{Operation, OperationKind, OperationState};

/// An operation on its way.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) operation: Operation,
    /// It has been asked of the outside at least once: it may have happened.
    pub(super) is_performed: bool,
    /// Recorded by an earlier controller: it may have been performed then.
    pub(super) is_restored: bool,
    /// The brake has counted it in this run.
    pub(super) is_counted: bool,
    pub(super) retry_at: Option<Mono>,
    pub(super) tries: u32,
    /// Its deadline, once it runs and until something was done about it.
    pub(super) deadline_at: Option<Mono>,
    /// When the outside was last asked.
    pub(super) asked_at: Option<Mono>,
}

impl Open {
    pub(super) fn intended(operation: Operation) -> Self {
        Self {
            operation,
            is_performed: false,
            is_restored: false,
            is_counted: false,
            retry_at: None,
            tries: 0,
            deadline_at: None,
            asked_at: None,
        }
    }

    /// Its span runs from now, whoever recorded it.
    pub(super) fn begin(&mut self, now: Mono) {
        self.deadline_at = Some(now + Duration::from_millis(self.operation.deadline_ms));
    }

    /// This process did not run for `late`: nobody was asked meanwhile.
    pub(super) fn grant(&mut self, late: Duration) {
        self.deadline_at = self.deadline_at.map(|at| at + late);
    }

    /// Nothing is due about it here: another leads.
    pub(super) fn rest(&mut self) {
        (self.retry_at, self.deadline_at) = (None, None);
    }

    /// When something is to be done about it if nothing happens.
    pub(super) fn turns_at(&self) -> Option<Mono> {
        self.retry_at.into_iter().chain(self.deadline_at).min()
    }

    /// A launch of which some call was never answered, by whichever controller: a failure told now may not be the truth
    /// about that call.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.is_launch() && (self.is_restored || self.tries > 0)
    }

    pub(super) fn is_launch(&self) -> bool {
        matches!(self.operation.kind, OperationKind::Launch { .. })
    }

    pub(super) fn is_pending_launch(&self) -> bool {
        !self.is_performed && self.is_launch()
    }

    /// One that an earlier controller recorded: it may have happened, so it is asked for again by its id.
    pub(super) fn restored(now: Mono, mut operation: Operation) -> Self {
        operation.state = OperationState::Recorded;
        let mut open =
            Self { is_restored: true, retry_at: Some(now), asked_at: Some(now), ..Self::intended(operation) };
        open.begin(now);
        open
    }
}
