//! Frames on a stream, and the same without a length for datagrams.
//!
//! ```text
//! frame:    u32 length of what follows | u16 version | body      (integers big-endian)
//! datagram:                              u16 version | body
//! ```

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::codec::{self, BODY_BYTES_MAX, CodecError};
use super::version::{self, VERSION};

const LENGTH_BYTES: usize = 4;
const VERSION_BYTES: usize = 2;

/// Largest length a frame may promise.
pub const FRAME_BYTES_MAX: usize = VERSION_BYTES + BODY_BYTES_MAX;

/// Memory is taken for what has arrived, this much at a time, never for what was promised. A controller holds it for each
/// node; a long frame doubles what is taken as it comes.
const READ_BYTES: usize = 1 << 10;

/// Why a stream or a datagram holds no message.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended between two frames, as a stream should.
    #[error("stream ended")]
    Closed,
    #[error("stream ended inside a frame")]
    Truncated,
    #[error("frame of {length} bytes is longer than {FRAME_BYTES_MAX}")]
    Oversized { length: usize },
    #[error("frame of {length} bytes has no version")]
    Short { length: usize },
    #[error("frame has version {version}; spoken are {} to {VERSION}", version::OLDEST)]
    Version { version: u16 },
    #[error("frame holds garbage")]
    Garbage(#[source] CodecError),
    #[error("message cannot be framed")]
    Encode(#[source] CodecError),
    #[error("stream failed")]
    Io(#[source] io::Error),
}

/// Cuts a stream into messages.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(stream: R) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// The next message. Cancel-safe: what was read before the cancellation is kept for the next call.
    ///
    /// # Errors
    /// [`FrameError::Closed`] at the orderly end. After any other error the stream is of no more use.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<T, FrameError> {
        loop {
            if let Some(body) = take_body(&mut self.buffer)? {
                return codec::decode(&body).map_err(FrameError::Garbage);
            }
            self.buffer.reserve(READ_BYTES);
            let count = self.stream.read_buf(&mut self.buffer).await.map_err(FrameError::Io)?;
            if count == 0 {
                return Err(if self.buffer.is_empty() { FrameError::Closed } else { FrameError::Truncated });
            }
        }
    }
}

/// Writes messages to a stream.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub fn new(stream: W) -> Self {
        Self { stream }
    }

    /// Writes one message and flushes. Not cancel-safe: a cancelled write leaves half a frame.
    ///
    /// # Errors
    /// [`FrameError::Encode`] leaves the stream untouched; after [`FrameError::Io`] it is of no more use.
    pub async fn write<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        let frame = encode_frame(message)?;
        self.stream.write_all(&frame).await.map_err(FrameError::Io)?;
        self.stream.flush().await.map_err(FrameError::Io)
    }

    pub fn get_mut(&mut self) -> &mut W {
        &mut self.stream
    }
}

/// One message as a frame.
///
/// # Errors
/// When the message is longer than a frame may be.
pub fn encode_frame<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let body = codec::encode(message).map_err(FrameError::Encode)?;
    let length = VERSION_BYTES + body.len();
    let length_field = u32::try_from(length).map_err(|_| FrameError::Oversized { length })?;
    let mut frame = Vec::with_capacity(LENGTH_BYTES + length);
    frame.extend_from_slice(&length_field.to_be_bytes());
    frame.extend_from_slice(&VERSION.to_be_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// One message as a datagram.
///
/// # Errors
/// When the message is longer than a body may be. Whether it fits a packet is the connection's to say.
pub fn encode_datagram<T: Serialize>(message: &T) -> Result<Bytes, FrameError> {
    let body = codec::encode(message).map_err(FrameError::Encode)?;
    let mut datagram = BytesMut::with_capacity(VERSION_BYTES + body.len());
    datagram.extend_from_slice(&VERSION.to_be_bytes());
    datagram.extend_from_slice(&body);
    Ok(datagram.freeze())
}

/// # Errors
/// When the datagram is no message of a spoken version.
pub fn decode_datagram<T: DeserializeOwned>(datagram: &[u8]) -> Result<T, FrameError> {
    if datagram.len() > FRAME_BYTES_MAX {
        return Err(FrameError::Oversized { length: datagram.len() });
    }
    codec::decode(check_version(datagram)?).map_err(FrameError::Garbage)
}

/// Takes the body of the first frame off `buffer`; `None` while it has not all arrived.
fn take_body(buffer: &mut BytesMut) -> Result<Option<BytesMut>, FrameError> {
    let Some(field) = buffer.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*field)).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::Oversized { length });
    }
    if length < VERSION_BYTES {
        return Err(FrameError::Short { length });
    }
    // The version is judged as soon as it is here, so that a peer of another time is told without waiting for
    // a body that nobody could read.
    if let Some(versioned) = buffer.get(LENGTH_BYTES..).filter(|rest| rest.len() >= VERSION_BYTES) {
        check_version(versioned)?;
    }
    if buffer.len() < LENGTH_BYTES + length {
        return Ok(None);
    }
    buffer.advance(LENGTH_BYTES);
    let mut body = buffer.split_to(length);
    body.advance(VERSION_BYTES);
    Ok(Some(body))
}

