//! The node's GPUs as a whole: every way in and every way back.

use cic_common::gpu::{
    GpuAction, GpuHealth, GpuInventory, GpuProcess, GpuSample, GpuVerdict, RecoveryAction, XidSeen, XidSource,
};
use cic_common::report::GpuReport;
use cic_common::time::Mono;
use cic_common::units::Bytes;

use super::{GpuEvent, GpuFinding, GpuMemory, Gpus};

const SETTLED_S: u64 = 11;

fn at(s: u64) -> Mono {
    Mono::from_millis(s * 1000)
}

fn pci_text(index: u32) -> String {
    format!("0000:{:02x}:00", 0x3b + index)
}

fn healthy(index: u32) -> GpuSample {
    GpuSample {
        pci: pci_text(index).parse().ok(),
        memory_used: Some(Bytes::mib(1000)),
        memory_total: Some(Bytes::mib(80_000)),
        recovery_action: Some(RecoveryAction::None),
        remap_failed: Some(false),
        remap_pending: Some(false),
        ecc_volatile_uncorrected: Some(0),
        throttle_reasons: Some(0),
        processes: Some(vec![GpuProcess { pid: 7, memory_used: Some(Bytes::mib(900)) }]),
        ..GpuSample::unknown(index, format!("GPU-{index}"))
    }
}

fn sampled(samples: Vec<GpuSample>) -> GpuEvent {
    let device_count = u32::try_from(samples.len()).unwrap();
    GpuEvent::Sampled { is_full: true, device_count, samples, lost: vec![] }
}

fn cheap(samples: Vec<GpuSample>) -> GpuEvent {
    let device_count = u32::try_from(samples.len()).unwrap();
    GpuEvent::Sampled { is_full: false, device_count, samples, lost: vec![] }
}

fn xid(code: u32) -> XidSeen {
    XidSeen {
        source: XidSource::Kmsg,
        pci: pci_text(0).parse().ok(),
        code,
        pid: None,
        interrupt_info: None,
        recovery: None,
        text: format!("{code}, …"),
    }
}

fn says(word: RecoveryAction) -> GpuEvent {
    GpuEvent::Xid(XidSeen { recovery: Some(word), ..xid(154) })
}

/// GPUs that are all healthy at 0 s.
fn gpus(count: u32) -> Gpus {
    let mut gpus = Gpus::default();
    let _ = gpus.hear(at(0), sampled((0..count).map(healthy).collect()));
    gpus
}

fn health(gpus: &Gpus) -> Vec<GpuHealth> {
    match gpus.report() {
        GpuReport::Seen(summary) => summary.gpus,
        other => panic!("{other:?}"),
    }
}

fn verdict(gpus: &Gpus, index: usize) -> GpuVerdict {
    health(gpus)[index].verdict.clone()
}

fn faults(findings: &[GpuFinding]) -> Vec<(u32, GpuAction)> {
    let fault = |finding: &GpuFinding| match finding {
        GpuFinding::Xid { seen, action } => Some((seen.code, *action)),
        GpuFinding::Changed { .. } | GpuFinding::RestartApp { .. } | GpuFinding::MemoryChanged => None,
    };
    findings.iter().filter_map(fault).collect()
}

/// One step of a table.
enum Step {
    Hear(GpuEvent),
    EngineStarted,
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
        }
    }
}

fn lost() -> GpuEvent {
    GpuEvent::Sampled { is_full: true, device_count: 1, samples: vec![], lost: vec!["GPU-0".to_owned()] }
}

