//! What the probe says of the GPUs.

use std::process::{Command, Stdio};

use cic_common::gpu::{GpuProcess, GpuSample, ProbeFault, ProbeMessage, RecoveryAction};
use cic_common::units::Bytes;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::stand::{Stand, is_alive, wait_for};

/// Rounds as fast as a loaded machine makes them.
const FAST: [&str; 4] = ["--cheap-ms", "50", "--full-ms", "50"];

/// The first round, and no other unless asked for.
const RARE: [&str; 4] = ["--cheap-ms", "86400000", "--full-ms", "86400000"];

fn uuid(number: u32) -> String {
    format!("GPU-00000000-0000-4000-8000-{number:012}")
}

/// GPU 3 of the stand-in's healthy node, with pages retired as on an older card.
fn third() -> GpuSample {
    GpuSample {
        index: 3,
        uuid: uuid(3),
        pci: Some("0000:49:00".parse().unwrap()),
        name: "NVIDIA H100 80GB HBM3".to_owned(),
        utilization_percent: Some(83),
        memory_utilization_percent: Some(33),
        memory_used: Some(Bytes((70 << 30) + (3 << 20))),
        memory_total: Some(Bytes::mib(81_559)),
        temperature_c: Some(53),
        memory_temperature_c: Some(63),
        power_mw: Some(400_003),
        power_limit_mw: Some(700_000),
        clock_sm_mhz: Some(1_977),
        clock_memory_mhz: Some(2_619),
        throttle_reasons: Some(0),
        ecc_volatile_corrected: Some(0),
        ecc_volatile_uncorrected: Some(0),
        ecc_aggregate_corrected: Some(3),
        ecc_aggregate_uncorrected: Some(0),
        retired_pages_single: Some(7),
        retired_pages_double: Some(1),
        retired_pages_pending: Some(true),
        remapped_rows_corrected: Some(4),
        remapped_rows_uncorrected: Some(2),
        remap_pending: Some(true),
        remap_failed: Some(false),
        nvlink_replay_errors: Some(11),
        nvlink_recovery_errors: Some(12),
        nvlink_crc_errors: Some(13),
        pcie_replays: Some(0),
        pcie_link_width: Some(16),
        pcie_link_width_max: Some(16),
        pcie_link_generation: Some(5),
        pcie_link_generation_max: Some(5),
        mig_enabled: Some(false),
        persistence_enabled: Some(true),
        recovery_action: Some(RecoveryAction::GpuReset),
        processes: Some(vec![GpuProcess { pid: 4_003, memory_used: Some(Bytes((69 << 30) + 3)) }]),
    }
}

fn third_fields() -> Value {
    json!({
        "29": 7, "30": 1, "31": 1, "38": 13, "52": 11, "59": 12, "82": 63, "142": 4, "143": 2, "144": 1, "145": 0,
        "230": 1,
    })
}

#[tokio::test]
async fn a_node_of_eight_has_every_field_in_its_unit_at_once() {
    let stand = Stand::new();
    stand.script(json!({ "gpus": { "3": { "fields": third_fields() } } }));
    let mut probe = stand.probe(&RARE);
    let round = probe.round().await;
    assert!(round.is_full);
    assert_eq!((round.device_count, round.samples.len(), round.lost.len()), (8, 8, 0));
    assert_eq!(round.samples[3], third());
    assert!(round.samples.iter().zip(0..).all(|(sample, index)| sample.index == index));
}

