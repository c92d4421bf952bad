//! A line to a server that can be cut: both ends stay connected, and nothing passes.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// The line, until dropped.
#[derive(Debug)]
pub struct CutLine {
    address: SocketAddr,
    is_cut: watch::Sender<bool>,
    runtime: Option<Runtime>,
}

impl CutLine {
    /// Lays a line to `target`.
    ///
    /// # Errors
    /// When there is no port or no thread for it.
    pub fn lay(target: SocketAddr) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let (is_cut, line) = watch::channel(false);
        runtime.spawn(accept(listener, target, line));
        Ok(Self { address, is_cut, runtime: Some(runtime) })
    }

    /// Where to connect instead.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    pub fn mend(&self) {
        self.is_cut.send_replace(false);
    }
}

impl Drop for CutLine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, line: watch::Receiver<bool>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(visit(client, target, line.clone()));
    }
}

async fn visit(client: TcpStream, target: SocketAddr, mut line: watch::Receiver<bool>) {
    whole(&mut line).await;
    let Ok(server) = TcpStream::connect(target).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // The end of one way is the end of both: neither side of this protocol goes on alone.
    tokio::select! {
        () = pump(from_client, to_server, line.clone()) => {}
        () = pump(from_server, to_client, line) => {}
    }
}

async fn whole(line: &mut watch::Receiver<bool>) {
    // An error says that the line is gone, and its tasks with it.
    let _ = line.wait_for(|is_cut| !is_cut).await;
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut line: watch::Receiver<bool>) {
    let mut buffer = vec![0_u8; 16 * 1024];
    loop {
        let Ok(length) = from.read(&mut buffer).await else { return };
        whole(&mut line).await;
        if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
