//! Whether this machine has an NVIDIA device.

use std::path::Path;

/// The device node of the first GPU, and what the driver shows once it is loaded. Either is proof of a GPU;
/// a card whose driver is missing shows neither and could not serve anyway.
const TRACES: [&str; 2] = ["dev/nvidia0", "proc/driver/nvidia/version"];

/// Looks for a device below `root`, which is `/` outside tests.
#[must_use]
pub fn is_there(root: &Path) -> bool {
    TRACES.iter().any(|trace| root.join(trace).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loaded_driver_or_a_device_node_is_proof_of_a_device() {
        for trace in TRACES {
            let root = tempfile::tempdir().unwrap();
            assert!(!is_there(root.path()));
            let path = root.path().join(trace);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            assert!(!is_there(root.path()));
            std::fs::write(path, "").unwrap();
            assert!(is_there(root.path()), "{trace}");
        }
    }
}
