//! The agent's watch over the probe.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use cic_agent::core::Event;
use cic_agent::core::gpu::GpuEvent;
use cic_agent::source::gpu::{GpuSpec, clear, write_clear};
use cic_common::report::HostReport;
use cic_common::supervise::{Kind, Supervisor};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::stand::{PATIENCE, Stand, is_alive, wait_for};

#[tokio::test]
async fn a_machine_without_a_device_is_absent_and_one_that_appears_is_found() {
    let stand = Stand::new();
    let device = stand.path("root/dev/nvidia0");
    std::fs::remove_file(&device).unwrap();
    let mut watched = stand.watch(stand.spec());
    watched.next_of(|event| (event == Event::Gpu(GpuEvent::Absent)).then_some(())).await;
    assert_eq!(stand.calls().len(), 0);
    std::fs::write(&device, "").unwrap();
    assert_eq!(watched.sampled().await.len(), 8);
    watched.stop().await;
}

#[tokio::test]
async fn what_the_probe_says_becomes_events() {
    let stand = Stand::new();
    let mut watched = stand.watch(stand.spec());
    let inventory = watched
        .next_of(|event| match event {
            Event::Gpu(GpuEvent::Ready(inventory)) => Some(inventory),
            _ => None,
        })
        .await;
    assert_eq!(inventory.driver_version.as_deref(), Some("580.95.05"));
    assert_eq!(watched.sampled().await.len(), 8);
    stand.script(json!({ "xids": [{ "id": 1, "gpu": 2, "code": 94 }] }));
    let code = watched
        .next_of(|event| match event {
            Event::Gpu(GpuEvent::Xid(xid)) => Some(xid.code),
            _ => None,
        })
        .await;
    assert_eq!(code, 94);
    watched.stop().await;
}

#[tokio::test]
async fn growing_ecc_counts_are_seen() {
    let stand = Stand::new();
    let mut watched = stand.watch(stand.spec());
    assert_eq!(watched.sampled().await[5].ecc_volatile_uncorrected, Some(0));
    for count in [1, 7] {
        stand.script(json!({ "gpus": { "5": { "ecc_volatile_uncorrected": count } } }));
        while watched.sampled().await[5].ecc_volatile_uncorrected != Some(count) {}
    }
    watched.stop().await;
}

#[tokio::test]
async fn a_request_brings_a_sample_before_its_time() {
    let stand = Stand::new();
    let mut spec = stand.spec();
    spec.spans.cheap_every = Duration::from_secs(3600);
    let mut watched = stand.watch(spec);
    watched.sampled().await;
    watched.requests.sample_now();
    watched.sampled().await;
    watched.stop().await;
}

#[tokio::test]
async fn a_call_that_hangs_is_told_again_and_again_while_all_else_goes_on_and_its_return_is_seen() {
    for (hanging, call) in [("nvmlInit_v2", "nvmlInit"), ("nvmlDeviceGetTemperature:3", "sample gpu 3")] {
        let stand = Stand::new();
        stand.script(json!({ "hang": [hanging] }));
        let spec = stand.spec();
        let stuck_after_ms = u64::try_from(spec.spans.stuck_after.as_millis()).unwrap();
        let mut watched = stand.watch(spec);
        let (told, first_ms) = watched.wedged().await;
        assert_eq!(told, call);
        assert!(first_ms >= stuck_after_ms, "{first_ms}");
        watched.to.send(Event::HostSampled(HostReport::default())).await.unwrap();
        watched.next_of(|event| matches!(event, Event::HostSampled(_)).then_some(())).await;
        assert!(watched.wedged().await.1 > first_ms);
        let probes = stand.probes();
        assert_eq!(probes.len(), 1, "{probes:?}");
        stand.script(json!({}));
        assert_eq!(watched.sampled().await.len(), 8);
        assert_eq!(stand.probes(), probes, "the same one goes on");
        watched.stop().await;
    }
}

#[tokio::test]
async fn xids_are_heard_while_sampling_hangs() {
    let stand = Stand::new();
    let mut watched = stand.watch(stand.spec());
    watched.sampled().await;
    stand.script(json!({ "hang": ["nvmlDeviceGetTemperature:3"] }));
    watched.wedged().await;
    let hang = json!(["nvmlDeviceGetTemperature:3"]);
    stand.script(json!({ "hang": hang, "xids": [{ "id": 1, "gpu": 3, "code": 79 }] }));
    watched.next_of(|event| matches!(event, Event::Gpu(GpuEvent::Xid(_))).then_some(())).await;
    watched.stop().await;
}

#[tokio::test]
async fn a_probe_that_stays_stuck_is_killed_and_followed_by_one_other() {
    let stand = Stand::new();
    stand.script(json!({ "hang": ["nvmlInit_v2"] }));
    let mut spec = stand.spec();
    spec.spans.kill_after = Duration::from_millis(300);
    let mut watched = stand.watch(spec);
    watched.wedged().await;
    let first = stand.probes();
    assert_eq!(first.len(), 1);
    let mut most = 0;
    wait_for("another hangs", || {
        most = most.max(stand.probes().len());
        stand.call_count("nvmlInit_v2") >= 2
    })
    .await;
    assert_eq!(most, 1);
    assert!(!is_alive(first[0]));
    stand.script(json!({}));
    assert_eq!(watched.sampled().await.len(), 8);
    watched.stop().await;
}

#[tokio::test]
async fn a_probe_that_is_stopped_in_its_tracks_counts_as_stuck() {
    let stand = Stand::new();
    let mut watched = stand.watch(stand.spec());
    watched.sampled().await;
    let [pid] = stand.probes()[..] else { panic!("one probe") };
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    watched.wedged().await;
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    watched.sampled().await;
    watched.stop().await;
}

