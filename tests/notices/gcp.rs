//! Google Cloud: two keys that hang until they change.

use std::time::Duration;

use cic_agent::source::spot::Pace;
use cic_common::notice::{Cloud, NoticeKind};
use fleet_tests::fakes::{Fault, GcpKey, Logged, MetadataFake};

use crate::stand::{PACE, Said, Stand};

const PREEMPTED: &str = "gcp-preempted";
const MAINTENANCE: &str = "gcp-maintenance";

/// Questions for the preemption that hang, or did.
fn hanging(fake: &MetadataFake) -> usize {
    let waits = |asked: &&Logged| asked.query.iter().any(|(key, _)| key == "wait_for_change");
    fake.log().iter().filter(|asked| asked.path == GcpKey::Preempted.path()).filter(waits).count()
}

fn is_seen(said: &Said, kind: NoticeKind) -> bool {
    matches!(said, Said::Seen { kind: seen, .. } if *seen == kind)
}

#[tokio::test]
async fn true_at_the_first_read_counts_and_leaves_thirty_seconds() {
    let mut stand = Stand::start(Cloud::Gcp, PACE, |fake| fake.gcp(GcpKey::Preempted, "TRUE")).await;
    let (kind, left_s) = stand.next(PREEMPTED).await.notice(stand.clock.now()).expect("a notice");
    assert!(kind == NoticeKind::Terminate && (28.0..=30.0).contains(&left_s), "{kind} {left_s}");
    stand.stop().await;
}

#[tokio::test]
async fn a_none_of_one_key_does_not_take_back_a_true_of_the_other() {
    let mut stand = Stand::start(Cloud::Gcp, PACE, |_| ()).await;
    stand.fake.gcp(GcpKey::Maintenance, "MIGRATE_ON_HOST_MAINTENANCE");
    assert!(is_seen(&stand.next(MAINTENANCE).await, NoticeKind::Maintenance));
    stand.fake.gcp(GcpKey::Preempted, "TRUE");
    assert!(is_seen(&stand.next(PREEMPTED).await, NoticeKind::Terminate));
    stand.fake.gcp(GcpKey::Maintenance, "NONE");
    let id = "MIGRATE_ON_HOST_MAINTENANCE".to_owned();
    assert_eq!(stand.next(MAINTENANCE).await, Said::Lifted { id });
    stand.quiet(PREEMPTED, GcpKey::Preempted.path(), 2).await;
    stand.stop().await;
}

#[tokio::test]
async fn host_maintenance_takes_a_vm_that_cannot_migrate() {
    let mut stand = Stand::start(Cloud::Gcp, PACE, |_| ()).await;
    stand.fake.gcp(GcpKey::Maintenance, "TERMINATE_ON_HOST_MAINTENANCE");
    let (kind, left_s) = stand.next(MAINTENANCE).await.notice(stand.clock.now()).expect("a notice");
    assert!(kind == NoticeKind::Stop && (50.0..=60.0).contains(&left_s), "{kind} {left_s}");
    stand.stop().await;
}

#[tokio::test]
async fn every_question_names_google_and_hangs_on_the_etag_of_the_answer_before() {
    let mut stand = Stand::start(Cloud::Gcp, PACE, |_| ()).await;
    // Each but the first ends by its own timeout, with the same value: no event.
    stand.quiet(PREEMPTED, GcpKey::Preempted.path(), 2).await;
    let log = stand.fake.log();
    let asked: Vec<_> = log.iter().filter(|asked| asked.path == GcpKey::Preempted.path()).collect();
    assert!(asked.iter().all(|asked| asked.values("metadata-flavor") == ["Google"]));
    let query = |index: usize, name: &str| {
        let found = asked[index].query.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone())
    };
    assert_eq!(query(0, "wait_for_change"), None);
    assert_eq!(query(1, "wait_for_change").as_deref(), Some("true"));
    assert_eq!(query(1, "timeout_sec").as_deref(), Some("1"));
    assert!(query(1, "last_etag").is_some_and(|etag| !etag.is_empty()));
    stand.stop().await;
}

#[tokio::test]
async fn an_outage_in_the_middle_of_a_wait_loses_no_change() {
    // The wait is longer than anybody here waits: what was lost must be asked for without hanging.
    let pace = Pace { hangs_for: Duration::from_secs(600), ..PACE };
    for fault in [Fault::Status(503), Fault::Truncated, Fault::Empty, Fault::Garbage] {
        let mut stand = Stand::start(Cloud::Gcp, pace, |_| ()).await;
        stand.until("the question that hangs", |fake| hanging(fake) >= 1).await;
        stand.fake.fault(GcpKey::Preempted.path(), Some(fault));
        // The value changes while nobody can read it.
        stand.fake.gcp(GcpKey::Preempted, "TRUE");
        assert!(matches!(stand.next(PREEMPTED).await, Said::Blind { .. }), "{fault:?}");
        stand.fake.fault(GcpKey::Preempted.path(), None);
        assert!(is_seen(&stand.next(PREEMPTED).await, NoticeKind::Terminate), "{fault:?}");
        assert_eq!(stand.next(PREEMPTED).await, Said::Sees, "{fault:?}");
        stand.stop().await;
    }
}

#[tokio::test]
async fn a_change_is_heard_while_the_question_hangs_and_not_at_its_end() {
    let pace = Pace { hangs_for: Duration::from_secs(600), ..PACE };
    let mut stand = Stand::start(Cloud::Gcp, pace, |_| ()).await;
    stand.until("its question hangs", |fake| hanging(fake) >= 1).await;
    stand.fake.gcp(GcpKey::Preempted, "TRUE");
    assert!(is_seen(&stand.next(PREEMPTED).await, NoticeKind::Terminate));
    stand.stop().await;
}
