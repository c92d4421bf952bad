//! What is measured of one contender: a few numbers for each kind of load.

use std::collections::BTreeMap;

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cell {
    /// Short answers, one client after the other.
    Short1,
    Short32,
    Short256,
    /// Streams of [`super::bodies::TOKENS`] chunks without gaps.
    Stream1,
    Stream32,
}

impl Cell {
    pub(super) const ALL: [Self; 5] =
        [Self::Short1, Self::Short32, Self::Short256, Self::Stream1, Self::Stream32];

    pub(super) fn connection_count(self) -> usize {
        match self {
            Self::Short1 | Self::Stream1 => 1,
            Self::Short32 | Self::Stream32 => 32,
            Self::Short256 => 256,
        }
    }

    pub(super) fn is_stream(self) -> bool {
        match self {
            Self::Short1 | Self::Short32 | Self::Short256 => false,
            Self::Stream1 | Self::Stream32 => true,
        }
    }
}

/// One load, measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figure {
    /// Whole answers a second.
    pub(super) rate: f64,
    /// From the request to the end of its answer.
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// From the request to the first bytes of the answer's body, median.
    pub(super) first_ms: f64,
    /// Time on a core of the program in between, for each answer. NaN for none in between.
    pub(super) cpu_us: f64,
    /// Memory of the program in between while the connections are open; processes are added up, what they share too.
    pub(super) rss_mib: f64,
    /// The part of all cores, from 0 to 1, that programs took which have nothing to do with this.
    pub(super) others: f64,
}

impl Figure {
    const NONE: Self = Self {
        rate: f64::NAN,
        p50_ms: f64::NAN,
        p99_ms: f64::NAN,
        first_ms: f64::NAN,
        cpu_us: f64::NAN,
        rss_mib: f64::NAN,
        others: f64::NAN,
    };
}

/// All loads of one round.
#[derive(Debug, Clone, Default)]
pub(super) struct Round {
    figures: BTreeMap<Cell, Figure>,
}

impl Round {
    pub(super) fn put(&mut self, cell: Cell, figure: Figure) {
        self.figures.insert(cell, figure);
    }

    /// Numbers that are none where nothing was measured.
    pub(super) fn at(&self, cell: Cell) -> Figure {
        self.figures.get(&cell).copied().unwrap_or(Figure::NONE)
    }
}
