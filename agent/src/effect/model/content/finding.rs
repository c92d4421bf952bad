//! What is wrong with a file.

use std::fmt;

/// One file that is not as its manifest has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Relative to the model's directory.
    pub path: String,
    pub wrong: Wrong,
}

/// How it differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    Missing,
    /// The manifest does not name it.
    Extra,
    /// Of another length. `ranges` as for `Bytes`, up to the length that it ought to have.
    Length {
        found: u64,
        wanted: u64,
        ranges: Vec<(u64, u64)>,
    },
    /// First byte and length of each stretch that is wrong; `None` where the manifest cannot tell which.
    Bytes {
        ranges: Option<Vec<(u64, u64)>>,
    },
    /// It became another file meanwhile.
    Changed,
    /// It is no file, or a link to somewhere else.
    Kind(String),
    /// The byte from which on it could not be read.
    Unreadable {
        at: u64,
        cause: String,
    },
}

impl Wrong {
    /// Whether another reading may come out differently, with nothing done to the files.
    #[must_use]
    pub fn may_heal(&self) -> bool {
        matches!(self, Self::Changed | Self::Unreadable { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.wrong)
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is not there"),
            Self::Extra => f.write_str("is not in the manifest"),
            Self::Length { found, wanted, .. } => {
                let what = if found < wanted { "cut off" } else { "something was added" };
                write!(f, "has {found} bytes where the manifest says {wanted}: {what}")
            }
            Self::Bytes { ranges: None } => f.write_str("has not the bytes of the manifest"),
            Self::Bytes { ranges: Some(ranges) } => {
                f.write_str("has not the bytes of the manifest, in bytes ")?;
                let shown = ranges.iter().take(RANGES_SHOWN);
                for (index, (begin, length)) in shown.enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{begin} to {}", begin + length - 1)?;
                }
                let more = ranges.len().saturating_sub(RANGES_SHOWN);
                if more == 0 { Ok(()) } else { write!(f, " and in {more} stretches more") }
            }
            Self::Changed => f.write_str("was changed while it was read"),
            Self::Kind(what) => f.write_str(what),
            Self::Unreadable { at, cause } => write!(f, "cannot be read at byte {at}: {cause}"),
        }
    }
}

const RANGES_SHOWN: usize = 3;
