//! One snapshot as an object: whole or refused.

use std::fmt;

use bytes::Bytes;
use cic_common::objects::{ObjectFault, seal, sha256_hex, unseal};
use serde::{Deserialize, Serialize};

use crate::store::StateCopy;

/// First word of the object.
const KIND: &str = "cic-snapshot";

/// Which fleet it is of: SHA-256 of its authority's certificate. Agents trust no controller of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FleetMark(String);

impl FleetMark {
    #[must_use]
    pub fn of(authority_pem: &str) -> Self {
        Self(sha256_hex(&[authority_pem.as_bytes()]))
    }
}

impl fmt::Display for FleetMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.get(..12).unwrap_or(&self.0))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Snapshot {
    fleet: FleetMark,
    state: StateCopy,
}

/// Why an object is not restored from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error(transparent)]
    Object(#[from] ObjectFault),
    #[error("it is of another fleet: its authority is {found}, this one's {own}")]
    Fleet { found: FleetMark, own: FleetMark },
}

pub(super) fn write(fleet: &FleetMark, state: StateCopy) -> Result<Bytes, serde_json::Error> {
    seal(KIND, &Snapshot { fleet: fleet.clone(), state })
}

pub(super) fn read(fleet: &FleetMark, object: &[u8]) -> Result<StateCopy, Fault> {
    let Snapshot { fleet: found, state } = unseal(KIND, object)?;
    if found != *fleet {
        return Err(Fault::Fleet { found, own: fleet.clone() });
    }
    Ok(state)
}
