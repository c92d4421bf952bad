//! How long a replica has sent nothing of a stream.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

/// A replica that sends nothing for four of these in a row is given up: between two tokens of one stream real engines
/// under load stay under 10 s, and the engine's own stall rule kills at 120 s (design table).
const QUIET: Duration = Duration::from_secs(30);
const QUIET_MAX: u32 = 4;

/// Counts the spans without a frame. A timer is made for the first wait and runs on while frames come: to set it anew
/// with each of them would cost more than the frame.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    timer: Option<Pin<Box<Sleep>>>,
    count: u32,
}

impl Quiet {
    /// A frame came.
    pub(super) fn heard(&mut self) {
        self.count = 0;
    }

    /// Ready when nothing came for too long.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(QUIET)));
        while self.count < QUIET_MAX {
            ready!(timer.as_mut().poll(context));
            timer.as_mut().set(sleep(QUIET));
            self.count += 1;
        }
        Poll::Ready(())
    }
}
