//! A bad network between an edge and the replicas: now and then a connection is reset in the middle of a byte stream.
//!
//! A machine of provider `local` passes connections of its peers on to the port that its agent wrote down. Here a relay
//! is put in between, by writing its port in that place. It sees only TLS, so a connection is reset at a random byte, drawn
//! with no memory of those before: how many requests that hits depends on their length alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// Between two looks for agents that have just started.
const LOOK: Duration = Duration::from_millis(25);

/// Agents that serve have written their ports long ago.
const LAID_WITHIN: Duration = Duration::from_secs(10);

/// What has passed through.
#[derive(Debug, Default)]
pub struct Passed {
    relays: AtomicU64,
    pub connections: AtomicU64,
    pub resets: AtomicU64,
    /// Towards the edges.
    pub bytes: AtomicU64,
    /// Between two resets, on average; 0 for none.
    bytes_mean: AtomicU64,
}

/// The relays of one fleet, until dropped.
#[derive(Debug)]
pub struct RoughLine {
    pub passed: Arc<Passed>,
    runtime: Option<Runtime>,
}

impl RoughLine {
    /// Puts relays before all replicas of the fleet in `dir`, those that start later too, and waits for the first
    /// `replicas`: an edge that connects before would go by them. They are good ones at first.
    ///
    /// # Errors
    /// When the threads cannot be started, or there are not so many replicas.
    pub fn lay(dir: &Path, replicas: u64) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let passed = Arc::new(Passed::default());
        runtime.spawn(watch(dir.join("nodes"), Arc::clone(&passed)));
        let began = Instant::now();
        while passed.relays.load(Ordering::Relaxed) < replicas {
            ensure!(
                began.elapsed() < LAID_WITHIN,
                "{replicas} replicas have no relay within {LAID_WITHIN:?}"
            );
            std::thread::sleep(LOOK); // bounded wait: by LAID_WITHIN
        }
        Ok(Self { passed, runtime: Some(runtime) })
    }

    /// From now on a connection is reset once in `bytes_mean` bytes towards an edge, on average.
    pub fn roughen(&self, bytes_mean: u64) {
        self.passed.bytes_mean.store(bytes_mean, Ordering::Relaxed);
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
async fn watch(nodes: PathBuf, passed: Arc<Passed>) {
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
            passed.relays.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(relay(listener, peer, Arc::clone(&passed)));
        }
        tokio::time::sleep(LOOK).await; // bounded wait: ends with its runtime
    }
}

fn ports_in(file: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

async fn relay(listener: TcpListener, peer: u16, passed: Arc<Passed>) {
    while let Ok((edge, _)) = listener.accept().await {
        passed.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(pass(edge, peer, Arc::clone(&passed)));
    }
}

/// Both ways until either end closes, or until the byte is drawn at which both are reset.
async fn pass(mut edge: TcpStream, peer: u16, passed: Arc<Passed>) {
    let Ok(mut agent) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], peer))).await else {
        let _ = edge.set_zero_linger();
        return;
    };
    let _ = (edge.set_nodelay(true), agent.set_nodelay(true));
    let (mut up, mut down) = (vec![0_u8; 16 << 10], vec![0_u8; 16 << 10]);
    loop {
        // Cancel safe: a read that is dropped has taken nothing.
        let sent = tokio::select! {
            read = edge.read(&mut up) => match read {
                Ok(length) if length > 0 => agent.write_all(&up[..length]).await,
                _ => return,
            },
            read = agent.read(&mut down) => match read {
                Ok(length) if length > 0 => {
                    let to = passed.reset_within(length);
                    passed.bytes.fetch_add(to.unwrap_or(length) as u64, Ordering::Relaxed);
                    let sent = edge.write_all(&down[..to.unwrap_or(length)]).await;
                    if to.is_some() {
                        passed.resets.fetch_add(1, Ordering::Relaxed);
                        let _ = (edge.set_zero_linger(), agent.set_zero_linger());
                        return;
                    }
                    sent
                }
                _ => return,
            },
        };
        if sent.is_err() {
            return;
        }
    }
}

impl Passed {
    /// The byte of the next `length` ones before which the connection is reset, if it is.
    fn reset_within(&self, length: usize) -> Option<usize> {
        let mean = self.bytes_mean.load(Ordering::Relaxed);
        // The inverse of the exponential distribution's own function; `1 - u` is never 0.
        let at = -(1.0 - fastrand::f64()).ln() * mean as f64;
        (mean > 0 && at < length as f64).then_some(at as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_come_once_in_the_mean_whatever_the_lengths_of_the_reads() {
        let passed = Passed::default();
        assert_eq!(passed.reset_within(usize::MAX), None, "a good line");
        passed.bytes_mean.store(10_000, Ordering::Relaxed);
        for length in [10_usize, 1000] {
            let resets = (0..2_000_000 / length).filter(|_| passed.reset_within(length).is_some()).count();
            assert!((120..=280).contains(&resets), "{resets} resets in 200 means of bytes");
        }
    }
}
