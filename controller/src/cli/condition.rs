//! A node's engine and GPUs in people's words, by its own report.

use cic_common::gpu::{GpuHealth, GpuVerdict};
use cic_common::notice::{Cloud, Confidence, Notice};
use cic_common::report::{EngineReport, EngineState, GpuReport, NodeReport};

use super::style::Tone;
use crate::core::NodeView;

/// Whether there is a GPU to tell of.
pub(super) fn has_gpus(node: &NodeView) -> bool {
    node.report.as_ref().is_some_and(|report| report.gpu != GpuReport::Absent)
}

/// `8 ok`, `1/8 degraded`, `1/8 bad`, `none`, `wedged`, `blind`, and `-` where the node says nothing of GPUs.
pub(super) fn gpus(node: &NodeView) -> (String, Tone) {
    let summary = match node.report.as_ref().map(|report| &report.gpu) {
        None | Some(GpuReport::Absent) => return ("-".to_owned(), Tone::Faint),
        Some(GpuReport::Blind { .. }) => return ("blind".to_owned(), Tone::Odd),
        Some(GpuReport::Wedged { .. }) => return ("wedged".to_owned(), Tone::Bad),
        Some(GpuReport::Seen(summary)) => summary,
    };
    let (mut degraded, mut bad) = (0, 0);
    for gpu in &summary.gpus {
        match gpu.verdict {
            GpuVerdict::Healthy => {}
            GpuVerdict::Degraded { .. } => degraded += 1,
            GpuVerdict::Unhealthy { .. } => bad += 1,
        }
    }
    match (summary.gpus.len(), bad, degraded) {
        (0, _, _) => ("none".to_owned(), Tone::Bad),
        (all, 0, 0) => (format!("{all} ok"), Tone::Good),
        (all, 0, degraded) => (format!("{degraded}/{all} degraded"), Tone::Odd),
        (all, bad, _) => (format!("{bad}/{all} bad"), Tone::Bad),
    }
}

/// What is wrong with a node that serves or tries to, the gravest first; empty for most.
pub(super) fn troubles(report: &NodeReport) -> Vec<String> {
    let is_stalled = report.engine.state == EngineState::Stalled;
    let stall = is_stalled.then(|| "engine stalled".to_owned());
    let is_sound = match &report.gpu {
        GpuReport::Absent => true,
        GpuReport::Blind { .. } | GpuReport::Wedged { .. } => false,
        GpuReport::Seen(summary) => summary.gpus.iter().all(|gpu| gpu.verdict == GpuVerdict::Healthy),
    };
    let gpus = (!is_sound).then(|| format!("GPUs {}", report.gpu.text()));
    let drift = report.engine.drift.as_ref().map(|drift| format!("drift: {drift}"));
    let notice = report.notice.as_ref().map(|notice| format!("{} notice", notice.kind));
    let blind = (!report.spot.blind.is_empty()).then(|| "notices unseen".to_owned());
    [stall, notice, gpus, blind, drift].into_iter().flatten().collect()
}

/// One line on the engine, one on the cloud's notices and each source of them that is blind, one on all GPUs and each that is
/// not healthy.
pub(super) fn lines(report: &NodeReport) -> Vec<String> {
    let mut lines =
        vec![format!("engine: {}", engine(&report.engine)), format!("notices: {}", notices(report))];
    for blind in &report.spot.blind {
        let for_s = blind.for_ms / 1000;
        lines.push(format!("  {} has not been read for {for_s} s: {}", blind.source, blind.cause));
    }
    lines.push(format!("GPUs: {}", report.gpu.text()));
    match &report.gpu {
        GpuReport::Seen(summary) => lines.extend(summary.gpus.iter().filter_map(gpu)),
        GpuReport::Absent | GpuReport::Blind { .. } | GpuReport::Wedged { .. } => {}
    }
    lines
}

/// `of aws; terminate from aws-spot, 87 s left (announced)`
fn notices(report: &NodeReport) -> String {
    let cloud = match report.spot.cloud {
        None => "cloud not known yet".to_owned(),
        Some(Cloud::None) => "this machine's cloud gives none".to_owned(),
        Some(cloud) => format!("of {cloud}"),
    };
    let Some(notice) = &report.notice else { return format!("{cloud}; none") };
    let Notice { kind, source, left_ms, confidence, .. } = notice;
    let left = match confidence {
        Confidence::Advice => String::new(),
        Confidence::Announced | Confidence::Estimated => format!(", {} s left", left_ms / 1000),
    };
    format!("{cloud}; {kind} from {source}{left} ({confidence})")
}

/// `stalled, pid 4711, adopted, started anew 2 times; last exit: signal 9; drift: …`
fn engine(engine: &EngineReport) -> String {
    let mut text = match engine.state {
        EngineState::Absent => "none".to_owned(),
        state => state.as_str().to_owned(),
    };
    if let Some(pid) = engine.pid {
        text.push_str(&format!(", pid {pid}"));
    }
    if engine.is_adopted {
        text.push_str(", adopted");
    }
    match engine.restart_count {
        0 => {}
        1 => text.push_str(", started anew once"),
        count => text.push_str(&format!(", started anew {count} times")),
    }
    if let Some(how) = &engine.last_exit {
        text.push_str(&format!("; last exit: {how}"));
    }
    if let Some(drift) = &engine.drift {
        text.push_str(&format!("; drift: {drift}"));
    }
    text
}

