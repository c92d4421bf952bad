//! One agent's connection, from the handshake to its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cic_common::id::NodeId;
use cic_common::report::Heartbeat;
use cic_common::route::Edition;
use cic_common::tls::{Peer, peer};
use cic_common::wire::close::CloseCode;
use cic_common::wire::frame::{FrameError, FrameReader, FrameWriter, decode_datagram};
use cic_common::wire::message::{AgentMessage, ControllerMessage, Hello};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::enrol::{Refused, Registry};
use super::refusal::{Refusal, Refusals};
use super::roster::{OUTGOING_MAX, Outgoing, Roster, Visit};
use super::tables::{Table, Tables, byte_count};
use crate::core::Event;

/// From the handshake to the `Hello`.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// A frame that cannot be written for as long as the idle timeout has nobody reading it.
const WRITE_DEADLINE: Duration = Duration::from_secs(4);

/// A heartbeat on a stream of its own must arrive whole within this, or the next one is newer.
const BEAT_DEADLINE: Duration = Duration::from_secs(2);

/// What sessions share.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) roster: Roster,
    pub(super) refusals: Arc<Refusals>,
    pub(super) registry: Registry,
    pub(super) core: mpsc::Sender<Event>,
    pub(super) tables: Tables,
}

/// How a session ends.
#[derive(Debug)]
enum End {
    Refused(Refused),
    /// The connection or the stream ended, or the core is gone.
    Over,
}

impl From<Refused> for End {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// Talks with one agent until the connection ends.
pub(super) async fn serve(desk: &Desk, connection: &Connection) {
    if let Err(End::Refused(Refused { kind, reason })) = talk(desk, connection).await {
        desk.refusals.add(kind, connection.remote_address().ip(), &reason);
        kind.close_code().close(connection);
    }
}

async fn talk(desk: &Desk, connection: &Connection) -> Result<(), End> {
    let node = match peer::of_quic(connection) {
        Ok(Some(Peer::Node(node))) => node,
        Ok(Some(other)) => return Err(Refused::new(Refusal::NotANode, &other).into()),
        Ok(None) => return Err(Refused::new(Refusal::NoCertificate, &"no certificate").into()),
        Err(error) => return Err(Refused::new(Refusal::NotANode, &error).into()),
    };
    let (hello, reader, writer) = timeout(HELLO_DEADLINE, begin(&node, connection))
        .await
        .map_err(|_| Refused::new(Refusal::Late, &format_args!("{node}: no hello in time")))??;
    let (outgoing, queue) = mpsc::channel(OUTGOING_MAX);
    let (mut routes, held) = (desk.tables.subscribe(), hello.routes);
    routes.mark_changed();
    let permit = desk.core.reserve().await.map_err(|_| End::Over)?;
    let visit = desk
        .roster
        .enter(hello, connection, outgoing.clone(), permit)
        .map_err(|newer| Refused::new(Refusal::OlderIncarnation, &format_args!("{node}: {newer}")))?;
    // Whichever ends first ends the session, so nothing that a cancelled arm had begun is missed.
    let result = tokio::select! {
        result = hear(desk, &node, visit, reader, &outgoing) => result,
        result = tell(desk, writer, queue, routes, held) => result,
        result = datagrams(desk, &node, visit, connection) => result,
        result = long_beats(desk, &node, visit, connection) => result,
        _ = connection.closed() => Err(End::Over),
    };
    if let Ok(permit) = desk.core.reserve().await {
        desk.roster.leave(&node, visit, permit);
    }
    if matches!(result, Ok(()) | Err(End::Over)) {
        // Of no effect when the connection is what ended.
        CloseCode::Done.close(connection);
    }
    result
}

type Begun = (Hello, FrameReader<RecvStream>, FrameWriter<SendStream>);

async fn begin(node: &NodeId, connection: &Connection) -> Result<Begun, End> {
    let (send, receive) = connection.accept_bi().await.map_err(|_| End::Over)?;
    let mut reader = FrameReader::new(receive);
    match reader.next().await.map_err(|error| broken(node, &error))? {
        AgentMessage::Hello(hello) if &hello.node == node => Ok((hello, reader, FrameWriter::new(send))),
        AgentMessage::Hello(hello) => {
            Err(Refused::new(Refusal::WrongName, &format_args!("{node} says it is {}", hello.node)).into())
        }
        AgentMessage::Event { .. } | AgentMessage::Renew { .. } => {
            Err(Refused::new(Refusal::Garbage, &format_args!("{node}: no hello")).into())
        }
    }
}

/// Reads the control stream.
async fn hear(
    desk: &Desk,
    node: &NodeId,
    visit: Visit,
    mut reader: FrameReader<RecvStream>,
    outgoing: &Outgoing,
) -> Result<(), End> {
    loop {
        let answer = match reader.next().await.map_err(|error| broken(node, &error))? {
            AgentMessage::Event { seq, event } => {
                // A full core makes the agent wait and repeat; nothing is acknowledged that it has not taken.
                let permit = desk.core.reserve().await.map_err(|_| End::Over)?;
                if !desk.roster.deliver(node, visit, seq, event, permit) {
                    return Err(End::Over);
                }
                ControllerMessage::Ack { seq }
            }
            AgentMessage::Renew { csr_der } => {
                ControllerMessage::Certificate { chain_pem: desk.registry.sign(node, &csr_der)? }
            }
            AgentMessage::Hello(_) => {
                return Err(Refused::new(Refusal::Garbage, &format_args!("{node}: second hello")).into());
            }
        };
        outgoing.send(Box::new(answer)).await.map_err(|_| End::Over)?;
    }
}

/// Writes what the node is told: the welcome first, then messages in order and, in its turn, what differs between the
/// newest table and the one that it has, which is `held` at first.
async fn tell(
    desk: &Desk,
    mut writer: FrameWriter<SendStream>,
    mut queue: mpsc::Receiver<Box<ControllerMessage>>,
    mut routes: watch::Receiver<Arc<Table>>,
    mut held: Option<Edition>,
) -> Result<(), End> {
    let mut is_welcomed = false;
    let mut turn: Option<(Instant, usize)> = None;
    loop {
        // Cancel-safe: a queue and a watch lose nothing when another arm is taken, and a turn is kept.
        tokio::select! {
            message = queue.recv() => {
                let message = message.ok_or(End::Over)?;
                written(writer.write(&*message)).await?;
                is_welcomed |= matches!(*message, ControllerMessage::Welcome(_));
            }
            changed = routes.changed(), if is_welcomed && turn.is_none() => {
                changed.map_err(|_| End::Over)?;
                let newest = Arc::clone(&routes.borrow());
                let bytes = byte_count(&newest.frames_from(held));
                turn = (bytes > 0).then(|| (desk.tables.turn(bytes), bytes));
            }
            paid = take_turn(turn), if turn.is_some() => {
                turn = None;
                let newest = Arc::clone(&routes.borrow_and_update());
                let mut frames = newest.frames_from(held);
                let bytes = byte_count(&frames);
                if bytes > paid {
                    // It grew while it waited; whoever comes after waits for that too.
                    desk.tables.turn(bytes - paid);
                }
                if !frames.is_empty() {
                    held = Some(newest.edition());
                    written(writer.get_mut().write_all_chunks(&mut frames)).await?;
                }
            }
        }
    }
}

/// Waits for the turn, and tells for how many bytes it was taken.
async fn take_turn(turn: Option<(Instant, usize)>) -> usize {
    let Some((at, bytes)) = turn else { return std::future::pending().await };
    tokio::time::sleep_until(at.into()).await;
    bytes
}

async fn written<E>(writing: impl Future<Output = Result<(), E>>) -> Result<(), End> {
    match timeout(WRITE_DEADLINE, writing).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(End::Over),
    }
}

