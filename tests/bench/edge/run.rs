//! Brings the contenders up and measures them in turns.

use std::num::NonZeroUsize;
use std::path::Path;

use super::contender::{CONTINUATIONS, Contender, Kind};
use super::figures::{Cell, Round};
use super::load::measure;
use super::machine::Patience;
use super::peers::Peer;
use super::report::{Column, Results};
use crate::table::Table;

/// Rounds unless told otherwise: two may be spoilt by what else runs on the machine.
pub(crate) const ROUNDS: NonZeroUsize = NonZeroUsize::new(5).expect("5 is not zero");

pub(crate) fn run(rounds: NonZeroUsize) -> anyhow::Result<Table> {
    let place = tempfile::tempdir()?;
    let mut field = Field::gather(place.path())?;
    // One thread: the client leaves the other cores to those that it measures.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(field.measure(rounds.get()))?;
    Ok(field.results().table())
}

/// Everyone who takes part.
struct Field {
    entries: Vec<Entry>,
    engines: Vec<u32>,
    patience: Patience,
    skipped_count: usize,
}

struct Entry {
    contender: Contender,
    rounds: Vec<Round>,
}

impl Field {
    fn gather(place: &Path) -> anyhow::Result<Self> {
        let ours = CONTINUATIONS.iter().map(|continuation| Contender::ours(place, *continuation));
        let ours: Vec<Contender> = ours.collect::<Result<_, _>>()?;
        let first = ours.first().ok_or_else(|| anyhow::anyhow!("no edge to measure"))?;
        let direct = Contender::behind(first)?;
        let engines =
            ours.iter().filter_map(|ours| ours.engine_pid().transpose()).collect::<Result<_, _>>()?;
        let upstream = direct.address;
        let entries = std::iter::once(direct).chain(ours);
        let entries = entries.map(|contender| Entry { contender, rounds: Vec::new() }).collect();
        let mut field = Self { entries, engines, patience: Patience::default(), skipped_count: 0 };
        for peer in Peer::ALL {
            match peer.version().and_then(|version| Ok((version, peer.start(place, upstream)?))) {
                Ok((version, running)) => {
                    eprintln!("{}: {version}", peer.name());
                    let contender = Contender::peer(peer, running);
                    field.entries.push(Entry { contender, rounds: Vec::new() });
                }
                Err(error) => field.skip(peer, &error),
            }
        }
        Ok(field)
    }

    fn skip(&mut self, peer: Peer, error: &anyhow::Error) {
        eprintln!("skipped: {}: {error:#}", peer.name());
        self.skipped_count += 1;
    }

    async fn measure(&mut self, rounds: usize) -> anyhow::Result<()> {
        for number in 1..=rounds {
            self.entries.iter_mut().for_each(|entry| entry.rounds.push(Round::default()));
            for cell in Cell::ALL {
                self.measure_cell(cell).await?;
            }
            eprintln!("round {number} of {rounds} done");
        }
        Ok(())
    }

    /// One load on everyone, one after the other. A peer that fails under it leaves; ours may not.
    async fn measure_cell(&mut self, cell: Cell) -> anyhow::Result<()> {
        let mut failed = Vec::new();
        for entry in &mut self.entries {
            let kind = entry.contender.kind;
            self.patience.wait_quiet().await?;
            let measured = measure(&entry.contender, cell, &self.engines).await;
            match (measured, kind, entry.rounds.last_mut()) {
                (Ok(figure), _, Some(round)) => round.put(cell, figure),
                (Ok(_), _, None) => {}
                (Err(error), Kind::Peer(peer), _) => failed.push((peer, error.context(format!("{cell:?}")))),
                (Err(error), Kind::Direct | Kind::Ours { .. }, _) => {
                    return Err(error.context(format!("{}, {cell:?}", kind.name())));
                }
            }
        }
        for (peer, error) in failed {
            self.skip(peer, &error);
            self.entries.retain(|entry| entry.contender.kind != Kind::Peer(peer));
        }
        Ok(())
    }

    fn results(self) -> Results {
        let column = |entry: Entry| Column { kind: entry.contender.kind, rounds: entry.rounds };
        let columns = self.entries.into_iter().map(column).collect();
        Results { columns, skipped_count: self.skipped_count }
    }
}
