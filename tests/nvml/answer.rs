//! From a script's values to what C callers expect.

use std::ffi::c_char;

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEventSet_t, nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE as INSUFFICIENT_SIZE,
    nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT as INVALID_ARGUMENT,
    nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED as NOT_SUPPORTED,
};

use crate::stage::Code;

pub(crate) fn device_of(number: usize) -> nvmlDevice_t {
    std::ptr::without_provenance_mut(number + 1)
}

/// The number behind a handle; that of no GPU for a handle of ours that never was.
pub(crate) fn number_of(device: nvmlDevice_t) -> usize {
    device.addr().wrapping_sub(1)
}

pub(crate) fn set_of(number: usize) -> nvmlEventSet_t {
    std::ptr::without_provenance_mut(number)
}

/// Writes `value` to `out`; a value that the card does not have is not supported.
///
/// # Safety
/// `out` is null or valid for a write.
pub(crate) unsafe fn put<T>(out: *mut T, value: Option<T>) -> Result<(), Code> {
    if out.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    let value = value.ok_or(NOT_SUPPORTED)?;
    // SAFETY: it is not null, so the caller says that it can be written.
    unsafe { out.write(value) };
    Ok(())
}

/// Writes `text` and its end to `out`.
///
/// # Safety
/// `out` is null or valid for `length` bytes.
pub(crate) unsafe fn put_text(out: *mut c_char, length: usize, text: Option<&str>) -> Result<(), Code> {
    if out.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    let text = text.ok_or(NOT_SUPPORTED)?.as_bytes();
    if text.len() >= length {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: the text and its end are at most `length` bytes, for which the caller says that `out` is valid.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), out.cast(), text.len());
        out.add(text.len()).write(0);
    }
    Ok(())
}
