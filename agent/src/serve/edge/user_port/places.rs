//! Who has how many connections.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Connections taken, of all and of each client. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Places {
    total_max: usize,
    per_client_max: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_client: BTreeMap<IpAddr, usize>,
}

/// One connection, counted in while alive.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    client: IpAddr,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    ForAll,
    ForClient,
}

impl Places {
    pub(super) fn new(total_max: usize, per_client_max: usize) -> Self {
        Self { total_max, per_client_max, taken: Arc::default() }
    }

    pub(super) fn take(&self, address: IpAddr) -> Result<Place, Full> {
        let client = client_of(address);
        let mut taken = self.lock();
        if taken.total >= self.total_max {
            return Err(Full::ForAll);
        }
        let count = taken.by_client.get(&client).copied().unwrap_or(0);
        if count >= self.per_client_max {
            return Err(Full::ForClient);
        }
        taken.by_client.insert(client, count + 1);
        taken.total += 1;
        Ok(Place { places: self.clone(), client })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.total -= 1;
        if let Some(count) = taken.by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.by_client.remove(&self.client);
            }
        }
    }
}

/// Whoever has an IPv6 address has its /64 too (RFC 6177).
fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn no_client_has_more_than_its_share_and_all_together_no_more_than_there_are() {
        let places = Places::new(4, 2);
        let mut held = Vec::new();
        for (address, refused) in [
            ("192.0.2.1", None),
            ("::ffff:192.0.2.1", None),
            ("192.0.2.1", Some(Full::ForClient)),
            ("2001:db8::1", None),
            ("2001:db8::2", None),
            ("2001:db8::3", Some(Full::ForAll)),
        ] {
            match places.take(ip(address)) {
                Ok(place) => {
                    assert_eq!(refused, None, "{address}");
                    held.push(place);
                }
                Err(full) => assert_eq!(Some(full), refused, "{address}"),
            }
        }
        held.pop();
        held.push(places.take(ip("2001:db8::4")).unwrap());
        drop(held);
        assert!(places.lock().by_client.is_empty());
        assert_eq!(places.lock().total, 0);
    }
}
