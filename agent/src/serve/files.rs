//! The running engine's model for other nodes, which fetch it piece by piece instead of waiting for a store.
//!
//! `GET /v1/model-files?model=NAME&path=FILE&begin=N&length=N` on the peer port. Whoever asks compares each piece with the
//! manifest of its store. Inference comes first: a node that does not admit requests, or at which some wait, gives nothing,
//! and what is given has a rate.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cic_common::model::place::tree_of;
use cic_common::model::tree::PIECE_BYTES;
use cic_common::time::{Clock, Mono};
use hyper::StatusCode;
use nix::fcntl::OFlag;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tracing::debug;
use url::form_urlencoded;

use crate::effect::engine::Record;

/// The place of a request.
pub const FILES_PATH: &str = "/v1/model-files";

/// Pieces on their way at once: they bound the memory.
const UNDER_WAY_MAX: usize = 4;

/// Whoever would have to wait for longer asks another node, or the store.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// A disk under load; a file system that is gone takes for ever.
const READ_WITHIN: Duration = Duration::from_secs(4);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub model: String,
    /// Relative to the model's directory.
    pub path: String,
    pub begin: u64,
    /// At most a piece.
    pub length: u64,
}

impl Ask {
    /// The place to ask at, with the question.
    #[must_use]
    pub fn uri(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("model", &self.model).append_pair("path", &self.path);
        query.append_pair("begin", &self.begin.to_string()).append_pair("length", &self.length.to_string());
        format!("{FILES_PATH}?{}", query.finish())
    }

    /// `None` when a part is missing, or leads out of the model's directory.
    fn parse(query: &str) -> Option<Self> {
        let find = |name: &str| {
            form_urlencoded::parse(query.as_bytes())
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        let number = |name: &str| find(name)?.parse().ok();
        let ask = Self {
            model: find("model")?,
            path: find("path")?,
            begin: number("begin")?,
            length: number("length")?,
        };
        let is_name = |part: Component<'_>| matches!(part, Component::Normal(_));
        let is_hidden = ask.path.split('/').any(|name| name.starts_with('.') || name.is_empty());
        let is_plain = !is_hidden && Path::new(&ask.path).components().all(is_name);
        (is_plain && ask.length <= PIECE_BYTES).then_some(ask)
    }
}

/// Gives the files of the model that this node serves. Clones share its rate.
#[derive(Clone)]
pub struct Shelf {
    running: watch::Receiver<Option<Record>>,
    /// Whether inference leaves room for it now.
    is_free: Arc<dyn Fn() -> bool + Send + Sync>,
    pace: Arc<Pace>,
    room: Arc<Semaphore>,
    clock: Clock,
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shelf").field("pace", &self.pace).finish_non_exhaustive()
    }
}

/// A file of a model.
struct Place {
    directory: PathBuf,
    path: String,
}

/// Bytes on their way, which hold a place.
struct Piece {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn read(Place { directory, path }: &Place, ask: &Ask) -> io::Result<Vec<u8>> {
    let place = directory.join(path).canonicalize()?;
    if !place.starts_with(tree_of(directory)?) {
        return Err(io::Error::other("it leads out of the model's directory"));
    }
    // What is no file might hold whoever opens it.
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(place)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = vec![0; usize::try_from(ask.length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, ask.begin)?;
    Ok(bytes)
}

/// So many bytes a second, one piece after the other.
#[derive(Debug)]
struct Pace {
    /// In bytes; 0 gives nothing.
    per_second: u64,
    next_at: Mutex<Mono>,
}

impl Pace {
    /// How long to wait before so many bytes are sent; `None` when it would be too long.
    fn reserve(&self, now: Mono, bytes: u64) -> Option<Duration> {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.per_second.max(1));
        let span = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut next_at = self.next_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = now.max(*next_at);
        let wait = begin.since(now);
        if self.per_second == 0 || wait > WAIT_MAX {
            return None;
        }
        *next_at = begin + span;
        Some(wait)
    }
}

impl Shelf {
    /// Gives up to `per_second` bytes while `is_free`.
    #[must_use]
    pub fn new(
        running: watch::Receiver<Option<Record>>,
        is_free: impl Fn() -> bool + Send + Sync + 'static,
        per_second: u64,
        clock: Clock,
    ) -> Self {
        let pace = Pace { per_second, next_at: Mutex::new(Mono::ZERO) };
        let room = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        Self { running, is_free: Arc::new(is_free), pace: Arc::new(pace), room, clock }
    }

