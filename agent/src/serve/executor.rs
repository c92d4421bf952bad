//! Lets hyper's HTTP/2 run its parts as supervised tasks.

use std::future::Future;

use cic_common::supervise::{Kind, Supervisor};

/// Spawns through the supervisor, so that no task is detached.
#[derive(Debug, Clone)]
pub struct SupervisedExecutor(pub Supervisor);

impl<F> hyper::rt::Executor<F> for SupervisedExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, part: F) {
        // Ends with its connection, which is told to end itself; the token is not needed.
        self.0.spawn("http2 part", Kind::Passing, |_| async move {
            part.await;
            Ok(())
        });
    }
}
