//! What the table tells the edges beside who serves.

use std::time::Duration;

use cic_common::routing::{Policy, Routing};

use super::super::*;
use super::bench::{Bench, deployment};

#[test]
fn a_change_of_routing_is_a_new_table_and_touches_no_node() {
    let mut bench = Bench::serving(2);
    let before = bench.fleet.view(bench.now).routes;
    assert_eq!(before.routes[0].routing, Routing::default());
    let routing = Routing { policy: Policy::LeastLoad, weight: 10, ..Routing::default() };
    bench.give(Event::Deployed(Deployment { routing: routing.clone(), ..deployment(2) }));
    let after = bench.fleet.view(bench.now).routes;
    assert!(after.supersedes(&before));
    assert_eq!(after.routes[0].routing, routing);
    assert_eq!(after.routes[0].replicas, before.routes[0].replicas);
    bench.run(Duration::from_secs(30));
    assert_eq!((bench.launched.len(), bench.terminated.len(), bench.drains_sent), (2, 0, 0));
    assert_eq!(bench.fleet.view(bench.now).routes, after, "once");
}

#[test]
fn a_replica_is_told_with_its_zone_and_the_gpu_in_its_name() {
    let bench = Bench::serving(1);
    let table = bench.fleet.view(bench.now).routes;
    let replica = &table.routes[0].replicas[0];
    assert_eq!(
        (replica.zone.as_deref(), replica.gpu.as_deref()),
        (Some("here"), None),
        "its cluster has none"
    );
}
