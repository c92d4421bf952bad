//! What is read from the figures: one number a contender and round, held against those of no proxy.

use super::figures::{Cell, Round};

/// Which way a number is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    Lower,
    Higher,
}

/// One line of the grid.
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: Better,
    /// Of a contender's round, and the same round of the upstream without a proxy.
    pub(super) value: fn(&Round, &Round) -> f64,
}

impl Metric {
    /// Whether `one` is better than `other`; a number that is none is no better than any.
    pub(super) fn is_ahead(&self, one: f64, other: f64) -> bool {
        match self.better {
            Better::Lower => one < other,
            Better::Higher => one > other,
        }
    }

    const fn lower(name: &'static str, unit: &'static str, value: fn(&Round, &Round) -> f64) -> Self {
        Self { name, unit, better: Better::Lower, value }
    }

    const fn higher(name: &'static str, unit: &'static str, value: fn(&Round, &Round) -> f64) -> Self {
        Self { name, unit, better: Better::Higher, value }
    }
}

macro_rules! added {
    ($cell:ident, $figure:ident) => {
        |round, direct| round.at(Cell::$cell).$figure - direct.at(Cell::$cell).$figure
    };
}

macro_rules! plain {
    ($cell:ident, $figure:ident) => {
        |round, _| round.at(Cell::$cell).$figure
    };
}

pub(super) const ADDED_P50: Metric =
    Metric::lower("short, 1 connection: added p50", "ms", added!(Short1, p50_ms));
pub(super) const ADDED_P99: Metric =
    Metric::lower("short, 1 connection: added p99", "ms", added!(Short1, p99_ms));
pub(super) const SHORT_RATE: Metric = Metric::higher("short, 32 connections", "req/s", plain!(Short32, rate));
pub(super) const SHORT_CPU: Metric =
    Metric::lower("short, 32: its CPU a request", "us", plain!(Short32, cpu_us));
pub(super) const STREAM_RATE: Metric =
    Metric::higher("stream, 32 connections", "streams/s", plain!(Stream32, rate));
pub(super) const STREAM_CPU: Metric =
    Metric::lower("stream, 32: its CPU a stream", "us", plain!(Stream32, cpu_us));
pub(super) const FIRST_CHUNK: Metric =
    Metric::lower("stream, 1 connection: first chunk, p50", "ms", plain!(Stream1, first_ms));
pub(super) const MEMORY: Metric = Metric::lower("RSS at 256 connections", "MiB", plain!(Short256, rss_mib));

/// Every line, as it is shown.
pub(super) const ALL: [Metric; 17] = [
    Metric::higher("short, 1 connection", "req/s", plain!(Short1, rate)),
    ADDED_P50,
    ADDED_P99,
    SHORT_RATE,
    Metric::lower("short, 32: added p50", "ms", added!(Short32, p50_ms)),
    Metric::lower("short, 32: added p99", "ms", added!(Short32, p99_ms)),
    SHORT_CPU,
    Metric::higher("short, 256 connections", "req/s", plain!(Short256, rate)),
    Metric::lower("short, 256: added p50", "ms", added!(Short256, p50_ms)),
    Metric::lower("short, 256: added p99", "ms", added!(Short256, p99_ms)),
    STREAM_RATE,
    Metric::lower("stream, 32: first chunk, p50", "ms", plain!(Stream32, first_ms)),
    Metric::lower("stream, 32: whole, p99", "ms", plain!(Stream32, p99_ms)),
    STREAM_CPU,
    Metric::higher("stream, 1 connection", "streams/s", plain!(Stream1, rate)),
    FIRST_CHUNK,
    MEMORY,
];
