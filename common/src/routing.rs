//! What a deployment wants of the edges that choose among its replicas.

use serde::{Deserialize, Serialize};

/// The dearest and best tier, where latency-critical requests go first.
pub const TIER_MIN: u8 = 1;

/// The cheapest tier, where batch requests go first.
pub const TIER_MAX: u8 = 3;

/// Between the two.
const TIER_DEFAULT: u8 = 2;

/// A replica's share of the requests where nothing else is said. A canary with 10 beside it gets one request for ten.
pub const WEIGHT_DEFAULT: u16 = 100;

/// Above so many billions of parameters a model does not fit every GPU: 200 B in 8 bits are 200 GB, more than two
/// GPUs of 80 GB hold, so that it needs the ones its operator names.
pub const ANY_GPU_PARAMETERS_B_MAX: u32 = 200;

/// How one replica is taken among those that are alike to the rules before.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The less loaded of two drawn at random (Mitzenmacher 2001): near the best, and edges do not run in one herd.
    #[default]
    PowerOfTwo,
    /// Each in turn, whatever its load.
    RoundRobin,
    /// The least loaded of all. Best for one edge; several that see the same run to the same replica.
    LeastLoad,
}

impl Policy {
    pub const ALL: [Self; 3] = [Self::PowerOfTwo, Self::RoundRobin, Self::LeastLoad];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PowerOfTwo => "power_of_two",
            Self::RoundRobin => "round_robin",
            Self::LeastLoad => "least_load",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == text)
    }
}

/// A deployment's wishes. Whatever is missing where one was stored is the default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Routing {
    pub policy: Policy,
    /// Long prompts that begin alike go to one replica, which has that beginning in its cache.
    pub prefix_affinity: bool,
    /// [`TIER_MIN`] to [`TIER_MAX`].
    pub tier: u8,
    /// Size of the model in billions of parameters, where it is known.
    pub parameters_b: Option<u32>,
    /// GPU as cluster names spell it (`h200`). Binding for a model above [`ANY_GPU_PARAMETERS_B_MAX`].
    pub gpu_needed: Option<String>,
    /// Requests that no replica takes may go to the surge upstream, where one is configured.
    pub surge_allowed: bool,
    /// Share of requests of each replica, relative to other replicas of the same model. 0: none while any other is left.
    pub weight: u16,
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            prefix_affinity: true,
            tier: TIER_DEFAULT,
            parameters_b: None,
            gpu_needed: None,
            surge_allowed: false,
            weight: WEIGHT_DEFAULT,
        }
    }
}

impl Routing {
    /// Whether only the GPU it names will do.
    #[must_use]
    pub fn binds_gpu(&self) -> bool {
        self.parameters_b.is_some_and(|billions| billions > ANY_GPU_PARAMETERS_B_MAX)
    }

    /// Whether a replica on `gpu` may be asked. One whose GPU nobody knows does not fit a model that needs a certain one.
    #[must_use]
    pub fn fits(&self, gpu: Option<&str>) -> bool {
        !self.binds_gpu() || self.gpu_needed.is_none() || self.gpu_needed.as_deref() == gpu
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_model_above_200_b_insists_on_its_gpu() {
        for (parameters_b, needed, gpu, fits) in [
            (None, Some("h200"), Some("l4"), true),
            (Some(200), Some("h200"), Some("l4"), true),
            (Some(201), Some("h200"), Some("l4"), false),
            (Some(405), Some("h200"), None, false),
            (Some(405), Some("h200"), Some("h200"), true),
            (Some(405), None, Some("l4"), true),
        ] {
            let routing =
                Routing { parameters_b, gpu_needed: needed.map(str::to_owned), ..Routing::default() };
            assert_eq!(routing.fits(gpu), fits, "{parameters_b:?} B on {gpu:?}, needs {needed:?}");
        }
    }

    #[test]
    fn a_policy_survives_the_round_trip() {
        for policy in Policy::ALL {
            assert_eq!(Policy::parse(policy.as_str()), Some(policy));
            assert_eq!(serde_json::to_value(policy).unwrap(), policy.as_str());
        }
        assert_eq!(Policy::parse("fastest"), None);
    }
}
