//! What the rounds say: the grid, and what is promised of our edge.

use super::contender::Kind;
use super::figures::{Cell, Round};
use super::metric::{self, Metric};
use super::peers::{Peer, Policy};
use crate::grid::{Grid, Line};
use crate::table::{Row, Table, Target, median};

/// All rounds of one contender.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) kind: Kind,
    pub(super) rounds: Vec<Round>,
}

/// What was measured. The first column is [`Kind::Direct`], the second is ours that is held against the targets.
#[derive(Debug)]
pub(super) struct Results {
    pub(super) columns: Vec<Column>,
    pub(super) skipped_count: usize,
}

impl Results {
    pub(super) fn table(&self) -> Table {
        let mut table = Table { grid: Some(self.grid()), rows: Vec::new() };
        let Some(ours) = self.columns.get(1) else { return table };
        table.row("added p50 at 1 connection", self.median(ours, &metric::ADDED_P50), "ms", Some(0.15));
        table.row("added p99 at 1 connection", self.median(ours, &metric::ADDED_P99), "ms", Some(0.3));
        self.against_peers(ours, &mut table);
        table.row("RSS at 256 connections", self.median(ours, &metric::MEMORY), "MiB", Some(40.0));
        if self.routers(|_| true).next().is_some() {
            let ahead = self.routers_ahead(ours);
            ahead.iter().for_each(|what| eprintln!("ahead of our edge: {what}"));
            table.row("figures in which an LLM router is ahead", count(ahead.len()), "", Some(0.0));
        }
        self.price_of_ids(ours, &mut table);
        table.row("cores taken by other programs meanwhile, median", 100.0 * self.others(), "%", None);
        table.row("peers skipped", count(self.skipped_count), "", None);
        table
    }

    /// A peer that is not here promises nothing: its rows are left out, and it is among those skipped.
    fn against_peers(&self, ours: &Column, table: &mut Table) {
        if let Some(haproxy) = self.column(Kind::Peer(Peer::HaProxy)) {
            let ratio = self.compared(ours, &[haproxy], &metric::SHORT_RATE, |ours, other| ours / other);
            of_peer(table, "HAProxy's", &metric::SHORT_RATE, ratio, Some(0.8));
            let later = self.compared(ours, &[haproxy], &metric::FIRST_CHUNK, |ours, other| ours - other);
            table.row("first chunk at 1 connection, later than HAProxy's", later, "ms", Some(0.2));
        }
        // The bound is for routers as they come: with the choice taken out, HAProxy itself is about twice as fast.
        for (policy, whose, bound) in [
            (Policy::Own, "the best LLM router's as it comes", Some(4.0)),
            (Policy::RoundRobin, "the best LLM router's by turns", None),
        ] {
            let routers: Vec<&Column> = self.routers(|one| one == policy).collect();
            if !routers.is_empty() {
                let ratio = self.compared(ours, &routers, &metric::SHORT_RATE, |ours, other| ours / other);
                of_peer(table, whose, &metric::SHORT_RATE, ratio, bound);
            }
        }
        if let Some(nginx) = self.column(Kind::Peer(Peer::Nginx)) {
            let ratio = self.compared(ours, &[nginx], &metric::STREAM_RATE, |ours, other| ours / other);
            of_peer(table, "nginx's", &metric::STREAM_RATE, ratio, Some(0.8));
        }
    }

    /// What it costs to keep the token ids of streams: each figure with continuation, as a part of that without.
    fn price_of_ids(&self, ours: &Column, table: &mut Table) {
        let is_with = |value| self.column(Kind::Ours { continuation: Some(value) });
        let (Some(with), Some(without)) = (is_with(true), is_with(false)) else {
            eprintln!("skipped: the price of keeping token ids; {} is measured alone", ours.kind.name());
            return;
        };
        for metric in [
            &metric::SHORT_RATE,
            &metric::SHORT_CPU,
            &metric::STREAM_RATE,
            &metric::STREAM_CPU,
            &metric::FIRST_CHUNK,
        ] {
            let ratio = self.compared(with, &[without], metric, |with, without| with / without);
            table.row(&format!("token ids kept / not kept, {}", metric.name), ratio, "", None);
        }
    }

    fn grid(&self) -> Grid {
        let columns = self.columns.iter().map(|column| column.kind.name().to_owned()).collect();
        let line = |metric: &Metric| Line {
            name: metric.name.to_owned(),
            unit: metric.unit,
            values: self.columns.iter().map(|column| self.median(column, metric)).collect(),
        };
        Grid { columns, lines: metric::ALL.iter().map(line).collect() }
    }

    fn column(&self, kind: Kind) -> Option<&Column> {
        self.columns.iter().find(|column| column.kind == kind)
    }

