//! One replica as the routing table describes it: what is the same from one request to the next.

use cic_common::id::NodeId;
use cic_common::route::Replica;
use cic_common::routing::{Policy, Routing};
use hyper::header::HeaderValue;

use super::super::pool::Upstream;
use super::affinity::hash;

/// A replica that may be asked, with its deployment's wishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Candidate {
    upstream: Upstream,
    host: HeaderValue,
    zone: Option<String>,
    key: u64,
    pub(super) tier: u8,
    pub(super) weight: u16,
    pub(super) policy: Policy,
    pub(super) has_affinity: bool,
    /// Its GPU is one the model may run on.
    pub(super) is_fit: bool,
}

impl Candidate {
    pub(in super::super) fn new(
        upstream: Upstream,
        zone: Option<String>,
        gpu: Option<&str>,
        routing: &Routing,
    ) -> Self {
        Self {
            zone,
            key: key(upstream.node()),
            host: upstream.host(),
            tier: routing.tier,
            weight: routing.weight,
            policy: routing.policy,
            has_affinity: routing.prefix_affinity,
            is_fit: routing.fits(gpu),
            upstream,
        }
    }

    /// Another node's replica.
    pub(in super::super) fn peer(replica: &Replica, routing: &Routing) -> Self {
        let upstream =
            Upstream::Peer { node: replica.node.clone(), address: replica.address.as_str().into() };
        Self::new(upstream, replica.zone.clone(), replica.gpu.as_deref(), routing)
    }

    pub(in super::super) fn node(&self) -> &NodeId {
        self.upstream.node()
    }

    pub(in super::super) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// What it is called in the `Host` header.
    pub(in super::super) fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// Stands for the node's id where texts would be slow.
    pub(super) fn key(&self) -> u64 {
        self.key
    }

    /// A zone that nobody knows is not near.
    pub(super) fn is_in(&self, zone: Option<&str>) -> bool {
        zone.is_some() && self.zone.as_deref() == zone
    }
}

/// Two nodes of one fleet with the same key (one in 10^13 for 1000 nodes) would share what is known of them, no more.
pub(super) fn key(node: &NodeId) -> u64 {
    hash(node.as_str().as_bytes())
}
