//! Whether this machine has an NVIDIA device. Reading it is the work of a child process of its own.

use std::path::Path;

use cic_common::report::GpuReport;

/// The device node of the first GPU, and what the driver shows once it is loaded. Either is proof of a GPU;
/// a card whose driver is missing shows neither and could not serve anyway.
const TRACES: [&str; 2] = ["dev/nvidia0", "proc/driver/nvidia/version"];

/// Looks for a device below `root`, which is `/` outside tests.
#[must_use]
pub fn look(root: &Path) -> GpuReport {
    if TRACES.iter().any(|trace| root.join(trace).exists()) {
        GpuReport::Blind { reason: "no GPU probe in this build".to_owned() }
    } else {
        GpuReport::Absent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_nothing_reads_is_blind_and_no_device_is_absent() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(look(root.path()), GpuReport::Absent);
        std::fs::create_dir_all(root.path().join("proc/driver/nvidia")).unwrap();
        assert_eq!(look(root.path()), GpuReport::Absent);
        std::fs::write(root.path().join("proc/driver/nvidia/version"), "NVRM").unwrap();
        assert!(matches!(look(root.path()), GpuReport::Blind { .. }));
    }
}
