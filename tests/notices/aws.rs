//! AWS: the 44 cells of the fault table, tokens, and what a notice may do.

use std::time::Duration;

use cic_common::notice::{Cloud, NoticeKind};
use fleet_tests::fakes::{AwsKey, Fault, Scheduled};

use crate::stand::{PACE, Said, Stand};

const TOKEN_PATH: &str = "/latest/api/token";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";

fn source(key: AwsKey) -> &'static str {
    match key {
        AwsKey::Spot => "aws-spot",
        AwsKey::Rebalance => "aws-rebalance",
        AwsKey::Scheduled => "aws-scheduled",
        AwsKey::Lifecycle => "aws-lifecycle",
    }
}

/// What is wrong with the key while a notice stands there.
#[derive(Debug, Clone, Copy)]
enum Condition {
    /// Nothing.
    Notice,
    /// There is no notice, and the key is not there.
    NotFound,
    Refused,
    Spoilt(Fault),
}

/// What the source makes of it.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Seen,
    Nothing,
    Blind(&'static str),
}

/// The rows of the table: a condition, and its outcome for each of the four keys.
fn table() -> Vec<(Condition, [Outcome; 4])> {
    use Condition::{NotFound, Notice, Refused, Spoilt};
    use Outcome::{Blind, Nothing, Seen};
    let all = |outcome| [outcome; 4];
    vec![
        (Notice, all(Seen)),
        (NotFound, all(Nothing)),
        (Spoilt(Fault::Status(500)), all(Blind("status 500"))),
        (Spoilt(Fault::Status(503)), all(Blind("status 503"))),
        (Spoilt(Fault::Status(401)), all(Blind("status 401"))),
        (Spoilt(Fault::Garbage), all(Blind("not understood"))),
        // A Spot notice or a maintenance without a readable moment happens all the same; advice of no moment is none; the
        // lifecycle names no moment.
        (Spoilt(Fault::BadTime), [Seen, Blind("not understood"), Seen, Seen]),
        (Spoilt(Fault::Hang), all(Blind("no answer within"))),
        (Refused, all(Blind("no"))),
        (Spoilt(Fault::Empty), all(Blind("not understood"))),
        (Spoilt(Fault::Truncated), all(Blind("broke off"))),
    ]
}

#[tokio::test]
async fn every_cell_of_the_fault_table_ends_in_a_notice_in_nothing_or_in_known_blindness_and_heals() {
    let table = table();
    let cells: usize = table.iter().map(|(_, outcomes)| outcomes.len()).sum();
    assert_eq!(cells, 44);
    for (condition, outcomes) in table {
        for (key, outcome) in AwsKey::ALL.into_iter().zip(outcomes) {
            eprintln!("{key:?} {condition:?} -> {outcome:?}");
            cell(key, condition, outcome).await;
        }
    }
}

async fn cell(key: AwsKey, condition: Condition, outcome: Outcome) {
    let mut stand = Stand::start(Cloud::Aws, PACE, |fake| match condition {
        Condition::NotFound | Condition::Refused => {}
        Condition::Notice => fake.aws_notice(key),
        Condition::Spoilt(fault) => {
            fake.aws_notice(key);
            fake.fault(key.path(), Some(fault));
        }
    })
    .await;
    if matches!(condition, Condition::Refused) {
        stand.fake.refuse().await;
    }
    match outcome {
        Outcome::Seen => {}
        Outcome::Nothing => {
            stand.quiet(source(key), key.path(), 5).await;
            stand.fake.aws_notice(key);
        }
        Outcome::Blind(cause) => {
            let said = stand.next(source(key)).await;
            assert!(said.is_blind(cause), "{key:?} {condition:?}: {said:?}");
            if matches!(condition, Condition::Refused) {
                stand.fake.aws_notice(key);
                stand.fake.accept_again().await.expect("its own port");
            }
            stand.fake.fault(key.path(), None);
        }
    }
    let said = stand.next(source(key)).await;
    let (kind, left_s) = said.notice(stand.clock.now()).unwrap_or_else(|| panic!("{key:?}: {said:?}"));
    let expected = match key {
        AwsKey::Spot => (NoticeKind::Terminate, 100.0..=120.0),
        AwsKey::Rebalance => (NoticeKind::Rebalance, 0.0..=0.0),
        AwsKey::Scheduled => (NoticeKind::Reboot, 100.0..=600.0),
        AwsKey::Lifecycle => (NoticeKind::Terminate, 40.0..=60.0),
    };
    assert!(kind == expected.0 && expected.1.contains(&left_s), "{key:?} {condition:?}: {kind} {left_s}");
    if matches!(outcome, Outcome::Blind(_)) {
        assert_eq!(stand.next(source(key)).await, Said::Sees, "{key:?} {condition:?}");
    }
    stand.stop().await;
}

