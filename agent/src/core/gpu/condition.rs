//! What a sample alone says is wrong with a GPU.

use cic_common::gpu::{GpuAction, GpuSample};
use cic_common::time::Mono;

use super::mark::{Cause, Mark, WayBack};
use super::timing::GpuTiming;

/// `nvmlClocksEventReasons`: clocks halved or worse by the hardware, for heat or by the power brake signal. The
/// general bit 0x8 is left out: it is also set while clocks change (NVML API reference).
const SLOWED_BY_HEAT: u64 = 0x40;
const SLOWED_BY_POWER: u64 = 0x80;

/// Each condition that a sample can show.
///
/// `Ok`: it holds. `Err`: it does not hold. Of a field that the driver does not say there is nothing: that is no news,
/// and no good news.
pub(super) fn conditions(now: Mono, sample: &GpuSample, timing: &GpuTiming) -> Vec<Result<Mark, Cause>> {
    let slowed = |bit: u64| sample.throttle_reasons.map(|reasons| reasons & bit != 0);
    let quiet = || WayBack::quiet(timing.slowdown_for);
    let uncorrected = sample.ecc_volatile_uncorrected;
    let link = sample.pcie_link_width.zip(sample.pcie_link_width_max);
    // NVIDIA GPU Memory Error Management: a failed remap is a ground for RMA and stays on record over resets; while one
    // is pending the GPU can be used, and the next reset does it.
    [
        (
            Cause::RemapFailed,
            sample.remap_failed,
            GpuAction::ReplaceNode,
            "a memory row could not be remapped".to_owned(),
            WayBack::NotReported,
        ),
        (
            Cause::RemapPending,
            sample.remap_pending,
            GpuAction::Report,
            "a memory row is to be remapped at the next reset".to_owned(),
            WayBack::NotReported,
        ),
        (
            Cause::PagesPending,
            sample.retired_pages_pending,
            GpuAction::Report,
            "a memory page is to be retired at the next reset".to_owned(),
            WayBack::NotReported,
        ),
        (
            Cause::EccUncorrected,
            uncorrected.map(|count| count > 0),
            GpuAction::Report,
            format!("{} uncorrected ECC errors since the driver was loaded", uncorrected.unwrap_or(0)),
            WayBack::NotReported,
        ),
        (
            Cause::SlowedByHeat,
            slowed(SLOWED_BY_HEAT),
            GpuAction::Report,
            "slowed by heat".to_owned(),
            quiet(),
        ),
        (
            Cause::SlowedByPower,
            slowed(SLOWED_BY_POWER),
            GpuAction::Report,
            "slowed by the power brake".to_owned(),
            quiet(),
        ),
        (
            Cause::NarrowLink,
            link.map(|(width, max)| 0 < width && width < max),
            GpuAction::Report,
            link.map_or_else(String::new, |(width, max)| format!("PCIe link x{width} of x{max}")),
            WayBack::NotReported,
        ),
    ]
    .into_iter()
    .filter_map(|(cause, holds, action, why, way_back)| {
        holds.map(|holds| if holds { Ok(Mark::new(now, cause, action, why, way_back)) } else { Err(cause) })
    })
    .collect()
}

/// A cheap sample with what only a full one reads taken from `old` where it is missing, as it is in the sample of a GPU
/// that says nothing just now.
pub(super) fn carried(mut sample: GpuSample, old: &GpuSample) -> GpuSample {
    macro_rules! keep {
        ($($field:ident),*) => { $( sample.$field = sample.$field.take().or_else(|| old.$field.clone()); )* };
    }
    keep!(
        pci,
        memory_total,
        power_limit_mw,
        ecc_aggregate_corrected,
        ecc_aggregate_uncorrected,
        retired_pages_single,
        retired_pages_double,
        retired_pages_pending,
        remapped_rows_corrected,
        remapped_rows_uncorrected,
        remap_pending,
        remap_failed,
        nvlink_replay_errors,
        nvlink_recovery_errors,
        nvlink_crc_errors,
        pcie_replays,
        pcie_link_width,
        pcie_link_width_max,
        pcie_link_generation,
        pcie_link_generation_max,
        mig_enabled,
        persistence_enabled
    );
    if sample.name.is_empty() {
        sample.name.clone_from(&old.name);
    }
    sample
}
