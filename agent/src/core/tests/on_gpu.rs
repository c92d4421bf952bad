//! Rules about an engine on GPUs: faults, memory that is left behind, a driver that hangs.

use cic_common::gpu::{GpuInventory, GpuProcess, GpuSample, XidSeen, XidSource};
use cic_common::report::GpuReport;
use cic_common::units::Bytes;

use super::*;

const GPU: &str = "GPU-0000";

fn sampled(used: Bytes, pids: &[u32]) -> Event {
    let process = |pid: &u32| GpuProcess { pid: *pid, memory_used: None };
    let sample = GpuSample {
        pci: "0000:3b:00".parse().ok(),
        memory_used: Some(used),
        memory_total: Some(Bytes::mib(81_559)),
        processes: Some(pids.iter().map(process).collect()),
        ..GpuSample::unknown(0, GPU.to_owned())
    };
    Event::Gpu(GpuEvent::Sampled { is_full: true, device_count: 1, samples: vec![sample], lost: Vec::new() })
}

fn xid(code: u32) -> Event {
    Event::Gpu(GpuEvent::Xid(XidSeen {
        source: XidSource::Kmsg,
        pci: "0000:3b:00".parse().ok(),
        code,
        pid: None,
        interrupt_info: None,
        recovery: None,
        text: format!("NVRM: Xid (PCI:0000:3b:00): {code}"),
    }))
}

impl Bench {
    /// Serving on a GPU that had 4 MiB in use at boot.
    fn on_gpu() -> Self {
        let mut bench = Self::new(Role::Replica);
        bench.give(Event::Booted(Booted::default()));
        bench.give(sampled(Bytes::mib(4), &[]));
        bench.give(Event::Assigned { term: Term(1), assignment: assignment("m") });
        bench.give(Event::ModelMounted { attempt: 1, result: Ok(()) });
        bench.give(Event::ModelVerified { attempt: 1, result: Ok(()) });
        bench.give(Event::EngineChecked { attempt: 1, result: Ok(()) });
        bench.give(Event::EngineStarted { attempt: 1, pid: 7 });
        bench.give(probed(7, Ok(())));
        bench.give(sampled(Bytes::mib(70_000), &[7]));
        assert_eq!(bench.phase(), Phase::Serving);
        bench
    }
}

#[test]
fn gpu_memory_that_grows_is_progress() {
    let mut bench = Bench::loading();
    bench.pass(Duration::from_secs(550));
    bench.give(sampled(Bytes::mib(9_000), &[7]));
    assert!(!stops(bench.pass(Duration::from_secs(60))));
    assert!(stops(bench.pass(Duration::from_secs(60))));
}

#[test]
fn nothing_is_started_until_the_gpus_memory_is_proven_free() {
    let mut bench = Bench::on_gpu();
    let actions = bench.give(exited(7, "signal 9", &[])).to_vec();
    assert!(actions.contains(&Action::SampleGpus));
    assert!(!bench.pass(Duration::from_secs(5)).iter().any(|a| matches!(a, Action::MountModel { .. })));
    bench.give(sampled(Bytes::mib(300), &[]));
    assert!(bench.pass(Duration::from_secs(2)).iter().any(|a| matches!(a, Action::MountModel { .. })));
}

#[test]
fn memory_that_stays_held_is_reported_with_its_holders_and_nothing_is_started_on_to_it() {
    let mut bench = Bench::on_gpu();
    bench.give(exited(7, "signal 9", &[]));
    for _ in 0..9 {
        bench.pass(Duration::from_secs(1));
        bench.give(sampled(Bytes::mib(70_000), &[4242]));
    }
    assert_ne!(bench.phase(), Phase::Failed, "not before 10 s");
    bench.pass(Duration::from_secs(1));
    let report = bench.agent.report(bench.now);
    assert_eq!(report.phase, Phase::Failed);
    assert!(report.reason.starts_with("gpu_leaked") && report.reason.contains("4242"), "{}", report.reason);
    assert!(report.wants_replacement.is_some());
    bench.pass(Duration::from_secs(3600));
    let actions = bench.give(sampled(Bytes::mib(4), &[])).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::MountModel { .. })), "its way back");
    assert_eq!(bench.agent.report(bench.now).wants_replacement, None);
}

#[test]
fn a_driver_that_does_not_tell_memory_holds_nothing_up_for_ever() {
    let unsaid = || {
        let sample = GpuSample::unknown(0, GPU.to_owned());
        Event::Gpu(GpuEvent::Sampled {
            is_full: true,
            device_count: 1,
            samples: vec![sample],
            lost: Vec::new(),
        })
    };
    let mut bench = Bench::new(Role::Replica);
    bench.give(Event::Booted(Booted::default()));
    bench.give(unsaid());
    bench.give(Event::Assigned { term: Term(1), assignment: assignment("m") });
    bench.give(Event::ModelMounted { attempt: 1, result: Ok(()) });
    bench.give(Event::ModelVerified { attempt: 1, result: Ok(()) });
    bench.give(Event::EngineChecked { attempt: 1, result: Ok(()) });
    bench.give(Event::EngineStarted { attempt: 1, pid: 7 });
    bench.give(probed(7, Ok(())));
    bench.fail_once();
    bench.pass(Duration::from_secs(10));
    bench.give(unsaid());
    assert!(bench.agent.report(bench.now).reason.contains("boom"), "{:?}", bench.agent.report(bench.now));
    assert!(bench.pass(Duration::from_secs(2)).iter().any(|a| matches!(a, Action::MountModel { .. })));
}

