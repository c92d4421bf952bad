//! What a node's engine carries, as its own edge knows it and tells its peers with each answer.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

/// On an answer between nodes: `in_flight=3, waiting=1`. Never on one to a user.
pub(super) const LOAD_HEADER: HeaderName = HeaderName::from_static("x-cic-load");

/// Load of one engine, whoever brought it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Load {
    /// Requests that its node sent to it and that have not ended.
    pub(in super::super) in_flight: u32,
    /// Those of them that it has not begun, by its last probe; `None` when there was none lately.
    pub(in super::super) waiting: Option<u32>,
}

impl Load {
    pub(in super::super) fn put(self, headers: &mut HeaderMap) {
        let text = match self.waiting {
            Some(waiting) => format!("in_flight={}, waiting={waiting}", self.in_flight),
            None => format!("in_flight={}", self.in_flight),
        };
        // Digits and ASCII words.
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(LOAD_HEADER, value);
        }
    }

    /// Takes the load off an answer; `None` where there is none or it makes no sense.
    pub(in super::super) fn take(headers: &mut HeaderMap) -> Option<Self> {
        let value = headers.remove(LOAD_HEADER)?;
        let (mut in_flight, mut waiting) = (None, None);
        for part in value.to_str().ok()?.split(',') {
            match part.trim().split_once('=')? {
                ("in_flight", count) => in_flight = Some(count.parse().ok()?),
                ("waiting", count) => waiting = Some(count.parse().ok()?),
                // A later version may tell more.
                _ => {}
            }
        }
        Some(Self { in_flight: in_flight?, waiting })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_survives_the_way_and_is_taken_off_the_answer() {
        for load in [Load { in_flight: 3, waiting: Some(1) }, Load { in_flight: 0, waiting: None }] {
            let mut headers = HeaderMap::new();
            load.put(&mut headers);
            assert_eq!(Load::take(&mut headers), Some(load));
            assert!(headers.is_empty());
        }
    }

    #[test]
    fn what_makes_no_sense_is_no_load() {
        for (text, load) in [
            ("in_flight=2, kv_free=7", Some(Load { in_flight: 2, waiting: None })),
            ("waiting=2", None),
            ("in_flight=-1", None),
            ("in_flight", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(LOAD_HEADER, HeaderValue::from_static(text));
            assert_eq!(Load::take(&mut headers), load, "{text:?}");
        }
    }
}
