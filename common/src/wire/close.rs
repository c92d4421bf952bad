//! Why a connection was closed, as the number the other side is given.

/// Application close codes of both protocols. The numbers are part of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CloseCode {
    /// The work is done, or the program stops.
    Done,
    /// `cic/1` needs a certificate.
    NoCertificate,
    /// The `Hello` names another node than the certificate.
    WrongName,
    /// A message could not be understood.
    Garbage,
    /// A message was longer than a frame may be.
    Oversized,
    /// A message had a version that is not spoken here.
    Version,
    /// A newer incarnation of this node is or was connected.
    OlderIncarnation,
    /// A newer connection of this node took over.
    Replaced,
    /// No message came in time.
    Late,
    /// The receiver has no room.
    Busy,
    /// The join token opens nothing.
    TokenRefused,
}

impl CloseCode {
    const ALL: [Self; 11] = [
        Self::Done,
        Self::NoCertificate,
        Self::WrongName,
        Self::Garbage,
        Self::Oversized,
        Self::Version,
        Self::OlderIncarnation,
        Self::Replaced,
        Self::Late,
        Self::Busy,
        Self::TokenRefused,
    ];

    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::NoCertificate => 1,
            Self::WrongName => 2,
            Self::Garbage => 3,
            Self::Oversized => 4,
            Self::Version => 5,
            Self::OlderIncarnation => 6,
            Self::Replaced => 7,
            Self::Late => 8,
            Self::Busy => 9,
            Self::TokenRefused => 10,
        }
    }

    /// The code with this number; `None` when a newer peer gives one that is not known here.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|code| u64::from(code.number()) == number)
    }

    /// Words for people and label of the counter.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::NoCertificate => "no certificate",
            Self::WrongName => "wrong name",
            Self::Garbage => "garbage",
            Self::Oversized => "oversized",
            Self::Version => "wrong version",
            Self::OlderIncarnation => "older incarnation",
            Self::Replaced => "replaced",
            Self::Late => "late",
            Self::Busy => "busy",
            Self::TokenRefused => "token refused",
        }
    }

    /// Closes `connection` with this code and its words.
    pub fn close(self, connection: &quinn::Connection) {
        connection.close(self.number().into(), self.as_str().as_bytes());
    }

    /// The code the other side closed with, if it did.
    #[must_use]
    pub fn of(error: &quinn::ConnectionError) -> Option<Self> {
        match error {
            quinn::ConnectionError::ApplicationClosed(close) => {
                Self::from_number(close.error_code.into_inner())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_own_number_and_is_found_by_it() {
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_number(u64::from(code.number())), Some(code));
        }
        assert_eq!(CloseCode::from_number(999), None);
    }
}
