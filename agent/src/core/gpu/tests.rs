//! The node's GPUs as a whole.

use cic_common::gpu::{
    GpuAction, GpuHealth, GpuInventory, GpuProcess, GpuSample, GpuVerdict, RecoveryAction, XidSeen, XidSource,
};
use cic_common::report::GpuReport;
use cic_common::time::Mono;
use cic_common::units::Bytes;

use super::{GpuEvent, GpuFinding, GpuMemory, Gpus};

mod faults;
mod sight;
mod ways;

const SETTLED_S: u64 = 11;

fn at(s: u64) -> Mono {
    Mono::from_millis(s * 1000)
}

fn pci_text(index: u32) -> String {
    format!("0000:{:02x}:00", 0x3b + index)
}

fn healthy(index: u32) -> GpuSample {
    GpuSample {
        pci: pci_text(index).parse().ok(),
        memory_used: Some(Bytes::mib(1000)),
        memory_total: Some(Bytes::mib(80_000)),
        recovery_action: Some(RecoveryAction::None),
        remap_failed: Some(false),
        remap_pending: Some(false),
        ecc_volatile_uncorrected: Some(0),
        throttle_reasons: Some(0),
        processes: Some(vec![GpuProcess { pid: 7, memory_used: Some(Bytes::mib(900)) }]),
        ..GpuSample::unknown(index, format!("GPU-{index}"))
    }
}

fn sampled(samples: Vec<GpuSample>) -> GpuEvent {
    let device_count = u32::try_from(samples.len()).unwrap();
    GpuEvent::Sampled { is_full: true, device_count, samples, lost: vec![] }
}

fn cheap(samples: Vec<GpuSample>) -> GpuEvent {
    let device_count = u32::try_from(samples.len()).unwrap();
    GpuEvent::Sampled { is_full: false, device_count, samples, lost: vec![] }
}

fn xid(code: u32) -> XidSeen {
    XidSeen {
        source: XidSource::Kmsg,
        pci: pci_text(0).parse().ok(),
        code,
        pid: None,
        interrupt_info: None,
        recovery: None,
        text: format!("{code}, …"),
    }
}

fn says(word: RecoveryAction) -> GpuEvent {
    GpuEvent::Xid(XidSeen { recovery: Some(word), ..xid(154) })
}

/// GPUs that are all healthy at 0 s.
fn gpus(count: u32) -> Gpus {
    let mut gpus = Gpus::default();
    let _ = gpus.hear(at(0), sampled((0..count).map(healthy).collect()));
    gpus
}

fn health(gpus: &Gpus) -> Vec<GpuHealth> {
    match gpus.report() {
        GpuReport::Seen(summary) => summary.gpus,
        other => panic!("{other:?}"),
    }
}

fn verdict(gpus: &Gpus, index: usize) -> GpuVerdict {
    health(gpus)[index].verdict.clone()
}

fn faults(findings: &[GpuFinding]) -> Vec<(u32, GpuAction)> {
    let fault = |finding: &GpuFinding| match finding {
        GpuFinding::Xid { seen, action } => Some((seen.code, *action)),
        GpuFinding::Changed { .. } | GpuFinding::RestartApp { .. } | GpuFinding::MemoryChanged => None,
    };
    findings.iter().filter_map(fault).collect()
}