/// Tokens shown with questions for `key`, each with how often it came in one question.
fn tokens(stand: &Stand, key: AwsKey) -> Vec<Vec<String>> {
    let log = stand.fake.log();
    let asked = log.iter().filter(|asked| asked.path == key.path());
    asked.map(|asked| asked.values(TOKEN_HEADER).into_iter().map(str::to_owned).collect()).collect()
}

#[tokio::test]
async fn a_token_is_asked_for_with_the_longest_life_and_shown_once_in_every_question() {
    let mut stand = Stand::start(Cloud::Aws, PACE, |_| ()).await;
    stand.quiet("aws-spot", AwsKey::Spot.path(), 5).await;
    let log = stand.fake.log();
    let asked: Vec<_> = log.iter().filter(|asked| asked.path == TOKEN_PATH).collect();
    assert!(asked.iter().all(|asked| asked.method == "PUT" && asked.values(TTL_HEADER) == ["21600"]));
    assert!(
        asked.len() <= AwsKey::ALL.len(),
        "one for all, but for those that begin together: {}",
        asked.len()
    );
    assert!(tokens(&stand, AwsKey::Spot).iter().all(|shown| shown.len() == 1));
    stand.stop().await;
}

#[tokio::test]
async fn a_token_that_expires_mid_run_is_replaced_in_the_same_read_and_the_fresh_one_is_shown_alone() {
    let mut stand = Stand::start(Cloud::Aws, PACE, |_| ()).await;
    stand.quiet("aws-spot", AwsKey::Spot.path(), 3).await;
    let before = tokens(&stand, AwsKey::Spot).pop().expect("a question");
    stand.fake.aws_forget_tokens();
    stand.fake.aws_notice(AwsKey::Spot);
    assert!(matches!(stand.next("aws-spot").await, Said::Seen { .. }), "no blindness in between");
    let shown = tokens(&stand, AwsKey::Spot);
    assert!(shown.iter().all(|shown| shown.len() == 1), "{shown:?}");
    assert_ne!(shown.last(), Some(&before));
    stand.stop().await;
}

#[tokio::test]
async fn no_token_is_blindness_with_its_cause_and_heals() {
    for (fault, cause) in [
        (Fault::Status(403), "switched off"),
        (Fault::Status(404), "status 404"),
        (Fault::Status(400), "status 400"),
        (Fault::Empty, "no token"),
        (Fault::Garbage, "no token"),
        (Fault::Hang, "no answer within"),
    ] {
        let mut stand = Stand::start(Cloud::Aws, PACE, |fake| {
            fake.aws_notice(AwsKey::Spot);
            fake.fault(TOKEN_PATH, Some(fault));
        })
        .await;
        let said = stand.next("aws-spot").await;
        assert!(said.is_blind("no session token") && said.is_blind(cause), "{fault:?}: {said:?}");
        stand.fake.fault(TOKEN_PATH, None);
        assert!(matches!(stand.next("aws-spot").await, Said::Seen { .. }));
        assert_eq!(stand.next("aws-spot").await, Said::Sees);
        stand.stop().await;
    }
}

#[tokio::test]
async fn stop_and_hibernate_are_told_as_such_and_hibernation_begins_at_once() {
    for (action, kind, left_s) in [
        ("terminate", NoticeKind::Terminate, 60.0),
        ("stop", NoticeKind::Stop, 60.0),
        ("hibernate", NoticeKind::Hibernate, 0.0),
    ] {
        let notice = |fake: &fleet_tests::fakes::MetadataFake| {
            fake.aws_spot(Some((action, Duration::from_secs(61))));
        };
        let mut stand = Stand::start(Cloud::Aws, PACE, notice).await;
        let (seen, left) = stand.next("aws-spot").await.notice(stand.clock.now()).expect("a notice");
        assert!(seen == kind && (left_s - left).abs() < 2.0, "{action}: {seen} in {left}");
        stand.stop().await;
    }
}

