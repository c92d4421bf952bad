//! What the probe says: whole frames on standard output, from any thread.

use std::io::{self, Write as _};

use cic_common::gpu::ProbeMessage;
use cic_common::wire::frame::encode_frame;

/// Standard output, one frame at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Voice;

impl Voice {
    /// # Errors
    /// When nobody listens any more; the caller ends.
    pub(crate) fn say(self, message: &ProbeMessage) -> io::Result<()> {
        let frame = encode_frame(message).map_err(io::Error::other)?;
        let mut out = io::stdout().lock();
        out.write_all(&frame)?;
        out.flush()
    }

    /// As [`Self::say`] for [`ProbeMessage::Calling`].
    pub(crate) fn calling(self, call: impl Into<String>) -> io::Result<()> {
        self.say(&ProbeMessage::Calling { call: call.into() })
    }
}
