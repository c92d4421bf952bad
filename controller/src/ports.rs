//! The sockets of a controller, bound before anything else, and the file that says where they are.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// `STATE/ports.json`, written once both listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub quic: u16,
    pub api: u16,
}

/// A port that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: free the port, or set {key} to another")]
pub struct ListenError {
    address: SocketAddr,
    key: &'static str,
    source: io::Error,
}

/// Both sockets.
#[derive(Debug)]
pub struct Sockets {
    quic: UdpSocket,
    api: TcpListener,
}

impl Ports {
    /// What an earlier run wrote, if it did.
    #[must_use]
    pub fn read(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(state_dir.join("ports.json")).ok()?).ok()
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn write(self, state_dir: &Path) -> io::Result<()> {
        let part = state_dir.join("ports.json.tmp");
        fs::write(&part, serde_json::to_vec(&self)?)?;
        fs::rename(part, state_dir.join("ports.json"))
    }
}

impl Sockets {
    /// Binds both. Port 0 asks for any; the one of an earlier run is tried first, since nodes remember it.
    ///
    /// # Errors
    /// Names the address and the key to change.
    pub fn bind(quic: SocketAddr, api: SocketAddr, earlier: Option<Ports>) -> Result<Self, ListenError> {
        let quic = bind(quic, earlier.map(|ports| ports.quic), "quic.listen", UdpSocket::bind)?;
        let api = bind(api, earlier.map(|ports| ports.api), "api.listen", TcpListener::bind)?;
        Ok(Self { quic, api })
    }

    /// # Errors
    /// When a socket does not know its own address.
    pub fn ports(&self) -> io::Result<Ports> {
        Ok(Ports { quic: self.quic.local_addr()?.port(), api: self.api.local_addr()?.port() })
    }

    /// Both, ready for the runtime.
    ///
    /// # Errors
    /// When a socket does not take the mode.
    pub fn into_parts(self) -> io::Result<(UdpSocket, tokio::net::TcpListener)> {
        self.quic.set_nonblocking(true)?;
        self.api.set_nonblocking(true)?;
        Ok((self.quic, tokio::net::TcpListener::from_std(self.api)?))
    }
}

fn bind<S>(
    address: SocketAddr,
    earlier: Option<u16>,
    key: &'static str,
    try_bind: impl Fn(SocketAddr) -> io::Result<S>,
) -> Result<S, ListenError> {
    if address.port() == 0
        && let Some(port) = earlier
        && let Ok(socket) = try_bind(SocketAddr::new(address.ip(), port))
    {
        return Ok(socket);
    }
    try_bind(address).map_err(|source| ListenError { address, key, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named_with_its_key() {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("valid");
        let first = Sockets::bind(any, any, None).expect("binds");
        let taken = SocketAddr::new(any.ip(), first.ports().expect("ports").api);
        let error = Sockets::bind(any, taken, None).expect_err("taken").to_string();
        assert!(error.contains(&taken.to_string()) && error.contains("api.listen"), "{error}");
    }

    #[test]
    fn a_restart_on_any_port_comes_back_where_it_was() {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("valid");
        let directory = tempfile::tempdir().expect("directory");
        let first = Sockets::bind(any, any, None).expect("binds");
        let ports = first.ports().expect("ports");
        ports.write(directory.path()).expect("writes");
        drop(first);
        let second = Sockets::bind(any, any, Ports::read(directory.path())).expect("binds");
        assert_eq!(second.ports().expect("ports"), ports);
    }
}
