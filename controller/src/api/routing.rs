//! The `routing` section of a deployment as an operator sends it.

use cic_common::name::check_part;
use cic_common::routing::{ANY_GPU_PARAMETERS_B_MAX, Policy, Routing, TIER_MAX, TIER_MIN};
use serde::{Deserialize, Serialize};

/// Largest weight: a thousandth is the finest share that can be said with whole numbers.
const WEIGHT_MAX: u32 = 1000;

/// Largest model: a hundred times today's largest open ones, so that a count of single parameters is refused.
const PARAMETERS_B_MAX: u32 = 100_000;

/// What is left out is the default ([`Routing::default`]).
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WantedRouting {
    pub policy: Option<String>,
    pub prefix_affinity: Option<bool>,
    pub tier: Option<u32>,
    pub parameters_b: Option<u32>,
    pub gpu_needed: Option<String>,
    pub surge_allowed: Option<bool>,
    pub weight: Option<u32>,
}

impl WantedRouting {
    /// The routing that is wanted, as far as it makes sense; every mistake in it is appended to `mistakes`.
    pub(super) fn check(self, mistakes: &mut Vec<String>) -> Routing {
        let default = Routing::default();
        let policy = self.policy.map_or(Some(default.policy), |text| {
            let policy = Policy::parse(&text);
            if policy.is_none() {
                let known = Policy::ALL.map(Policy::as_str).join(", ");
                mistakes.push(format!("routing.policy: {text:?} is none of {known}"));
            }
            policy
        });
        let tiers = u32::from(TIER_MIN)..=u32::from(TIER_MAX);
        let tier = self.tier.unwrap_or(default.tier.into());
        if !tiers.contains(&tier) {
            mistakes.push(format!("routing.tier: {tier} is not {TIER_MIN} to {TIER_MAX}"));
        }
        let weight = self.weight.unwrap_or(default.weight.into());
        if weight > WEIGHT_MAX {
            mistakes.push(format!("routing.weight: {weight} is more than {WEIGHT_MAX}"));
        }
        if let Some(billions) =
            self.parameters_b.filter(|billions| !(1..=PARAMETERS_B_MAX).contains(billions))
        {
            mistakes
                .push(format!("routing.parameters_b: {billions} is not 1 to {PARAMETERS_B_MAX} (billions)"));
        }
        if let Some(gpu) = &self.gpu_needed
            && let Err(error) = check_part("gpu", gpu)
        {
            mistakes.push(format!("routing.gpu_needed: {error}"));
        }
        let routing = Routing {
            policy: policy.unwrap_or(default.policy),
            prefix_affinity: self.prefix_affinity.unwrap_or(default.prefix_affinity),
            tier: u8::try_from(tier).unwrap_or(default.tier),
            parameters_b: self.parameters_b,
            gpu_needed: self.gpu_needed,
            surge_allowed: self.surge_allowed.unwrap_or(default.surge_allowed),
            weight: u16::try_from(weight).unwrap_or(default.weight),
        };
        if routing.binds_gpu() && routing.gpu_needed.is_none() {
            mistakes.push(format!(
                "routing.gpu_needed: missing: a model above {ANY_GPU_PARAMETERS_B_MAX} billion parameters does not fit \
                 every GPU"
            ));
        }
        routing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mistake_is_one_clear_line() {
        for (text, mistake) in [
            (
                r#"{"policy":"fastest"}"#,
                "routing.policy: \"fastest\" is none of power_of_two, round_robin, least_load",
            ),
            (r#"{"tier":0}"#, "routing.tier: 0 is not 1 to 3"),
            (r#"{"tier":259}"#, "routing.tier: 259 is not 1 to 3"),
            (r#"{"weight":1001}"#, "routing.weight: 1001 is more than 1000"),
            (r#"{"parameters_b":0}"#, "routing.parameters_b: 0 is not 1 to 100000 (billions)"),
            (
                r#"{"gpu_needed":"H200"}"#,
                "routing.gpu_needed: gpu \"H200\" may hold only a-z and 0-9 in a name",
            ),
            (
                r#"{"parameters_b":405}"#,
                "routing.gpu_needed: missing: a model above 200 billion parameters does not fit every GPU",
            ),
        ] {
            let wanted: WantedRouting = serde_json::from_str(text).expect(text);
            let mut mistakes = Vec::new();
            wanted.check(&mut mistakes);
            assert_eq!(mistakes, [mistake]);
        }
        assert!(serde_json::from_str::<WantedRouting>(r#"{"polcy":"x"}"#).is_err(), "a slip is no default");
    }

    #[test]
    fn what_is_left_out_is_the_default() {
        let mut mistakes = Vec::new();
        assert_eq!(WantedRouting::default().check(&mut mistakes), Routing::default());
        let wanted: WantedRouting = serde_json::from_str(
            r#"{"policy":"least_load","prefix_affinity":false,"tier":1,"parameters_b":405,"gpu_needed":"h200",
                "surge_allowed":true,"weight":0}"#,
        )
        .expect("right");
        let routing = Routing {
            policy: Policy::LeastLoad,
            prefix_affinity: false,
            tier: 1,
            parameters_b: Some(405),
            gpu_needed: Some("h200".to_owned()),
            surge_allowed: true,
            weight: 0,
        };
        assert_eq!(wanted.check(&mut mistakes), routing);
        assert!(mistakes.is_empty());
    }
}
