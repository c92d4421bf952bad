//! Faults: each once, whoever tells it.

use super::*;

#[test]
fn a_fault_told_by_two_sources_counts_once() {
    let nvml = |code| XidSeen { source: XidSource::Nvml, text: String::new(), ..xid(code) };
    let kmsg = |code| XidSeen { pid: Some(7), ..xid(code) };
    for (first, second) in [(nvml(31), kmsg(31)), (kmsg(31), nvml(31))] {
        let mut gpus = gpus(1);
        let mut findings = gpus.hear(at(20), GpuEvent::Xid(first));
        findings.extend(gpus.hear(at(24), GpuEvent::Xid(second)));
        assert_eq!(faults(&findings), [(31, GpuAction::RestartApp)]);
        let restarts = findings.iter().filter(|finding| matches!(finding, GpuFinding::RestartApp { .. }));
        assert_eq!(restarts.count(), 1, "{findings:?}");
        let heard = gpus.xids_since(at(0));
        assert_eq!((heard.len(), heard[0].1.pid, heard[0].1.text.as_str()), (1, Some(7), "31, …"));
        let late = gpus.hear(at(30), GpuEvent::Xid(kmsg(31)));
        assert_eq!(faults(&late), [(31, GpuAction::RestartApp)], "6 s later it is another");
    }
}

#[test]
fn what_the_second_source_adds_is_judged() {
    let mut gpus = gpus(1);
    let bare = XidSeen { source: XidSource::Nvml, text: String::new(), ..xid(149) };
    let text = "149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 09 (0x025525c6 0x00000000 0x00000000)";
    let rich = XidSeen { interrupt_info: Some(0x0255_25c6), text: text.to_owned(), ..xid(149) };
    assert_eq!(faults(&gpus.hear(at(20), GpuEvent::Xid(bare.clone()))), [(149, GpuAction::Report)]);
    assert!(matches!(verdict(&gpus, 0), GpuVerdict::Degraded { .. }));
    assert_eq!(faults(&gpus.hear(at(20), GpuEvent::Xid(rich))), []);
    assert!(matches!(verdict(&gpus, 0), GpuVerdict::Unhealthy { action: GpuAction::ResetGpu, .. }));
    assert_eq!(gpus.xids_since(at(20))[0].2, GpuAction::ResetGpu);
    // A harmless one of which NVML told first leaves nothing.
    let mut gpus = self::gpus(1);
    let text = "149, NETIR_BER_EVENT Nonfatal XC0 i0 Link 03 (0x00086226 0x00000001)";
    let rich = XidSeen { interrupt_info: Some(0x0008_6226), text: text.to_owned(), ..xid(149) };
    let _ = gpus.hear(at(20), GpuEvent::Xid(bare));
    let _ = gpus.hear(at(20), GpuEvent::Xid(rich));
    assert_eq!(verdict(&gpus, 0), GpuVerdict::Healthy);
}

#[test]
fn a_killed_process_alone_leaves_no_mark_and_beside_a_fault_follows_it() {
    let mut gpus = gpus(2);
    assert_eq!(faults(&gpus.hear(at(20), GpuEvent::Xid(xid(45)))), [(45, GpuAction::Report)]);
    assert_eq!(verdict(&gpus, 0), GpuVerdict::Healthy);
    let elsewhere = XidSeen { pci: pci_text(1).parse().ok(), ..xid(95) };
    let _ = gpus.hear(at(30), GpuEvent::Xid(elsewhere));
    let alone = gpus.hear(at(31), GpuEvent::Xid(xid(45)));
    assert_eq!(faults(&alone), [(45, GpuAction::Report)], "another GPU's fault");
    let _ = gpus.hear(at(40), GpuEvent::Xid(xid(31)));
    let beside = gpus.hear(at(41), GpuEvent::Xid(xid(45)));
    assert_eq!(faults(&beside), [(45, GpuAction::RestartApp)]);
    assert!(!beside.iter().any(|finding| matches!(finding, GpuFinding::RestartApp { .. })), "told by 31");
    let late = gpus.hear(at(71), GpuEvent::Xid(xid(45)));
    assert_eq!(faults(&late), [(45, GpuAction::Report)], "31 s after the fault");
}

