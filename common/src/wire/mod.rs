//! What travels between agent and controller.
//!
//! [`message`] holds the values; they are encoded by [`codec`] (bincode, bounded) and cut into frames by
//! [`frame`] (length, version, body). Heartbeats travel as datagrams with the same version and body, without
//! the length: a datagram has its own end.

pub mod message;