    /// The bytes that were asked for.
    ///
    /// # Errors
    /// The status to answer with, and why.
    pub async fn take(&self, query: &str) -> Result<Bytes, (StatusCode, String)> {
        let busy = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, why.to_owned());
        let ask = Ask::parse(query)
            .ok_or((StatusCode::BAD_REQUEST, "no such piece can be asked for".to_owned()))?;
        let place = self.place(&ask).ok_or((StatusCode::NOT_FOUND, format!("{} is not here", ask.model)))?;
        if !(self.is_free)() {
            return Err(busy("requests come first"));
        }
        let room = Arc::clone(&self.room);
        let room = room.try_acquire_owned().map_err(|_| busy("others are being served"))?;
        let wait =
            self.pace.reserve(self.clock.now(), ask.length).ok_or_else(|| busy("the rate is used up"))?;
        tokio::time::sleep(wait).await;
        // The place is held until the piece has left, or the thread comes back.
        let read = move || Ok(Bytes::from_owner(Piece { bytes: read(&place, &ask)?, _room: room }));
        let read = timeout(READ_WITHIN, tokio::task::spawn_blocking(read)).await;
        let read = read.map_err(|_| busy("the file system does not answer"))?;
        read.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| {
            debug!(%error, "a piece of the model cannot be given");
            (StatusCode::NOT_FOUND, error.to_string())
        })
    }

    /// Only what lies in the model's own directory is given: what this agent has mounted can be mounted there too.
    fn place(&self, ask: &Ask) -> Option<Place> {
        let running = self.running.borrow();
        let record = running.as_ref()?;
        let model = &record.assignment.model;
        let is_here = model.name == ask.model && record.directory() == model.path;
        is_here.then(|| Place { directory: PathBuf::from(&model.path), path: ask.path.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_as_it_was_asked_and_leads_nowhere_else() {
        let ask = |path: &str, length| Ask {
            model: "org/a model".to_owned(),
            path: path.to_owned(),
            begin: 7,
            length,
        };
        let read = |ask: &Ask| Ask::parse(ask.uri().split_once('?').unwrap().1);
        for path in ["model-00001-of-00002.safetensors", "sub/a&b=c %2e.json"] {
            assert_eq!(read(&ask(path, PIECE_BYTES)), Some(ask(path, PIECE_BYTES)));
        }
        for path in ["../x", "/etc/passwd", "a/../b", ".hidden", "a//b", "a/.b", ""] {
            assert_eq!(read(&ask(path, 1)), None, "{path}");
        }
        assert_eq!(read(&ask("a", PIECE_BYTES + 1)), None);
        assert_eq!(Ask::parse("model=a&path=b&begin=0"), None);
    }

    #[test]
    fn a_rate_is_kept_and_who_would_wait_long_is_sent_on() {
        let pace = Pace { per_second: 1000, next_at: Mutex::new(Mono::ZERO) };
        let now = Mono::ZERO + Duration::from_secs(5);
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(pace.reserve(now, 600), ms(0));
        assert_eq!(pace.reserve(now, 500), ms(600));
        assert_eq!(pace.reserve(now, 500), None, "1.1 s");
        assert_eq!(
            pace.reserve(now + Duration::from_millis(400), 500),
            ms(700),
            "what was refused is not counted"
        );
        let none = Pace { per_second: 0, next_at: Mutex::new(Mono::ZERO) };
        assert_eq!(none.reserve(now, 1), None);
    }
}
