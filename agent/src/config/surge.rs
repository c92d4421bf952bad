//! `[surge]`: the API outside the fleet for what no replica can take.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use cic_common::config::ConfigMistakes;
use hyper::header::HeaderValue;
use serde::Deserialize;

use crate::serve::edge::{Price, SurgeSpec, SurgeUrl};

/// Requests outside at once, unless configured: what a person's usual rate limit there bears.
const IN_FLIGHT_MAX: u32 = 32;

/// Micro-dollars of a dollar.
const MICROUSD: f64 = 1_000_000.0;

/// Most that an hour may cost, in dollars. More is a slip of the unit.
const BUDGET_USD_MAX: f64 = 100_000.0;

/// Without `url` there is none.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Surge {
    /// The base that its clients are given: `https://api.example.com/v1`.
    pub url: Option<String>,
    /// Holds its key, as a systemd credential: never in a configuration.
    pub key_file: Option<PathBuf>,
    /// `ours=theirs`: only these models may go there.
    #[serde(default)]
    pub models: Vec<String>,
    /// Millionths of a dollar for a million tokens.
    pub input_microusd_per_million: Option<u64>,
    pub output_microusd_per_million: Option<u64>,
    pub in_flight_max: Option<u32>,
    pub budget_usd_per_hour: Option<f64>,
    #[serde(default)]
    pub is_for_batch: bool,
}

impl Surge {
    pub(super) fn judge(&self, mistakes: &mut ConfigMistakes) {
        let Some(url) = &self.url else {
            if self.key_file.is_some() || !self.models.is_empty() {
                mistakes.push(
                    "surge",
                    "url",
                    "missing: the other keys of the section mean nothing without it",
                );
            }
            return;
        };
        if let Err(what) = url.parse::<SurgeUrl>() {
            mistakes.push("surge", "url", format_args!("{url:?} {what}"));
        }
        match &self.key_file {
            None => mistakes.push("surge", "key_file", "missing: the key comes as a file"),
            Some(path) if !path.is_file() => {
                mistakes.push("surge", "key_file", format_args!("no file {}", path.display()));
            }
            Some(_) => {}
        }
        if self.models.is_empty() {
            mistakes.push("surge", "models", "missing: say ours=theirs for each model that may go there");
        }
        for pair in self.models.iter().filter(|pair| names(pair).is_none()) {
            mistakes.push("surge", "models", format_args!("{pair:?} is not ours=theirs"));
        }
        for (key, price) in [
            ("input_microusd_per_million", self.input_microusd_per_million),
            ("output_microusd_per_million", self.output_microusd_per_million),
        ] {
            if price.is_none() {
                mistakes.push("surge", key, "missing: without a price the budget means nothing");
            }
        }
        match self.budget_usd_per_hour {
            None => mistakes.push("surge", "budget_usd_per_hour", "missing: it is a hard stop"),
            Some(budget) if budget > 0.0 && budget <= BUDGET_USD_MAX => {}
            Some(_) => {
                let what = format_args!("must be more than 0 and at most {BUDGET_USD_MAX}");
                mistakes.push("surge", "budget_usd_per_hour", what);
            }
        }
        if self.in_flight_max == Some(0) {
            mistakes.push("surge", "in_flight_max", "must be more than 0");
        }
    }

    /// The API as configured, with its key read; `None` where there is none.
    pub(super) fn spec(&self) -> anyhow::Result<Option<SurgeSpec>> {
        let (Some(url), Some(key_file)) = (&self.url, &self.key_file) else { return Ok(None) };
        let place = || format!("[surge] key_file = {}", key_file.display());
        let key = std::fs::read_to_string(key_file).with_context(place)?;
        let mut authorization =
            HeaderValue::from_str(&format!("Bearer {}", key.trim())).with_context(place)?;
        authorization.set_sensitive(true);
        let models: BTreeMap<String, String> = self.models.iter().filter_map(|pair| names(pair)).collect();
        // Checked to be positive and small enough.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let budget_microusd_per_hour = (self.budget_usd_per_hour.unwrap_or_default() * MICROUSD) as u64;
        Ok(Some(SurgeSpec {
            url: url.parse()?,
            authorization,
            models,
            price: Price {
                input_microusd_per_million: self.input_microusd_per_million.unwrap_or_default(),
                output_microusd_per_million: self.output_microusd_per_million.unwrap_or_default(),
            },
            in_flight_max: self.in_flight_max.unwrap_or(IN_FLIGHT_MAX),
            budget_microusd_per_hour,
            is_for_batch: self.is_for_batch,
        }))
    }
}

/// Our name and theirs.
fn names(pair: &str) -> Option<(String, String)> {
    let (ours, theirs) = pair.split_once('=')?;
    let (ours, theirs) = (ours.trim(), theirs.trim());
    (!ours.is_empty() && !theirs.is_empty()).then(|| (ours.to_owned(), theirs.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    const NODE: &str = "[node]\nid = 'n1'\nstate_dir = '/s'\n";

    fn reading(text: &str) -> Result<Config, ConfigMistakes> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, format!("{NODE}{text}")).unwrap();
        Config::reading(&path, []).finish()
    }

    #[test]
    fn a_key_comes_as_a_file_and_is_shown_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key");
        std::fs::write(&key, "secret-key\n").unwrap();
        let text = format!(
            "[surge]\nurl = 'https://api.example.com/v1'\nkey_file = '{}'\nmodels = ['tiny = large']\n\
             input_microusd_per_million = 150000\noutput_microusd_per_million = 600000\nbudget_usd_per_hour = 2.5\n",
            key.display()
        );
        let spec = reading(&text).unwrap().scarcity().unwrap().surge.unwrap();
        assert_eq!(spec.authorization, "Bearer secret-key");
        assert!(!format!("{spec:?}").contains("secret-key"), "{spec:?}");
        assert_eq!((spec.models["tiny"].as_str(), spec.budget_microusd_per_hour), ("large", 2_500_000));
    }

    #[test]
    fn every_mistake_of_the_section_is_named_at_once() {
        let error = reading(
            "[surge]\nurl = 'http://api.example.com'\nmodels = ['tiny']\nin_flight_max = 0\n\
             budget_usd_per_hour = 0\n[edge]\nqueue_max = 0\nwait_max_s = 601\n",
        )
        .unwrap_err()
        .to_string();
        for part in [
            "[surge] url: \"http://api.example.com\" http:// would show the key",
            "[surge] key_file: missing",
            "[surge] models: \"tiny\" is not ours=theirs",
            "[surge] input_microusd_per_million: missing",
            "[surge] output_microusd_per_million: missing",
            "[surge] budget_usd_per_hour: must be more than 0",
            "[surge] in_flight_max: must be more than 0",
            "[edge] queue_max: must be more than 0",
            "[edge] wait_max_s: must be at most 600",
        ] {
            assert!(error.contains(part), "{part} is not in\n{error}");
        }
        assert_eq!(reading("").unwrap().scarcity().unwrap().surge.map(|_| ()), None);
    }
}