#[test]
fn a_node_that_leaves_says_what_it_leaves_behind_and_goes() {
    let mut bench = Bench::on_gpu();
    bench.give(drained_by_command());
    bench.give(Event::EdgeCounted(EdgeReport::default()));
    bench.give(exited(7, "exit code 0", &[]));
    bench.pass(Duration::from_secs(1));
    bench.give(sampled(Bytes::mib(70_000), &[7]));
    bench.pass(Duration::from_secs(9));
    let report = bench.agent.report(bench.now);
    assert_eq!(report.phase, Phase::Stopped);
    assert!(report.reason.starts_with("gpu_leaked"), "{}", report.reason);
}

#[test]
fn a_condemned_gpu_asks_for_another_node_while_the_engine_serves_on() {
    let mut bench = Bench::on_gpu();
    let actions = bench.give(xid(95)).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::Tell(NodeEvent::Xid { .. }))));
    assert!(actions.iter().any(|a| matches!(a, Action::Tell(NodeEvent::ReplacementWanted { .. }))));
    assert!(!stops(&actions));
    assert_eq!(bench.phase(), Phase::Serving);
    assert!(bench.agent.report(bench.now).wants_replacement.is_some_and(|wish| wish.contains("95")));
    // The engine dies of it after all: none is started on that GPU.
    bench.give(exited(7, "signal 6", &[]));
    bench.pass(Duration::from_secs(1));
    bench.give(sampled(Bytes::mib(4), &[]));
    assert!(bench.agent.report(bench.now).reason.contains("GPU fault XID 95"));
    bench.pass(Duration::from_secs(2));
    bench.give(Event::ModelMounted { attempt: 2, result: Ok(()) });
    bench.give(Event::ModelVerified { attempt: 2, result: Ok(()) });
    let actions = bench.give(Event::EngineChecked { attempt: 2, result: Ok(()) }).to_vec();
    assert!(!actions.iter().any(|a| matches!(a, Action::StartEngine { .. })));
    assert_eq!(bench.phase(), Phase::Failed);
    let actions = bench.give(Event::Gpu(GpuEvent::Cleared { gpu: None })).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::MountModel { .. })), "an operator's way back");
    assert_eq!(bench.agent.report(bench.now).wants_replacement, None);
}

#[test]
fn after_a_fault_that_asks_for_a_restart_the_engine_has_to_show_that_it_works() {
    for (result, is_stopped) in
        [(Ok(()), false), (Err(ProbeFault::Completion("no answer within 10 s".to_owned())), true)]
    {
        let mut bench = Bench::on_gpu();
        let actions = bench.give(xid(31)).to_vec();
        assert!(actions.iter().any(|a| matches!(a, Action::ProbeEngine { depth: Depth::Deep, .. })));
        assert!(!stops(&actions));
        let work = Some(Work { running: 1, iterations: Some(9), ..Work::default() });
        let reading = Reading { before: work, after: work, is_completed: result.is_ok() };
        let actions = bench.give(Event::EngineProbed { pid: 7, reading, result }).to_vec();
        assert_eq!(stops(&actions), is_stopped, "{actions:?}");
    }
}

#[test]
fn no_engine_is_started_while_the_driver_hangs() {
    let mut bench = Bench::new(Role::Replica);
    bench.give(Event::Booted(Booted::default()));
    bench.give(Event::Gpu(GpuEvent::Wedged { call: "nvmlInit".to_owned(), for_ms: 15_000 }));
    bench.give(Event::Assigned { term: Term(1), assignment: assignment("m") });
    bench.give(Event::ModelMounted { attempt: 1, result: Ok(()) });
    bench.give(Event::ModelVerified { attempt: 1, result: Ok(()) });
    let actions = bench.give(Event::EngineChecked { attempt: 1, result: Ok(()) }).to_vec();
    assert!(!actions.iter().any(|a| matches!(a, Action::StartEngine { .. })));
    let report = bench.agent.report(bench.now);
    assert!(report.reason.contains("driver hangs") && matches!(report.gpu, GpuReport::Wedged { .. }));
}