/// Takes heartbeats.
async fn datagrams(desk: &Desk, node: &NodeId, visit: Visit, connection: &Connection) -> Result<(), End> {
    loop {
        let datagram = connection.read_datagram().await.map_err(|_| End::Over)?;
        let heartbeat = decode_datagram(&datagram).map_err(|error| broken(node, &error))?;
        take_beat(desk, node, visit, heartbeat)?;
    }
}

/// Takes heartbeats too long for a datagram, each on a stream of its own, one after the other.
async fn long_beats(desk: &Desk, node: &NodeId, visit: Visit, connection: &Connection) -> Result<(), End> {
    loop {
        let stream = connection.accept_uni().await.map_err(|_| End::Over)?;
        match timeout(BEAT_DEADLINE, FrameReader::new(stream).next()).await {
            Ok(Ok(heartbeat)) => take_beat(desk, node, visit, heartbeat)?,
            // Given up by the sender or overtaken by time; the next is as good.
            Ok(Err(FrameError::Truncated | FrameError::Closed | FrameError::Io(_))) | Err(_) => {}
            Ok(Err(error)) => return Err(broken(node, &error)),
        }
    }
}

fn take_beat(desk: &Desk, node: &NodeId, visit: Visit, heartbeat: Heartbeat) -> Result<(), End> {
    if &heartbeat.node != node {
        let reason = format_args!("{node} beats for {}", heartbeat.node);
        return Err(Refused::new(Refusal::WrongName, &reason).into());
    }
    desk.roster.beat(visit, heartbeat);
    Ok(())
}

fn broken(node: &NodeId, error: &FrameError) -> End {
    match Refusal::of_frame(error) {
        Some(kind) => End::Refused(Refused::new(kind, &format_args!("{node}: {error}"))),
        None => End::Over,
    }
}
