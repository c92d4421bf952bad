//! The connection half of the cable: from the advertised port to the agent's own.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cic_common::supervise::{Kind, Supervisor, TaskResult};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::cable::Line;

/// Connections through one cable at once; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 1024;

/// Bytes on their way in each direction of a connection.
const BUFFER_BYTES: usize = 16 * 1024;

/// A loopback connect that takes longer meets a full backlog.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// What the agent writes once its ports are bound.
#[derive(Debug, Deserialize)]
struct Ports {
    peer: u16,
}

/// Relays until `token` is cancelled. While the cable is cut, bytes and new connections stall in both
/// directions and go on when it is mended, as TCP's own repetition would have it.
pub(super) async fn run(
    listener: TcpListener,
    ports_file: PathBuf,
    line: Line,
    tasks: Supervisor,
    token: CancellationToken,
) -> TaskResult {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let ports_file: Arc<Path> = ports_file.into();
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await?;
        // Cancel safe: a connection not accepted stays in the backlog.
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = token.cancelled() => return Ok(()),
        };
        // An accept that fails is one visitor's loss (reset before it was taken).
        let Ok((client, _)) = accepted else { continue };
        let (ports_file, line) = (Arc::clone(&ports_file), line.clone());
        tasks.spawn("tcp-visit", Kind::Passing, move |token| async move {
            let _permit = permit;
            // Dropping the visit closes both ends.
            tokio::select! {
                result = visit(client, &ports_file, line) => result.map_err(Into::into),
                () = token.cancelled() => Ok(()),
            }
        });
    }
}

async fn visit(mut client: TcpStream, ports_file: &Path, mut line: Line) -> io::Result<()> {
    line.whole().await;
    let mut agent = match connect(ports_file).await {
        Ok(agent) => agent,
        Err(error) => {
            // Nobody listens: the visitor sees a reset, the nearest to a refusal that a relay can give.
            client.set_zero_linger()?;
            return Err(error);
        }
    };
    client.set_nodelay(true)?;
    agent.set_nodelay(true)?;
    let result = {
        let (from_client, to_client) = client.split();
        let (from_agent, to_agent) = agent.split();
        tokio::try_join!(pump(from_client, to_agent, line.clone()), pump(from_agent, to_client, line))
            .map(|_| ())
    };
    if result.is_err() {
        for end in [&client, &agent] {
            let _ = end.set_zero_linger();
        }
    }
    result
}

async fn connect(ports_file: &Path) -> io::Result<TcpStream> {
    let ports: Ports = serde_json::from_slice(&tokio::fs::read(ports_file).await?)?;
    tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(("127.0.0.1", ports.peer))).await?
}

/// Moves bytes one way until the end of the stream, then passes the end on. A quiet connection is no fault, so
/// there is no deadline here: its two ends have theirs.
async fn pump(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut line: Line) -> io::Result<()> {
    let mut buffer = vec![0_u8; BUFFER_BYTES];
    loop {
        line.whole().await;
        // Cancel safe: bytes are either read into the buffer or left in the socket.
        let length = tokio::select! {
            biased;
            () = line.cut() => continue,
            read = from.read(&mut buffer) => read?,
        };
        line.whole().await;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}
