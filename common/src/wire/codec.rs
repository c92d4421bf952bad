//! Values to bytes and back. The only file that names bincode.
//!
//! The configuration is fixed (little-endian, variable-length integers) because it is the format; golden bytes
//! guard it. Decoding is bounded: a length inside the bytes that promises more than [`BODY_BYTES_MAX`] is refused
//! before anything is allocated for it.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest encoded value, read or written. A routing table of 10,000 replicas is about 150 KiB; the rest is room.
pub const BODY_BYTES_MAX: usize = 1 << 20;

type Format = Configuration<LittleEndian, Varint, Limit<BODY_BYTES_MAX>>;

const FORMAT: Format = bincode::config::standard().with_limit::<BODY_BYTES_MAX>();

/// Why bytes are no value, or a value no bytes.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("value cannot be encoded")]
    Encode(#[source] bincode::error::EncodeError),
    #[error("value encodes to {length} bytes, more than {BODY_BYTES_MAX}")]
    TooLong { length: usize },
    #[error("bytes are no value of the expected type")]
    Decode(#[source] bincode::error::DecodeError),
    #[error("{count} bytes follow the value")]
    Trailing { count: usize },
}

/// # Errors
/// When the value is longer than [`BODY_BYTES_MAX`]: the caller built something it must not send.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(value, FORMAT).map_err(CodecError::Encode)?;
    if bytes.len() > BODY_BYTES_MAX {
        return Err(CodecError::TooLong { length: bytes.len() });
    }
    Ok(bytes)
}

/// # Errors
/// When `bytes` are not exactly one value: the sender is broken or hostile, and the caller ends the connection.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::serde::decode_from_slice(bytes, FORMAT).map_err(CodecError::Decode)?;
    match bytes.len() - used {
        0 => Ok(value),
        count => Err(CodecError::Trailing { count }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_after_the_value_are_an_error() {
        let mut bytes = encode(&7u64).unwrap();
        bytes.push(0);
        assert!(matches!(decode::<u64>(&bytes), Err(CodecError::Trailing { count: 1 })));
    }

    #[test]
    fn a_promised_length_beyond_the_limit_is_refused_before_it_is_allocated() {
        // Varint marker 253: eight bytes of length follow. 2^60 bytes could not be allocated.
        let mut bytes = vec![253];
        bytes.extend_from_slice(&(1u64 << 60).to_le_bytes());
        assert!(decode::<String>(&bytes).is_err());
        assert!(decode::<Vec<u64>>(&bytes).is_err());
        assert!(decode::<std::collections::BTreeMap<String, String>>(&bytes).is_err());
    }

    #[test]
    fn a_value_longer_than_the_limit_is_not_sent() {
        let text = "x".repeat(BODY_BYTES_MAX);
        assert!(matches!(encode(&text), Err(CodecError::TooLong { .. })));
    }
}
