//! Another node that serves the model, asked for pieces of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use cic_common::id::NodeId;
use cic_common::supervise::{Kind, Supervisor};
use cic_common::time::{Clock, Mono};
use cic_common::tls::Peer;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::serve::files::Ask;

/// Pieces under way from one node: it has others to serve, and its neighbours have the rest.
const UNDER_WAY: usize = 2;

/// Who asks neighbours, a piece each at a time: the store is asked at the same time, however many they are and however slow.
pub(super) const ASKERS: usize = 4;

/// Of an answer that is no piece.
const WORDS_BYTES_MAX: u64 = 4096;

/// Name, TCP and TLS together.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// 4 MiB come within that at 7 Mbit/s, after as long a wait as a node lets anybody have.
const PIECE_WITHIN: Duration = Duration::from_secs(6);

/// One that is busy is left alone for so long.
const REST: Duration = Duration::from_secs(1);

/// Which node, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub node: NodeId,
    /// `host:port` of its peer port.
    pub at: String,
}

impl std::str::FromStr for Address {
    type Err = anyhow::Error;

    /// `NODE=HOST:PORT`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (node, at) = text.split_once('=').context("no NODE=HOST:PORT")?;
        Ok(Self { node: NodeId::new(node)?, at: at.to_owned() })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.node, self.at)
    }
}

/// The nodes that serve a model.
pub struct Neighbours {
    model: String,
    all: Vec<Neighbour>,
    tls: Arc<ClientConfig>,
    tasks: Supervisor,
    clock: Clock,
}

struct Neighbour {
    address: Address,
    room: Semaphore,
    idle: Mutex<Vec<SendRequest<Empty<Bytes>>>>,
    rests_until: Mutex<Mono>,
    /// For the rest of this run: it has other bytes, or does not answer.
    is_left: AtomicBool,
    given_bytes: AtomicU64,
}

/// A place at a neighbour, for one piece.
pub(super) struct Turn<'a> {
    neighbour: &'a Neighbour,
    _room: SemaphorePermit<'a>,
}

/// What became of a question.
enum Answer {
    Bytes(Bytes),
    Busy,
}

impl std::fmt::Debug for Neighbours {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Neighbours")
            .field("model", &self.model)
            .field("count", &self.all.len())
            .finish_non_exhaustive()
    }
}

impl Neighbours {
    /// `tls` shows this node's certificate.
    #[must_use]
    pub fn new(model: String, addresses: Vec<Address>, tls: Arc<ClientConfig>, tasks: Supervisor) -> Self {
        let neighbour = |address| Neighbour {
            address,
            room: Semaphore::new(UNDER_WAY),
            idle: Mutex::default(),
            rests_until: Mutex::new(Mono::ZERO),
            is_left: AtomicBool::new(false),
            given_bytes: AtomicU64::new(0),
        };
        Self { model, all: addresses.into_iter().map(neighbour).collect(), tls, tasks, clock: Clock::start() }
    }

    /// Bytes that came from each that gave any.
    #[must_use]
    pub fn given(&self) -> Vec<(NodeId, u64)> {
        let of = |one: &Neighbour| (one.address.node.clone(), one.given_bytes.load(Ordering::Relaxed));
        self.all.iter().map(of).filter(|(_, bytes)| *bytes > 0).collect()
    }

    /// A place at the one that has given least; `None` when all are taken, rest, or are left.
    pub(super) fn turn(&self) -> Option<Turn<'_>> {
        let now = self.clock.now();
        let mut willing: Vec<&Neighbour> = self.all.iter().filter(|one| one.is_willing(now)).collect();
        willing.sort_by_key(|one| one.given_bytes.load(Ordering::Relaxed));
        let neighbour = willing.into_iter().find(|one| one.room.available_permits() > 0)?;
        Some(Turn { neighbour, _room: neighbour.room.try_acquire().ok()? })
    }

    /// Whether none is asked any more.
    pub(super) fn all_are_left(&self) -> bool {
        self.all.iter().all(|one| one.is_left.load(Ordering::Relaxed))
    }

    /// What came from it was right.
    pub(super) fn credit(&self, turn: &Turn<'_>, bytes: u64) {
        turn.neighbour.given_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// One piece of a file, as the neighbour has it; `None` when it gives none now, and is left alone for as long as it takes.
    pub(super) async fn piece(&self, turn: &Turn<'_>, path: &str, begin: u64, length: u64) -> Option<Bytes> {
        let neighbour = turn.neighbour;
        let ask = Ask { model: self.model.clone(), path: path.to_owned(), begin, length };
        let asked = timeout(PIECE_WITHIN, self.ask(neighbour, &ask)).await;
        match asked.context("no answer").and_then(|answer| answer) {
            Ok(Answer::Bytes(bytes)) if bytes.len() as u64 == length => Some(bytes),
            Ok(Answer::Bytes(bytes)) => {
                self.leave(turn, &format!("{} bytes came for {length}", bytes.len()));
                None
            }
            Ok(Answer::Busy) => {
                *neighbour.rests_until.lock().unwrap_or_else(PoisonError::into_inner) =
                    self.clock.now() + REST;
                None
            }
            Err(error) => {
                self.leave(turn, &format!("{error:#}"));
                None
            }
        }
    }

    /// Asks it no more.
    pub(super) fn leave(&self, turn: &Turn<'_>, why: &str) {
        if !turn.neighbour.is_left.swap(true, Ordering::Relaxed) {
            eprintln!("{} is asked no more for {}: {why}", turn.neighbour.address.node, self.model);
        }
    }

    async fn ask(&self, neighbour: &Neighbour, ask: &Ask) -> anyhow::Result<Answer> {
        let idle = neighbour.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut sender = match idle.filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => self.connect(&neighbour.address).await?,
        };
        sender.ready().await?;
        let request =
            Request::get(ask.uri()).header(hyper::header::HOST, &neighbour.address.at).body(Empty::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let bytes_max = usize::try_from(ask.length.max(WORDS_BYTES_MAX))?;
        let bytes = Limited::new(response.into_body(), bytes_max).collect().await;
        let bytes = bytes.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        neighbour.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        match status {
            StatusCode::OK => Ok(Answer::Bytes(bytes)),
            StatusCode::SERVICE_UNAVAILABLE => Ok(Answer::Busy),
            status => bail!("{status}: {}", String::from_utf8_lossy(&bytes).trim()),
        }
    }

    async fn connect(&self, address: &Address) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
        let connecting = async {
            let stream = TcpStream::connect(&address.at).await?;
            stream.set_nodelay(true)?;
            let name = Peer::Node(address.node.clone()).server_name();
            let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            self.tasks.spawn("neighbour", Kind::Passing, |token| async move {
                // Cancel safe: what it was reading is not wanted any more.
                tokio::select! {
                    () = token.cancelled() => {}
                    _ended = connection => {}
                }
                Ok(())
            });
            anyhow::Ok(sender)
        };
        let connected = timeout(CONNECT_WITHIN, connecting).await;
        ensure!(connected.is_ok(), "not connected within {} s", CONNECT_WITHIN.as_secs());
        connected?
    }
}

impl Neighbour {
    fn is_willing(&self, now: Mono) -> bool {
        let rests_until = *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        !self.is_left.load(Ordering::Relaxed) && now >= rests_until
    }
}
