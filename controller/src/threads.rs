//! Threads that do one thing, so that the operating system shares the processor among things and not among tasks.
//!
//! Among ten thousand tasks the one that reads the agents' socket has its turn for some fifty microseconds a round. What
//! fills the rounds in a bad minute (urgent polls, tables) would take from the heartbeats of those who are well, and each
//! that is missed is another poll.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// The threads beside those of the runtime that starts them.
#[derive(Debug)]
pub(crate) struct Threads {
    agents: Option<Runtime>,
    core: Option<Runtime>,
}

impl Threads {
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start() -> io::Result<Self> {
        let mut threads = Self { agents: Some(one("agents")?), core: None };
        threads.core = Some(one("core")?);
        Ok(threads)
    }

    /// Reads and writes the agents' connections. One core's worth: some fifteen thousand nodes, or 1,500 that join in a
    /// second.
    pub(crate) fn agents(&self) -> Handle {
        handle(self.agents.as_ref())
    }

    /// Decides.
    pub(crate) fn core(&self) -> Handle {
        handle(self.core.as_ref())
    }
}

impl Drop for Threads {
    /// Without waiting, which a runtime must not do inside of another.
    fn drop(&mut self) {
        for runtime in [self.agents.take(), self.core.take()].into_iter().flatten() {
            runtime.shutdown_background();
        }
    }
}

fn one(name: &str) -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()
}

fn handle(runtime: Option<&Runtime>) -> Handle {
    runtime.expect("runs until it is dropped").handle().clone()
}
