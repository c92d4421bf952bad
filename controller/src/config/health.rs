//! `[health]`: what else is looked at, beside what every controller needs.

use cic_common::config::ConfigMistakes;
use hyper::Uri;
use serde::Deserialize;

/// Each is looked at only where it is configured, and only warned of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthConfig {
    /// Its `/-/ready`.
    pub prometheus: Option<Uri>,
    /// Whatever answers 2xx there.
    pub log: Option<Uri>,
    /// `HOST:PORT`.
    pub redis: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawHealth {
    prometheus_url: Option<String>,
    log_url: Option<String>,
    redis_url: Option<String>,
}

impl RawHealth {
    pub(super) fn build(&self, mistakes: &mut ConfigMistakes) -> HealthConfig {
        let ready = self.prometheus_url.as_ref().map(|url| format!("{}/-/ready", url.trim_end_matches('/')));
        HealthConfig {
            prometheus: ready.and_then(|url| http("prometheus_url", &url, mistakes)),
            log: self.log_url.as_ref().and_then(|url| http("log_url", url, mistakes)),
            redis: self.redis_url.as_ref().and_then(|url| redis(url, mistakes)),
        }
    }
}

fn http(key: &'static str, url: &str, mistakes: &mut ConfigMistakes) -> Option<Uri> {
    let uri = url.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
    if uri.is_none() {
        mistakes.push("health", key, format_args!("expected http://HOST[:PORT]/…, found {url:?}"));
    }
    uri
}

fn redis(url: &str, mistakes: &mut ConfigMistakes) -> Option<String> {
    let place = url.strip_prefix("redis://").map(|place| place.trim_end_matches('/'));
    let is_right = |place: &&str| {
        let port = place.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
        matches!(port, Some((host, Ok(port))) if port > 0 && !host.is_empty() && !host.contains(['@', '/']))
    };
    let place = place.filter(is_right);
    if place.is_none() {
        mistakes.push("health", "redis_url", format_args!("expected redis://HOST:PORT, found {url:?}"));
    }
    place.map(str::to_owned)
}