#[tokio::test]
async fn a_probe_of_an_earlier_agent_that_does_not_end_is_a_wedged_driver() {
    let stand = Stand::new();
    stand.script(json!({ "hang": ["nvmlInit_v2"] }));
    let mut spec = stand.spec();
    // The wait for the lock is no silence.
    spec.spans.cheap_every = Duration::from_secs(10);
    let earlier = stand.probe(&["--lock", &spec.lock.display().to_string()]);
    wait_for("it hangs", || stand.call_count("nvmlInit_v2") == 1).await;
    let mut watched = stand.watch(spec);
    let told = watched
        .next_of(|event| match event {
            Event::Gpu(GpuEvent::Wedged { call, for_ms }) => Some((call, for_ms)),
            Event::Gpu(other) => panic!("{other:?}"),
            _ => None,
        })
        .await;
    assert_eq!(told, ("an earlier cic-gpu-probe".to_owned(), 0));
    let (_, for_ms) = watched.wedged().await;
    assert!(for_ms > 0);
    assert_eq!(stand.call_count("nvmlInit_v2"), 1, "none follows it");
    earlier.signal(Signal::SIGKILL);
    stand.script(json!({}));
    assert_eq!(watched.sampled().await.len(), 8);
    watched.stop().await;
}

#[tokio::test]
async fn a_probe_that_dies_is_started_again() {
    let stand = Stand::new();
    let mut watched = stand.watch(stand.spec());
    watched.sampled().await;
    let [pid] = stand.probes()[..] else { panic!("one probe") };
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_for("another comes", || stand.probes().first().is_some_and(|other| *other != pid)).await;
    watched.next_of(|event| matches!(event, Event::Gpu(GpuEvent::Ready(_))).then_some(())).await;
    assert_eq!(watched.sampled().await.len(), 8);
    watched.stop().await;
}

#[tokio::test]
async fn a_program_that_is_no_probe_leaves_the_agent_blind_with_the_reason() {
    let stand = Stand::new();
    let script = |name: &str, text: &str| {
        let path = stand.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    for (probe, words) in [
        (stand.path("missing"), "cannot be started: No such file"),
        (script("dies", "#!/bin/sh\nexit 7\n"), "ended 3 times in a row, last by exit status: 7"),
        (
            script("babbles", "#!/bin/sh\nprintf 'hello, agent'\nexec sleep 600\n"),
            "ended 3 times in a row, last by frame",
        ),
        (script("goes", "#!/bin/sh\nkill -SEGV $$\n"), "signal: 11"),
    ] {
        let mut watched = stand.watch(GpuSpec { probe: probe.clone(), ..stand.spec() });
        let reason = watched.blind().await;
        assert!(reason.contains(words), "{}: {reason}", probe.display());
        watched.stop().await;
    }
}

#[tokio::test]
async fn a_node_without_driver_library_is_blind_and_sees_when_it_is_installed() {
    let stand = Stand::without_library();
    let mut watched = stand.watch(stand.spec());
    let reason = watched.blind().await;
    assert!(reason.contains("no NVIDIA driver") && reason.contains("libnvidia-ml.so.1"), "{reason}");
    stand.install("libnvml_mock.so");
    assert_eq!(watched.sampled().await.len(), 8);
    watched.stop().await;
}

#[tokio::test]
async fn a_driver_without_events_is_told_with_its_source() {
    let stand = Stand::of_an_old_driver();
    let mut watched = stand.watch(stand.spec());
    watched.next_of(|event| matches!(event, Event::Gpu(GpuEvent::XidsBlind { .. })).then_some(())).await;
    watched.stop().await;
}

#[tokio::test]
async fn the_end_of_the_agent_ends_the_probe_in_order() {
    let stand = Stand::new();
    let mut watched = stand.watch(stand.spec());
    watched.sampled().await;
    watched.stop().await;
    assert_eq!(stand.probes().len(), 0);
    assert_eq!(stand.call_count("nvmlShutdown"), 1);
}

#[tokio::test]
async fn a_stuck_probe_does_not_hold_up_the_end_of_the_agent() {
    let stand = Stand::new();
    stand.script(json!({ "hang": ["nvmlInit_v2"] }));
    let watched = stand.watch(stand.spec());
    wait_for("it hangs", || stand.call_count("nvmlInit_v2") == 1).await;
    watched.stop().await;
    assert_eq!(stand.probes().len(), 0);
}

#[tokio::test]
async fn an_operators_word_is_told_once_and_taken_away() {
    let state = tempfile::tempdir().unwrap();
    let (tasks, (to, mut events)) = (Supervisor::new(), mpsc::channel(8));
    let directory = state.path().to_owned();
    tasks.spawn("gpu clear", Kind::Vital, |token| clear::watch(directory, to, token));
    let is_empty = || std::fs::read_dir(state.path()).unwrap().next().is_none();
    let one = Some("GPU-1".to_owned());
    for gpu in [one.clone(), None, one.clone(), one] {
        write_clear(state.path(), gpu.clone()).unwrap();
        let event = timeout(PATIENCE, events.recv()).await.unwrap();
        assert_eq!(event, Some(Event::Gpu(GpuEvent::Cleared { gpu })));
    }
    std::fs::write(state.path().join("gpu-clear.json"), r#"{"gpu":null}"#).unwrap();
    let event = timeout(PATIENCE, events.recv()).await.unwrap();
    assert_eq!(event, Some(Event::Gpu(GpuEvent::Cleared { gpu: None })));
    wait_for("the words are taken away", is_empty).await;
    assert!(events.try_recv().is_err());
    tasks.stop(PATIENCE).await.unwrap();
}
