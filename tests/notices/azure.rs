//! Azure: scheduled events.

use std::time::Duration;

use cic_agent::source::spot::Pace;
use cic_common::notice::{Cloud, NoticeKind};
use cic_common::time::unix_ms;
use fleet_tests::fakes::{AzureEvent, Fault};

use crate::stand::{PACE, Said, Stand};

const AZURE: &str = "azure";
const EVENTS_PATH: &str = "/metadata/scheduledevents";

fn event(id: &str, kind: &str, vms: &[&str], in_s: Option<u64>) -> AzureEvent {
    AzureEvent {
        id: id.to_owned(),
        kind: kind.to_owned(),
        resources: vms.iter().map(|vm| (*vm).to_owned()).collect(),
        not_before_unix_ms: in_s.map(|in_s| unix_ms() + in_s * 1000),
    }
}

async fn told(events: Vec<AzureEvent>) -> Stand {
    Stand::start(Cloud::Azure, PACE, |fake| fake.azure_events(events)).await
}

#[tokio::test]
async fn each_type_of_event_is_told_with_its_moment_and_its_resources() {
    for (kind, expected, in_s) in [
        ("Preempt", NoticeKind::Terminate, 30),
        ("Terminate", NoticeKind::Terminate, 300),
        ("Reboot", NoticeKind::Reboot, 900),
        ("Redeploy", NoticeKind::Redeploy, 600),
        ("Freeze", NoticeKind::Freeze, 900),
        ("Levitate", NoticeKind::Maintenance, 900),
    ] {
        let mut stand = told(vec![event("a", kind, &["vm-0"], Some(in_s))]).await;
        let said = stand.next(AZURE).await;
        let (seen, left_s) = said.notice(stand.clock.now()).expect("a notice");
        assert!(seen == expected && (left_s - in_s as f64).abs() < 3.0, "{kind}: {seen} in {left_s}");
        assert!(matches!(said, Said::Seen { resources, .. } if resources == ["vm-0"]));
        stand.stop().await;
    }
}

#[tokio::test]
async fn an_event_of_another_vm_is_none_of_ours() {
    let mut stand = told(vec![event("other", "Freeze", &["vm-1"], Some(30))]).await;
    stand.quiet(AZURE, EVENTS_PATH, 5).await;
    stand.fake.azure_events(vec![
        event("other", "Freeze", &["vm-1"], Some(30)),
        event("ours", "Preempt", &["vm-1", "VM-0"], Some(30)),
    ]);
    assert!(matches!(stand.next(AZURE).await, Said::Seen { id, .. } if id == "ours"));
    stand.quiet(AZURE, EVENTS_PATH, 5).await;
    stand.stop().await;
}

#[tokio::test]
async fn an_event_that_began_without_being_scheduled_is_now() {
    let mut stand = told(vec![event("broken", "Redeploy", &["vm-0"], None)]).await;
    let (kind, left_s) = stand.next(AZURE).await.notice(stand.clock.now()).expect("a notice");
    assert!(kind == NoticeKind::Redeploy && left_s == 0.0, "{kind} {left_s}");
    stand.stop().await;
}

#[tokio::test]
async fn a_document_of_the_same_incarnation_is_not_read_again() {
    let mut stand = told(vec![event("a", "Preempt", &["vm-0"], Some(30))]).await;
    assert!(matches!(stand.next(AZURE).await, Said::Seen { .. }));
    stand.fake.azure_events_unnumbered(Vec::new());
    stand.quiet(AZURE, EVENTS_PATH, 5).await;
    stand.fake.azure_events(Vec::new());
    assert_eq!(stand.next(AZURE).await, Said::Lifted { id: "a".to_owned() });
    stand.stop().await;
}

#[tokio::test]
async fn two_events_of_one_document_are_two_notices_and_the_one_that_disappears_is_lifted() {
    let preempt = event("a", "Preempt", &["vm-0"], Some(30));
    let mut stand = told(vec![preempt.clone(), event("b", "Freeze", &["vm-0"], Some(900))]).await;
    for expected in ["a", "b"] {
        assert!(matches!(stand.next(AZURE).await, Said::Seen { id, .. } if id == expected));
    }
    stand.fake.azure_events(vec![preempt]);
    assert_eq!(stand.next(AZURE).await, Said::Lifted { id: "b".to_owned() });
    stand.stop().await;
}

#[tokio::test]
async fn a_first_answer_that_takes_its_time_is_waited_for() {
    let pace = Pace { first_answer_within: Duration::from_secs(10), ..PACE };
    let mut stand = Stand::start(Cloud::Azure, pace, |fake| {
        fake.azure_events(vec![event("a", "Preempt", &["vm-0"], Some(30))]);
        // Longer than any later answer is waited for.
        fake.slow_first(EVENTS_PATH, PACE.answer_within * 3);
    })
    .await;
    assert!(matches!(stand.next(AZURE).await, Said::Seen { .. }));
    assert_eq!(stand.count(EVENTS_PATH), 1, "asked once");
    stand.stop().await;
}

#[tokio::test]
async fn every_question_says_metadata_true() {
    let mut stand = told(Vec::new()).await;
    stand.quiet(AZURE, EVENTS_PATH, 3).await;
    assert!(stand.fake.log().iter().all(|asked| asked.values("metadata") == ["true"]));
    stand.stop().await;
}

#[tokio::test]
async fn what_concerns_this_vm_alone_is_acknowledged_and_what_concerns_others_too_is_not() {
    let alone = event("alone", "Preempt", &["vm-0"], Some(30));
    let shared = event("shared", "Preempt", &["vm-0", "vm-1"], Some(30));
    let mut stand = told(vec![alone, shared]).await;
    for _ in 0..2 {
        assert!(matches!(stand.next(AZURE).await, Said::Seen { .. }));
    }
    for id in ["shared", "of nobody", "alone"] {
        stand.words.acknowledge(AZURE, id);
    }
    stand.until("one acknowledgement", |fake| !fake.azure_started().is_empty()).await;
    assert_eq!(stand.fake.azure_started(), ["alone"]);
    stand.stop().await;
}

#[tokio::test]
async fn a_refused_acknowledgement_changes_nothing() {
    let mut stand = told(vec![event("a", "Preempt", &["vm-0"], Some(30))]).await;
    stand.fake.azure_refuses_start(true);
    assert!(matches!(stand.next(AZURE).await, Said::Seen { .. }));
    stand.words.acknowledge(AZURE, "a");
    stand.until("an acknowledgement", |fake| fake.log().iter().any(|asked| asked.method == "POST")).await;
    stand.quiet(AZURE, EVENTS_PATH, 5).await;
    stand.stop().await;
}

#[tokio::test]
async fn faults_are_blindness_and_heal() {
    for (fault, cause) in [
        (Fault::Status(500), "status 500"),
        (Fault::Status(400), "status 400"),
        (Fault::Garbage, "not understood"),
        (Fault::Empty, "not understood"),
        (Fault::Truncated, "broke off"),
    ] {
        let mut stand = Stand::start(Cloud::Azure, PACE, |fake| {
            fake.azure_events(vec![event("a", "Preempt", &["vm-0"], Some(30))]);
            fake.fault(EVENTS_PATH, Some(fault));
        })
        .await;
        let said = stand.next(AZURE).await;
        assert!(said.is_blind(cause), "{fault:?}: {said:?}");
        stand.fake.fault(EVENTS_PATH, None);
        assert!(matches!(stand.next(AZURE).await, Said::Seen { .. }));
        assert_eq!(stand.next(AZURE).await, Said::Sees);
        stand.stop().await;
    }
}