/// Splits the version off and refuses one that is not spoken.
fn check_version(versioned: &[u8]) -> Result<&[u8], FrameError> {
    let Some((field, body)) = versioned.split_first_chunk::<VERSION_BYTES>() else {
        return Err(FrameError::Short { length: versioned.len() });
    };
    let version = u16::from_be_bytes(*field);
    if !version::is_spoken(version) {
        return Err(FrameError::Version { version });
    }
    Ok(body)
}

#[cfg(test)]
pub(crate) mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::wire::golden;

    async fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
        FrameReader::new(bytes).next().await
    }

    #[tokio::test]
    async fn frames_come_back_in_order_however_they_are_cut() {
        let mut bytes = Vec::new();
        for number in 0..100u64 {
            bytes.extend(encode_frame(&number).unwrap());
        }
        for chunk in [1, 3, 7, 1000] {
            let (mut near, far) = tokio::io::duplex(chunk);
            let sent = bytes.clone();
            let (_, ()) = tokio::join!(
                async move {
                    near.write_all(&sent).await.unwrap();
                },
                async {
                    let mut reader = FrameReader::new(far);
                    for number in 0..100u64 {
                        assert_eq!(reader.next::<u64>().await.unwrap(), number);
                    }
                    assert!(matches!(reader.next::<u64>().await, Err(FrameError::Closed)));
                }
            );
        }
    }

    #[tokio::test]
    async fn each_kind_of_bad_frame_has_its_own_error() {
        let good = encode_frame(&1u64).unwrap();
        assert!(matches!(read::<u64>(&good[..3]).await, Err(FrameError::Truncated)));
        assert!(matches!(read::<u64>(&good[..good.len() - 1]).await, Err(FrameError::Truncated)));
        assert!(matches!(read::<u64>(&[0xff; 8]).await, Err(FrameError::Oversized { .. })));
        assert!(matches!(read::<u64>(&[0, 0, 0, 1, 9]).await, Err(FrameError::Short { length: 1 })));
        assert!(matches!(read::<u64>(&[0, 0, 0, 9, 0, 2]).await, Err(FrameError::Version { version: 2 })));
        assert!(matches!(read::<u64>(&[0, 0, 0, 2, 0, 1]).await, Err(FrameError::Garbage(_))));
        assert!(matches!(decode_datagram::<u64>(&[0]), Err(FrameError::Short { length: 1 })));
        assert!(matches!(decode_datagram::<u64>(&[0, 3, 1]), Err(FrameError::Version { version: 3 })));
    }

    /// Seeded, so that a failure comes back: the message names the seed.
    #[test]
    fn no_mutation_of_a_frame_panics_or_takes_memory_for_what_it_promised() {
        const MUTATION_COUNT: u64 = 6_000;
        let samples = golden::samples();
        for seed in 0..MUTATION_COUNT {
            let mut random = fastrand::Rng::with_seed(seed);
            let sample = &samples[random.usize(..samples.len())];
            let bytes = mutate(&mut random, &sample.frame);
            let taken = (sample.read_all)(&bytes);
            assert!(taken <= 2 * (bytes.len() + READ_BYTES), "seed {seed}: {taken} bytes");
        }
    }

    fn mutate(random: &mut fastrand::Rng, frame: &[u8]) -> Vec<u8> {
        let mut bytes = frame.to_vec();
        match random.u8(..6) {
            0 => bytes.truncate(random.usize(..bytes.len())),
            1 => {
                for _ in 0..random.usize(1..8) {
                    let at = random.usize(..bytes.len());
                    bytes[at] ^= 1 << random.u8(..8);
                }
            }
            2 => {
                // The length and version stay right, so that the decoder sees the garbage.
                for byte in bytes.iter_mut().skip(LENGTH_BYTES + VERSION_BYTES) {
                    *byte = random.u8(..);
                }
            }
            3 => bytes = noise(random, 4096),
            4 => {
                let at = random.usize(..bytes.len());
                bytes[at] = *random.choice(&[0, 1, 0x7f, 0x80, 251, 252, 253, 254, 0xff]).unwrap_or(&0);
            }
            _ => {
                let at = random.usize(..bytes.len());
                bytes.splice(at..at, noise(random, 64));
            }
        }
        bytes
    }

    fn noise(random: &mut fastrand::Rng, length_max: usize) -> Vec<u8> {
        let length = random.usize(1..length_max);
        std::iter::repeat_with(|| random.u8(..)).take(length).collect()
    }

    /// Reads everything that `bytes` hold as messages of one type, as frames and as a datagram; returns the
    /// memory the reader took.
    pub(crate) fn read_all<T: DeserializeOwned>(bytes: &[u8]) -> usize {
        let mut reader = FrameReader::new(bytes);
        while let Some(Ok(_)) = reader.next::<T>().now_or_never() {}
        let _ = decode_datagram::<T>(bytes);
        reader.buffer.capacity()
    }
}
