//! `[checkpoint]`: where another node finds what it would go on with.

use cic_common::config::ConfigMistakes;
use serde::Deserialize;

use crate::effect::checkpoint::Stores;

/// Without `url` none is written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Checkpoint {
    /// `s3://bucket/prefix`, `gs://…`, `az://…` or `file:///directory`; the same for all nodes of a fleet. Behind a `?` may
    /// stand `region` and `endpoint`.
    pub url: Option<String>,
    /// Another one, in another region.
    pub second_url: Option<String>,
    pub every_s: Option<u64>,
}

impl Checkpoint {
    /// The stores, where there are any.
    ///
    /// # Errors
    /// Which key names one that cannot be used, and why.
    pub fn stores(&self) -> Result<Option<Stores>, (&'static str, String)> {
        let Some(url) = &self.url else { return Ok(None) };
        let urls = [Some(url), self.second_url.as_ref()].into_iter().flatten().map(String::as_str);
        Stores::open(urls).map(Some).map_err(|(place, error)| {
            let (key, url) = match place {
                0 => ("url", url),
                _ => ("second_url", self.second_url.as_ref().unwrap_or(url)),
            };
            (key, format!("{url:?} {error}"))
        })
    }

    pub(super) fn judge(&self, mistakes: &mut ConfigMistakes) {
        if self.url.is_none() && self.second_url.is_some() {
            mistakes.push("checkpoint", "url", "missing: the second store stands beside a first one");
        }
        if self.url.is_some() && self.url == self.second_url {
            mistakes.push("checkpoint", "second_url", "is the first store once more");
        }
        if let Err((key, what)) = self.stores() {
            mistakes.push("checkpoint", key, what);
        }
    }
}
