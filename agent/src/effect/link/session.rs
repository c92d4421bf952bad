//! One connection to one controller, from `Hello` to its end.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cic_common::assignment::Predecessor;
use cic_common::id::Term;
use cic_common::report::Heartbeat;
use cic_common::route::{Edition, OutOfStep, RoutingChanges, RoutingTable};
use cic_common::time::Mono;
use cic_common::tls::identity::IdentityError;
use cic_common::wire::close::CloseCode;
use cic_common::wire::frame::{FrameError, FrameReader, FrameWriter, encode_datagram, encode_frame};
use cic_common::wire::message::{AgentMessage, ControllerMessage, Hello, Welcome};
use futures_util::FutureExt as _;
use quinn::{Connection, RecvStream, SendDatagramError, SendStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::event::LinkEvent;
use super::links::Link;
use crate::core::Event;

/// From `Hello` to `Welcome`. The controller's core answers within milliseconds, or after its store came up.
const WELCOME_DEADLINE: Duration = Duration::from_secs(5);

/// A frame that cannot be written for as long as the idle timeout has nobody reading it.
const WRITE_DEADLINE: Duration = Duration::from_secs(4);

/// An unacknowledged event is sent again after this. The stream is reliable; the controller's core may have been
/// too busy to take it. Design: each acked and retried until acked.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// At the end of the program: time to have the last events acknowledged.
const FLUSH_WITHIN: Duration = Duration::from_millis(500);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("refused: {reason}")]
    Refused { reason: String },
    #[error("controller did not begin with a welcome")]
    NoWelcome,
    #[error("no {what} within {within:?}")]
    Late { what: &'static str, within: Duration },
    #[error("connection lost")]
    Lost(#[source] quinn::ConnectionError),
    #[error("control stream broken")]
    Frame(#[source] FrameError),
    #[error("no next certificate can be asked for")]
    Renewal(#[source] IdentityError),
    #[error("routing table cannot be kept up")]
    OutOfStep(#[source] OutOfStep),
    #[error("nobody takes what the link brings")]
    NoDriver,
}

/// Talks until the connection ends or `token` is cancelled; then what is unacknowledged is given a last chance.
/// `on_welcome` is called once the controller has let us in.
pub(super) async fn run(
    link: &Link,
    connection: &Connection,
    token: &CancellationToken,
    on_welcome: impl FnOnce(),
) -> Result<(), SessionError> {
    let begun = tokio::select! {
        // Cancel-safe: the connection is dropped with everything on it.
        () = token.cancelled() => return Ok(()),
        begun = begin(link, connection) => begun?,
    };
    let (welcome, reader, writer) = begun;
    on_welcome();
    let challenges = watch::Sender::new(0);
    let heard = hear(link, welcome, reader, &challenges);
    let told = tell(link, writer);
    let beaten = beat(link, connection, challenges.subscribe());
    let talk = async {
        // Whichever ends first ends the session, so nothing that a cancelled arm had begun is missed.
        tokio::select! {
            result = heard => result,
            result = told => result,
            result = beaten => result,
            error = connection.closed() => Err(SessionError::Lost(error)),
        }
    };
    tokio::pin!(talk);
    tokio::select! {
        result = &mut talk => result,
        () = token.cancelled() => {
            // The loops go on, so that events are sent and acknowledgements read.
            tokio::select! {
                result = &mut talk => result,
                () = flushed(link) => Ok(()),
                () = tokio::time::sleep(FLUSH_WITHIN) => Ok(()),
            }
        }
    }
}

type Begun = (Welcome, FrameReader<RecvStream>, FrameWriter<SendStream>);

async fn begin(link: &Link, connection: &Connection) -> Result<Begun, SessionError> {
    let routes = link.routes.lock().unwrap_or_else(PoisonError::into_inner).edition();
    let hello = Hello {
        node: link.pulse.node().clone(),
        incarnation: link.pulse.incarnation(),
        role: link.spec.role,
        address: link.spec.advertise.clone(),
        version: link.spec.version.clone(),
        keeps_checkpoints: link.spec.keeps_checkpoints,
        routes: (routes != Edition::default()).then_some(routes),
        report: link.pulse.report(),
    };
    let exchange = async {
        let (send, receive) = connection.open_bi().await.map_err(SessionError::Lost)?;
        let mut writer = FrameWriter::new(send);
        let mut reader = FrameReader::new(receive);
        writer.write(&AgentMessage::Hello(hello)).await.map_err(SessionError::Frame)?;
        match reader.next().await.map_err(SessionError::Frame)? {
            ControllerMessage::Welcome(welcome) => Ok((welcome, reader, writer)),
            ControllerMessage::Refused { reason } => Err(SessionError::Refused { reason }),
            _ => Err(SessionError::NoWelcome),
        }
    };
    let begun = timeout(WELCOME_DEADLINE, exchange)
        .await
        .unwrap_or(Err(SessionError::Late { what: "welcome", within: WELCOME_DEADLINE }));
    // The connection's own word says more than the stream that broke with it.
    begun.map_err(|error| match (error, connection.close_reason()) {
        (SessionError::Frame(_), Some(reason)) => SessionError::Lost(reason),
        (error, _) => error,
    })
}

/// Reads what the controller says and passes it on.
async fn hear(
    link: &Link,
    welcome: Welcome,
    mut reader: FrameReader<RecvStream>,
    challenges: &watch::Sender<u64>,
) -> Result<(), SessionError> {
    let Welcome { controller, term, assignment, predecessors, heartbeat_ms: _ } = welcome;
    pass(link, LinkEvent::Up { address: link.address.clone(), controller, term }).await?;
    if let Some(assignment) = assignment {
        pass(link, LinkEvent::Core(Event::Assigned { term, assignment })).await?;
    }
    succeed(link, term, predecessors).await?;
    loop {
        match reader.next().await.map_err(SessionError::Frame)? {
            ControllerMessage::Ack { seq } => link.outbox.acknowledge(seq),
            ControllerMessage::Challenge { number } => {
                challenges.send_replace(number);
            }
            ControllerMessage::Assign { term, assignment, predecessors } => {
                pass(link, LinkEvent::Core(Event::Assigned { term, assignment })).await?;
                succeed(link, term, predecessors).await?;
            }
            ControllerMessage::Command { operation, term, command } => {
                pass(link, LinkEvent::Core(Event::Commanded { operation, term, command })).await?;
            }
            ControllerMessage::Routes { table } => {
                keep(link, Arc::new(table)).await?;
            }
            ControllerMessage::RouteChanges(changes) => {
                let table = changed(link, changes)?;
                keep(link, table).await?;
            }
            ControllerMessage::Certificate { chain_pem } => {
                if let Err(error) = link.renewal.answer(link.number, &chain_pem) {
                    warn!(controller = link.address, %error, "renewed certificate is of no use");
                }
            }
            ControllerMessage::Refused { reason } => return Err(SessionError::Refused { reason }),
            ControllerMessage::Welcome(_) => {
                debug!(controller = link.address, "second welcome ignored");
            }
        }
    }
}

/// Makes changes to the table that this controller sent before. Out of step with it, the session ends, and the next
/// begins with a whole table.
fn changed(link: &Link, changes: RoutingChanges) -> Result<Arc<RoutingTable>, SessionError> {
    let mut routes = link.routes.lock().unwrap_or_else(PoisonError::into_inner);
    let mut table = RoutingTable::clone(&routes);
    if let Err(error) = changes.apply_to(&mut table) {
        *routes = Arc::default();
        return Err(SessionError::OutOfStep(error));
    }
    Ok(Arc::new(table))
}

/// Hands a table to the edge. Only then is it one that this node has: what is lost with a session is sent again.
async fn keep(link: &Link, table: Arc<RoutingTable>) -> Result<(), SessionError> {
    pass(link, LinkEvent::Routes(Arc::clone(&table))).await?;
    *link.routes.lock().unwrap_or_else(PoisonError::into_inner) = table;
    Ok(())
}

async fn succeed(link: &Link, term: Term, predecessors: Vec<Predecessor>) -> Result<(), SessionError> {
    for Predecessor { node: predecessor, is_gone } in predecessors {
        pass(link, LinkEvent::Core(Event::TakesPlaceOf { term, predecessor, is_gone })).await?;
    }
    Ok(())
}

/// Sends events until they are acknowledged, and the request for the next certificate when it is time.
async fn tell(link: &Link, mut writer: FrameWriter<SendStream>) -> Result<(), SessionError> {
    let mut sent: BTreeMap<u64, Mono> = BTreeMap::new();
    loop {
        let changed = link.outbox.changed();
        tokio::pin!(changed);
        // Registered before the look at the content, so that no event slips in between.
        changed.as_mut().enable();
        let now = link.clock.now();
        let waiting = link.outbox.waiting(now);
        sent.retain(|seq, _| waiting.iter().any(|(waiting, _)| waiting == seq));
        for (seq, event) in waiting {
            if sent.get(&seq).is_none_or(|at| now.since(*at) >= RETRY_INTERVAL) {
                write(&mut writer, &AgentMessage::Event { seq, event }).await?;
                sent.insert(seq, now);
            }
        }
        // Cancel-safe: all three only wait.
        tokio::select! {
            () = &mut changed => {}
            () = tokio::time::sleep(RETRY_INTERVAL), if !sent.is_empty() => {}
            () = link.renewal.due() => {
                if let Some(csr_der) = link.renewal.ask(link.number).map_err(SessionError::Renewal)? {
                    write(&mut writer, &AgentMessage::Renew { csr_der }).await?;
                }
            }
        }
    }
}

/// Sends a heartbeat for every report and every challenge.
async fn beat(
    link: &Link,
    connection: &Connection,
    mut challenges: watch::Receiver<u64>,
) -> Result<(), SessionError> {
    let mut reports = link.pulse.changes();
    loop {
        let challenge = *challenges.borrow_and_update();
        reports.mark_unchanged();
        send_beat(connection, &link.pulse.beat(challenge)).await?;
        // Cancel-safe: both are watches. Their senders live as long as this session.
        tokio::select! {
            _ = reports.changed() => {}
            _ = challenges.changed() => {}
        }
    }
}

/// A datagram, or a stream of its own when the report does not fit one packet. Never queued: with no room for
/// either, the next heartbeat is as good.
async fn send_beat(connection: &Connection, heartbeat: &Heartbeat) -> Result<(), SessionError> {
    let datagram = encode_datagram(heartbeat).map_err(SessionError::Frame)?;
    match connection.send_datagram(datagram) {
        Ok(()) => Ok(()),
        Err(SendDatagramError::ConnectionLost(error)) => Err(SessionError::Lost(error)),
        Err(
            SendDatagramError::TooLarge | SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled,
        ) => {
            let Some(opened) = connection.open_uni().now_or_never() else {
                return Ok(());
            };
            let mut stream = opened.map_err(SessionError::Lost)?;
            let frame = encode_frame(heartbeat).map_err(SessionError::Frame)?;
            // A stream that finds no room in time is reset by being dropped; the next heartbeat is as good.
            if let Ok(Ok(())) = timeout(RETRY_INTERVAL, stream.write_all(&frame)).await {
                let _ = stream.finish();
            }
            Ok(())
        }
    }
}

async fn flushed(link: &Link) {
    loop {
        let changed = link.outbox.changed();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if link.outbox.is_empty() {
            return;
        }
        changed.await;
    }
}

async fn write(writer: &mut FrameWriter<SendStream>, message: &AgentMessage) -> Result<(), SessionError> {
    timeout(WRITE_DEADLINE, writer.write(message))
        .await
        .map_err(|_| SessionError::Late { what: "room on the stream", within: WRITE_DEADLINE })?
        .map_err(SessionError::Frame)
}

async fn pass(link: &Link, event: LinkEvent) -> Result<(), SessionError> {
    link.events.send(event).await.map_err(|_| SessionError::NoDriver)
}

impl SessionError {
    /// Whether dialling again soon is pointless: the controller knows us and says no.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Refused { .. } => true,
            Self::Lost(error) => {
                CloseCode::of(error).is_some_and(|code| !matches!(code, CloseCode::Done | CloseCode::Busy))
            }
            Self::NoWelcome
            | Self::Late { .. }
            | Self::Frame(_)
            | Self::Renewal(_)
            | Self::OutOfStep(_)
            | Self::NoDriver => false,
        }
    }
}