fn gpu(gpu: &GpuHealth) -> Option<String> {
    let (index, verdict) = (gpu.index, gpu.verdict.as_str());
    match &gpu.verdict {
        GpuVerdict::Healthy => None,
        GpuVerdict::Degraded { reason } => Some(format!("  GPU {index} {verdict}: {reason}")),
        GpuVerdict::Unhealthy { action, reason } => {
            Some(format!("  GPU {index} {verdict}: {reason}; to do: {action}"))
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use cic_common::gpu::{GpuAction, GpuSummary};
    use cic_common::notice::{BlindSource, NoticeKind, SpotReport};
    use cic_common::report::Phase;

    use super::*;
    use crate::cli::shown;

    pub(in crate::cli) fn report(verdicts: Vec<GpuVerdict>) -> NodeReport {
        let gpu = |(index, verdict)| GpuHealth {
            index,
            verdict,
            memory_used: None,
            memory_total: None,
            utilization_percent: None,
            temperature_c: None,
        };
        let gpus = (0..).zip(verdicts).map(gpu).collect();
        NodeReport {
            phase: Phase::Serving,
            gpu: GpuReport::Seen(GpuSummary { driver_version: None, gpus }),
            ..NodeReport::booting()
        }
    }

    pub(in crate::cli) fn bad() -> GpuVerdict {
        GpuVerdict::Unhealthy { action: GpuAction::ResetGpu, reason: "XID 95".to_owned() }
    }

    fn cell(gpu: GpuReport) -> String {
        let mut node = shown::tests::shown(&["node001"]).view.nodes.remove(0);
        node.report = Some(NodeReport { gpu, ..NodeReport::booting() });
        gpus(&node).0
    }

    #[test]
    fn the_cell_counts_the_worst_kind() {
        let (fine, worn) = (GpuVerdict::Healthy, GpuVerdict::Degraded { reason: "slow link".to_owned() });
        let reason = || "hangs".to_owned();
        for (gpu, text) in [
            (GpuReport::Absent, "-"),
            (GpuReport::Blind { reason: reason() }, "blind"),
            (GpuReport::Wedged { reason: reason() }, "wedged"),
            (report(Vec::new()).gpu, "none"),
            (report(vec![fine.clone(), fine.clone()]).gpu, "2 ok"),
            (report(vec![fine.clone(), worn.clone()]).gpu, "1/2 degraded"),
            (report(vec![fine, worn, bad()]).gpu, "1/3 bad"),
        ] {
            assert_eq!(cell(gpu), text);
        }
    }

    #[test]
    fn each_gpu_that_is_not_healthy_has_a_line_with_what_is_to_be_done() {
        let mut report = report(vec![GpuVerdict::Healthy, bad()]);
        report.engine = EngineReport {
            state: EngineState::Stalled,
            pid: Some(4711),
            is_adopted: true,
            restart_count: 2,
            last_exit: Some("signal 9".to_owned()),
            drift: Some("max-model-len 8192, asked for 4096".to_owned()),
        };
        assert_eq!(
            lines(&report),
            [
                "engine: stalled, pid 4711, adopted, started anew 2 times; last exit: signal 9; \
                 drift: max-model-len 8192, asked for 4096",
                "notices: cloud not known yet; none",
                "GPUs: 1 of 2 unhealthy: gpu 1: reset the GPU: XID 95",
                "  GPU 1 unhealthy: XID 95; to do: reset the GPU",
            ]
        );
        let booting = lines(&NodeReport::booting());
        assert_eq!(booting, ["engine: none", "notices: cloud not known yet; none", "GPUs: absent"]);
    }

    #[test]
    fn a_notice_and_a_blind_source_are_told_with_what_is_known_of_them() {
        let mut report = NodeReport::booting();
        report.notice = Some(Notice {
            kind: NoticeKind::Terminate,
            source: "aws-spot".to_owned(),
            id: "terminate".to_owned(),
            left_ms: 87_900,
            confidence: Confidence::Announced,
            resources: Vec::new(),
        });
        let blind = BlindSource {
            source: "aws-rebalance".to_owned(),
            for_ms: 61_000,
            cause: "status 503 Service Unavailable".to_owned(),
        };
        report.spot = SpotReport { cloud: Some(Cloud::Aws), blind: vec![blind], unread: Vec::new() };
        assert_eq!(
            lines(&report)[1..3],
            [
                "notices: of aws; terminate from aws-spot, 87 s left (announced)",
                "  aws-rebalance has not been read for 61 s: status 503 Service Unavailable",
            ]
        );
        assert_eq!(troubles(&report), ["terminate notice", "notices unseen"]);
    }

    #[test]
    fn a_sound_node_has_no_troubles() {
        assert!(troubles(&report(vec![GpuVerdict::Healthy])).is_empty());
        let mut sick = report(vec![bad()]);
        sick.engine.state = EngineState::Stalled;
        sick.engine.drift = Some("another model".to_owned());
        assert_eq!(
            troubles(&sick),
            ["engine stalled", "GPUs 1 of 1 unhealthy: gpu 0: reset the GPU: XID 95", "drift: another model"]
        );
    }
}