#[test]
fn a_restart_that_the_driver_asks_for_is_told_once() {
    let mut gpus = gpus(1);
    let drain =
        || sampled(vec![GpuSample { recovery_action: Some(RecoveryAction::DrainPeerToPeer), ..healthy(0) }]);
    let is_restart = |finding: &&GpuFinding| matches!(finding, GpuFinding::RestartApp { .. });
    assert_eq!(gpus.hear(at(20), drain()).iter().filter(is_restart).count(), 1);
    assert_eq!(gpus.hear(at(30), drain()).iter().filter(is_restart).count(), 0);
    let _ = gpus.hear(at(40), sampled(vec![healthy(0)]));
    assert_eq!(gpus.hear(at(50), says(RecoveryAction::RecoverImex)).iter().filter(is_restart).count(), 1);
    assert_eq!(gpus.hear(at(51), drain()).iter().filter(is_restart).count(), 0, "already told");
}

#[test]
fn a_change_is_told_once_with_its_reason() {
    let mut gpus = gpus(1);
    let changed = |findings: Vec<GpuFinding>| {
        let text = |finding| match finding {
            GpuFinding::Changed { text } => Some(text),
            GpuFinding::Xid { .. } | GpuFinding::RestartApp { .. } | GpuFinding::MemoryChanged => None,
        };
        findings.into_iter().filter_map(text).collect::<Vec<_>>()
    };
    assert_eq!(
        changed(gpus.hear(at(20), GpuEvent::Xid(xid(95)))),
        ["gpu 0 unhealthy: reset the GPU: XID 95: uncontained memory error, until the GPU was reset"]
    );
    assert!(changed(gpus.hear(at(21), cheap(vec![healthy(0)]))).is_empty());
    assert_eq!(changed(gpus.hear(at(22), says(RecoveryAction::None))), ["gpu 0 healthy"]);
}

#[test]
fn a_storm_stays_within_its_bounds() {
    let mut gpus = Gpus::default();
    let _ = gpus.hear(at(0), sampled((0..100).map(healthy).collect()));
    assert_eq!(health(&gpus).len(), 32);
    for code in 0..2000 {
        let pci = format!("0000:{:02x}:00", code % 256).parse().ok();
        let _ = gpus.hear(at(0), GpuEvent::Xid(XidSeen { pci, code: code % 200, ..xid(0) }));
    }
    assert_eq!(gpus.xids_since(at(0)).len(), 64);
    let mut one = self::gpus(1);
    for pid in 0..100 {
        let _ = one.hear(at(1), GpuEvent::Xid(XidSeen { pid: Some(pid), ..xid(31) }));
    }
    let _ = one.hear(at(1), GpuEvent::Xid(xid(95)));
    assert_eq!(one.memory().gpus[0].marks.len(), 16);
    assert!(matches!(verdict(&one, 0), GpuVerdict::Unhealthy { action: GpuAction::ResetGpu, .. }));
}

#[test]
fn a_fault_that_repeats_counts_for_as_long_as_it_does() {
    let mut gpus = gpus(1);
    let _ = gpus.hear(at(20), GpuEvent::Xid(xid(119)));
    for s in (24..=100).step_by(4) {
        let findings = gpus.hear(at(s), GpuEvent::Xid(xid(119)));
        assert_eq!(findings, [], "{s} s: told once, saved once");
        let _ = gpus.hear(at(s + 1), cheap(vec![healthy(0)]));
        assert!(gpus.condemned().is_some(), "{s} s: the driver's none may be from before it");
    }
    let _ = gpus.hear(at(101 + SETTLED_S), cheap(vec![healthy(0)]));
    assert_eq!(gpus.condemned(), None);
}

#[test]
fn a_fault_that_repeats_is_marked_again_after_its_mark_was_lifted() {
    let mut gpus = gpus(1);
    let _ = gpus.hear(at(20), GpuEvent::Xid(xid(119)));
    let _ = gpus.hear(at(21), GpuEvent::Cleared { gpu: None });
    assert_eq!(gpus.condemned(), None);
    assert_eq!(faults(&gpus.hear(at(24), GpuEvent::Xid(xid(119)))), []);
    assert!(gpus.condemned().is_some());
}

#[test]
fn a_note_is_not_dropped_while_its_fault_repeats() {
    let mut gpus = gpus(1);
    for s in (0..8000).step_by(4) {
        let _ = gpus.hear(at(20 + s), GpuEvent::Xid(xid(200)));
        assert!(matches!(verdict(&gpus, 0), GpuVerdict::Degraded { .. }), "{s} s");
    }
    let _ = gpus.hear(at(8020 + 3600), cheap(vec![healthy(0)]));
    assert_eq!(verdict(&gpus, 0), GpuVerdict::Healthy);
}