#[test]
fn a_start_waits_for_the_first_word_on_the_gpus_and_not_for_ever() {
    let asks = |actions: &[Action]| actions.iter().any(|a| matches!(a, Action::CheckEngine { .. }));
    for first_word in [true, false] {
        let mut bench = Bench::new(Role::Replica);
        bench.give(Event::Booted(Booted::default()));
        bench.give(Event::Assigned { term: Term(1), assignment: assignment("m") });
        bench.give(Event::ModelMounted { attempt: 1, result: Ok(()) });
        assert!(!asks(bench.give(Event::ModelVerified { attempt: 1, result: Ok(()) })));
        // A driver that is there has said nothing of its GPUs yet.
        assert!(!asks(bench.give(Event::Gpu(GpuEvent::Ready(GpuInventory::default())))));
        let reason = "no /dev/kmsg".to_owned();
        assert!(!asks(bench.give(Event::Gpu(GpuEvent::XidsBlind { source: XidSource::Kmsg, reason }))));
        let actions = if first_word {
            bench.give(sampled(Bytes::mib(4), &[])).to_vec()
        } else {
            bench.pass(Duration::from_secs(15)).to_vec()
        };
        let count = actions.iter().find_map(|a| match a {
            Action::CheckEngine { gpus, .. } => Some(gpus.count),
            _ => None,
        });
        assert_eq!(count, Some(first_word.then_some(1)), "unknown is not none");
        let actions = bench.give(Event::EngineChecked { attempt: 1, result: Ok(()) }).to_vec();
        assert!(actions.iter().any(|a| matches!(a, Action::StartEngine { .. })), "{first_word}");
    }
}

#[test]
fn no_way_leads_to_a_start_on_memory_that_is_held() {
    let memo = GpuMemo { baseline: Some([(GPU.to_owned(), Bytes::mib(4))].into()), ..GpuMemo::default() };
    let mut bench = Bench::new(Role::Replica);
    // A new run of the agent, whose engine is gone and has left its memory.
    bench.give(Event::Booted(Booted { gpus: Some(memo), ..Booted::default() }));
    bench.give(sampled(Bytes::mib(70_000), &[4242]));
    bench.give(Event::Assigned { term: Term(1), assignment: assignment("m") });
    bench.give(Event::ModelMounted { attempt: 1, result: Ok(()) });
    bench.give(Event::ModelVerified { attempt: 1, result: Ok(()) });
    let actions = bench.give(Event::EngineChecked { attempt: 1, result: Ok(()) }).to_vec();
    assert!(!actions.iter().any(|a| matches!(a, Action::StartEngine { .. })), "{actions:?}");
    assert!(bench.agent.report(bench.now).reason.contains("gpu_leaked"));
    bench.pass(Duration::from_secs(1));
    let actions = bench.give(sampled(Bytes::mib(4), &[])).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::MountModel { .. })), "its way back");
}

#[test]
fn a_fault_that_the_engine_outlived_is_not_what_ended_it() {
    let mut bench = Bench::on_gpu();
    bench.give(xid(31));
    bench.give(probed(7, Ok(())));
    bench.pass(Duration::from_secs(3600));
    bench.give(exited(7, "signal 9", &[]));
    assert!(
        !bench.agent.report(bench.now).reason.contains("XID"),
        "{:?}",
        bench.agent.report(bench.now).reason
    );
}

#[test]
fn a_drain_during_the_proof_says_so() {
    let mut bench = Bench::on_gpu();
    bench.give(exited(7, "signal 9", &[]));
    let actions = bench.give(drained_by_command()).to_vec();
    assert!(tells_phase(&actions, Phase::Draining), "{actions:?}");
    bench.pass(Duration::from_secs(1));
    bench.give(sampled(Bytes::mib(4), &[]));
    assert_eq!(bench.phase(), Phase::Stopped);
}

#[test]
fn what_an_earlier_run_of_this_boot_knew_of_the_gpus_holds() {
    let mut first = Bench::on_gpu();
    let memo = first.give(xid(95)).iter().find_map(|a| match a {
        Action::RememberGpus(memo) => Some(memo.clone()),
        _ => None,
    });
    let memo = memo.expect("an XID cannot be observed again");
    assert!(memo.baseline.as_ref().is_some_and(|baseline| baseline[GPU] == Bytes::mib(4)));
    let mut next = Bench::new(Role::Replica);
    next.give(Event::Booted(Booted { gpus: Some(memo), ..Booted::default() }));
    next.give(sampled(Bytes::mib(4), &[]));
    assert!(next.agent.report(next.now).wants_replacement.is_some_and(|wish| wish.contains("95")));
}

#[test]
fn a_log_that_cannot_be_read_is_told_only_where_there_are_gpus() {
    let blind = || {
        let reason = "/dev/kmsg: permission denied".to_owned();
        Event::Gpu(GpuEvent::XidsBlind { source: XidSource::Kmsg, reason })
    };
    let is_told = |actions: &[Action]| {
        actions
            .iter()
            .any(|a| matches!(a, Action::Tell(NodeEvent::GpuChanged { text }) if text.contains("kmsg")))
    };
    for (word, told) in [(Event::Gpu(GpuEvent::Absent), false), (sampled(Bytes::mib(4), &[]), true)] {
        let mut bench = Bench::new(Role::Replica);
        bench.give(Event::Booted(Booted::default()));
        assert!(!is_told(bench.give(blind())), "not before it is known");
        assert_eq!(is_told(bench.give(word)), told);
    }
}
