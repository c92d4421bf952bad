//! Identifiers, each a type of its own so that one cannot stand where another is meant.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest identifier accepted anywhere: the DNS label limit, since node ids become certificate names.
pub const ID_BYTES_MAX: usize = 63;

/// Why a text is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("{0:?} is empty or longer than {ID_BYTES_MAX} bytes")]
    Length(String),
    #[error("{0:?} may hold only a-z, 0-9 and '-', and neither starts nor ends with '-'")]
    Character(String),
}

/// Checks the rule shared by all names: a lower-case DNS label.
///
/// # Errors
/// Says which rule `text` breaks; the caller shows it to whoever wrote the name.
pub fn check_label(text: &str) -> Result<(), IdError> {
    if text.is_empty() || text.len() > ID_BYTES_MAX {
        return Err(IdError::Length(text.to_owned()));
    }
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !text.bytes().all(allowed) || text.starts_with('-') || text.ends_with('-') {
        return Err(IdError::Character(text.to_owned()));
    }
    Ok(())
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// # Errors
            /// When `text` is not a lower-case DNS label.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                check_label(&text)?;
                Ok(Self(text.into()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.as_str().to_owned()
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

label! {
    /// One GPU VM running one agent. Never reused.
    NodeId
}
label! {
    /// A named model with wanted replicas.
    DeploymentName
}
label! {
    /// One controller process of the fleet.
    ControllerId
}
label! {
    /// All nodes and controllers that belong together. Every VM is tagged with it; what carries another is another's.
    FleetName
}

impl Default for FleetName {
    fn default() -> Self {
        Self("cic".into())
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number! {
    /// One run of a node's agent. Counted up in the node's state directory at every start, so that what an
    /// earlier run sent and the network kept can never change what is believed now.
    Incarnation
}
number! {
    /// The leader's number. Commands of a lower term are refused.
    Term
}
number! {
    /// One recorded act towards the outside. Repeating an act with the same id is harmless.
    OperationId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_lower_case_dns_label() {
        for good in ["a", "n1", "cic-local-here-none-dev-20261124-001-node001", &"x".repeat(63)] {
            assert!(NodeId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "a_b", "-a", "a-", "a.b", "ä", &"x".repeat(64)] {
            assert!(NodeId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_id_from_outside_is_checked_when_it_is_read() {
        assert!(serde_json::from_str::<NodeId>("\"../etc\"").is_err());
    }
}
