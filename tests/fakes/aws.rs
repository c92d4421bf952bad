//! The instance metadata service of AWS, version 2 only.

use std::collections::BTreeSet;

use serde_json::json;

use super::server::{Asked, Reply, iso, rfc2822_without_day};

/// The keys that tell of interruptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AwsKey {
    Spot,
    Rebalance,
    Scheduled,
    Lifecycle,
}

impl AwsKey {
    pub const ALL: [Self; 4] = [Self::Spot, Self::Rebalance, Self::Scheduled, Self::Lifecycle];

    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Spot => "/latest/meta-data/spot/instance-action",
            Self::Rebalance => "/latest/meta-data/events/recommendations/rebalance",
            Self::Scheduled => "/latest/meta-data/events/maintenance/scheduled",
            Self::Lifecycle => "/latest/meta-data/autoscaling/target-lifecycle-state",
        }
    }
}

pub(super) const TOKEN_PATH: &str = "/latest/api/token";
const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const TTL_MAX: u64 = 21_600;

/// One scheduled event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduled {
    pub id: String,
    pub code: String,
    pub state: String,
    pub not_before_unix_ms: u64,
}

#[derive(Debug, Default)]
pub(super) struct Aws {
    /// Action and moment.
    pub(super) spot: Option<(String, u64)>,
    /// The moment is named anew at each read, so many milliseconds ahead.
    pub(super) spot_drifts_by: Option<u64>,
    pub(super) rebalance_unix_ms: Option<u64>,
    pub(super) scheduled: Vec<Scheduled>,
    pub(super) lifecycle: Option<String>,
    tokens: BTreeSet<String>,
    token_count: u64,
}

impl Aws {
    /// Makes every token worthless, as after a restart of the service.
    pub(super) fn forget_tokens(&mut self) {
        self.tokens.clear();
    }

    pub(super) fn answer(&mut self, asked: &Asked, now_unix_ms: u64, is_time_bad: bool) -> Reply {
        if asked.path == TOKEN_PATH {
            return self.token(asked);
        }
        let tokens: Vec<&str> = asked.values(TOKEN_HEADER).collect();
        let [token] = tokens.as_slice() else { return Reply::status(401) };
        if !self.tokens.contains(*token) {
            return Reply::status(401);
        }
        let time = |unix_ms| if is_time_bad { "soon".to_owned() } else { iso(unix_ms) };
        let key = AwsKey::ALL.into_iter().find(|key| key.path() == asked.path);
        let body = match key {
            Some(AwsKey::Spot) => {
                if let (Some(ahead), Some((_, moment))) = (self.spot_drifts_by, &mut self.spot) {
                    *moment = now_unix_ms + ahead;
                }
                let spot = self.spot.as_ref();
                spot.map(|(action, moment)| json!({ "action": action, "time": time(*moment) }).to_string())
            }
            Some(AwsKey::Rebalance) => {
                self.rebalance_unix_ms.map(|moment| json!({ "noticeTime": time(moment) }).to_string())
            }
            Some(AwsKey::Scheduled) => {
                let list = self.scheduled.iter().map(|event| {
                    let not_before = if is_time_bad {
                        "soon".to_owned()
                    } else {
                        rfc2822_without_day(event.not_before_unix_ms)
                    };
                    json!({
                        "NotBefore": not_before,
                        "NotAfter": rfc2822_without_day(event.not_before_unix_ms + 7_200_000),
                        "Code": event.code,
                        "Description": "scheduled by the fake",
                        "EventId": event.id,
                        "State": event.state,
                    })
                });
                Some(serde_json::Value::from(list.collect::<Vec<_>>()).to_string())
            }
            Some(AwsKey::Lifecycle) => self.lifecycle.clone(),
            None => None,
        };
        body.map_or_else(|| Reply::status(404), |body| Reply::ok("text/plain", body))
    }

    fn token(&mut self, asked: &Asked) -> Reply {
        if asked.method != "PUT" {
            return Reply::status(405);
        }
        let ttl = asked.values(TTL_HEADER).next().and_then(|text| text.parse::<u64>().ok());
        let Some(ttl) = ttl.filter(|ttl| (1..=TTL_MAX).contains(ttl)) else { return Reply::status(400) };
        self.token_count += 1;
        let token = format!("token-{}", self.token_count);
        self.tokens.insert(token.clone());
        Reply::ok("text/plain", token).with(TTL_HEADER, ttl.to_string())
    }
}
