//! The port where the polls of all simulated agents are answered: the node is the one that the caller asks for by name.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cic_common::tls::config::tcp_server;
use cic_common::tls::{Peer, Trust};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::agent::Agent;

/// Polls that come in one moment wait here; more are lost like any packet.
const BACKLOG: u32 = 4096;

/// A request for a heartbeat is a few lines.
const HEAD_BYTES_MAX: usize = 4096;

/// Out of descriptors: accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Every agent of this process by the name its certificate carries.
#[derive(Debug)]
struct Names(BTreeMap<String, Arc<Agent>>);

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let agent = self.0.get(hello.server_name()?)?;
        agent.identity.resolve(hello)
    }
}

/// The bound port. Nobody is answered before it is served.
pub(super) fn bind() -> anyhow::Result<(TcpListener, String)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let listener = socket.listen(BACKLOG)?;
    let address = listener.local_addr()?.to_string();
    Ok((listener, address))
}

/// Answers until the process ends.
pub(super) async fn serve(
    listener: TcpListener,
    agents: Vec<Arc<Agent>>,
    trust: Trust,
) -> anyhow::Result<()> {
    let Some(any) = agents.first() else { return Ok(()) };
    let mut config = (*tcp_server(&any.identity, &trust)?).clone();
    let name = |agent: &Arc<Agent>| match Peer::Node(agent.id.clone()).server_name() {
        tokio_rustls::rustls::pki_types::ServerName::DnsName(name) => name.as_ref().to_owned(),
        other => format!("{other:?}"),
    };
    let names = Arc::new(Names(agents.iter().map(|agent| (name(agent), Arc::clone(agent))).collect()));
    config.cert_resolver = Arc::clone(&names) as Arc<dyn ResolvesServerCert>;
    let tls = TlsAcceptor::from(Arc::new(config));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (tls, names) = (tls.clone(), Arc::clone(&names));
                // A controller that leaves is no fault.
                tokio::spawn(async move { connection(&tls, &names, stream).await });
            }
            Err(error) => {
                eprintln!("a poll is not accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await; // bounded wait: one pause
            }
        }
    }
}

async fn connection(tls: &TlsAcceptor, names: &Names, stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = tls.accept(stream).await?;
    let asked = stream.get_ref().1.server_name().and_then(|name| names.0.get(name)).cloned();
    let Some(agent) = asked else { return Ok(()) };
    let mut head = Vec::new();
    loop {
        if stream.read_buf(&mut head).await? == 0 || head.len() > HEAD_BYTES_MAX {
            return Ok(());
        }
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            let json = serde_json::to_string(&agent.beat())?;
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{json}",
                json.len()
            );
            stream.write_all(answer.as_bytes()).await?;
            stream.flush().await?;
        }
    }
}
