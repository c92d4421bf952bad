//! What a node tells reliably: what it changes, and its severity and words in the event log.

use cic_common::gpu::{GpuAction, XidSeen, XidSource};
use cic_common::id::{Incarnation, NodeId};
use cic_common::notice::{Confidence, Notice};
use cic_common::time::Mono;
use cic_common::wire::message::NodeEvent;

use super::Action;
use super::fleet::Fleet;
use super::trail::Severity;

impl Fleet {
    pub(super) fn told(
        &mut self,
        now: Mono,
        id: &NodeId,
        incarnation: Incarnation,
        event: NodeEvent,
        out: &mut Vec<Action>,
    ) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        if node.is_overtaken(incarnation) {
            return;
        }
        self.is_dirty = true;
        let (severity, kind, text) = entry(&event);
        match event {
            NodeEvent::NoticeSeen { notice } => {
                // Its next report says the same; this word is a second ahead of it.
                if let Some(report) = &mut node.report
                    && report.notice.as_ref().is_none_or(|known| notice.urgency() < known.urgency())
                {
                    report.notice = Some(notice);
                }
            }
            NodeEvent::NoticeLifted { source, id } => node.lift_notice(&source, &id),
            NodeEvent::Xid { seen, action } => self.xids.add(seen.code, action),
            // A standby reads in the rows what became of it.
            NodeEvent::CommandDone { .. } | NodeEvent::Restored { .. } | NodeEvent::RestoreFailed { .. }
                if !self.is_leading => {}
            NodeEvent::CommandDone { operation, outcome } => {
                self.command_done(now, id, operation, &outcome, out);
            }
            NodeEvent::Restored { from, is_last: true, .. } => self.has_read(id, &from, true, out),
            NodeEvent::RestoreFailed { from, .. } => self.has_read(id, &from, false, out),
            NodeEvent::ReplicasMissing { model } => {
                return self.replicas_missing(now, id, &model, &text, out);
            }
            // Repeated until acknowledged, so they may come late: a node is judged by its reports, which are ordered.
            NodeEvent::ReplacementWanted { .. }
            | NodeEvent::EngineStalled { .. }
            | NodeEvent::GpuChanged { .. }
            | NodeEvent::PhaseChanged { .. }
            | NodeEvent::EngineExited { .. }
            | NodeEvent::SpotBlind { .. }
            | NodeEvent::SpotSeen { .. }
            | NodeEvent::CheckpointSaved { .. }
            | NodeEvent::CheckpointFailed { .. }
            | NodeEvent::Restored { is_last: false, .. }
            | NodeEvent::Farewell { .. } => {}
        }
        self.tell(now, id, severity, kind, text, out);
        self.touch(id);
    }
}

