//! Virtual time: it moves only when the next happening is taken from the queue.

use cic_common::time::Mono;

/// The world's clock. Each process reads it relative to its own start, as a real monotonic clock behaves.
#[derive(Debug, Default, Clone, Copy)]
pub struct Clock {
    now: Mono,
}

impl Clock {
    #[must_use]
    pub fn now(self) -> Mono {
        self.now
    }

    /// Moves to `moment`; never backwards.
    pub fn advance(&mut self, moment: Mono) {
        self.now = self.now.max(moment);
    }
}

/// A process's own line of time within the world's.
#[derive(Debug, Clone, Copy)]
pub struct Origin(Mono);

impl Origin {
    /// The line of a process that starts at `born`.
    #[must_use]
    pub fn at(born: Mono) -> Self {
        Self(born)
    }

    /// What the process reads when the world's clock shows `world`.
    #[must_use]
    pub fn local(self, world: Mono) -> Mono {
        Mono::ZERO + world.since(self.0)
    }

    /// When the world's clock shows what the process calls `local`.
    #[must_use]
    pub fn world(self, local: Mono) -> Mono {
        self.0 + local.since(Mono::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_counts_from_its_own_start() {
        let origin = Origin::at(Mono::from_millis(700));
        assert_eq!(origin.local(Mono::from_millis(1000)), Mono::from_millis(300));
        assert_eq!(origin.world(Mono::from_millis(300)), Mono::from_millis(1000));
    }

    #[test]
    fn time_never_runs_backwards() {
        let mut clock = Clock::default();
        clock.advance(Mono::from_millis(9));
        clock.advance(Mono::from_millis(4));
        assert_eq!(clock.now(), Mono::from_millis(9));
    }
}
