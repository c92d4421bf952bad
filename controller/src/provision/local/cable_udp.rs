//! The datagram half of the cable: the agent's sockets to one controller.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use cic_common::supervise::{Kind, Supervisor, TaskHandle, TaskResult};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::cable::Line;

/// Sockets of the agent that are remembered; it uses one at a time, and a new one for each reconnect.
const FLOWS_MAX: usize = 64;

/// Largest UDP payload.
const DATAGRAM_BYTES_MAX: usize = 65_535;

struct Flow {
    upstream: Arc<UdpSocket>,
    task: TaskHandle,
    /// Order of last use.
    used: u64,
}

/// Relays until `token` is cancelled. While the cable is cut every datagram is lost, as on a real one.
pub(super) async fn run(
    socket: UdpSocket,
    controller: SocketAddr,
    line: Line,
    tasks: Supervisor,
    token: CancellationToken,
) -> TaskResult {
    let socket = Arc::new(socket);
    let mut flows: BTreeMap<SocketAddr, Flow> = BTreeMap::new();
    let mut buffer = vec![0_u8; DATAGRAM_BYTES_MAX];
    let mut used = 0;
    loop {
        // Cancel safe: a datagram is either received whole or left in the socket. A quiet agent is no fault.
        let (length, agent) = tokio::select! {
            received = socket.recv_from(&mut buffer) => received?,
            () = token.cancelled() => return Ok(()),
        };
        if line.is_cut() {
            continue;
        }
        used += 1;
        if !flows.contains_key(&agent) {
            make_room(&mut flows);
            let upstream = Arc::new(UdpSocket::bind(("127.0.0.1", 0)).await?);
            upstream.connect(controller).await?;
            // A new socket counts as full until the runtime has looked at it once.
            upstream.writable().await?;
            let (back, answers, line) = (Arc::clone(&socket), Arc::clone(&upstream), line.clone());
            let task = tasks
                .spawn("udp-flow", Kind::Passing, move |token| relay_back(answers, back, agent, line, token));
            flows.insert(agent, Flow { upstream, task, used });
        }
        if let Some(flow) = flows.get_mut(&agent) {
            flow.used = used;
            // A full buffer or a controller that is not there loses the datagram, as a network would.
            let _ = flow.upstream.try_send(&buffer[..length]);
        }
    }
}

async fn relay_back(
    upstream: Arc<UdpSocket>,
    socket: Arc<UdpSocket>,
    agent: SocketAddr,
    line: Line,
    token: CancellationToken,
) -> TaskResult {
    let mut buffer = vec![0_u8; DATAGRAM_BYTES_MAX];
    loop {
        // Cancel safe: a datagram is either received whole or left in the socket.
        let received = tokio::select! {
            received = upstream.recv(&mut buffer) => received,
            () = token.cancelled() => return Ok(()),
        };
        // An error is the kernel's word that nobody listens there yet; the agent keeps trying.
        if let Ok(length) = received
            && !line.is_cut()
        {
            let _ = socket.try_send_to(&buffer[..length], agent);
        }
    }
}

fn make_room(flows: &mut BTreeMap<SocketAddr, Flow>) {
    if flows.len() < FLOWS_MAX {
        return;
    }
    let oldest = flows.iter().min_by_key(|(_, flow)| flow.used).map(|(agent, _)| *agent);
    if let Some(flow) = oldest.and_then(|agent| flows.remove(&agent)) {
        flow.task.cancel();
    }
}
