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
    /// From engine start to ready; then it is killed and counted as failed, unless it makes progress. Design table:
    /// 600 s.
    pub start_gate: Duration,
    /// The start gate is never extended beyond this. Design table: 3600 s.
    pub start_gate_max: Duration,
    /// A loading engine that has neither written, read nor taken GPU memory for so long makes no progress. A silent
    /// compilation of 70 s was seen; this leaves room for a slower machine.
    pub start_quiet: Duration,
    /// Between two looks at what a loading engine has written and read.
    pub look_loading: Duration,
    /// A serving engine with work of which nothing has moved for so long is passed over. Design table: 30 s.
    pub stall_suspect: Duration,
    /// And after this it is killed. Design table: 120 s.
    pub stall_kill: Duration,
    /// Between two canaries, where no counter of the engine shows progress.
    pub canary: Duration,
    /// The GPUs' memory must be back at its baseline this long after an engine's end.
    pub proof: Duration,
    /// A start waits this long for the first word on the GPUs: nvmlInit of an H100 node takes up to 10 s.
    pub gpu_wait: Duration,
    /// Failures within `failure_window` before a replacement is asked for. Design table: 3 in 30 min.
    pub failures_max: u32,
    pub failure_window: Duration,
    /// Between SIGTERM and SIGKILL when the engine is stopped. Real vLLM ends in 0.7 s, or never.
    pub stop_grace: Duration,
    /// After SIGKILL. A process that is still there hangs in the kernel, with the GPU's memory; nothing here frees it.
    pub kill_grace: Duration,
    /// How often the edge is asked whether it is empty while draining.
    pub drain_poll: Duration,
    /// Before a drain's end: what has not finished by then is handed over. A peer takes a stream up in well under a
    /// second; several hundred at once queue for it.
    pub hand_over: Duration,
    /// Between checkpoints. Design table: 5 min.
    pub checkpoint: Duration,
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
            start_gate_max: Duration::from_secs(3600),
            start_quiet: Duration::from_secs(120),
            look_loading: Duration::from_secs(5),
            stall_suspect: Duration::from_secs(30),
            stall_kill: Duration::from_secs(120),
            canary: Duration::from_secs(10),
            proof: Duration::from_secs(10),
            gpu_wait: Duration::from_secs(15),
            failures_max: 3,
            failure_window: Duration::from_secs(30 * 60),
            stop_grace: Duration::from_secs(10),
            kill_grace: Duration::from_secs(15),
            drain_poll: Duration::from_millis(100),
            hand_over: Duration::from_secs(3),
            checkpoint: Duration::from_secs(300),
        }
    }
}
