//! A bad network between an edge and the replicas: now and then a connection is reset in the middle of a byte stream.
//!
//! A machine of provider `local` passes connections of its peers on to the port that its agent wrote down. Here a relay
//! is put in between, by writing its port in that place. It sees only TLS, so a connection is reset after a random
//! number of bytes, drawn with no memory: how many requests that hits depends on their length alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// Between two looks for agents that have just started.
const LOOK: Duration = Duration::from_millis(25);

/// What has passed through.
#[derive(Debug, Default)]
pub struct Passed {
    pub connections: AtomicU64,
    pub resets: AtomicU64,
    /// Towards the edges.
    pub bytes: AtomicU64,
}

/// The relays of one fleet, until dropped.
#[derive(Debug)]
pub struct RoughLine {
    pub passed: Arc<Passed>,
    runtime: Option<Runtime>,
}

impl RoughLine {
    /// Puts relays before all replicas of the fleet in `dir`, those that start later too. A connection is reset after
    /// `bytes_mean` bytes towards the edge, on average.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn lay(dir: &Path, bytes_mean: f64) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let passed = Arc::new(Passed::default());
        runtime.spawn(watch(dir.join("nodes"), bytes_mean, Arc::clone(&passed)));
        Ok(Self { passed, runtime: Some(runtime) })
    }
}

impl Drop for RoughLine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Puts a relay before each agent that has written its ports since the last look.
async fn watch(nodes: PathBuf, bytes_mean: f64, passed: Arc<Passed>) {
    let mut own: BTreeMap<PathBuf, u16> = BTreeMap::new();
    loop {
        for entry in std::fs::read_dir(&nodes).into_iter().flatten().flatten() {
            let file = entry.path().join("state/ports.json");
            let Some(mut ports) = ports_in(&file) else { continue };
            let peer = ports["peer"].as_u64().and_then(|port| u16::try_from(port).ok());
            let Some(peer) = peer.filter(|port| own.get(&file) != Some(port)) else { continue };
            let Ok(listener) = TcpListener::bind(("127.0.0.1", 0)).await else { continue };
            let Ok(here) = listener.local_addr() else { continue };
            ports["peer"] = json!(here.port());
            let part = file.with_extension("rough");
            if std::fs::write(&part, ports.to_string()).is_err() || std::fs::rename(&part, &file).is_err() {
                continue;
            }
            own.insert(file, here.port());
            tokio::spawn(relay(listener, peer, bytes_mean, Arc::clone(&passed)));
        }
        tokio::time::sleep(LOOK).await; // bounded wait: ends with its runtime
    }
}

fn ports_in(file: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

async fn relay(listener: TcpListener, peer: u16, bytes_mean: f64, passed: Arc<Passed>) {
    while let Ok((edge, _)) = listener.accept().await {
        passed.connections.fetch_add(1, Ordering::Relaxed);
        // The inverse of the exponential distribution's own function; `1 - u` is never 0.
        let bytes_left = -(1.0 - fastrand::f64()).ln() * bytes_mean;
        tokio::spawn(pass(edge, peer, bytes_left as u64, Arc::clone(&passed)));
    }
}

/// Both ways until either end closes, or until `bytes_left` have gone to the edge: then both are reset.
async fn pass(mut edge: TcpStream, peer: u16, mut bytes_left: u64, passed: Arc<Passed>) {
    let Ok(mut agent) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], peer))).await else {
        let _ = edge.set_zero_linger();
        return;
    };
    let _ = (edge.set_nodelay(true), agent.set_nodelay(true));
    let (mut up, mut down) = (vec![0_u8; 16 << 10], vec![0_u8; 16 << 10]);
    loop {
        // Cancel safe: a read that is dropped has taken nothing.
        let is_open = tokio::select! {
            read = edge.read(&mut up) => match read {
                Ok(length) if length > 0 => agent.write_all(&up[..length]).await.is_ok(),
                _ => false,
            },
            read = agent.read(&mut down) => match read {
                Ok(length) if length > 0 => {
                    let length = length.min(usize::try_from(bytes_left).unwrap_or(usize::MAX));
                    bytes_left -= length as u64;
                    passed.bytes.fetch_add(length as u64, Ordering::Relaxed);
                    edge.write_all(&down[..length]).await.is_ok()
                }
                _ => false,
            },
        };
        if !is_open {
            return;
        }
        if bytes_left == 0 {
            passed.resets.fetch_add(1, Ordering::Relaxed);
            let _ = (edge.set_zero_linger(), agent.set_zero_linger());
            return;
        }
    }
}
