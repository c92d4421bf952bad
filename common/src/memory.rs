//! What the machine has left.

use crate::units::Bytes;

/// What the kernel could give to programs without swapping: `MemAvailable` of `/proc/meminfo`, in KiB there. `None` where it
/// does not say.
#[must_use]
pub fn memory_available() -> Option<Bytes> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| Bytes(kib << 10))
}
