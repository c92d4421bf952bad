//! Every way in and every way back.

use super::*;

/// One step of a table.
enum Step {
    Hear(GpuEvent),
    EngineStarted,
    EngineProved,
}

fn drive(gpus: &mut Gpus, from: Mono, steps: Vec<Step>) {
    for (index, step) in steps.into_iter().enumerate() {
        let now = from + std::time::Duration::from_millis(index as u64);
        match step {
            Step::Hear(event) => drop(gpus.hear(now, event)),
            Step::EngineStarted => {
                gpus.engine_started(now);
                let _ = gpus.hear(now, cheap(vec![healthy(0)]));
            }
            Step::EngineProved => gpus.engine_proved(now),
        }
    }
}

fn lost() -> GpuEvent {
    GpuEvent::Sampled { is_full: true, device_count: 1, samples: vec![], lost: vec!["GPU-0".to_owned()] }
}

#[test]
fn every_unhealthy_state_has_a_way_back() {
    use Step::{EngineProved, EngineStarted, Hear};
    let well = || Hear(sampled(vec![healthy(0)]));
    let fault = |code: u32| GpuEvent::Xid(XidSeen { pid: Some(7), ..xid(code) });
    let word = |word| sampled(vec![GpuSample { recovery_action: Some(word), ..healthy(0) }]);
    let broken = || sampled(vec![GpuSample { remap_failed: Some(true), ..healthy(0) }]);
    let idle = || Hear(sampled(vec![GpuSample { processes: Some(vec![]), ..healthy(0) }]));
    let cleared = || Hear(GpuEvent::Cleared { gpu: Some("GPU-0".to_owned()) });
    let none = || Hear(says(RecoveryAction::None));
    let back = || vec![Hear(lost()), well()];
    let restart = ("until the engine was started anew", GpuAction::RestartApp);
    let reset = ("until the GPU was reset", GpuAction::ResetGpu);
    let boot = ("until the VM was rebooted", GpuAction::RestartVm);
    let gone = ("until the GPU is back", GpuAction::ReplaceNode);
    let driver = |action| ("until the driver says none", action);
    let failed = ("until the driver reports it no more", GpuAction::ReplaceNode);
    let table: Vec<(GpuEvent, (&str, GpuAction), Vec<Step>)> = vec![
        (fault(31), restart, vec![EngineStarted]),
        (fault(31), restart, vec![EngineProved]),
        (fault(94), restart, vec![idle()]),
        (fault(94), restart, back()),
        (fault(94), restart, vec![cleared()]),
        (fault(95), reset, vec![none()]),
        (fault(95), reset, vec![well()]),
        (fault(95), reset, back()),
        (fault(95), reset, vec![cleared()]),
        (fault(48), reset, vec![none()]),
        (fault(64), reset, vec![none()]),
        (fault(119), reset, vec![none()]),
        (fault(136), reset, vec![none()]),
        (fault(151), boot, vec![none()]),
        (fault(151), boot, vec![cleared()]),
        (fault(79), gone, back()),
        (fault(79), gone, vec![none()]),
        (fault(79), gone, vec![cleared()]),
        (lost(), gone, vec![well()]),
        (says(RecoveryAction::GpuReset), driver(GpuAction::ResetGpu), vec![none()]),
        (says(RecoveryAction::NodeReboot), driver(GpuAction::RestartVm), vec![well()]),
        (word(RecoveryAction::DrainAndReset), driver(GpuAction::ResetGpu), vec![well()]),
        (word(RecoveryAction::SystemReboot), driver(GpuAction::RestartVm), vec![none()]),
        (word(RecoveryAction::RecoverImex), driver(GpuAction::RestartApp), vec![well()]),
        (broken(), failed, vec![well()]),
    ];
    for (index, (event, (end, action), way)) in table.into_iter().enumerate() {
        let mut gpus = gpus(1);
        let _ = gpus.hear(at(20), event);
        match verdict(&gpus, 0) {
            GpuVerdict::Unhealthy { action: found, reason } => {
                assert_eq!(found, action, "{index}: {reason}");
                assert!(reason.contains(end), "{index}: {reason}");
            }
            other => panic!("{index}: {other:?}"),
        }
        assert_eq!(gpus.condemned().is_some(), action.condemns(), "{index}");
        drive(&mut gpus, at(20 + SETTLED_S), way);
        assert_eq!(verdict(&gpus, 0), GpuVerdict::Healthy, "{index}");
        assert_eq!(gpus.condemned(), None, "{index}");
    }
}

#[test]
fn what_is_no_way_back_ends_nothing() {
    use Step::{EngineProved, EngineStarted, Hear};
    let silent = GpuSample { recovery_action: None, ..healthy(0) };
    for (code, way) in [
        (95, vec![EngineStarted]),
        (95, vec![EngineProved]),
        (79, vec![EngineStarted]),
        (79, vec![EngineProved]),
        (151, vec![Hear(lost()), Hear(sampled(vec![silent.clone()]))]),
        (31, vec![Hear(says(RecoveryAction::None)), Hear(sampled(vec![healthy(0)]))]),
        (95, vec![Hear(GpuEvent::Cleared { gpu: Some("GPU-1".to_owned()) })]),
        (95, vec![Hear(GpuEvent::Ready(GpuInventory::default())), Hear(sampled(vec![silent.clone()]))]),
    ] {
        let mut gpus = Gpus::default();
        let _ = gpus.hear(at(0), sampled(vec![silent.clone()]));
        let _ = gpus.hear(at(20), GpuEvent::Xid(xid(code)));
        drive(&mut gpus, at(21), way);
        assert!(matches!(verdict(&gpus, 0), GpuVerdict::Unhealthy { .. }), "{code}");
    }
}

