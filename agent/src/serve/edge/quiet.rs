//! How long nothing has come.

use std::future::Future as _;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Sleep, sleep};

/// One span. Between two tokens of one stream real engines under load stay under 10 s.
const QUIET: Duration = Duration::from_secs(30);

/// So many spans in a row without news mean that none will come: the engine's own stall rule kills at 120 s (design
/// table).
pub(super) const QUIET_MAX: u32 = 4;

/// Counts the spans without news. A timer is made for the first wait and runs on while news comes: to set it anew each
/// time would cost more than the news.
#[derive(Debug)]
pub(super) struct Quiet {
    span: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    is_news: bool,
    count: u32,
}

impl Default for Quiet {
    fn default() -> Self {
        Self::of(QUIET)
    }
}

impl Quiet {
    pub(super) fn of(span: Duration) -> Self {
        Self { span, timer: None, is_news: false, count: 0 }
    }

    /// Something came.
    pub(super) fn heard(&mut self) {
        self.is_news = true;
    }

    /// Whole spans in a row in which nothing came. Wakes its caller at the end of the current one.
    pub(super) fn spans(&mut self, context: &mut Context<'_>) -> u32 {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.span)));
        while timer.as_mut().poll(context).is_ready() {
            timer.as_mut().set(sleep(self.span));
            self.count = if std::mem::take(&mut self.is_news) { 0 } else { self.count + 1 };
        }
        self.count
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    async fn spans_after(quiet: &mut Quiet, seconds: u64) -> u32 {
        poll_fn(|context| Poll::Ready(quiet.spans(context))).await;
        tokio::time::advance(Duration::from_secs(seconds)).await;
        poll_fn(|context| Poll::Ready(quiet.spans(context))).await
    }

    #[tokio::test(start_paused = true)]
    async fn news_of_any_age_within_a_span_keeps_it_from_counting() {
        let mut quiet = Quiet::default();
        for _ in 0..300 {
            quiet.heard();
            assert_eq!(spans_after(&mut quiet, 1).await, 0);
        }
        for (seconds, spans) in [(29, 0), (1, 1), (30, 2), (30, 3), (30, QUIET_MAX)] {
            assert_eq!(spans_after(&mut quiet, seconds).await, spans);
        }
        quiet.heard();
        assert_eq!(spans_after(&mut quiet, 30).await, 0);
    }
}
