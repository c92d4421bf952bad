//! The cloud's word that a node will be taken, in one form for every cloud.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A replacement is ordered so long before a node's end: a launch, a boot and the load of a large model take 5 to 20
/// minutes, and one that serves earlier costs money twice. Spot notices are far shorter; this is for maintenance that is
/// announced days ahead.
pub const REPLACEMENT_LEAD: Duration = Duration::from_secs(30 * 60);

/// What will happen to the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    Terminate,
    Stop,
    Hibernate,
    /// Advice that a notice is likely; a spare is worth ordering, draining is not.
    Rebalance,
    Maintenance,
    Freeze,
    Reboot,
    Redeploy,
}

impl NoticeKind {
    /// Whether the node stops serving at the deadline, so that it must be drained and replaced.
    #[must_use]
    pub fn takes_the_node(self) -> bool {
        match self {
            Self::Terminate | Self::Stop | Self::Hibernate | Self::Reboot | Self::Redeploy => true,
            Self::Rebalance | Self::Maintenance | Self::Freeze => false,
        }
    }
}

impl fmt::Display for NoticeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "terminate",
            Self::Stop => "stop",
            Self::Hibernate => "hibernate",
            Self::Rebalance => "rebalance",
            Self::Maintenance => "maintenance",
            Self::Freeze => "freeze",
            Self::Reboot => "reboot",
            Self::Redeploy => "redeploy",
        })
    }
}

/// How much a notice's deadline is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// The cloud named the moment.
    Announced,
    /// It will happen; the moment is the least that the cloud's documents promise.
    Estimated,
    /// It may never happen.
    Advice,
}

impl Confidence {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Announced => "announced",
            Self::Estimated => "estimated",
            Self::Advice => "advice",
        }
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A notice as it travels: its deadline counts from the moment of sending, since clocks of two machines are
/// never compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    pub kind: NoticeKind,
    /// Who said it: `aws-spot`, `gcp-preempted`, `azure`, `sigterm`, `shutdown`, `file`, …
    pub source: String,
    /// The source's own id of the notice, so that one notice read twice stays one.
    pub id: String,
    /// Milliseconds left when this was sent.
    pub left_ms: u64,
    pub confidence: Confidence,
    /// What the cloud says it concerns, where it says so: names of VMs.
    pub resources: Vec<String>,
}

impl Notice {
    /// How urgent it is beside others, less being more: what takes the node soon, advice, what takes it later, and the rest;
    /// then the sooner.
    #[must_use]
    pub fn urgency(&self) -> (u8, u64) {
        let is_soon = Duration::from_millis(self.left_ms) <= REPLACEMENT_LEAD;
        let rank = match self.kind {
            kind if kind.takes_the_node() => {
                if is_soon {
                    0
                } else {
                    2
                }
            }
            NoticeKind::Rebalance => 1,
            _ => 3,
        };
        (rank, self.left_ms)
    }
}

/// Whose machine a node is, as far as its notices go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cloud {
    Aws,
    Gcp,
    Azure,
    /// A container that is stopped by SIGTERM, with SIGKILL soon after it: RunPod, Kubernetes.
    Runpod,
    /// No notice in the VM: Vast.ai, Lambda, OCI, machines of one's own.
    None,
}

impl Cloud {
    pub const ALL: [Self; 5] = [Self::Aws, Self::Gcp, Self::Azure, Self::Runpod, Self::None];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
            Self::Runpod => "runpod",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A source of notices that cannot be read: what it would say is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlindSource {
    pub source: String,
    pub for_ms: u64,
    pub cause: String,
}

/// What a node knows of its cloud's notices.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpotReport {
    /// `None` until it was found out.
    pub cloud: Option<Cloud>,
    /// Empty while every source is read.
    pub blind: Vec<BlindSource>,
    /// Sources that this run of the agent has not read yet.
    pub unread: Vec<String>,
}

impl SpotReport {
    /// Whether it is known what this source says: a notice of it that is not told is not there.
    #[must_use]
    pub fn knows(&self, source: &str) -> bool {
        let is_unread = self.unread.iter().any(|unread| unread == source);
        let is_blind = self.blind.iter().any(|blind| blind.source == source);
        self.cloud.is_some() && !is_unread && !is_blind
    }
}
