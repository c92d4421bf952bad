//! A metadata service that is away for long: the source stays, and sees as soon as there is something to see.

use std::time::Duration;

use cic_common::notice::Cloud;
use fleet_tests::fakes::{AwsKey, Fault, GcpKey, MetadataFake};

use crate::stand::{PACE, Said, Stand};

/// As many reads as ten minutes have at one a second.
const READS: usize = 600;

/// From recovery to notice: two reads' time at the pace of production, and the same here.
const SEEN_WITHIN_READS: u32 = 2;

const AZURE_PATH: &str = "/metadata/scheduledevents";

struct Case {
    cloud: Cloud,
    source: &'static str,
    path: &'static str,
    notice: fn(&MetadataFake),
}

const CASES: [Case; 3] = [
    Case {
        cloud: Cloud::Aws,
        source: "aws-spot",
        path: "/latest/meta-data/spot/instance-action",
        notice: |fake| fake.aws_notice(AwsKey::Spot),
    },
    Case {
        cloud: Cloud::Gcp,
        source: "gcp-preempted",
        path: "/computeMetadata/v1/instance/preempted",
        notice: |fake| fake.gcp(GcpKey::Preempted, "TRUE"),
    },
    Case {
        cloud: Cloud::Azure,
        source: "azure",
        path: AZURE_PATH,
        notice: |fake| {
            fake.azure_events(vec![fleet_tests::fakes::AzureEvent {
                id: "a".to_owned(),
                kind: "Preempt".to_owned(),
                resources: vec!["vm-0".to_owned()],
                not_before_unix_ms: Some(fake.now_unix_ms() + 30_000),
            }]);
        },
    },
];

#[tokio::test]
async fn a_notice_after_an_outage_of_six_hundred_reads_is_seen_with_the_second_read_of_the_recovery() {
    for case in CASES {
        let mut stand = Stand::start(case.cloud, PACE, |_| ()).await;
        stand.quiet(case.source, case.path, 1).await;
        stand.fake.fault(case.path, Some(Fault::Status(503)));
        assert!(stand.next(case.source).await.is_blind("status 503"), "{}", case.source);
        // Nothing more is said of it, however long it takes.
        stand.quiet(case.source, case.path, READS).await;
        (case.notice)(&stand.fake);
        let reads = stand.count(case.path);
        stand.fake.fault(case.path, None);
        assert!(matches!(stand.next(case.source).await, Said::Seen { .. }), "{}", case.source);
        assert_eq!(stand.next(case.source).await, Said::Sees, "{}", case.source);
        let more = stand.count(case.path) - reads;
        assert!(more <= SEEN_WITHIN_READS as usize, "{}: {more} reads", case.source);
        stand.stop().await;
    }
}

#[tokio::test]
#[ignore = "ten minutes, at the pace of production"]
async fn a_notice_after_ten_minutes_of_503_is_seen_within_two_seconds() {
    let pace = cic_agent::source::spot::Pace::default();
    let mut stands = Vec::new();
    for case in CASES {
        let stand = Stand::start(case.cloud, pace, |_| ()).await;
        stand.until("a first read", |fake| fake.log().iter().any(|asked| asked.path == case.path)).await;
        stand.fake.fault(case.path, Some(Fault::Status(503)));
        stands.push((case, stand));
    }
    for (case, stand) in &mut stands {
        // GCP's question hangs when the outage begins, and ends in it.
        if case.cloud == Cloud::Gcp {
            continue;
        }
        assert!(stand.next(case.source).await.is_blind("status 503"), "{}", case.source);
    }
    tokio::time::sleep(Duration::from_secs(600)).await; // bounded wait: the outage is the point
    for (case, mut stand) in stands {
        (case.notice)(&stand.fake);
        stand.fake.fault(case.path, None);
        let recovered_at = stand.clock.now();
        while !matches!(stand.next(case.source).await, Said::Seen { .. }) {}
        let took = stand.clock.now().since(recovered_at);
        println!("{}: seen {:.3} s after the recovery", case.source, took.as_secs_f64());
        assert!(took < Duration::from_secs(2), "{}: {took:?}", case.source);
        stand.stop().await;
    }
}
