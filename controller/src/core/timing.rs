//! The controller's time table. Each default names its source; tests and `cic dev` shorten some.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Spans the core waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Between heartbeats, as nodes are told.
    pub heartbeat: Duration,
    /// A push this old is stale on any link, and a poll is fired at once; on a calm one sooner (`rhythm.rs`). Design
    /// table: suspect after 3 s.
    pub push_fresh: Duration,
    /// A challenge over the push path unanswered this long makes the push stale, once the poll path failed too.
    /// Five times the slowest round trip between regions.
    pub challenge: Duration,
    /// Between routine polls of a node. Design table: 10 s.
    pub poll_interval: Duration,
    /// What a routine poll is given. An agent answers from memory; a second is forty round trips between neighbouring
    /// regions.
    pub poll_within: Duration,
    /// Routine polls failed in a row before the poll path is stale. Design table: 3.
    pub poll_failures_max: u32,
    /// Between urgent polls of a node that stays suspect.
    pub urgent_interval: Duration,
    /// Both silent while the cloud says running: wait this long before a replacement. Design table: 60 s.
    pub partition_grace: Duration,
    /// From a launch to the first word of the agent.
    pub boot_grace: Duration,
    /// From a launch to serving; a node that takes longer is replaced. Above the agent's own start gate.
    pub serve_grace: Duration,
    /// After a start or a change of leader every silent node is Unknown for this long.
    pub settle: Duration,
    /// A step this much later than it was asked for is our own stall: it counts against no node.
    pub own_stall: Duration,
    /// Between listings of a provider. Design table: state sync 30 s.
    pub list_interval: Duration,
    /// Between listings while some node is suspect or an operation is open.
    pub list_interval_urgent: Duration,
    /// A listing older than this says nothing any more.
    pub list_fresh: Duration,
    /// Launched instances may be missing from listings this long. AWS documents eventual consistency of minutes
    /// at worst; the simulator delays by up to 60 s.
    pub visibility: Duration,
    /// Between tries of an operation that got no answer.
    pub retry: Duration,
    /// How long an operation may stay open. Longer than most outages of a cloud's API, so that a launch outlives them
    /// under one id; short enough that another zone or provider is tried within the hour.
    pub operation_deadline: Duration,
    /// A VM of ours without a row is given back after it was seen this long: longer than `visibility`, so that no
    /// shadow of a VM that just ended is taken for one, and long enough for a person to look.
    pub orphan_grace: Duration,
    /// What a drained node is given to finish its requests.
    pub drain: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            push_fresh: Duration::from_secs(3),
            challenge: Duration::from_millis(500),
            poll_interval: Duration::from_secs(10),
            poll_within: Duration::from_secs(1),
            poll_failures_max: 3,
            urgent_interval: Duration::from_secs(2),
            partition_grace: Duration::from_secs(60),
            boot_grace: Duration::from_secs(300),
            serve_grace: Duration::from_secs(3600),
            settle: Duration::from_secs(10),
            own_stall: Duration::from_secs(1),
            list_interval: Duration::from_secs(30),
            list_interval_urgent: Duration::from_secs(2),
            list_fresh: Duration::from_secs(75),
            visibility: Duration::from_secs(60),
            retry: Duration::from_secs(2),
            operation_deadline: Duration::from_secs(600),
            orphan_grace: Duration::from_secs(300),
            drain: Duration::from_secs(30),
        }
    }
}
