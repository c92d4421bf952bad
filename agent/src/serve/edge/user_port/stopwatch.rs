//! Our own time for a request.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::time::Duration;

use cic_common::time::Clock;

/// Runs `work` and says how long it ran: the sum of the spans in which it did something. Its waits, for a replica, for
/// the client's bytes or for its turn, are not in it; nor is what hyper and the kernel do before and after.
pub(super) async fn timed<T>(clock: Clock, mut work: Pin<&mut impl Future<Output = T>>) -> (T, Duration) {
    let mut spent = Duration::ZERO;
    let done = poll_fn(|context| {
        let began = clock.now();
        let polled = work.as_mut().poll(context);
        spent += clock.now().since(began);
        polled
    })
    .await;
    (done, spent)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn a_wait_is_not_our_own_time() {
        let clock = Clock::start();
        let work = |span: Duration| {
            let began = clock.now();
            while clock.now().since(began) < span {}
        };
        let (own, others) = (Duration::from_millis(5), Duration::from_millis(50));
        let (asked, asks) = tokio::sync::oneshot::channel();
        let (answers, answer) = tokio::sync::oneshot::channel();
        let errand = pin!(async {
            work(own);
            asked.send(()).unwrap();
            answer.await.unwrap();
        });
        let errand = timed(clock, errand);
        let replica = async {
            asks.await.unwrap();
            work(others);
            answers.send(()).unwrap();
        };
        let both = pin!(async { tokio::join!(errand, replica) });
        let ((((), spent), ()), all) = timed(clock, both).await;
        assert!(spent >= own && spent + others <= all, "{spent:?} of {all:?}");
    }
}
