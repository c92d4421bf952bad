//! Every figure of every GPU, for scrapes (`/metrics`) and for people (`/gpus`).

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use cic_common::gpu::{GpuInventory, GpuSample};
use cic_common::report::GpuReport;
use cic_common::units::Bytes;
use serde::Serialize;

/// The newest samples. Set by the driver, read by scrapes; clones share them.
#[derive(Debug, Default, Clone)]
pub struct GpuBoard {
    newest: Arc<Mutex<GpuFigures>>,
}

/// What is known of the GPUs in full.
#[derive(Debug, Default, Clone, Serialize)]
pub struct GpuFigures {
    pub inventory: Option<GpuInventory>,
    pub samples: Vec<GpuSample>,
}

impl GpuBoard {
    pub fn set(&self, figures: GpuFigures) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = figures;
    }

    pub(super) fn newest(&self) -> GpuFigures {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Prometheus's text format. A figure that this driver or card does not say has no line.
pub(super) fn text(figures: &GpuFigures, report: &GpuReport) -> String {
    let mut text = String::new();
    let (is_blind, is_wedged) =
        (matches!(report, GpuReport::Blind { .. }), matches!(report, GpuReport::Wedged { .. }));
    let _ = writeln!(text, "cic_agent_gpu_blind {}", u8::from(is_blind));
    let _ = writeln!(text, "cic_agent_gpu_wedged {}", u8::from(is_wedged));
    if let GpuReport::Seen(summary) = report {
        for gpu in &summary.gpus {
            for verdict in ["healthy", "degraded", "unhealthy"] {
                let value = u8::from(gpu.verdict.as_str() == verdict);
                let _ = writeln!(
                    text,
                    "cic_agent_gpu_verdict{{gpu=\"{}\",verdict=\"{verdict}\"}} {value}",
                    gpu.index
                );
            }
        }
    }
    for sample in &figures.samples {
        let labels = format!("gpu=\"{}\",uuid=\"{}\"", sample.index, sample.uuid);
        for (name, value) in figures_of(sample) {
            if let Some(value) = value {
                let _ = writeln!(text, "cic_agent_gpu_{name}{{{labels}}} {value}");
            }
        }
    }
    text
}

/// Name after `cic_agent_gpu_`, ending in its unit, and value.
#[allow(clippy::cast_precision_loss)]
fn figures_of(sample: &GpuSample) -> Vec<(&'static str, Option<f64>)> {
    let small = |value: Option<u32>| value.map(f64::from);
    let large = |value: Option<u64>| value.map(|value| value as f64);
    let bytes = |value: Option<Bytes>| value.map(|value| value.0 as f64);
    let flag = |value: Option<bool>| value.map(|value| f64::from(u8::from(value)));
    let ratio = |value: Option<u32>| value.map(|percent| f64::from(percent) / 100.0);
    vec![
        ("utilization_ratio", ratio(sample.utilization_percent)),
        ("memory_utilization_ratio", ratio(sample.memory_utilization_percent)),
        ("memory_used_bytes", bytes(sample.memory_used)),
        ("memory_total_bytes", bytes(sample.memory_total)),
        ("temperature_celsius", small(sample.temperature_c)),
        ("memory_temperature_celsius", small(sample.memory_temperature_c)),
        ("power_watts", sample.power_mw.map(|mw| f64::from(mw) / 1000.0)),
        ("power_limit_watts", sample.power_limit_mw.map(|mw| f64::from(mw) / 1000.0)),
        ("clock_sm_hertz", sample.clock_sm_mhz.map(|mhz| f64::from(mhz) * 1e6)),
        ("clock_memory_hertz", sample.clock_memory_mhz.map(|mhz| f64::from(mhz) * 1e6)),
        ("throttle_reasons_mask", large(sample.throttle_reasons)),
        ("ecc_volatile_corrected_errors", large(sample.ecc_volatile_corrected)),
        ("ecc_volatile_uncorrected_errors", large(sample.ecc_volatile_uncorrected)),
        ("ecc_aggregate_corrected_errors_total", large(sample.ecc_aggregate_corrected)),
        ("ecc_aggregate_uncorrected_errors_total", large(sample.ecc_aggregate_uncorrected)),
        ("retired_pages_single_bit", small(sample.retired_pages_single)),
        ("retired_pages_double_bit", small(sample.retired_pages_double)),
        ("retired_pages_pending", flag(sample.retired_pages_pending)),
        ("remapped_rows_corrected", small(sample.remapped_rows_corrected)),
        ("remapped_rows_uncorrected", small(sample.remapped_rows_uncorrected)),
        ("row_remap_pending", flag(sample.remap_pending)),
        ("row_remap_failed", flag(sample.remap_failed)),
        ("nvlink_replay_errors_total", large(sample.nvlink_replay_errors)),
        ("nvlink_recovery_errors_total", large(sample.nvlink_recovery_errors)),
        ("nvlink_crc_errors_total", large(sample.nvlink_crc_errors)),
        ("pcie_replays_total", small(sample.pcie_replays)),
        ("pcie_link_width_lanes", small(sample.pcie_link_width)),
        ("pcie_link_width_max_lanes", small(sample.pcie_link_width_max)),
        ("pcie_link_generation", small(sample.pcie_link_generation)),
        ("pcie_link_generation_max", small(sample.pcie_link_generation_max)),
        ("mig_enabled", flag(sample.mig_enabled)),
        ("persistence_enabled", flag(sample.persistence_enabled)),
        ("processes", sample.processes.as_ref().map(|processes| processes.len() as f64)),
    ]
}

#[cfg(test)]
mod tests {
    use cic_common::gpu::{GpuAction, GpuHealth, GpuSummary, GpuVerdict};

    use super::*;

    #[test]
    fn a_figure_has_its_unit_in_its_name_and_an_unknown_one_no_line() {
        let sample = GpuSample {
            power_mw: Some(412_500),
            utilization_percent: Some(97),
            clock_sm_mhz: Some(1980),
            ..GpuSample::unknown(3, "GPU-a".to_owned())
        };
        let figures = GpuFigures { inventory: None, samples: vec![sample] };
        let health = GpuHealth {
            index: 3,
            verdict: GpuVerdict::Unhealthy { action: GpuAction::ResetGpu, reason: "XID 95".to_owned() },
            memory_used: None,
            memory_total: None,
            utilization_percent: None,
            temperature_c: None,
        };
        let report = GpuReport::Seen(GpuSummary { driver_version: None, gpus: vec![health] });
        let text = text(&figures, &report);
        for line in [
            "cic_agent_gpu_power_watts{gpu=\"3\",uuid=\"GPU-a\"} 412.5",
            "cic_agent_gpu_utilization_ratio{gpu=\"3\",uuid=\"GPU-a\"} 0.97",
            "cic_agent_gpu_clock_sm_hertz{gpu=\"3\",uuid=\"GPU-a\"} 1980000000",
            "cic_agent_gpu_verdict{gpu=\"3\",verdict=\"unhealthy\"} 1",
            "cic_agent_gpu_wedged 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("temperature"), "{text}");
    }
}
