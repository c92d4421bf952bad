//! Ports for what has to keep one over restarts, or binds it later than it is chosen.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// Below are ports that other programs are known by.
const PORT_MIN: u16 = 10_240;

/// Draws, of which one in use costs one.
const TRIES: u32 = 64;

/// A port of 127.0.0.1 that nothing listens on now, for TCP and UDP, and that the kernel gives nobody who asks for any: one that
/// it would give may be the local end of somebody's connection a moment later.
///
/// # Errors
/// When none is found.
pub fn lasting_port() -> io::Result<u16> {
    let above = ephemeral_min();
    for _ in 0..TRIES {
        let port = if above > PORT_MIN { fastrand::u16(PORT_MIN..above) } else { 0 };
        let tcp = match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(tcp) => tcp,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
            Err(error) => return Err(error),
        };
        let port = tcp.local_addr()?.port();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{TRIES} ports of 127.0.0.1 are all in use")))
}

/// The first of the ports that the kernel gives.
fn ephemeral_min() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    // Linux: 32768 to 60999.
    range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_port_is_free_and_none_that_the_kernel_gives() {
        for _ in 0..100 {
            let port = lasting_port().unwrap();
            let above = ephemeral_min();
            assert!(above <= PORT_MIN || (PORT_MIN..above).contains(&port), "{port}");
            assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok());
        }
    }
}
