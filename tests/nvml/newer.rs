//! Symbols that came with drivers R450 to R510; an old driver's library does not have them.
//!
//! SAFETY of all: as in [`crate::base`].

use std::ffi::{c_int, c_uint, c_ulonglong};
use std::time::Duration;

use nvml_wrapper_sys::bindings::*;

use crate::answer::{device_of, number_of, put};
use crate::script::{Gpu, Process};
use crate::stage::{Code, answer, answer_for, wait_for_xid};

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: nvmlDevice_t,
    out: *mut nvmlMemory_v2_t,
) -> nvmlReturn_t {
    answer_for("nvmlDeviceGetMemoryInfo_v2", number_of(device), |gpu| {
        // SAFETY: see above.
        let asked = unsafe { out.as_ref() }.ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?.version;
        if asked != MEMORY_INFO_VERSION {
            return Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        let info = gpu.memory_total.map(|total| nvmlMemory_v2_t {
            version: MEMORY_INFO_VERSION,
            total,
            reserved: 0,
            free: total.saturating_sub(gpu.memory_used),
            used: gpu.memory_used,
        });
        // SAFETY: see above.
        unsafe { put(out, info) }
    })
}

/// `NVML_STRUCT_VERSION(Memory, 2)`: 40 bytes, version 2.
const MEMORY_INFO_VERSION: c_uint = 40 | (2 << 24);

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: nvmlDevice_t,
    out: *mut c_ulonglong,
) -> nvmlReturn_t {
    // SAFETY: see above.
    answer_for("nvmlDeviceGetCurrentClocksThrottleReasons", number_of(device), |gpu| unsafe {
        put(out, gpu.throttle_reasons)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    out: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    // SAFETY: see above.
    answer_for("nvmlDeviceGetComputeRunningProcesses_v3", number_of(device), |gpu| unsafe {
        put_processes(count, out, gpu.processes.as_deref())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    out: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    // SAFETY: see above.
    answer_for("nvmlDeviceGetGraphicsRunningProcesses_v3", number_of(device), |gpu| unsafe {
        put_processes(count, out, gpu.graphics.as_deref())
    })
}

/// # Safety
/// `count` is null or valid, and `out` is valid for as many as `count` says.
unsafe fn put_processes(
    count: *mut c_uint,
    out: *mut nvmlProcessInfo_t,
    processes: Option<&[Process]>,
) -> Result<(), Code> {
    let processes = processes.ok_or(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)?;
    let needed = c_uint::try_from(processes.len()).map_err(|_| nvmlReturn_enum_NVML_ERROR_UNKNOWN)?;
    // SAFETY: the caller says that it is null or valid.
    let room = *unsafe { count.as_ref() }.ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
    // SAFETY: it is not null, see the line before.
    unsafe { count.write(needed) };
    if room < needed {
        return Err(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
    }
    for (at, process) in processes.iter().enumerate() {
        let info = nvmlProcessInfo_t {
            pid: process.pid,
            usedGpuMemory: process.memory.unwrap_or(c_ulonglong::MAX),
            gpuInstanceId: c_uint::MAX,
            computeInstanceId: c_uint::MAX,
        };
        // SAFETY: `at` is less than `room`, for which the caller says that `out` is valid.
        unsafe { out.add(at).write(info) };
    }
    Ok(())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetFieldValues(
    device: nvmlDevice_t,
    count: c_int,
    values: *mut nvmlFieldValue_t,
) -> nvmlReturn_t {
    answer_for("nvmlDeviceGetFieldValues", number_of(device), |gpu| {
        let count = usize::try_from(count).ok().filter(|_| !values.is_null());
        let count = count.ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
        // SAFETY: not null, and nvml.h says that there are `count` of them.
        for value in unsafe { std::slice::from_raw_parts_mut(values, count) } {
            fill(gpu, value);
        }
        Ok(())
    })
}

fn fill(gpu: &Gpu, value: &mut nvmlFieldValue_t) {
    match gpu.fields.get(&value.fieldId) {
        Some(known) => {
            value.nvmlReturn = nvmlReturn_enum_NVML_SUCCESS;
            value.valueType = nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
            value.value = nvmlValue_t { ullVal: *known };
        }
        None => value.nvmlReturn = nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    answer("nvmlEventSetWait_v2", |_| {
        let xid = wait_for_xid(set.addr(), Duration::from_millis(timeout_ms.into()));
        let xid = xid.ok_or(nvmlReturn_enum_NVML_ERROR_TIMEOUT)?;
        let event = nvmlEventData_t {
            device: device_of(xid.gpu),
            eventType: nvmlEventTypeXidCriticalError as c_ulonglong,
            eventData: xid.code,
            gpuInstanceId: c_uint::MAX,
            computeInstanceId: c_uint::MAX,
        };
        // SAFETY: see above.
        unsafe { put(data, Some(event)) }
    })
}