#[tokio::test]
async fn a_moment_that_drifts_with_every_answer_is_one_notice() {
    let mut stand = Stand::start(Cloud::Aws, PACE, |fake| {
        fake.aws_notice(AwsKey::Spot);
        fake.aws_spot_drifts(Some(Duration::from_secs(120)));
    })
    .await;
    assert!(matches!(stand.next("aws-spot").await, Said::Seen { .. }));
    // More than a second of reads, so that the moment, told in whole seconds, is another one each few of them.
    stand.quiet("aws-spot", AwsKey::Spot.path(), 80).await;
    stand.stop().await;
}

#[tokio::test]
async fn a_clock_that_is_wrong_moves_no_deadline() {
    for ahead_ms in [-3_600_000, 3_600_000] {
        let mut stand = Stand::start(Cloud::Aws, PACE, |fake| {
            fake.clock_ahead(ahead_ms);
            fake.aws_notice(AwsKey::Spot);
        })
        .await;
        let (_, left_s) = stand.next("aws-spot").await.notice(stand.clock.now()).expect("a notice");
        assert!((110.0..=120.0).contains(&left_s), "{ahead_ms}: {left_s}");
        stand.stop().await;
    }
}

#[tokio::test]
async fn a_scheduled_event_that_is_canceled_or_completed_is_lifted_and_others_stay() {
    let event = |id: &str, code: &str, state: &str| Scheduled {
        id: id.to_owned(),
        code: code.to_owned(),
        state: state.to_owned(),
        not_before_unix_ms: cic_common::time::unix_ms() + 3_600_000,
    };
    for state in ["canceled", "completed"] {
        let mut stand = Stand::start(Cloud::Aws, PACE, |fake| {
            fake.aws_scheduled(vec![
                event("a", "system-reboot", "active"),
                event("b", "instance-retirement", "active"),
                event("c", "system-maintenance", "active"),
                event("d", "instance-stop", "canceled"),
            ]);
        })
        .await;
        let mut seen = Vec::new();
        for _ in 0..3 {
            let Said::Seen { kind, id, .. } = stand.next("aws-scheduled").await else {
                panic!("three notices")
            };
            seen.push((id, kind));
        }
        let expected =
            [("a", NoticeKind::Reboot), ("b", NoticeKind::Terminate), ("c", NoticeKind::Maintenance)];
        assert_eq!(seen, expected.map(|(id, kind)| (id.to_owned(), kind)));
        stand.fake.aws_scheduled(vec![
            event("a", "system-reboot", state),
            event("b", "instance-retirement", "active"),
            event("c", "system-maintenance", "active"),
        ]);
        assert_eq!(stand.next("aws-scheduled").await, Said::Lifted { id: "a".to_owned() });
        stand.quiet("aws-scheduled", AwsKey::Scheduled.path(), 5).await;
        stand.stop().await;
    }
}

#[tokio::test]
async fn a_withdrawn_spot_notice_is_lifted_and_an_outage_is_no_withdrawal() {
    let mut stand = Stand::start(Cloud::Aws, PACE, |fake| fake.aws_notice(AwsKey::Spot)).await;
    assert!(matches!(stand.next("aws-spot").await, Said::Seen { .. }));
    stand.fake.fault(AwsKey::Spot.path(), Some(Fault::Status(500)));
    assert!(stand.next("aws-spot").await.is_blind("status 500"));
    stand.quiet("aws-spot", AwsKey::Spot.path(), 5).await;
    stand.fake.fault(AwsKey::Spot.path(), None);
    assert_eq!(stand.next("aws-spot").await, Said::Sees);
    stand.quiet("aws-spot", AwsKey::Spot.path(), 5).await;
    stand.fake.aws_spot(None);
    assert_eq!(stand.next("aws-spot").await, Said::Lifted { id: "terminate".to_owned() });
    stand.stop().await;
}

#[tokio::test]
async fn one_kept_connection_serves_many_reads_and_a_closed_one_is_made_anew_without_a_word() {
    let mut stand = Stand::start(Cloud::Aws, PACE, |_| ()).await;
    stand.quiet("aws-spot", AwsKey::Spot.path(), 20).await;
    assert_eq!(stand.fake.connection_count(), AwsKey::ALL.len());
    stand.fake.refuse().await;
    stand.fake.accept_again().await.expect("its own port");
    stand.quiet("aws-spot", AwsKey::Spot.path(), 20).await;
    assert_eq!(stand.fake.connection_count(), 2 * AwsKey::ALL.len());
    stand.stop().await;
}
