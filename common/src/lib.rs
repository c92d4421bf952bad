//! The words both cic programs speak.
//!
//! Data flows through here in one direction: a shell reads the [`time::Clock`] and the network, turns what it
//! saw into plain values of [`report`], [`notice`] and [`wire`], and hands them to a pure core. Nothing in this
//! crate decides anything about a fleet.
//!
//! - [`id`], [`name`], [`time`], [`units`]: small types that keep one meaning each.
//! - [`report`], [`notice`], [`assignment`], [`route`], [`routing`]: what nodes say of themselves and what they are told.
//! - [`gpu`]: samples, faults and verdicts about GPUs.
//! - [`wire`]: frames, versions and messages of the QUIC control stream and the heartbeat datagrams.
//! - [`tls`]: the certificate authority, node identities, enrolment and renewal.
//! - [`supervise`]: the only place that spawns tasks.
//! - [`config`], [`backoff`], [`telemetry`]: reading TOML, waiting longer each time, and logs.
//! - [`source`]: where a model is to be had.
//! - [`model`]: what the files of a model say of themselves.
//! - [`fit`]: whether a model fits GPUs, and by what arithmetic.
//! - [`objects`]: object stores, and objects in them that show when they are damaged.
//! - [`mounts`]: what is mounted here.
//! - [`descriptor`]: a descriptor that the runtime watches.
//! - [`process`]: who runs on this machine, and who belongs to whom.

pub mod assignment;
pub mod backoff;
pub mod config;
pub mod descriptor;
pub mod fit;
pub mod gpu;
pub mod id;
pub mod memory;
pub mod model;
pub mod mounts;
pub mod name;
pub mod notice;
pub mod objects;
pub mod ports;
pub mod process;
pub mod report;
pub mod route;
pub mod routing;
pub mod source;
pub mod supervise;
pub mod telemetry;
pub mod time;
pub mod tls;
pub mod units;
pub mod wire;