#[test]
fn every_unhealthy_state_has_a_way_back() {
    use Step::{EngineStarted, Hear};
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
    use Step::{EngineStarted, Hear};
    let silent = GpuSample { recovery_action: None, ..healthy(0) };
    for (code, way) in [
        (95, vec![EngineStarted]),
        (79, vec![EngineStarted]),
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
    // A cheap sample repeats the word of the last full one.
    let _ = gpus.hear(at(20 + SETTLED_S), cheap(vec![healthy(0)]));
    assert!(gpus.condemned().is_some());
    let _ = gpus.hear(at(21 + SETTLED_S), sampled(vec![healthy(0)]));
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
fn a_gpu_that_is_missed_is_lost_whether_named_or_not() {
    let seven = || (0..7).map(healthy).collect::<Vec<_>>();
    let named = GpuEvent::Sampled {
        is_full: false,
        device_count: 8,
        samples: seven(),
        lost: vec!["GPU-7".to_owned()],
    };
    for event in [sampled(seven()), cheap(seven()), named] {
        let mut gpus = gpus(8);
        let _ = gpus.hear(at(1), event);
        assert_eq!(health(&gpus).len(), 8);
        let (action, reason) = gpus.condemned().unwrap();
        assert_eq!((action, reason.starts_with("gpu 7: lost")), (GpuAction::ReplaceNode, true), "{reason}");
        assert_eq!(gpus.samples().count(), 7);
        let _ = gpus.hear(at(2), sampled((0..8).map(healthy).collect()));
        assert_eq!(gpus.condemned(), None);
    }
    let mut gpus = gpus(8);
    let unread = GpuEvent::Sampled { is_full: true, device_count: 8, samples: seven(), lost: vec![] };
    let _ = gpus.hear(at(1), unread);
    assert_eq!(gpus.condemned(), None, "still counted: only its sample failed");
}

#[test]
fn notes_degrade_and_end() {
    let with = |sample: GpuSample| sampled(vec![sample]);
    let base = || healthy(0);
    let table = [
        (with(GpuSample { remap_pending: Some(true), ..base() }), "remapped at the next reset", 21),
        (with(GpuSample { ecc_volatile_uncorrected: Some(3), ..base() }), "3 uncorrected ECC errors", 21),
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
        let _ = gpus.hear(at(ends_s), sampled(vec![base()]));
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

#[test]
fn what_cannot_be_seen_again_survives_the_agent_and_not_the_boot() {
    let mut gpus = gpus(2);
    let findings = gpus.hear(at(20), GpuEvent::Xid(xid(95)));
    assert!(findings.contains(&GpuFinding::MemoryChanged));
    assert!(!gpus.hear(at(21), cheap(vec![healthy(0), healthy(1)])).contains(&GpuFinding::MemoryChanged));
    let text = serde_json::to_string(&gpus.memory()).unwrap();
    let memory: GpuMemory = serde_json::from_str(&text).unwrap();
    let mut next = Gpus::default();
    next.restore(memory.clone());
    assert_eq!(next.memory(), memory);
    assert_eq!(next.condemned(), gpus.condemned(), "before any word of the driver");
    let silent = |index| GpuSample { recovery_action: None, ..healthy(index) };
    let _ = next.hear(at(1), sampled(vec![silent(0), silent(1)]));
    assert_eq!(next.condemned(), gpus.condemned());
    let mut without = Gpus::default();
    without.restore(memory);
    let _ = without.hear(at(1), sampled(vec![healthy(0)]));
    assert!(matches!(without.condemned(), Some((GpuAction::ReplaceNode, _))), "GPU 1 is missed");
    let mut rebooted = Gpus::default();
    let _ = rebooted.hear(at(1), sampled(vec![healthy(0), healthy(1)]));
    assert_eq!(rebooted.condemned(), None);
}

#[test]
fn a_fault_from_before_the_first_sample_finds_its_gpu() {
    let mut gpus = Gpus::default();
    let _ = gpus.hear(at(0), GpuEvent::Xid(xid(79)));
    assert!(matches!(gpus.condemned(), Some((GpuAction::ReplaceNode, _))), "without a driver");
    let _ = gpus.hear(at(1), sampled(vec![healthy(1)]));
    assert_eq!(health(&gpus).len(), 2, "the one that the driver does not show is reported");
    let _ = gpus.hear(at(2), sampled(vec![healthy(0), healthy(1)]));
    let told: Vec<_> = health(&gpus).iter().map(|gpu| (gpu.index, gpu.verdict.as_str())).collect();
    assert_eq!(told, [(0, "unhealthy"), (1, "healthy")]);
}

#[test]
fn blind_and_wedged_end_with_the_next_answer() {
    let wedged = || GpuEvent::Wedged { call: "nvmlInit".to_owned(), for_ms: 9000 };
    let blind = || GpuEvent::Blind { reason: "no NVIDIA driver".to_owned() };
    for event in [wedged(), blind()] {
        let mut gpus = gpus(1);
        let findings = gpus.hear(at(1), event.clone());
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(gpus.hear(at(2), event), [], "told once");
        assert!(matches!(gpus.report(), GpuReport::Blind { .. } | GpuReport::Wedged { .. }));
        assert_eq!(gpus.memory_used(), None);
        let _ = gpus.hear(at(3), GpuEvent::Ready(GpuInventory::default()));
        assert!(matches!(gpus.report(), GpuReport::Blind { .. }), "no sample yet");
        assert_eq!(gpus.memory_used(), None);
        let _ = gpus.hear(at(4), sampled(vec![healthy(0)]));
        assert_eq!(verdict(&gpus, 0), GpuVerdict::Healthy);
    }
    let mut gpus = Gpus::default();
    assert!(matches!(gpus.report(), GpuReport::Blind { .. }), "nothing was heard yet");
    assert_eq!(gpus.hear(at(0), GpuEvent::Absent), []);
    assert_eq!(gpus.report(), GpuReport::Absent);
}

#[test]
fn a_cheap_sample_keeps_the_slow_fields() {
    let mut gpus = gpus(1);
    let cheap_one =
        GpuSample { memory_used: Some(Bytes::mib(5)), ..GpuSample::unknown(0, "GPU-0".to_owned()) };
    let _ = gpus.hear(at(1), cheap(vec![cheap_one]));
    let sample = gpus.samples().next().unwrap();
    assert_eq!((sample.memory_used, sample.remap_failed), (Some(Bytes::mib(5)), Some(false)));
    assert_eq!(sample.processes, None, "a fast field is as old as its sample");
    let reading = gpus.memory_used().unwrap();
    assert_eq!((reading.at, reading.used["GPU-0"]), (at(1), Bytes::mib(5)));
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
