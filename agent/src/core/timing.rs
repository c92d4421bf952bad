//! The agent's time table. Each default names its source; tests and `cic dev` shorten them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Spans the core waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Between heartbeats. Design table: 1 s.
    pub heartbeat: Duration,
    /// Between readiness probes while loading. An engine is ready at most this much before it serves.
    pub probe_loading: Duration,
    /// Between health probes while serving.
    pub probe_serving: Duration,
    /// A probe unanswered this long has failed.
    pub probe_deadline: Duration,
    /// Failed probes in a row before a serving engine is refused new requests.
    pub probe_failures_max: u32,
    /// From engine start to ready; then it is killed and counted as failed. Design table: 600 s.
    pub start_gate: Duration,
    /// Failures within `failure_window` before a replacement is asked for. Design table: 3 in 30 min.
    pub failures_max: u32,
    pub failure_window: Duration,
    /// Between SIGTERM and SIGKILL when the engine is stopped. Real vLLM ends in 0.7 s, or never.
    pub stop_grace: Duration,
    /// After SIGKILL. A process that is still there hangs in the kernel, with the GPU's memory; nothing here frees it.
    pub kill_grace: Duration,
    /// How often the edge is asked whether it is empty while draining.
    pub drain_poll: Duration,
    /// Kept back from a notice's deadline to stop the engine and say farewell. Design table: AWS 10 s.
    pub notice_reserve: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            probe_loading: Duration::from_millis(500),
            probe_serving: Duration::from_secs(2),
            probe_deadline: Duration::from_secs(10),
            probe_failures_max: 3,
            start_gate: Duration::from_secs(600),
            failures_max: 3,
            failure_window: Duration::from_secs(30 * 60),
            stop_grace: Duration::from_secs(10),
            kill_grace: Duration::from_secs(15),
            drain_poll: Duration::from_millis(100),
            notice_reserve: Duration::from_secs(10),
        }
    }
}