#[test]
fn a_sampled_none_that_may_be_older_than_the_fault_ends_nothing() {
    let mut gpus = gpus(1);
    let _ = gpus.hear(at(20), GpuEvent::Xid(xid(95)));
    let _ = gpus.hear(at(25), sampled(vec![healthy(0)]));
    assert!(gpus.condemned().is_some());
    // One that says nothing just now has no word either.
    let _ = gpus.hear(at(20 + SETTLED_S), cheap(vec![GpuSample::unknown(0, "GPU-0".to_owned())]));
    assert!(gpus.condemned().is_some());
    let _ = gpus.hear(at(21 + SETTLED_S), cheap(vec![healthy(0)]));
    assert_eq!(gpus.condemned(), None);
}

#[test]
fn the_graver_of_table_and_driver_counts_until_the_driver_says_none() {
    let mut gpus = gpus(1);
    let action = |gpus: &Gpus| gpus.condemned().map(|(action, _)| action);
    let _ = gpus.hear(at(20), GpuEvent::Xid(xid(95)));
    assert_eq!(action(&gpus), Some(GpuAction::ResetGpu));
    let _ = gpus.hear(at(20), says(RecoveryAction::NodeReboot));
    assert_eq!(action(&gpus), Some(GpuAction::RestartVm));
    let _ = gpus.hear(at(40), says(RecoveryAction::DrainPeerToPeer));
    assert_eq!(action(&gpus), Some(GpuAction::ResetGpu), "the table's word stands");
    let _ = gpus.hear(at(41), says(RecoveryAction::None));
    assert_eq!(verdict(&gpus, 0), GpuVerdict::Healthy);
}

#[test]
fn notes_degrade_and_end() {
    let with = |sample: GpuSample| sampled(vec![sample]);
    let base = || healthy(0);
    let wide = || GpuSample {
        pcie_link_width: Some(16),
        pcie_link_width_max: Some(16),
        retired_pages_pending: Some(false),
        ..base()
    };
    let table = [
        (with(GpuSample { remap_pending: Some(true), ..base() }), "remapped at the next reset", 21),
        (with(GpuSample { ecc_volatile_uncorrected: Some(3), ..base() }), "3 uncorrected ECC errors", 21),
        (with(GpuSample { pcie_link_width: Some(8), ..wide() }), "PCIe link x8 of x16", 21),
        (with(GpuSample { retired_pages_pending: Some(true), ..base() }), "to be retired", 21),
        (with(GpuSample { throttle_reasons: Some(0x48), ..base() }), "slowed by heat", 81),
        (with(GpuSample { throttle_reasons: Some(0x80), ..base() }), "power brake", 81),
        (GpuEvent::Xid(xid(200)), "XID 200: not in the catalogue", 20 + 3600),
        (GpuEvent::Xid(xid(167)), "XID 167: fatal timeout on PCIe", 20 + 3600),
    ];
    for (event, phrase, ends_s) in table {
        let mut gpus = gpus(1);
        let _ = gpus.hear(at(20), event);
        match verdict(&gpus, 0) {
            GpuVerdict::Degraded { reason } => assert!(reason.contains(phrase), "{reason}"),
            other => panic!("{phrase}: {other:?}"),
        }
        assert_eq!(gpus.condemned(), None);
        let _ = gpus.hear(at(ends_s), sampled(vec![wide()]));
        assert_eq!(verdict(&gpus, 0), GpuVerdict::Healthy, "{phrase}");
    }
    let mut gpus = gpus(1);
    let _ = gpus.hear(at(20), with(GpuSample { throttle_reasons: Some(0x8 | 0x4 | 0x1), ..base() }));
    assert_eq!(verdict(&gpus, 0), GpuVerdict::Healthy, "idle, power cap and clock changes are no fault");
    let _ = gpus.hear(at(21), GpuEvent::Xid(xid(61)));
    assert!(matches!(verdict(&gpus, 0), GpuVerdict::Degraded { .. }));
    let _ = gpus.hear(at(21), GpuEvent::Cleared { gpu: None });
    assert_eq!(verdict(&gpus, 0), GpuVerdict::Healthy);
}

#[test]
fn a_field_that_is_not_told_is_no_good_news() {
    let mut gpus = gpus(1);
    let _ = gpus.hear(at(1), sampled(vec![GpuSample { remap_failed: Some(true), ..healthy(0) }]));
    let _ = gpus.hear(at(2), sampled(vec![GpuSample { remap_failed: None, ..healthy(0) }]));
    assert!(gpus.condemned().is_some());
}

#[test]
fn an_operator_accepts_what_every_sample_shows_again() {
    let broken = || sampled(vec![GpuSample { remap_failed: Some(true), ..healthy(0) }]);
    let mut gpus = gpus(1);
    let _ = gpus.hear(at(1), broken());
    let findings = gpus.hear(at(2), GpuEvent::Cleared { gpu: None });
    assert!(findings.contains(&GpuFinding::MemoryChanged));
    let _ = gpus.hear(at(3), broken());
    assert_eq!(gpus.condemned(), None);
    match verdict(&gpus, 0) {
        GpuVerdict::Degraded { reason } => assert!(reason.contains("accepted by an operator"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let mut next = Gpus::default();
    next.restore(gpus.memory());
    let _ = next.hear(at(0), broken());
    assert_eq!(next.condemned(), None, "the next run knows");
    let _ = next.hear(at(1), sampled(vec![healthy(0)]));
    let _ = next.hear(at(2), broken());
    assert!(next.condemned().is_some(), "a new failure is not accepted");
}
