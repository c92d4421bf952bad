//! What the driver is to answer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The whole script. Every key may be left out.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Script {
    pub(crate) driver_version: String,
    pub(crate) nvml_version: String,
    /// 1000 × major + 10 × minor.
    pub(crate) cuda_version: i32,
    /// GPUs of the node, numbered from 0.
    gpu_count: usize,
    /// Numbers that the driver no longer counts.
    absent: BTreeSet<usize>,
    /// What is other than in a healthy H100, by number: keys of [`Gpu`].
    gpus: BTreeMap<usize, Map<String, Value>>,
    /// Return code by call: `nvmlInit_v2`, or for one GPU `nvmlDeviceGetUUID:3` (its number).
    errors: BTreeMap<String, u32>,
    /// Calls, named as in `errors`, that come back only when the script no longer lists them.
    hang: BTreeSet<String>,
    /// Every call is appended to this file: a line with its name as in `errors`.
    pub(crate) log: Option<PathBuf>,
    /// XID events in the order they happen; those that are there before `nvmlInit_v2` are over.
    pub(crate) xids: Vec<Xid>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Xid {
    /// Delivered once.
    pub(crate) id: u64,
    /// Number of the GPU.
    pub(crate) gpu: usize,
    pub(crate) code: u64,
}

/// One GPU, in NVML's units. A value of null is not supported by this card.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gpu {
    /// Every call answers that the GPU is lost.
    pub(crate) lost: bool,
    pub(crate) uuid: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) pci: Option<String>,
    pub(crate) utilization_percent: Option<u32>,
    pub(crate) memory_utilization_percent: u32,
    pub(crate) memory_used: u64,
    pub(crate) memory_total: Option<u64>,
    pub(crate) temperature_c: Option<u32>,
    pub(crate) power_mw: Option<u32>,
    pub(crate) power_limit_mw: Option<u32>,
    pub(crate) clock_sm_mhz: Option<u32>,
    pub(crate) clock_memory_mhz: Option<u32>,
    pub(crate) throttle_reasons: Option<u64>,
    pub(crate) ecc_volatile_corrected: Option<u64>,
    pub(crate) ecc_volatile_uncorrected: Option<u64>,
    pub(crate) ecc_aggregate_corrected: Option<u64>,
    pub(crate) ecc_aggregate_uncorrected: Option<u64>,
    pub(crate) pcie_replays: Option<u32>,
    pub(crate) pcie_link_width: Option<u32>,
    pub(crate) pcie_link_width_max: Option<u32>,
    pub(crate) pcie_link_generation: Option<u32>,
    pub(crate) pcie_link_generation_max: Option<u32>,
    /// 0 or 1.
    pub(crate) mig: Option<u32>,
    /// 0 or 1.
    pub(crate) persistence: Option<u32>,
    /// Values by field id; an id that is missing is not supported.
    pub(crate) fields: BTreeMap<u32, u64>,
    pub(crate) processes: Option<Vec<Process>>,
    /// Those with a graphics context.
    pub(crate) graphics: Option<Vec<Process>>,
    /// By NVLink: replay, recovery and CRC errors, for a driver without their sums among `fields`.
    pub(crate) links: Vec<[u64; 3]>,
    pub(crate) has_events: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Bytes; null where the driver does not say.
    pub(crate) memory: Option<u64>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            driver_version: "580.95.05".to_owned(),
            nvml_version: "13.580.95.05".to_owned(),
            cuda_version: 13000,
            gpu_count: 8,
            absent: BTreeSet::new(),
            gpus: BTreeMap::new(),
            errors: BTreeMap::new(),
            hang: BTreeSet::new(),
            log: None,
            xids: Vec::new(),
        }
    }
}

impl Script {
    /// Numbers of the GPUs that the driver counts, in the order of their indices.
    pub(crate) fn numbers(&self) -> Vec<usize> {
        (0..self.gpu_count).filter(|number| !self.absent.contains(number)).collect()
    }

    /// A healthy GPU of an HGX H100 board with what the script changes of it.
    pub(crate) fn gpu(&self, number: usize) -> Option<Gpu> {
        if !self.numbers().contains(&number) {
            return None;
        }
        let mut gpu = healthy(number);
        if let (Some(gpu), Some(changes)) = (gpu.as_object_mut(), self.gpus.get(&number)) {
            gpu.extend(changes.clone());
        }
        serde_json::from_value(gpu).inspect_err(|error| eprintln!("nvml-mock: gpu {number}: {error}")).ok()
    }

    pub(crate) fn error(&self, call: &str) -> Option<u32> {
        self.errors.get(call).copied()
    }

    pub(crate) fn is_hanging(&self, call: &str) -> bool {
        self.hang.contains(call)
    }
}

/// Figures differ from GPU to GPU so that a mix-up shows.
fn healthy(number: usize) -> Value {
    json!({
        "lost": false,
        "uuid": format!("GPU-00000000-0000-4000-8000-{number:012}"),
        "name": "NVIDIA H100 80GB HBM3",
        "pci": format!("00000000:{:02X}:00.0", 0x19 + 0x10 * number),
        "utilization_percent": 80 + number,
        "memory_utilization_percent": 30 + number,
        "memory_used": (70 << 30) + (number << 20),
        "memory_total": 81_559_u64 << 20,
        "temperature_c": 50 + number,
        "power_mw": 400_000 + number,
        "power_limit_mw": 700_000,
        "clock_sm_mhz": 1_980 - number,
        "clock_memory_mhz": 2_619,
        "throttle_reasons": 0,
        "ecc_volatile_corrected": 0,
        "ecc_volatile_uncorrected": 0,
        "ecc_aggregate_corrected": number,
        "ecc_aggregate_uncorrected": 0,
        "pcie_replays": 0,
        "pcie_link_width": 16,
        "pcie_link_width_max": 16,
        "pcie_link_generation": 5,
        "pcie_link_generation_max": 5,
        "mig": 0,
        "persistence": 1,
        // 38, 52, 59: NVLink sums; 82: memory temperature; 142 to 145: rows; 230: recovery action.
        "fields": { "38": 0, "52": 0, "59": 0, "82": 60 + number, "142": 0, "143": 0, "144": 0, "145": 0, "230": 0 },
        "processes": [{ "pid": 4_000 + number, "memory": (69_u64 << 30) + number as u64 }],
        "graphics": [],
        "links": [],
        "has_events": true,
    })
}
