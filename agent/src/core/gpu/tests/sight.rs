//! What is seen and what is missed.

use super::*;

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
fn a_gpu_that_was_lost_before_the_probe_started_is_one_gpu() {
    let seven = || (0..7).map(healthy).collect::<Vec<_>>();
    let lost = || GpuEvent::Sampled {
        is_full: true,
        device_count: 8,
        samples: seven(),
        lost: vec!["index 7".to_owned()],
    };
    let all = || sampled((0..8).map(healthy).collect());
    let pci = pci_text(7).parse().ok();
    let mut remembering = Gpus::default();
    remembering.restore(gpus(8).memory());
    let mut told_by_kernel = Gpus::default();
    let _ = told_by_kernel.hear(at(0), GpuEvent::Xid(XidSeen { pci: pci.clone(), ..xid(79) }));
    for (name, mut gpus) in
        [("seen", gpus(8)), ("new", Gpus::default()), ("restored", remembering), ("told", told_by_kernel)]
    {
        for s in [1, 2] {
            let _ = gpus.hear(at(s), lost());
            let told: Vec<_> = health(&gpus).iter().map(|gpu| (gpu.index, gpu.verdict.as_str())).collect();
            assert_eq!((told.len(), told[7]), (8, (7, "unhealthy")), "{name}");
        }
        let _ = gpus.hear(at(3), GpuEvent::Xid(XidSeen { pci: pci.clone(), ..xid(79) }));
        let _ = gpus.hear(at(4), lost());
        assert_eq!(health(&gpus).len(), 8, "{name}");
        let _ = gpus.hear(at(5), all());
        let _ = gpus.hear(at(5 + SETTLED_S), all());
        assert_eq!((health(&gpus).len(), gpus.condemned()), (8, None), "{name}");
    }
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
fn a_lost_gpu_is_told_by_name_where_the_indices_of_others_move_down() {
    let without_3 = || {
        let stay = (0..8).filter(|number| *number != 3).zip(0..);
        stay.map(|(number, index)| GpuSample { index, ..healthy(number) }).collect::<Vec<_>>()
    };
    let named = || GpuEvent::Sampled {
        is_full: false,
        device_count: 7,
        samples: without_3(),
        lost: vec!["GPU-3".to_owned()],
    };
    for event in [named(), cheap(without_3())] {
        let mut gpus = gpus(8);
        let findings = gpus.hear(at(1), event.clone());
        let [GpuFinding::Changed { text }] = findings.as_slice() else { panic!("{findings:?}") };
        assert!(text.starts_with("gpu 3 unhealthy: ") && text.contains("was gpu 3, GPU-3"), "{text}");
        let told: Vec<_> = health(&gpus).iter().map(|gpu| (gpu.index, gpu.verdict.as_str())).collect();
        let expected: Vec<_> = (0..7).map(|index| (index, "healthy")).chain([(7, "unhealthy")]).collect();
        assert_eq!(told, expected, "no index twice");
        assert!(gpus.condemned().unwrap().1.starts_with("gpu 3: lost: shown no more, was gpu 3, GPU-3"));
        assert_eq!(gpus.hear(at(2), event), [], "told once");
        let findings = gpus.hear(at(3), sampled((0..8).map(healthy).collect()));
        assert_eq!(findings, [GpuFinding::Changed { text: "gpu 3 healthy".to_owned() }]);
    }
}

#[test]
fn the_name_of_a_lost_gpu_is_not_cut() {
    let uuid = "GPU-8d3f0c11-0000-4000-8000-00000000000f";
    let one = || GpuSample { index: 15, uuid: uuid.to_owned(), ..healthy(15) };
    let mut gpus = Gpus::default();
    let _ = gpus.hear(at(0), sampled(vec![one()]));
    let _ = gpus.hear(at(1), sampled(vec![]));
    assert!(gpus.condemned().unwrap().1.contains(&format!("was gpu 15, {uuid}, until")));
}

#[test]
fn a_gpu_that_the_newest_round_has_nothing_of_shows_no_old_figures() {
    let mut gpus = gpus(2);
    let one = GpuEvent::Sampled { is_full: false, device_count: 2, samples: vec![healthy(0)], lost: vec![] };
    let _ = gpus.hear(at(1), one);
    let silent = &health(&gpus)[1];
    assert_eq!((silent.memory_used, silent.memory_total), (None, Some(Bytes::mib(80_000))));
    let _ = gpus.hear(at(2), sampled(vec![healthy(0), healthy(1)]));
    assert_eq!(health(&gpus)[1].memory_used, Some(Bytes::mib(1000)));
}

#[test]
fn memory_in_use_is_known_when_every_gpu_that_is_not_lost_tells_it() {
    let round = |samples, lost: &[&str]| GpuEvent::Sampled {
        is_full: false,
        device_count: 2,
        samples,
        lost: lost.iter().map(|uuid| (*uuid).to_owned()).collect(),
    };
    let untold = |index| GpuSample { memory_used: None, ..healthy(index) };
    for (name, event, told) in [
        ("both", round(vec![healthy(0), healthy(1)], &[]), Some(2)),
        ("no sample of one", round(vec![healthy(0)], &[]), None),
        ("no figure of one", round(vec![healthy(0), untold(1)], &[]), None),
        ("no figure of any", round(vec![untold(0), untold(1)], &[]), None),
        ("one is lost", round(vec![healthy(0)], &["GPU-1"]), Some(1)),
        ("all are lost", round(vec![], &["GPU-0", "GPU-1"]), None),
    ] {
        let mut gpus = gpus(2);
        let _ = gpus.hear(at(1), event);
        assert_eq!(gpus.memory_used().map(|reading| reading.used.len()), told, "{name}");
    }
    // A fault of a GPU that is never shown here, as in a container.
    let mut gpus = gpus(1);
    let _ = gpus.hear(at(1), GpuEvent::Xid(XidSeen { pci: pci_text(1).parse().ok(), ..xid(95) }));
    assert_eq!(gpus.memory_used().map(|reading| reading.used.len()), Some(1));
}
