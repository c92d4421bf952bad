//! The cloud's word that this VM will be taken.
//!
//! [`mod@file`] reads it from a file that a hook, a script or `cic fault NODE notice` writes.

pub mod file;
