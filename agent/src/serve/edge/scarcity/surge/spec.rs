//! Where the API outside is, what it may be used for and what it costs.

use std::collections::BTreeMap;
use std::str::FromStr;

use hyper::Uri;
use hyper::header::HeaderValue;

/// All that is fixed about the API outside.
#[derive(Debug, Clone)]
pub struct SurgeSpec {
    pub url: SurgeUrl,
    /// The value of its `Authorization` header; marked sensitive, so that no log shows it.
    pub authorization: HeaderValue,
    /// Its name of each of our models that may go there.
    pub models: BTreeMap<String, String>,
    pub price: Price,
    /// Requests there at once.
    pub in_flight_max: u32,
    /// Micro-dollars that may be spent within any 60 minutes of one run of the agent.
    pub budget_microusd_per_hour: u64,
    /// Whether batch work may go there too; it can wait, so that it is not paid for unless told.
    pub is_for_batch: bool,
}

/// What tokens cost, in millionths of a dollar for a million of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    pub input_microusd_per_million: u64,
    pub output_microusd_per_million: u64,
}

impl Price {
    /// Micro-dollars for so many tokens, rounded up: what was used is never free.
    #[must_use]
    pub fn cost(&self, input_tokens: u64, output_tokens: u64) -> u64 {
        let input = u128::from(input_tokens) * u128::from(self.input_microusd_per_million);
        let output = u128::from(output_tokens) * u128::from(self.output_microusd_per_million);
        u64::try_from(input.saturating_add(output).div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

/// The base of an OpenAI-compatible API, as its clients are given it: `https://api.example.com/v1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SurgeUrl {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) is_tls: bool,
    /// Without a slash at its end.
    pub(super) path: String,
}

/// Why a text is no such base.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SurgeUrlError {
    #[error("is no http:// or https:// URL")]
    Shape,
    #[error("http:// would show the key to the network: only loopback addresses may be without TLS")]
    Plain,
    #[error("has a query or a user name; say the base alone")]
    Extra,
}

impl FromStr for SurgeUrl {
    type Err = SurgeUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri: Uri = text.parse().map_err(|_| SurgeUrlError::Shape)?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) | None => return Err(SurgeUrlError::Shape),
        };
        let authority = uri.authority().ok_or(SurgeUrlError::Shape)?;
        if uri.query().is_some() || authority.as_str().contains('@') {
            return Err(SurgeUrlError::Extra);
        }
        let host = authority.host().to_owned();
        if !is_tls && !["127.0.0.1", "[::1]", "localhost"].contains(&host.as_str()) {
            return Err(SurgeUrlError::Plain);
        }
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Self { host, port, is_tls, path: uri.path().trim_end_matches('/').to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_https_or_loopback_and_nothing_more() {
        for (text, expected) in [
            ("https://api.example.com/v1", Ok(("api.example.com", 443, true, "/v1"))),
            ("https://api.example.com:8443/openai/v1/", Ok(("api.example.com", 8443, true, "/openai/v1"))),
            ("http://127.0.0.1:9000", Ok(("127.0.0.1", 9000, false, ""))),
            ("http://localhost:9000/v1", Ok(("localhost", 9000, false, "/v1"))),
            ("http://api.example.com/v1", Err(SurgeUrlError::Plain)),
            ("https://key@api.example.com/v1", Err(SurgeUrlError::Extra)),
            ("https://api.example.com/v1?key=x", Err(SurgeUrlError::Extra)),
            ("api.example.com/v1", Err(SurgeUrlError::Shape)),
            ("ftp://api.example.com", Err(SurgeUrlError::Shape)),
            ("", Err(SurgeUrlError::Shape)),
        ] {
            let parsed: Result<SurgeUrl, _> = text.parse();
            let parts =
                parsed.as_ref().map(|url| (url.host.as_str(), url.port, url.is_tls, url.path.as_str()));
            assert_eq!(parts, expected.as_ref().map(|parts| *parts), "{text:?}");
        }
    }

    #[test]
    fn tokens_cost_their_price_rounded_up() {
        // 0.15 and 0.60 dollars a million.
        let price = Price { input_microusd_per_million: 150_000, output_microusd_per_million: 600_000 };
        for (input, output, cost) in
            [(0, 0, 0), (1, 0, 1), (1_000_000, 0, 150_000), (0, 1_000_000, 600_000), (1000, 500, 450)]
        {
            assert_eq!(price.cost(input, output), cost);
        }
        let dear = Price { input_microusd_per_million: u64::MAX, output_microusd_per_million: u64::MAX };
        assert_eq!(dear.cost(u64::MAX, u64::MAX), u64::MAX);
    }
}