    /// The LLM routers with a policy of those that `is_wanted`.
    fn routers(&self, is_wanted: impl Fn(Policy) -> bool) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(move |column| match column.kind {
            Kind::Direct | Kind::Ours { .. } => false,
            Kind::Peer(peer) => peer.policy().is_some_and(&is_wanted),
        })
    }

    fn routers_ahead(&self, ours: &Column) -> Vec<String> {
        let pairs =
            metric::ALL.iter().flat_map(|metric| self.routers(|_| true).map(move |router| (metric, router)));
        pairs
            .filter(|(metric, router)| {
                metric.is_ahead(self.median(router, metric), self.median(ours, metric))
            })
            .map(|(metric, router)| format!("{} in {}", router.kind.name(), metric.name))
            .collect()
    }

    /// The part of all cores that was not left to this run.
    fn others(&self) -> f64 {
        let rounds = self.columns.iter().flat_map(|column| &column.rounds);
        middle(rounds.flat_map(|round| Cell::ALL.map(|cell| round.at(cell).others)).collect())
    }

    /// One value a round.
    fn values(&self, column: &Column, metric: &Metric) -> Vec<f64> {
        let direct = self.columns.first().map_or(&[][..], |direct| &direct.rounds);
        column.rounds.iter().zip(direct).map(|(round, direct)| (metric.value)(round, direct)).collect()
    }

    fn median(&self, column: &Column, metric: &Metric) -> f64 {
        middle(self.values(column, metric))
    }

    /// Within each round `compare` of `one` and the best of `others`, then the median of the rounds.
    fn compared(
        &self,
        one: &Column,
        others: &[&Column],
        metric: &Metric,
        compare: fn(f64, f64) -> f64,
    ) -> f64 {
        let others: Vec<Vec<f64>> = others.iter().map(|other| self.values(other, metric)).collect();
        let best = |round: usize| {
            let values = others.iter().filter_map(|values| values.get(round).copied());
            values.reduce(|best, value| if metric.is_ahead(value, best) { value } else { best })
        };
        let ones = self.values(one, metric).into_iter().enumerate();
        middle(ones.map(|(round, one)| compare(one, best(round).unwrap_or(f64::NAN))).collect())
    }
}

fn of_peer(table: &mut Table, whose: &str, metric: &Metric, ratio: f64, bound: Option<f64>) {
    let name = format!("{}: {}, part of {whose}", metric.name, metric.unit);
    table.rows.push(Row { name, value: ratio, unit: "", target: bound.map(Target::AtLeast) });
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    median(&values)
}

#[allow(clippy::cast_precision_loss)]
fn count(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::figures::Figure;

    fn column(kind: Kind, rates: [f64; 3]) -> Column {
        let round = |rate| {
            let mut round = Round::default();
            for cell in Cell::ALL {
                let one = 1.0;
                let (p50_ms, p99_ms, first_ms, cpu_us, rss_mib) = (one, one, one, one, one);
                round.put(cell, Figure { rate, p50_ms, p99_ms, first_ms, cpu_us, rss_mib, others: 0.0 });
            }
            round
        };
        Column { kind, rounds: rates.map(round).to_vec() }
    }

    fn results(skipped_count: usize, peers: &[(Peer, [f64; 3])]) -> Results {
        let mut columns = vec![
            column(Kind::Direct, [100.0; 3]),
            column(Kind::Ours { continuation: None }, [40.0, 10.0, 40.0]),
        ];
        columns.extend(peers.iter().map(|(peer, rates)| column(Kind::Peer(*peer), *rates)));
        Results { columns, skipped_count }
    }

    fn value(table: &Table, name: &str) -> Option<f64> {
        table.rows.iter().find(|row| row.name.starts_with(name)).map(|row| row.value)
    }

    #[test]
    fn peers_are_compared_within_each_round() {
        // A slow second round hits both.
        let table = results(0, &[(Peer::HaProxy, [50.0, 12.5, 50.0])]).table();
        assert_eq!(value(&table, "short, 32 connections: req/s, part of HAProxy's"), Some(0.8));
        assert!(table.is_met());
    }

    #[test]
    fn the_best_router_of_each_round_counts() {
        let routers = [
            (Peer::VllmRouter(Policy::Own), [4.0, 1.0, 5.0]),
            (Peer::SglangRouter(Policy::Own), [5.0, 2.0, 4.0]),
            (Peer::SglangRouter(Policy::RoundRobin), [20.0, 5.0, 20.0]),
        ];
        let table = results(0, &routers).table();
        let of_best = |how| {
            value(&table, &format!("short, 32 connections: req/s, part of the best LLM router's {how}"))
        };
        assert_eq!((of_best("as it comes"), of_best("by turns")), (Some(8.0), Some(2.0)));
        assert_eq!(value(&table, "figures in which"), Some(0.0));
    }

    #[test]
    fn a_router_that_is_ahead_is_a_miss_and_a_peer_that_is_not_here_is_none() {
        let table = results(3, &[(Peer::VllmRouter(Policy::RoundRobin), [90.0; 3])]).table();
        // req/s at 1, 32 and 256 connections, streams/s at 1 and 32.
        assert_eq!(value(&table, "figures in which"), Some(5.0));
        assert!(!table.is_met());
        assert_eq!(value(&table, "short, 32 connections: req/s, part of HAProxy's"), None);
        assert_eq!(value(&table, "peers skipped"), Some(3.0));
    }
}
