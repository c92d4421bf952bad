//! Spans by which the GPUs are judged.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Spans by which the GPUs are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuTiming {
    /// The same XID within this span of its last sighting counts once: NVML and the kernel log both tell it, and a
    /// fault repeats. NVML's events come within a second of the log; the rest is room for a busy machine.
    pub dedupe: Duration,
    /// How far apart a symptom (XID 45) and its cause may be. Up to 0.4 s in public logs of link faults; a process with
    /// many channels takes seconds to be cleaned up.
    pub symptom_window: Duration,
    /// For so long after an XID a sampled "none" may still be the word from before it. The driver's XID 154 comes in the
    /// same second as the XID it sums up.
    pub driver_settle: Duration,
    /// A note that nothing observable ends is dropped after so long without another.
    pub note_for: Duration,
    /// Slowed clocks are noted until they have not been seen for so long, so that a limit that is hit again and again is
    /// one note.
    pub slowdown_for: Duration,
}

impl Default for GpuTiming {
    fn default() -> Self {
        Self {
            dedupe: Duration::from_secs(5),
            symptom_window: Duration::from_secs(30),
            driver_settle: Duration::from_secs(10),
            note_for: Duration::from_secs(3600),
            slowdown_for: Duration::from_secs(60),
        }
    }
}
