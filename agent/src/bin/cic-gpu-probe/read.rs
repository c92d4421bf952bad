//! One GPU, field by field: what one call cannot say leaves its own field unknown and no other.

use cic_common::gpu::{GpuProcess, GpuSample, RecoveryAction};
use cic_common::units::Bytes;
use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enum_wrappers::nv_link::ErrorCounter;
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::error::{Bits, NvmlError};
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::{
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NVML_FI_DEV_MEMORY_TEMP,
    NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL, NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
    NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL, NVML_FI_DEV_REMAPPED_COR, NVML_FI_DEV_REMAPPED_FAILURE,
    NVML_FI_DEV_REMAPPED_PENDING, NVML_FI_DEV_REMAPPED_UNC, NVML_FI_DEV_RETIRED_DBE,
    NVML_FI_DEV_RETIRED_PENDING, NVML_FI_DEV_RETIRED_SBE,
};

/// `NVML_NVLINK_MAX_LINKS` of nvml.h, driver 580.
const LINKS_MAX: u32 = 18;

/// Processes of one GPU that are listed; more would crowd the frame and mean the same.
const PROCESSES_MAX: usize = 256;

/// Reads one GPU.
pub(crate) struct Reader<'a, 'nvml> {
    device: &'a Device<'nvml>,
    is_lost: bool,
}

impl<'a, 'nvml> Reader<'a, 'nvml> {
    pub(crate) fn new(device: &'a Device<'nvml>) -> Self {
        Self { device, is_lost: false }
    }

    /// Whether any call was answered with `NVML_ERROR_GPU_IS_LOST`.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// The fields of every sample.
    pub(crate) fn read_cheap(&mut self, sample: &mut GpuSample) {
        let device = self.device;
        let utilization = self.take(device.utilization_rates());
        sample.utilization_percent = utilization.as_ref().map(|share| share.gpu);
        sample.memory_utilization_percent = utilization.map(|share| share.memory);
        let memory = self.take(device.memory_info());
        sample.memory_used = memory.as_ref().map(|memory| Bytes(memory.used));
        sample.memory_total = memory.map(|memory| Bytes(memory.total));
        sample.temperature_c = self.take(device.temperature(TemperatureSensor::Gpu));
        sample.power_mw = self.take(device.power_usage());
        sample.clock_sm_mhz = self.take(device.clock_info(Clock::SM));
        sample.clock_memory_mhz = self.take(device.clock_info(Clock::Memory));
        sample.throttle_reasons = self.throttle_reasons();
        sample.ecc_volatile_corrected = self.ecc(MemoryError::Corrected, EccCounter::Volatile);
        sample.ecc_volatile_uncorrected = self.ecc(MemoryError::Uncorrected, EccCounter::Volatile);
        let [recovery_action] = self.fields([NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]);
        sample.recovery_action = narrow(recovery_action).map(RecoveryAction::of);
        sample.processes = self.processes();
    }

    /// The fields that change rarely or cost more.
    pub(crate) fn read_slow(&mut self, sample: &mut GpuSample) {
        let device = self.device;
        sample.name = self.take(device.name()).unwrap_or_default();
        sample.pci = self.take(device.pci_info()).and_then(|pci| pci.bus_id.parse().ok());
        sample.power_limit_mw = self.take(device.enforced_power_limit());
        sample.ecc_aggregate_corrected = self.ecc(MemoryError::Corrected, EccCounter::Aggregate);
        sample.ecc_aggregate_uncorrected = self.ecc(MemoryError::Uncorrected, EccCounter::Aggregate);
        sample.pcie_replays = self.take(device.pcie_replay_counter());
        sample.pcie_link_width = self.take(device.current_pcie_link_width());
        sample.pcie_link_width_max = self.take(device.max_pcie_link_width());
        sample.pcie_link_generation = self.take(device.current_pcie_link_gen());
        sample.pcie_link_generation_max = self.take(device.max_pcie_link_gen());
        sample.mig_enabled = self.take(device.mig_mode()).map(|mode| mode.current != 0);
        sample.persistence_enabled = self.take(device.is_in_persistent_mode());
        self.read_memory_health(sample);
        self.read_links(sample);
    }