fn entry(event: &NodeEvent) -> (Severity, &'static str, String) {
    match event {
        NodeEvent::PhaseChanged { from, to, reason } => {
            (Severity::Info, "phase", format!("{from} -> {to}: {reason}"))
        }
        NodeEvent::EngineExited { pid, how } => {
            let pid = pid.map_or_else(String::new, |pid| format!(" pid {pid}"));
            (Severity::Warning, "engine-exit", format!("engine{pid} ended with {how}"))
        }
        NodeEvent::NoticeSeen { notice } => (Severity::Warning, "notice", notice_text(notice)),
        NodeEvent::NoticeLifted { source, id } => {
            (Severity::Info, "notice-lifted", format!("{source} took notice {id:?} back, or it is over"))
        }
        NodeEvent::SpotBlind { source, cause } => (
            Severity::Warning,
            "spot-blind",
            format!("{source} cannot be read, a notice would be missed: {cause}"),
        ),
        NodeEvent::SpotSeen { source } => (Severity::Info, "spot-seen", format!("{source} is read again")),
        NodeEvent::CheckpointSaved { occasion, bytes, request_count, took_ms } => {
            let text = format!("{occasion}: {request_count} requests, {bytes} bytes, in {took_ms} ms");
            (Severity::Info, "checkpoint", text)
        }
        NodeEvent::CheckpointFailed { occasion, cause, is_lost } => {
            let what = if *is_lost { "in no store" } else { "not in every store" };
            (Severity::Warning, "checkpoint-failed", format!("{occasion}: {what}: {cause}"))
        }
        NodeEvent::Restored {
            from,
            age_ms,
            took_ms,
            unfinished_count,
            rerun_count,
            differs,
            skipped,
            is_last,
        } => {
            let same = match differs.as_slice() {
                [] => "same model and arguments".to_owned(),
                differs => differs.join("; "),
            };
            let again = match is_last {
                true => format!("{rerun_count} of them run again"),
                false => "its last is awaited".to_owned(),
            };
            let skipped_text: String = skipped.iter().map(|one| format!("; skipped {one}")).collect();
            let text = format!(
                "of {from}, {} s old, in {took_ms} ms: {unfinished_count} requests under way, {again}; \
                 {same}{skipped_text}",
                age_ms / 1000
            );
            let is_plain = differs.is_empty() && skipped.is_empty();
            (if is_plain { Severity::Info } else { Severity::Warning }, "restored", text)
        }
        NodeEvent::RestoreFailed { from, cause } => {
            (Severity::Warning, "restore-failed", format!("nothing of {from} could be read back: {cause}"))
        }
        NodeEvent::ReplacementWanted { reason } => (Severity::Warning, "replacement-wanted", reason.clone()),
        NodeEvent::Farewell { reason } => (Severity::Info, "farewell", reason.clone()),
        NodeEvent::CommandDone { operation, outcome } => {
            (Severity::Info, "command", format!("operation {operation}: {outcome:?}"))
        }
        NodeEvent::Xid { seen, action } => (of_action(*action), "xid", xid_text(seen, *action)),
        NodeEvent::GpuChanged { text } => (of_gpus(text), "gpu", text.clone()),
        NodeEvent::ReplicasMissing { model } => {
            let text = format!("users ask this edge for {model} and it reaches no replica");
            (Severity::Warning, "replicas-missing", text)
        }
        NodeEvent::EngineStalled { pid, for_ms, is_over: true } => (
            Severity::Info,
            "engine-stall",
            format!("engine pid {pid} moves again after {} s", for_ms / 1000),
        ),
        NodeEvent::EngineStalled { pid, for_ms, is_over: false } => {
            let text = format!("engine pid {pid} has work and nothing moved for {} s", for_ms / 1000);
            (Severity::Warning, "engine-stall", text)
        }
    }
}

/// `terminate notice from aws-spot, 118 s left (announced)`
pub(super) fn notice_text(notice: &Notice) -> String {
    match notice.confidence {
        Confidence::Advice => format!("{} advice from {}", notice.kind, notice.source),
        confidence @ (Confidence::Announced | Confidence::Estimated) => {
            let left_s = notice.left_ms / 1000;
            format!("{} notice from {}, {left_s} s left ({confidence})", notice.kind, notice.source)
        }
    }
}

/// `XID 79 on GPU 0000:3b:00 (kernel log, pid 7): replace the node: NVRM: Xid (PCI:0000:3b:00): 79, …`
fn xid_text(seen: &XidSeen, action: GpuAction) -> String {
    let gpu = seen.pci.as_ref().map_or_else(|| "an unnamed GPU".to_owned(), |pci| format!("GPU {pci}"));
    let source = match seen.source {
        XidSource::Nvml => "NVML event",
        XidSource::Kmsg => "kernel log",
    };
    let pid = seen.pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
    let line = seen.text.trim();
    let line = if line.is_empty() { String::new() } else { format!(": {line}") };
    format!("XID {} on {gpu} ({source}{pid}): {action}{line}", seen.code)
}

fn of_action(action: GpuAction) -> Severity {
    match action {
        GpuAction::Ignore => Severity::Info,
        GpuAction::Report | GpuAction::ContactSupport | GpuAction::RestartApp => Severity::Warning,
        GpuAction::ResetGpu | GpuAction::RestartVm | GpuAction::ReplaceNode => Severity::Alert,
    }
}

