//! A road to the controller on which datagrams take their time, one way.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Datagrams on their way at once; more are lost.
const ON_THE_WAY_MAX: usize = 4096;

/// Between two looks at whether the road is closed.
const LOOK: Duration = Duration::from_millis(100);

const DATAGRAM_BYTES_MAX: usize = 65_535;

type Sent = (Instant, Arc<UdpSocket>, Vec<u8>);

/// Leads nowhere until [`SlowRoad::lead_to`]; closed when dropped.
#[derive(Debug)]
pub(crate) struct SlowRoad {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    port: AtomicU16,
    delay_ms: AtomicU64,
    delayed: AtomicU64,
    is_closed: AtomicBool,
}

impl SlowRoad {
    pub(crate) fn open() -> std::io::Result<Self> {
        let socket = Arc::new(UdpSocket::bind(("127.0.0.1", 0))?);
        socket.set_read_timeout(Some(LOOK))?;
        let address = socket.local_addr()?;
        let state = Arc::new(State::default());
        let (enter, leave) = sync_channel(ON_THE_WAY_MAX);
        let inner = Arc::clone(&state);
        let threads = vec![
            std::thread::spawn(move || take_in(&socket, &inner, &enter)),
            std::thread::spawn(move || let_out(&leave)),
        ];
        Ok(Self { address, state, threads })
    }

    /// From now on it leads to this port of the loopback.
    pub(crate) fn lead_to(&self, port: u16) {
        self.state.port.store(port, Ordering::Relaxed);
    }

    /// What enters from now on, towards the controller, arrives so much later.
    pub(crate) fn delay(&self, delay: Duration) {
        self.state.delay_ms.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Datagrams that were delayed.
    pub(crate) fn delayed(&self) -> u64 {
        self.state.delayed.load(Ordering::Relaxed)
    }
}

impl Drop for SlowRoad {
    fn drop(&mut self) {
        self.state.is_closed.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Takes datagrams of each sender in, until the road is closed.
fn take_in(socket: &Arc<UdpSocket>, state: &Arc<State>, enter: &SyncSender<Sent>) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    let mut flows: BTreeMap<SocketAddr, (Arc<UdpSocket>, JoinHandle<()>)> = BTreeMap::new();
    while !state.is_closed.load(Ordering::Relaxed) {
        let Ok((length, sender)) = socket.recv_from(&mut buffer) else { continue };
        let port = state.port.load(Ordering::Relaxed);
        if port == 0 {
            continue;
        }
        let upstream = match flows.entry(sender) {
            Entry::Occupied(known) => Arc::clone(&known.get().0),
            Entry::Vacant(place) => {
                let Ok(upstream) = open(port) else { continue };
                let upstream = Arc::new(upstream);
                let (from, to, state) = (Arc::clone(&upstream), Arc::clone(socket), Arc::clone(state));
                let back = std::thread::spawn(move || bring_back(&from, &to, sender, &state));
                place.insert((Arc::clone(&upstream), back));
                upstream
            }
        };
        let delay_ms = state.delay_ms.load(Ordering::Relaxed);
        state.delayed.fetch_add(u64::from(delay_ms > 0), Ordering::Relaxed);
        let due = Instant::now() + Duration::from_millis(delay_ms);
        let _ = enter.try_send((due, upstream, buffer[..length].to_vec()));
    }
    flows.into_values().for_each(|(_, back)| drop(back.join()));
}

fn open(port: u16) -> std::io::Result<UdpSocket> {
    let upstream = UdpSocket::bind(("127.0.0.1", 0))?;
    upstream.connect(("127.0.0.1", port))?;
    upstream.set_read_timeout(Some(LOOK))?;
    Ok(upstream)
}

/// In the order in which they came, until nobody takes any in.
fn let_out(leave: &Receiver<Sent>) {
    while let Ok((due, upstream, datagram)) = leave.recv() {
        std::thread::sleep(due.saturating_duration_since(Instant::now())); // bounded wait: the road's delay
        let _ = upstream.send(&datagram);
    }
}

fn bring_back(from: &UdpSocket, to: &UdpSocket, receiver: SocketAddr, state: &State) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    while !state.is_closed.load(Ordering::Relaxed) {
        if let Ok(length) = from.recv(&mut buffer) {
            let _ = to.send_to(&buffer[..length], receiver);
        }
    }
}
