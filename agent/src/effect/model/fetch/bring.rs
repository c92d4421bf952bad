//! Where missing pieces come from: the file that is wrong elsewhere, nodes that serve the model, the store.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use cic_common::model::tree::piece_span;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::time::{sleep, timeout};

use super::Places;
use super::feed::Feed;
use super::neighbour::Neighbours;
use super::runs::{Run, Runs};
use super::target::{Tally, Target};

/// Pieces of one question to the store, at most: 32 MiB take 270 ms at 1 Gbit/s, a question some 25 ms.
const RUN_PIECES_MAX: u64 = 8;

/// For the head of an answer, the repetitions within the client of the store included.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Between two parts of an answer: a store that stalls is asked again before the client of it does, which takes 30 s.
const STALL_MAX: Duration = Duration::from_secs(20);

/// For one piece, however its parts dribble: 4 MiB at 0.6 Mbit/s.
const PIECE_WITHIN: Duration = Duration::from_secs(60);

/// Times a piece is asked for that does not come, or comes with other bytes.
const TRIES: u32 = 3;

/// Between two looks whether a neighbour has room again.
const PAUSE: Duration = Duration::from_millis(200);

/// All that takes part in a fetch.
#[derive(Clone)]
pub(super) struct Party {
    pub(super) places: Places,
    pub(super) runs: Arc<Runs>,
    pub(super) tally: Arc<Tally>,
}

/// Takes runs to the store until none is left.
pub(super) async fn from_store(party: Party) -> anyhow::Result<()> {
    while let Some(run) = party.runs.take(RUN_PIECES_MAX) {
        run_from_store(&party, &run).await?;
    }
    Ok(())
}

/// Takes pieces to neighbours until none is left, `first` before all others; one that no neighbour gives goes to the store.
pub(super) async fn from_neighbours(
    party: Party,
    neighbours: Arc<Neighbours>,
    mut first: Option<Run>,
) -> anyhow::Result<()> {
    loop {
        let Some(turn) = neighbours.turn() else {
            if let Some(run) = first.take() {
                run_from_store(&party, &run).await?;
            } else if party.runs.is_empty() || neighbours.all_are_left() {
                return Ok(());
            } else {
                sleep(PAUSE).await;
            }
            continue;
        };
        let Some(run) = first.take().or_else(|| party.runs.take(1)) else { return Ok(()) };
        let target = &run.target;
        let (begin, length) = piece_span(run.first, target.wanted.size);
        let given =
            if length > 0 { neighbours.piece(&turn, &target.wanted.path, begin, length).await } else { None };
        if let Some(bytes) = given {
            if Feed::new(target, &party.tally, run.first..run.first + 1).take(bytes).await? {
                neighbours.credit(&turn, length);
                continue;
            }
            neighbours.leave(&turn, "it has other bytes");
        }
        drop(turn);
        run_from_store(&party, &run).await?;
    }
}

async fn run_from_store(party: &Party, run: &Run) -> anyhow::Result<()> {
    let Run { target, first, count } = run;
    let (store, tally) = (&party.places.store, &party.tally);
    let (path, size) = (&target.wanted.path, target.wanted.size);
    if size == 0 {
        ensure!(target.wanted.has(*first, &[]), "the manifest has {path} empty, and another hash for it");
        return tally.done(target, *first, true).await;
    }
    let end = piece_span(first + count - 1, size);
    let end = end.0 + end.1;
    let mut next = *first;
    let (mut tries, mut last) = (0, String::new());
    while next < first + count {
        if tries == TRIES {
            let (begin, length) = piece_span(next, size);
            let last_byte = begin + length - 1;
            bail!("{}: {path}, bytes {begin} to {last_byte}: {last} ({TRIES} times)", store.name);
        }
        tries += 1;
        let (begin, _) = piece_span(next, size);
        let mut feed = Feed::new(target, tally, next..first + count);
        let fault = match store.read_range(path, begin, end - begin, ANSWER_WITHIN).await {
            Err(cause) => Some(cause),
            Ok(None) => bail!("{} has no {path}", store.name),
            Ok(Some(mut parts)) => take_all(&mut parts, &mut feed, first + count).await?,
        };
        last = fault.unwrap_or(last);
        if feed.piece > next {
            // What came whole is not asked for again, and this was the first question for what did not.
            next = feed.piece;
            tries = 1;
        }
    }
    Ok(())
}

/// Takes parts until `end`; says what was in the way of it, if anything was.
async fn take_all(
    parts: &mut BoxStream<'static, Result<Bytes, String>>,
    feed: &mut Feed<'_>,
    end: u64,
) -> anyhow::Result<Option<String>> {
    while feed.piece < end {
        if let Some(fault) = take_one(parts, feed).await? {
            return Ok(Some(fault));
        }
    }
    Ok(None)
}

/// Takes parts until a piece more is whole.
async fn take_one(
    parts: &mut BoxStream<'static, Result<Bytes, String>>,
    feed: &mut Feed<'_>,
) -> anyhow::Result<Option<String>> {
    let piece = feed.piece;
    let mut late = std::pin::pin!(sleep(PIECE_WITHIN));
    while feed.piece == piece {
        // Cancel safe: whichever ends first, a part that has come is taken, or none is taken any more. The piece's end, which may
        // have to wait for the disk, is not cut off.
        let came = tokio::select! {
            biased;
            came = timeout(STALL_MAX, parts.next()) => came,
            () = &mut late => {
                return Ok(Some(format!("a piece did not come within {} s", PIECE_WITHIN.as_secs())));
            }
        };
        let part = match came {
            Ok(Some(Ok(part))) => part,
            Ok(Some(Err(cause))) => return Ok(Some(cause)),
            Ok(None) => return Ok(Some("it ended before its end".to_owned())),
            Err(_) => return Ok(Some(format!("nothing came for {} s", STALL_MAX.as_secs()))),
        };
        if !feed.take(part).await? {
            return Ok(Some("it has not the bytes of the manifest there".to_owned()));
        }
    }
    Ok(None)
}

/// A piece out of the file that is wrong elsewhere, if it still has it.
pub(super) async fn from_here(target: &Arc<Target>, piece: u64, tally: &Tally) -> anyhow::Result<bool> {
    let kept = Arc::clone(target);
    let copy = move || {
        let Some(bytes) = here(&kept, piece) else { return Ok(false) };
        let (begin, _) = piece_span(piece, kept.wanted.size);
        kept.write(&bytes, begin).map(|()| true)
    };
    let copied = tokio::task::spawn_blocking(copy).await?;
    let copied: bool = copied.with_context(|| format!("{} cannot be written", target.wanted.path))?;
    if copied {
        tally.done(target, piece, false).await?;
    }
    Ok(copied)
}

/// It is looked at once more: the file may have been changed.
fn here(target: &Target, piece: u64) -> Option<Bytes> {
    let wanted = &target.wanted;
    let place = wanted.there(piece)?;
    let (begin, length) = piece_span(piece, wanted.size);
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    File::open(place).and_then(|opened| opened.read_exact_at(&mut bytes, begin)).ok()?;
    let bytes = Bytes::from(bytes);
    wanted.has(piece, std::slice::from_ref(&bytes)).then_some(bytes)
}