#[tokio::test]
async fn each_group_of_calls_is_announced_before_it_begins() {
    let stand = Stand::new();
    let mut probe = stand.probe(&RARE);
    let mut said = Vec::new();
    loop {
        match probe.next().await.unwrap() {
            ProbeMessage::Started { version } => said.push(format!("started {version}")),
            ProbeMessage::Calling { call } => said.push(call),
            ProbeMessage::Ready { inventory } => {
                said.push(inventory.driver_version.unwrap());
                assert_eq!(inventory.cuda_version, Some(13_000));
                assert_eq!(inventory.nvml_version.as_deref(), Some("13.580.95.05"));
            }
            ProbeMessage::Sampled { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    let begin = [concat!("started ", env!("CARGO_PKG_VERSION")), "nvmlInit", "580.95.05"];
    let each = |verb: &'static str| (0..8).map(move |index| format!("{verb} gpu {index}"));
    let between = ["register for XIDs".to_owned(), "count GPUs".to_owned()];
    let expected =
        begin.map(str::to_owned).into_iter().chain(each("open")).chain(between).chain(each("sample"));
    assert_eq!(said, expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn a_cheap_sample_carries_the_slow_fields_of_the_last_full_one() {
    let stand = Stand::new();
    let mut probe = stand.probe(&RARE);
    assert!(probe.round().await.is_full);
    stand.script(
        json!({ "gpus": { "0": { "temperature_c": 91, "ecc_volatile_uncorrected": 2, "pcie_replays": 5 } } }),
    );
    probe.ask().await;
    let round = probe.round().await;
    assert!(!round.is_full);
    let first = &round.samples[0];
    assert_eq!((first.temperature_c, first.ecc_volatile_uncorrected), (Some(91), Some(2)));
    assert_eq!((first.pcie_replays, first.name.as_str()), (Some(0), "NVIDIA H100 80GB HBM3"));
}

#[tokio::test]
async fn slow_fields_are_read_anew_at_their_own_pace() {
    let stand = Stand::new();
    let mut probe = stand.probe(&["--cheap-ms", "50", "--full-ms", "400"]);
    assert!(probe.round().await.is_full);
    stand.script(json!({ "gpus": { "0": { "ecc_aggregate_uncorrected": 5 } } }));
    assert!(!probe.round().await.is_full);
    let round = probe.round_until(|round| round.is_full).await;
    assert_eq!(round.samples[0].ecc_aggregate_uncorrected, Some(5));
}

#[tokio::test]
async fn what_an_old_driver_does_not_have_is_unknown_and_the_rest_is_there() {
    let stand = Stand::of_an_old_driver();
    let mut probe = stand.probe(&RARE);
    let (mut blind, mut round) = (None, None);
    while blind.is_none() || round.is_none() {
        match probe.next().await.unwrap() {
            ProbeMessage::EventsBlind { reason } => blind = Some(reason),
            ProbeMessage::Sampled { samples, .. } => round = Some(samples),
            _ => {}
        }
    }
    assert!(blind.is_some_and(|reason| reason.contains("nvmlEventSetWait_v2")));
    let expected = GpuSample {
        memory_used: None,
        memory_total: None,
        memory_temperature_c: None,
        throttle_reasons: None,
        retired_pages_single: None,
        retired_pages_double: None,
        retired_pages_pending: None,
        remapped_rows_corrected: None,
        remapped_rows_uncorrected: None,
        remap_pending: None,
        remap_failed: None,
        nvlink_replay_errors: None,
        nvlink_recovery_errors: None,
        nvlink_crc_errors: None,
        recovery_action: None,
        processes: None,
        ..third()
    };
    assert_eq!(round.unwrap()[3], expected);
}

#[tokio::test]
async fn an_error_of_one_call_costs_its_own_field_only() {
    for (call, code, is_unknown) in [
        ("nvmlDeviceGetPowerUsage:0", 999, (|sample| sample.power_mw.is_none()) as fn(&GpuSample) -> bool),
        ("nvmlDeviceGetMemoryInfo_v2:0", 3, |sample| sample.memory_used.is_none()),
        ("nvmlDeviceGetPciInfo_v3:0", 999, |sample| sample.pci.is_none()),
        ("nvmlDeviceGetName:0", 4, |sample| sample.name.is_empty()),
        ("nvmlDeviceGetFieldValues:0", 17, |sample| sample.recovery_action.is_none()),
        ("nvmlDeviceGetComputeRunningProcesses_v3:0", 4, |sample| sample.processes.is_none()),
    ] {
        let stand = Stand::new();
        stand.script(json!({ "errors": { call: code } }));
        let round = stand.probe(&RARE).round().await;
        assert!(is_unknown(&round.samples[0]), "{call}");
        assert_eq!(round.samples[0].temperature_c, Some(50), "{call}");
        assert!(!is_unknown(&round.samples[1]), "{call}");
    }
}

#[tokio::test]
async fn processes_of_both_kinds_are_listed_once_and_unsaid_memory_is_unknown() {
    let stand = Stand::new();
    let (both, unsaid) = (json!({ "pid": 10, "memory": 5 }), json!({ "pid": 11, "memory": null }));
    stand.script(json!({ "gpus": { "0": { "processes": [both, unsaid], "graphics": [both, { "pid": 12, "memory": 7 }] } } }));
    let round = stand.probe(&RARE).round().await;
    let expected = [(10, Some(5)), (11, None), (12, Some(7))]
        .map(|(pid, bytes)| GpuProcess { pid, memory_used: bytes.map(Bytes) });
    assert_eq!(round.samples[0].processes.as_deref(), Some(expected.as_slice()));
}

#[tokio::test]
async fn links_are_summed_where_the_driver_has_no_sums() {
    let stand = Stand::new();
    stand.script(json!({ "gpus": { "0": { "fields": {}, "links": [[1, 2, 3], [10, 20, 30]] } } }));
    let round = stand.probe(&RARE).round().await;
    let first = &round.samples[0];
    let sums = [first.nvlink_replay_errors, first.nvlink_recovery_errors, first.nvlink_crc_errors];
    assert_eq!(sums, [Some(11), Some(22), Some(33)]);
}

#[tokio::test]
async fn a_gpu_that_is_lost_is_named_and_has_no_sample_and_may_come_back() {
    for (how, device_count, script) in [
        ("no longer counted", 7, json!({ "absent": [3] })),
        ("answers that it is lost", 8, json!({ "gpus": { "3": { "lost": true } } })),
        ("lost in the middle of a round", 8, json!({ "errors": { "nvmlDeviceGetPowerUsage:3": 15 } })),
        ("has no handle", 8, json!({ "errors": { "nvmlDeviceGetHandleByIndex_v2:3": 15 } })),
        ("has no handle, for no reason", 8, json!({ "errors": { "nvmlDeviceGetHandleByIndex_v2:3": 999 } })),
    ] {
        let stand = Stand::new();
        let mut probe = stand.probe(&FAST);
        assert_eq!(probe.round().await.lost.len(), 0);
        stand.script(script);
        let round = probe.round_until(|round| !round.lost.is_empty()).await;
        assert_eq!((round.device_count, round.lost), (device_count, vec![uuid(3)]), "{how}");
        assert_eq!(round.samples.len(), 7, "{how}");
        assert!(round.samples.iter().all(|sample| sample.uuid != uuid(3)), "{how}");
        stand.script(json!({}));
        assert_eq!(probe.round_until(|round| round.lost.is_empty()).await.samples.len(), 8, "{how}");
    }
}

#[tokio::test]
async fn a_gpu_that_was_lost_before_is_called_by_its_index() {
    for script in [
        json!({ "gpus": { "3": { "lost": true } } }),
        json!({ "errors": { "nvmlDeviceGetHandleByIndex_v2:3": 999 } }),
    ] {
        let stand = Stand::new();
        stand.script(script);
        let round = stand.probe(&RARE).round().await;
        assert_eq!((round.samples.len(), round.lost), (7, vec!["index 3".to_owned()]));
    }
    // Another user's, by its cgroup.
    let stand = Stand::new();
    stand.script(json!({ "errors": { "nvmlDeviceGetHandleByIndex_v2:3": 4 } }));
    let round = stand.probe(&RARE).round().await;
    assert_eq!((round.samples.len(), round.lost.len()), (7, 0));
}

#[tokio::test]
async fn a_gpu_that_needs_a_reset_says_nothing_and_is_not_lost() {
    let stand = Stand::new();
    let mut probe = stand.probe(&FAST);
    probe.round().await;
    stand.script(json!({ "errors": { "nvmlDeviceGetHandleByIndex_v2:3": 16 } }));
    let round = probe.round_until(|round| round.samples[3].temperature_c.is_none()).await;
    assert_eq!((round.samples[3].uuid.clone(), round.lost.len()), (uuid(3), 0));
    stand.script(json!({}));
    probe.round_until(|round| round.samples[3].temperature_c.is_some()).await;
}

#[tokio::test]
async fn each_error_of_initialisation_has_its_fault_and_the_probe_ends_well() {
    type Kind = fn(&ProbeFault) -> bool;
    let no_driver: Kind = |fault| matches!(fault, ProbeFault::NoDriver { .. });
    let mismatch: Kind = |fault| matches!(fault, ProbeFault::VersionMismatch { .. });
    let no_permission: Kind = |fault| matches!(fault, ProbeFault::NoPermission { .. });
    let driver: Kind = |fault| matches!(fault, ProbeFault::Driver { .. });
    for (code, is_right, words) in [
        (9, no_driver, "no NVIDIA driver: nvmlInit: NVIDIA driver is not loaded"),
        (12, no_driver, "no NVIDIA driver: nvmlInit: a shared library couldn't be found or loaded"),
        (18, mismatch, "of different versions: nvmlInit: RM detects a driver/library version mismatch"),
        (4, no_permission, "this user may not talk to the driver: nvmlInit"),
        (17, no_permission, "blocked by the operating system/cgroups"),
        (15, driver, "the driver answers with an error: nvmlInit: device fell off the bus"),
        (10, driver, "the provided timeout was reached"),
        (13, driver, "a function couldn't be found in a shared library"),
        (20, driver, "insufficient memory"),
        (999, driver, "an internal driver error occurred"),
        (4_711, driver, "unexpected enum variant value: 4711"),
    ] {
        let stand = Stand::new();
        stand.script(json!({ "errors": { "nvmlInit_v2": code } }));
        let (said, status) = stand.probe(&RARE).end().await;
        let Some(ProbeMessage::Failed { fault }) = said.last() else { panic!("{said:?}") };
        assert!(is_right(fault), "{code}: {fault:?}");
        assert!(fault.to_string().contains(words), "{code}: {fault}");
        assert!(status.success(), "{code}: {status}");
    }
}

#[tokio::test]
async fn a_node_without_the_library_is_told_so() {
    let (said, status) = Stand::without_library().probe(&RARE).end().await;
    let Some(ProbeMessage::Failed { fault: ProbeFault::NoDriver { cause } }) = said.last() else {
        panic!("{said:?}")
    };
    assert!(cause.contains("libnvidia-ml.so.1") && cause.contains("No such file"), "{cause}");
    assert!(status.success());
}

#[tokio::test]
async fn a_driver_that_goes_away_under_way_is_a_fault() {
    let stand = Stand::new();
    let mut probe = stand.probe(&FAST);
    probe.round().await;
    stand.script(json!({ "errors": { "nvmlDeviceGetCount_v2": 9 } }));
    let (said, status) = probe.end().await;
    assert!(
        matches!(said.last(), Some(ProbeMessage::Failed { fault: ProbeFault::NoDriver { .. } })),
        "{said:?}"
    );
    assert!(status.success());
    assert_eq!(stand.call_count("nvmlShutdown"), 1);
}

#[tokio::test]
async fn the_end_of_its_input_and_a_signal_end_it_in_order() {
    for signal in [None, Some(Signal::SIGTERM), Some(Signal::SIGINT)] {
        let stand = Stand::new();
        let mut probe = stand.probe(&RARE);
        probe.round().await;
        match signal {
            Some(signal) => probe.signal(signal),
            None => probe.close_stdin(),
        }
        let (_, status) = probe.end().await;
        assert!(status.success(), "{signal:?}: {status}");
        assert_eq!(stand.calls().last().map(String::as_str), Some("nvmlShutdown"), "{signal:?}");
        assert_eq!(stand.call_count("nvmlEventSetFree"), 1, "{signal:?}");
    }
}

#[tokio::test]
async fn a_hanging_call_does_not_keep_it_from_ending() {
    for call in ["nvmlInit_v2", "nvmlDeviceGetTemperature:3", "nvmlEventSetWait_v2", "nvmlShutdown"] {
        let stand = Stand::new();
        stand.script(json!({ "hang": [call] }));
        let mut probe = stand.probe(&RARE);
        match call {
            "nvmlShutdown" => drop(probe.round().await),
            _ => wait_for("it hangs", || stand.call_count(call) == 1).await,
        }
        probe.close_stdin();
        probe.end().await;
    }
}

#[tokio::test]
async fn a_killed_agent_leaves_no_probe() {
    let stand = Stand::new();
    // It holds the other end of the probe's input, as an agent does.
    let mut agent = Command::new("sleep");
    let mut agent = agent.arg("600").envs(stand.environment()).stdout(Stdio::piped()).spawn().unwrap();
    let mut probe = Command::new(env!("CARGO_BIN_EXE_cic-gpu-probe"))
        .args(RARE)
        .envs(stand.environment())
        .stdin(Stdio::from(agent.stdout.take().unwrap()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the probe waits", || stand.call_count("nvmlEventSetWait_v2") > 0).await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    let mut ended = None;
    wait_for("the probe ends", || {
        ended = probe.try_wait().unwrap();
        ended.is_some()
    })
    .await;
    assert!(ended.unwrap().success());
    assert_eq!(stand.call_count("nvmlShutdown"), 1);
}

#[tokio::test]
async fn a_probe_does_not_follow_one_that_has_not_ended() {
    let stand = Stand::new();
    stand.script(json!({ "hang": ["nvmlInit_v2"] }));
    let lock = stand.path("lock").display().to_string();
    let first = stand.probe(&["--lock", &lock]);
    wait_for("it hangs", || stand.call_count("nvmlInit_v2") == 1).await;
    let (said, status) = stand.probe(&["--lock", &lock]).end().await;
    let Some(ProbeMessage::Failed { fault: ProbeFault::Stuck { cause } }) = said.last() else {
        panic!("{said:?}")
    };
    assert!(cause.contains("an earlier cic-gpu-probe does not end"), "{cause}");
    assert!(status.success() && stand.call_count("nvmlInit_v2") == 1);
    let pid = first.child.id().unwrap().cast_signed();
    first.signal(Signal::SIGKILL);
    wait_for("the first ends", || !is_alive(pid)).await;
    stand.script(json!({}));
    assert_eq!(stand.probe(&["--lock", &lock]).round().await.samples.len(), 8);
}

#[tokio::test]
async fn a_lock_that_cannot_be_asked_for_is_told_as_itself() {
    let stand = Stand::new();
    let lock = stand.path("no-such-directory/lock").display().to_string();
    let (said, status) = stand.probe(&["--lock", &lock]).end().await;
    let Some(ProbeMessage::Failed { fault: ProbeFault::Lock { cause } }) = said.last() else {
        panic!("{said:?}")
    };
    assert!(cause.contains(&lock) && cause.contains("No such file"), "{cause}");
    assert!(status.success() && stand.calls().is_empty());
}

#[test]
fn once_prints_a_sample_for_people() {
    let stand = Stand::new();
    let once =
        || Command::new(env!("CARGO_BIN_EXE_cic-gpu-probe")).arg("--once").envs(stand.environment()).output();
    let output = once().unwrap();
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["device_count"], 8);
    assert_eq!(report["samples"][3]["power_mw"], 400_003);
    assert_eq!(stand.call_count("nvmlShutdown"), 1);
    stand.script(json!({ "errors": { "nvmlInit_v2": 9 } }));
    let output = once().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no NVIDIA driver"));
}
