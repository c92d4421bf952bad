//! XIDs as the driver tells of them.

use std::time::{Duration, Instant};

use cic_common::gpu::{ProbeMessage, XidSeen, XidSource};
use serde_json::{Value, json};

use crate::stand::{Spoken, Stand, wait_for};

/// No sample comes to help.
const RARE: [&str; 4] = ["--cheap-ms", "86400000", "--full-ms", "86400000"];

fn xids(codes: &[u64]) -> Value {
    codes.iter().zip(0..).map(|(code, id)| json!({ "id": id, "gpu": 3, "code": code })).collect()
}

async fn xid(probe: &mut Spoken) -> XidSeen {
    probe
        .next_of(|message| match message {
            ProbeMessage::Xid(xid) => Some(xid),
            _ => None,
        })
        .await
}

#[tokio::test]
async fn each_xid_is_told_once_with_its_gpu_within_a_second() {
    let stand = Stand::new();
    let mut probe = stand.probe(&RARE);
    probe.round().await;
    stand.script(json!({ "xids": xids(&[79]) }));
    let began = Instant::now();
    let first = xid(&mut probe).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let expected = XidSeen {
        source: XidSource::Nvml,
        pci: Some("0000:49:00".parse().unwrap()),
        code: 79,
        pid: None,
        interrupt_info: None,
        recovery: None,
        text: String::new(),
    };
    assert_eq!(first, expected);
    stand.script(json!({ "xids": xids(&[79, 48, 48, 999]) }));
    let codes = [xid(&mut probe).await.code, xid(&mut probe).await.code, xid(&mut probe).await.code];
    assert_eq!(codes, [48, 48, 999]);
    probe.close_stdin();
    let (said, _) = probe.end().await;
    assert!(!said.iter().any(|message| matches!(message, ProbeMessage::Xid(_))), "{said:?}");
}

#[tokio::test]
async fn an_xid_of_a_gpu_that_is_gone_is_told_without_its_place() {
    let stand = Stand::new();
    let mut probe = stand.probe(&RARE);
    probe.round().await;
    stand.script(json!({ "gpus": { "3": { "lost": true } }, "xids": xids(&[79]) }));
    let seen = xid(&mut probe).await;
    assert_eq!((seen.code, seen.pci), (79, None));
}

#[tokio::test]
async fn a_wait_that_fails_at_once_does_not_spin() {
    // 999: an error; 10: "timed out" without having waited.
    for (code, is_error, waits) in [(999, true, 2), (10, false, 4)] {
        let stand = Stand::new();
        stand.script(json!({ "errors": { "nvmlEventSetWait_v2": code } }));
        let mut probe = stand.probe(&RARE);
        if is_error {
            probe.next_of(|message| matches!(message, ProbeMessage::EventsBlind { .. }).then_some(())).await;
        }
        let wait_count = || stand.call_count("nvmlEventSetWait_v2");
        wait_for("it waits", || wait_count() > 0).await;
        let (began, before) = (Instant::now(), wait_count());
        wait_for("it waits again", || wait_count() >= before + waits).await;
        // One each half second at most, whatever the driver answers. The first may follow one of long ago.
        let least = Duration::from_millis(500) * u32::try_from(waits - 1).unwrap();
        assert!(began.elapsed() >= least, "{code}: {:?}", began.elapsed());
        probe.close_stdin();
        let (said, _) = probe.end().await;
        let is_blind = |message: &ProbeMessage| matches!(message, ProbeMessage::EventsBlind { .. });
        assert!(!said.iter().any(is_blind), "{code}: told once, and an early return is none: {said:?}");
    }
}

#[tokio::test]
async fn waiting_goes_on_when_the_error_is_over() {
    let stand = Stand::new();
    stand.script(json!({ "errors": { "nvmlEventSetWait_v2": 15 } }));
    let mut probe = stand.probe(&RARE);
    let reason = probe
        .next_of(|message| match message {
            ProbeMessage::EventsBlind { reason } => Some(reason),
            _ => None,
        })
        .await;
    assert!(reason.contains("fell off the bus"), "{reason}");
    stand.script(json!({ "xids": xids(&[31]) }));
    assert_eq!(xid(&mut probe).await.code, 31);
}

#[tokio::test]
async fn gpus_without_events_are_told_of_and_the_others_are_heard() {
    let stand = Stand::new();
    stand.script(json!({ "gpus": { "0": { "has_events": false } } }));
    let mut probe = stand.probe(&RARE);
    let reason = probe
        .next_of(|message| match message {
            ProbeMessage::EventsBlind { reason } => Some(reason),
            _ => None,
        })
        .await;
    assert!(reason.contains("gpu 0"), "{reason}");
    stand.script(json!({ "gpus": { "0": { "has_events": false } }, "xids": xids(&[31]) }));
    assert_eq!(xid(&mut probe).await.code, 31);
}

#[tokio::test]
async fn a_driver_without_events_is_blind_to_them_and_samples_go_on() {
    let stand = Stand::new();
    stand.script(json!({ "errors": { "nvmlDeviceRegisterEvents": 3 } }));
    let mut probe = stand.probe(&["--cheap-ms", "50", "--full-ms", "50"]);
    let (mut blind_count, mut round_count) = (0, 0);
    while blind_count == 0 || round_count < 3 {
        match probe.next().await.unwrap() {
            ProbeMessage::EventsBlind { .. } => blind_count += 1,
            ProbeMessage::Sampled { .. } => round_count += 1,
            _ => {}
        }
    }
    assert_eq!(blind_count, 1);
}
