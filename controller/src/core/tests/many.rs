//! Fleets too large to be gone over at each change.

use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::report::Phase;

use super::bench::*;
use crate::core::*;

/// A thousand more than are gone over at once: 20 ms between two times.
const COUNT: u16 = 1250;

fn id(number: u16) -> NodeId {
    NodeId::new(format!("n{number:04}")).expect("a label")
}

fn fleet() -> Bench {
    let mut restored = Bench::serving(1).stored(1);
    let record = restored.nodes[0].clone();
    restored.nodes = (0..COUNT).map(|number| NodeRecord { node: id(number), ..record.clone() }).collect();
    let mut bench = Bench::with(COUNT, restored);
    for number in 0..COUNT {
        bench.instances.insert(id(number), InstanceState::Running);
        bench.serve(&id(number), 2);
    }
    bench.run(Duration::from_secs(12));
    assert_eq!(bench.routed.len(), usize::from(COUNT));
    bench
}

/// One node after the other begins to load, a millisecond apart.
fn ten_load(bench: &mut Bench, mut look: impl FnMut(&Bench)) {
    for number in 0..10 {
        bench.now = bench.now + Duration::from_millis(1);
        let (_, _, report) = bench.beats.get_mut(&id(number)).expect("it beats");
        report.phase = Phase::Loading;
        let beat = bench.beat(&id(number), 0).expect("a beat");
        bench.give(Event::Heartbeats(vec![beat]));
        look(bench);
        let deadline = bench.fleet.deadline();
        assert!(deadline.is_none_or(|at| at > bench.now), "{deadline:?} at {:?}", bench.now);
    }
}

#[test]
fn many_changes_one_after_the_other_are_gone_over_together() {
    let mut bench = fleet();
    let all = usize::from(COUNT);
    ten_load(&mut bench, |bench| {
        assert_eq!(bench.routed.len(), all - 1, "the first at once, others not yet")
    });
    bench.run(Duration::from_millis(30));
    assert_eq!(bench.routed.len(), all - 10);
}

#[test]
fn a_leader_that_steps_down_between_two_times_waits_for_nothing_that_is_over() {
    let mut bench = fleet();
    let rows = bench.stored(1);
    ten_load(&mut bench, |_| {});
    for event in [Event::SteppedDown, Event::Followed(rows)] {
        bench.give(event);
        let deadline = bench.fleet.deadline();
        assert!(deadline.is_none_or(|at| at >= bench.now), "{deadline:?} at {:?}", bench.now);
    }
    bench.run(Duration::from_secs(2));
    let now = bench.now;
    let loading =
        |node: &&NodeView| node.report.as_ref().is_some_and(|report| report.phase == Phase::Loading);
    assert_eq!(bench.fleet.view(now).nodes.iter().filter(loading).count(), 10);
    bench.give(Event::Restored(bench.stored(2)));
    bench.run(Duration::from_secs(1));
    assert_eq!(bench.routed.len(), usize::from(COUNT) - 10, "the next reign has them");
}
