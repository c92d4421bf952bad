//! Reads files and hashes them while reading, on several threads at once.
//!
//! The threads take piece after piece in the order of the files: the disk is read in one direction, and no thread waits for
//! another. Memory: one buffer a thread, and 32 bytes for each piece of 4 MiB.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use anyhow::Context as _;
use cic_common::model::manifest::Sha256;
use cic_common::model::tree::{PIECE_BYTES, PieceHash, PieceHasher, piece_count, piece_span};
use ring::digest::{Context, SHA256};

/// Small enough for a core's own cache: what was read is hashed from there.
const BUFFER_BYTES: usize = 256 << 10;

/// One file to be hashed.
#[derive(Debug)]
pub(in crate::effect::model) struct Job {
    pub(in crate::effect::model) path: PathBuf,
    /// The bytes that it ought to have.
    pub(in crate::effect::model) size: u64,
    pub(in crate::effect::model) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::effect::model) enum Kind {
    /// BLAKE3, in pieces.
    Pieces,
    /// SHA-256, which only one thread at a time can do for a file.
    Sha256,
}

/// What became of a [`Job`].
#[derive(Debug)]
pub(in crate::effect::model) enum Hashed {
    /// `None` for a piece that the file ends before the end of.
    Pieces(Vec<Option<PieceHash>>),
    /// `None` when the file is shorter.
    Sha256(Option<Sha256>),
    Unreadable {
        at: u64,
        error: io::Error,
    },
}

/// How the work is to be done, and who is told of it.
pub struct Effort<'a> {
    pub threads: usize,
    /// Called by each of the threads, after each piece's length at most.
    pub progress: &'a (dyn Fn(Progress) + Sync),
}

impl std::fmt::Debug for Effort<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Effort").field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub done_bytes: u64,
    pub all_bytes: u64,
}

/// A part of a job that one thread does.
#[derive(Debug, Clone, Copy)]
struct Task {
    job: usize,
    piece: u64,
}

enum Done {
    Piece(Option<PieceHash>),
    Sha256(Option<Sha256>),
}

/// Hashes all of them; the answers are in their order.
///
/// # Errors
/// When the threads cannot be started.
pub(in crate::effect::model) fn hash(jobs: &[Job], effort: &Effort<'_>) -> anyhow::Result<Vec<Hashed>> {
    let tasks = tasks_of(jobs);
    let all_bytes = jobs.iter().map(|job| job.size).sum();
    let (next, done_bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    // Where one piece cannot be read the others are not tried: a file system that is gone may take minutes to say so.
    let is_given_up: Vec<AtomicBool> = jobs.iter().map(|_| AtomicBool::new(false)).collect();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(effort.threads.max(1))
        .thread_name(|index| format!("hash-{index}"))
        .build()
        .context("start the threads that hash")?;
    let work = |_: rayon::BroadcastContext<'_>| {
        let mut reader = Reader::new();
        let mut answers = Vec::new();
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let job = &jobs[task.job];
            if is_given_up[task.job].load(Ordering::Relaxed) {
                continue;
            }
            let mut tell = |bytes| {
                let done_bytes = done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
                (effort.progress)(Progress { done_bytes, all_bytes });
            };
            let answer = reader.run(task.job, job, task.piece, &mut tell);
            is_given_up[task.job].fetch_or(answer.is_err(), Ordering::Relaxed);
            answers.push((*task, answer));
        }
        answers
    };
    let answers = pool.broadcast(work);
    let mut hashed: Vec<Hashed> = jobs.iter().map(unanswered).collect();
    answers.into_iter().flatten().for_each(|(task, answer)| enter(&mut hashed[task.job], task.piece, answer));
    Ok(hashed)
}

/// What takes one thread long comes first, so that none is left with it at the end.
fn tasks_of(jobs: &[Job]) -> Vec<Task> {
    let of_kind = |wanted: Kind| {
        jobs.iter().enumerate().filter(move |(_, job)| job.kind == wanted).flat_map(move |(job, of)| {
            let count = if wanted == Kind::Pieces { piece_count(of.size) } else { 1 };
            (0..count).map(move |piece| Task { job, piece })
        })
    };
    of_kind(Kind::Sha256).chain(of_kind(Kind::Pieces)).collect()
}

fn unanswered(job: &Job) -> Hashed {
    match job.kind {
        Kind::Pieces => Hashed::Pieces((0..piece_count(job.size)).map(|_| None).collect()),
        Kind::Sha256 => Hashed::Sha256(None),
    }
}

fn enter(hashed: &mut Hashed, piece: u64, answer: Result<Done, (u64, io::Error)>) {
    match (hashed, answer) {
        (Hashed::Unreadable { at: first, error }, Err((at, other))) if at < *first => {
            (*first, *error) = (at, other);
        }
        (Hashed::Unreadable { .. }, _) => {}
        (hashed, Err((at, error))) => *hashed = Hashed::Unreadable { at, error },
        (Hashed::Pieces(pieces), Ok(Done::Piece(hash))) => pieces[piece as usize] = hash,
        (Hashed::Sha256(whole), Ok(Done::Sha256(hash))) => *whole = hash,
        (Hashed::Pieces(_) | Hashed::Sha256(_), Ok(_)) => unreachable!("an answer is of its job's kind"),
    }
}

/// One thread's buffer, and the file that it reads.
struct Reader {
    buffer: Vec<u8>,
    open: Option<(usize, File)>,
}

impl Reader {
    fn new() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES], open: None }
    }

    /// With an error, the byte that could not be read. `tell` is told of what was read, in parts.
    fn run(
        &mut self,
        index: usize,
        job: &Job,
        piece: u64,
        tell: &mut dyn FnMut(u64),
    ) -> Result<Done, (u64, io::Error)> {
        let (begin, length) = match job.kind {
            Kind::Pieces => piece_span(piece, job.size),
            Kind::Sha256 => (0, job.size),
        };
        let file = match &mut self.open {
            Some((open, file)) if *open == index => file,
            other => {
                let file = File::open(&job.path).map_err(|error| (begin, error))?;
                &mut other.insert((index, file)).1
            }
        };
        let mut untold = 0;
        let mut count = |part: &[u8]| {
            untold += part.len() as u64;
            if untold >= PIECE_BYTES {
                tell(std::mem::take(&mut untold));
            }
        };
        let done = match job.kind {
            Kind::Pieces => {
                let mut hasher = PieceHasher::new(piece, job.size);
                let is_whole = each_part(file, &mut self.buffer, begin, length, |part| {
                    hasher.update(part);
                    count(part);
                })?;
                Done::Piece(is_whole.then(|| hasher.finish()))
            }
            Kind::Sha256 => {
                let mut context = Context::new(&SHA256);
                let is_whole = each_part(file, &mut self.buffer, begin, length, |part| {
                    context.update(part);
                    count(part);
                })?;
                Done::Sha256(is_whole.then(|| context.into()))
            }
        };
        tell(untold);
        Ok(done)
    }
}

/// Whether the file has all these bytes.
fn each_part(
    file: &File,
    buffer: &mut [u8],
    begin: u64,
    length: u64,
    mut part: impl FnMut(&[u8]),
) -> Result<bool, (u64, io::Error)> {
    let end = begin + length;
    let mut at = begin;
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        match file.read_at(&mut buffer[..wanted], at) {
            Ok(0) => return Ok(false),
            Ok(count) => {
                part(&buffer[..count]);
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((at, error)),
        }
    }
    Ok(true)
}
