//! Proof that an engine is gone: no process of it, and the GPUs' memory back where it was before any engine.
//!
//! A process that the driver holds in the kernel keeps its memory after SIGKILL; an engine started on to it fails
//! minutes later with a cause that names something else.

use std::collections::BTreeMap;

use cic_common::time::Mono;
use cic_common::units::Bytes;
use serde::{Deserialize, Serialize};

use super::gpu::{GpuMemory, VramReading};

/// Memory that the driver takes and gives back by itself. An empty H100 was seen between 0 and 4 MiB; the contexts of
/// monitors take up to some hundred.
const TOLERANCE: Bytes = Bytes::mib(512);

/// What each run of the agent must know of the GPUs and cannot see again in this boot.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuMemo {
    /// Memory in use, by uuid, before the first engine of this boot.
    pub baseline: Option<BTreeMap<String, Bytes>>,
    pub marks: GpuMemory,
}

/// Whether the memory is free of the engine that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Proof {
    Free,
    /// It is not; for people, with the holders' pids.
    Held(String),
    /// It was not read since the end, or this driver does not tell it.
    Unread,
}

/// Compares a reading with the baseline. `pids` are the processes of the engine that ended at `ended_at`; a reading from
/// before says nothing of it.
pub(super) fn prove(
    baseline: Option<&BTreeMap<String, Bytes>>,
    reading: Option<&VramReading>,
    ended_at: Option<Mono>,
    pids: &[u32],
) -> Proof {
    let Some(reading) = reading.filter(|reading| ended_at.is_none_or(|at| reading.at > at)) else {
        return Proof::Unread;
    };
    let holders: Vec<u32> = reading.processes.iter().map(|process| process.pid).collect();
    let Some(baseline) = baseline else {
        // Adopted before anybody saw the memory without it: then only its processes tell.
        let left: Vec<u32> = holders.into_iter().filter(|pid| pids.contains(pid)).collect();
        return if left.is_empty() {
            Proof::Free
        } else {
            Proof::Held(format!("the driver still lists its pids {left:?}"))
        };
    };
    let held = reading.used.iter().find_map(|(uuid, used)| {
        let before = baseline.get(uuid).copied().unwrap_or(Bytes(0));
        (used.0 > before.0 + TOLERANCE.0).then_some((uuid, *used, before))
    });
    match held {
        None => Proof::Free,
        Some((uuid, used, before)) => Proof::Held(format!(
            "{uuid} has {used} in use and had {before} at boot, held by pids {holders:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use cic_common::gpu::GpuProcess;

    use super::*;

    fn reading(at_ms: u64, used: Bytes, pids: &[u32]) -> VramReading {
        let process = |pid: &u32| GpuProcess { pid: *pid, memory_used: None };
        VramReading {
            at: Mono::from_millis(at_ms),
            used: [("GPU-a".to_owned(), used)].into(),
            processes: pids.iter().map(process).collect(),
        }
    }

    #[test]
    fn memory_is_free_when_it_is_back_at_its_baseline_and_read_after_the_end() {
        let baseline: BTreeMap<String, Bytes> = [("GPU-a".to_owned(), Bytes::mib(300))].into();
        let ended_at = Some(Mono::from_millis(1000));
        let judge = |reading: &VramReading| prove(Some(&baseline), Some(reading), ended_at, &[7]);
        assert_eq!(judge(&reading(1001, Bytes::mib(400), &[])), Proof::Free);
        assert_eq!(judge(&reading(1000, Bytes::mib(400), &[])), Proof::Unread, "an old reading");
        match judge(&reading(1001, Bytes::mib(70_000), &[7, 8])) {
            Proof::Held(text) => assert!(text.contains("[7, 8]") && text.contains("68.4 GiB"), "{text}"),
            Proof::Free | Proof::Unread => panic!("held"),
        }
        assert_eq!(prove(Some(&baseline), None, ended_at, &[7]), Proof::Unread);
    }

    #[test]
    fn without_a_baseline_the_engines_own_processes_tell() {
        let ended_at = Some(Mono::ZERO);
        let judge = |pids: &[u32]| prove(None, Some(&reading(1, Bytes::mib(900), pids)), ended_at, &[7]);
        assert_eq!(judge(&[8]), Proof::Free);
        assert!(matches!(judge(&[7, 8]), Proof::Held(_)));
    }
}
