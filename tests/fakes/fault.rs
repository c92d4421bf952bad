//! What can be wrong with an answer.

use std::str::FromStr;

/// A fault of one path. The states below it stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Status(u16),
    /// No answer, ever.
    Hang,
    /// Status and head come, then half of the body, then the end of the connection.
    Truncated,
    Empty,
    /// The body is not what it should be: broken JSON, or a word that means nothing.
    Garbage,
    /// The moment in it cannot be read.
    BadTime,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "hang" => Ok(Self::Hang),
            "truncated" => Ok(Self::Truncated),
            "empty" => Ok(Self::Empty),
            "garbage" => Ok(Self::Garbage),
            "bad-time" => Ok(Self::BadTime),
            status => status.parse().map(Self::Status).map_err(|_| {
                format!("{text:?} is no status and none of hang, truncated, empty, garbage, bad-time")
            }),
        }
    }
}