    fn read_memory_health(&mut self, sample: &mut GpuSample) {
        let [temperature, corrected, uncorrected, pending, failed, single, double, retiring] = self.fields([
            NVML_FI_DEV_MEMORY_TEMP,
            NVML_FI_DEV_REMAPPED_COR,
            NVML_FI_DEV_REMAPPED_UNC,
            NVML_FI_DEV_REMAPPED_PENDING,
            NVML_FI_DEV_REMAPPED_FAILURE,
            NVML_FI_DEV_RETIRED_SBE,
            NVML_FI_DEV_RETIRED_DBE,
            NVML_FI_DEV_RETIRED_PENDING,
        ]);
        sample.memory_temperature_c = narrow(temperature);
        sample.remapped_rows_corrected = narrow(corrected);
        sample.remapped_rows_uncorrected = narrow(uncorrected);
        sample.remap_pending = pending.map(is_set);
        sample.remap_failed = failed.map(is_set);
        sample.retired_pages_single = narrow(single);
        sample.retired_pages_double = narrow(double);
        sample.retired_pages_pending = retiring.map(is_set);
    }

    /// The driver's own sums where it has them (one call), else the sums over the links that answer.
    fn read_links(&mut self, sample: &mut GpuSample) {
        let mut sums = self.fields([
            NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
            NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
            NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
        ]);
        if sums.iter().all(Option::is_none) {
            sums = self.sum_links();
        }
        [sample.nvlink_replay_errors, sample.nvlink_recovery_errors, sample.nvlink_crc_errors] = sums;
    }

    fn sum_links(&mut self) -> [Option<u64>; 3] {
        let counters = [ErrorCounter::DlReplay, ErrorCounter::DlRecovery, ErrorCounter::DlCrcFlit];
        let mut sums: [Option<u64>; 3] = [None; 3];
        for number in 0..LINKS_MAX {
            let link = self.device.link_wrapper_for(number);
            match link.is_active() {
                Ok(true) => {}
                Ok(false) => continue,
                // A card without NVLink, or past its last link.
                Err(error) => {
                    self.take::<()>(Err(error));
                    break;
                }
            }
            for (sum, counter) in sums.iter_mut().zip(counters) {
                if let Some(count) = self.take(link.error_counter(counter)) {
                    *sum = Some(sum.unwrap_or(0).saturating_add(count));
                }
            }
        }
        sums
    }

    /// Bits that this build has no name for are kept.
    fn throttle_reasons(&mut self) -> Option<u64> {
        match self.device.current_throttle_reasons_strict() {
            Err(NvmlError::IncorrectBits(Bits::U64(bits))) => Some(bits),
            answer => self.take(answer).map(|reasons| reasons.bits()),
        }
    }

    fn ecc(&mut self, error: MemoryError, counter: EccCounter) -> Option<u64> {
        let answer = self.device.total_ecc_errors(error, counter);
        self.take(answer)
    }

    /// Those with a CUDA context, and those with a graphics context where the driver lists them.
    fn processes(&mut self) -> Option<Vec<GpuProcess>> {
        let mut listed = self.take(self.device.running_compute_processes())?;
        let graphics = self.take(self.device.running_graphics_processes()).unwrap_or_default();
        // One that computes and draws is in both lists with the same memory.
        listed.extend(graphics);
        let mut processes: Vec<GpuProcess> = Vec::new();
        for one in listed {
            if processes.len() < PROCESSES_MAX && processes.iter().all(|other| other.pid != one.pid) {
                let memory_used = match one.used_gpu_memory {
                    UsedGpuMemory::Used(bytes) => Some(Bytes(bytes)),
                    UsedGpuMemory::Unavailable => None,
                };
                processes.push(GpuProcess { pid: one.pid, memory_used });
            }
        }
        Some(processes)
    }

    fn fields<const N: usize>(&mut self, ids: [u32; N]) -> [Option<u64>; N] {
        let answers = self.take(self.device.field_values_for(&ids.map(FieldId))).unwrap_or_default();
        let mut values = [None; N];
        for (value, answer) in values.iter_mut().zip(answers) {
            *value = self.take(answer.and_then(|sample| sample.value)).and_then(whole);
        }
        values
    }

    fn take<T>(&mut self, answer: Result<T, NvmlError>) -> Option<T> {
        self.is_lost |= matches!(answer, Err(NvmlError::GpuLost));
        answer.ok()
    }
}

fn whole(value: SampleValue) -> Option<u64> {
    match value {
        SampleValue::U32(value) => Some(value.into()),
        SampleValue::U64(value) => Some(value),
        SampleValue::I64(value) => value.try_into().ok(),
        SampleValue::F64(_) => None,
    }
}

fn narrow(value: Option<u64>) -> Option<u32> {
    value.and_then(|value| value.try_into().ok())
}

fn is_set(value: u64) -> bool {
    value != 0
}
