//! What travels between agent and controller.
//!
//! [`message`] holds the values; they are encoded by [`codec`] (bincode, bounded) and cut into frames by
//! [`frame`] (length, version, body). Heartbeats travel as datagrams with the same version and body, without
//! the length: a datagram has its own end. [`order`] is a command by the poll path, as JSON. [`version`] says which versions this build reads and writes,
//! [`close`] why a connection ended.

pub mod close;
pub mod codec;
pub mod frame;
pub mod message;
pub mod order;
pub mod version;

#[cfg(test)]
mod golden;
