//! A VM's network cable: what passes through it, and whether it is cut.

use std::net::SocketAddr;
use std::path::PathBuf;

use cic_common::supervise::{Kind, Supervisor};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

use super::record::Cable;
use super::{cable_tcp, cable_udp};

/// Cuts and mends the cable.
#[derive(Debug)]
pub(super) struct Switch {
    is_cut: watch::Sender<bool>,
}

impl Switch {
    pub(super) fn new() -> (Self, Line) {
        let (is_cut, line) = watch::channel(false);
        (Self { is_cut }, Line(line))
    }

    pub(super) fn set(&self, is_cut: bool) {
        self.is_cut.send_replace(is_cut);
    }
}

/// One relay's view of the switch.
#[derive(Debug, Clone)]
pub(super) struct Line(watch::Receiver<bool>);

impl Line {
    pub(super) fn is_cut(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns at once while the cable is whole. Cancel safe.
    pub(super) async fn whole(&mut self) {
        // The switch lives as long as the machine; when it is gone so is the cable's purpose.
        let _ = self.0.wait_for(|is_cut| !is_cut).await;
    }

    /// Waits until the cable is cut. Cancel safe.
    pub(super) async fn cut(&mut self) {
        if self.0.wait_for(|is_cut| *is_cut).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Binds both relays on free loopback ports and starts them: datagrams to each of `controllers`, connections to
/// the port that the agent wrote to `ports_file`.
pub(super) async fn lay(
    tasks: &Supervisor,
    line: &Line,
    controllers: &[SocketAddr],
    ports_file: PathBuf,
) -> std::io::Result<Cable> {
    let mut ends = Vec::new();
    for controller in controllers {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).await?;
        ends.push(socket.local_addr()?.to_string());
        let (line, controller, inner) = (line.clone(), *controller, tasks.clone());
        tasks.spawn("udp-cable", Kind::Vital, move |token| {
            cable_udp::run(socket, controller, line, inner, token)
        });
    }
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let peer = listener.local_addr()?.to_string();
    let (line, inner) = (line.clone(), tasks.clone());
    tasks.spawn("tcp-cable", Kind::Vital, move |token| {
        cable_tcp::run(listener, ports_file, line, inner, token)
    });
    Ok(Cable { controllers: ends, peer })
}
