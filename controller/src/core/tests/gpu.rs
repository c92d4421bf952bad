//! What a node says of its GPUs: told of, counted, and no verdict by itself.

use std::time::Duration;

use cic_common::gpu::{GpuAction, XidSeen, XidSource};
use cic_common::id::Incarnation;
use cic_common::report::GpuReport;
use cic_common::wire::message::NodeEvent;

use super::bench::*;
use crate::core::*;

#[test]
fn a_wedged_driver_is_told_of_once_and_the_node_goes_on_serving() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    let told = |bench: &Bench| bench.notes.iter().filter(|note| note.severity == Severity::Alert).count();
    let wedged = |call: &str| GpuReport::Wedged { reason: format!("{call} does not come back") };
    for call in ["nvmlDeviceGetTemperature", "end of the probe"] {
        let event = NodeEvent::GpuChanged { text: format!("GPUs {}", wedged(call).text()) };
        bench.give(Event::Told { node: node.clone(), incarnation: Incarnation(1), event });
        bench.change(&node, |report| report.gpu = wedged(call));
        bench.run(Duration::from_secs(20));
    }
    bench.run(Duration::from_secs(300));
    assert_eq!(told(&bench), 1);
    assert!(bench.routed.contains(&node));
    assert_eq!((bench.launched.len(), bench.terminated.len()), (2, 0));
    bench.change(&node, |report| report.gpu = GpuReport::Absent);
    bench.run(Duration::from_secs(5));
    bench.change(&node, |report| report.gpu = wedged("nvmlInit"));
    bench.run(Duration::from_secs(5));
    assert_eq!(told(&bench), 2, "a second hang is news");
}

#[test]
fn xids_are_told_of_and_counted_by_code_and_action() {
    let mut bench = Bench::serving(1);
    let node = bench.node(0);
    let mut tell = |code, action, incarnation| {
        let seen = XidSeen {
            source: XidSource::Kmsg,
            pci: None,
            code,
            pid: None,
            interrupt_info: None,
            recovery: None,
            text: String::new(),
        };
        let event = NodeEvent::Xid { seen, action };
        bench.give(Event::Told { node: node.clone(), incarnation: Incarnation(incarnation), event });
    };
    tell(13, GpuAction::RestartApp, 1);
    tell(79, GpuAction::ReplaceNode, 1);
    tell(13, GpuAction::RestartApp, 1);
    tell(13, GpuAction::RestartApp, 0);
    let counts = bench.fleet.view(bench.now).xids;
    let counts: Vec<_> = counts.iter().map(|kind| (kind.code, kind.count)).collect();
    assert_eq!(counts, [(Some(13), 2), (Some(79), 1)], "an overtaken incarnation is not heard");
    let notes: Vec<_> = bench.notes.iter().filter(|note| note.kind == "xid").collect();
    assert_eq!(notes.iter().map(|note| note.severity).collect::<Vec<_>>(), {
        [Severity::Warning, Severity::Alert, Severity::Warning]
    });
    assert_eq!((bench.launched.len(), bench.terminated.len()), (1, 0), "the agent judges, not the code");
}