/// Of a change as the agent words it: the subject, a word, and what it says of that word after a colon, as in
/// `gpu 3 unhealthy: reset the GPU: XID 95`. The subject may say more than an index.
///
/// A hang of the driver is a warning here: its alert is that of the report, once for one hang, while the agent's words
/// for it change with the call that hangs.
fn of_gpus(text: &str) -> Severity {
    let (head, detail) = text.split_once(": ").unwrap_or((text, ""));
    match head.split_whitespace().next_back() {
        Some("healthy" | "read") => Severity::Info,
        Some("unhealthy") => {
            let word = detail.split_once(": ").map_or(detail, |(action, _)| action);
            let action = GpuAction::ALL.into_iter().find(|action| action.as_str() == word);
            // No lighter than a warning, and an action that this build does not know may be of the gravest.
            action.map_or(Severity::Alert, |action| of_action(action).max(Severity::Warning))
        }
        // Degraded, blind, wedged, XIDs that may be missed, or words that this build does not know.
        Some(_) | None => Severity::Warning,
    }
}

#[cfg(test)]
mod tests {
    use cic_common::gpu::GpuVerdict;

    use super::*;

    #[test]
    fn an_xid_is_as_grave_as_its_action() {
        for action in GpuAction::ALL {
            let severity = of_action(action);
            assert_eq!(severity == Severity::Alert, action.condemns(), "{action}");
            assert_eq!(severity == Severity::Info, action == GpuAction::Ignore, "{action}");
        }
    }

    #[test]
    fn an_xid_is_told_with_code_gpu_source_action_and_line() {
        let seen = XidSeen {
            source: XidSource::Kmsg,
            pci: Some("0000:3b:00".parse().expect("an address")),
            code: 79,
            pid: Some(7),
            interrupt_info: None,
            recovery: None,
            text: "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.\n".to_owned(),
        };
        assert_eq!(
            xid_text(&seen, GpuAction::ReplaceNode),
            "XID 79 on GPU 0000:3b:00 (kernel log, pid 7): replace the node: \
             NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."
        );
        let bare = XidSeen { source: XidSource::Nvml, pci: None, pid: None, text: String::new(), ..seen };
        assert_eq!(xid_text(&bare, GpuAction::Report), "XID 79 on an unnamed GPU (NVML event): report");
    }

    #[test]
    fn a_change_of_a_gpu_is_as_grave_as_its_new_verdict() {
        let reason = || "healthy: no, XID 48".to_owned();
        let unhealthy = |action| GpuVerdict::Unhealthy { action, reason: reason() };
        let degraded = GpuVerdict::Degraded { reason: reason() };
        let rows = [(GpuVerdict::Healthy, Severity::Info), (degraded, Severity::Warning)].into_iter().chain(
            GpuAction::ALL.map(|action| {
                let severity = if action.condemns() { Severity::Alert } else { Severity::Warning };
                (unhealthy(action), severity)
            }),
        );
        for (verdict, severity) in rows {
            for subject in ["gpu 3", "gpu 3 (GPU-5c1f, unhealthy before)", "gpu 0000:3b:00"] {
                let text = format!("{subject} {}", verdict.text());
                assert_eq!(of_gpus(&text), severity, "{text}");
            }
        }
        assert_eq!(of_gpus("gpu 3 unhealthy: an act of a later agent: XID 200"), Severity::Alert);
    }

    #[test]
    fn a_change_of_sight_is_a_warning_until_all_is_read_again() {
        for (text, severity) in [
            ("GPUs read", Severity::Info),
            ("GPUs blind: the driver is not loaded: unhealthy", Severity::Warning),
            ("GPUs wedged: nvmlInit does not come back", Severity::Warning),
            ("XIDs from NVML may be missed: healthy", Severity::Warning),
            ("XIDs in the kernel log may be missed: permission denied", Severity::Warning),
            ("words of a later agent", Severity::Warning),
            ("", Severity::Warning),
        ] {
            assert_eq!(of_gpus(text), severity, "{text}");
        }
    }
}
