//! The GPUs that can be planned for, and what their drivers report.

use serde::Serialize;

/// GPUs of one node, which tensor parallelism stays within: what every cloud sells as its largest machine of these kinds.
pub const NODE_GPUS: u64 = 8;

/// More nodes of one replica than anybody is advised to run.
const COUNT_MAX: u64 = 64;

const MIB: u64 = 1 << 20;

/// From here on vLLM takes larger steps by itself (`EngineArgs.get_batch_defaults`), but for an A100.
const LARGE_BYTES: u64 = 70 << 30;

/// One kind of GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    pub name: String,
    /// As `nvidia-smi` or `rocm-smi` shows them.
    pub memory_bytes: u64,
}

/// GPUs of one kind for one replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rack {
    pub gpu: Gpu,
    pub count: u64,
}

/// Why what stands behind `--gpu` names no GPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GpuFault {
    #[error("{name:?} is no GPU that is known here; known are {}", known())]
    Unknown { name: String },
    #[error("{text:?} has no number of GPUs behind its colon; write it as H100:8")]
    Count { text: String },
    #[error("{count} GPUs are no nodes that can be planned: 1 to 8, or whole nodes of 8 up to {COUNT_MAX}")]
    Nodes { count: u64 },
}

/// The maker, since an image for one does not run on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Maker {
    Nvidia,
    Amd,
}

struct Kind {
    name: &'static str,
    aliases: &'static [&'static str],
    maker: Maker,
    mib: u64,
}

/// What `nvidia-smi` and `rocm-smi` print as the whole memory; where drivers differ, the least. By memory, least first.
const KINDS: [Kind; 10] = [
    Kind { name: "A10G", aliases: &["A10"], maker: Maker::Nvidia, mib: 22_731 },
    Kind { name: "L4", aliases: &["L4-24"], maker: Maker::Nvidia, mib: 23_034 },
    Kind { name: "A100-40", aliases: &["A100-SXM4-40", "A100-PCIE-40"], maker: Maker::Nvidia, mib: 40_960 },
    Kind { name: "L40S", aliases: &["L40S-48"], maker: Maker::Nvidia, mib: 46_068 },
    Kind {
        name: "H100",
        aliases: &["H100-80", "H100-SXM", "H100-SXM5", "H100-PCIE", "H100-80-HBM3"],
        maker: Maker::Nvidia,
        mib: 81_559,
    },
    Kind { name: "A100-80", aliases: &["A100-SXM4-80", "A100-PCIE-80"], maker: Maker::Nvidia, mib: 81_920 },
    Kind { name: "H100-NVL", aliases: &["H100-94"], maker: Maker::Nvidia, mib: 95_830 },
    Kind { name: "H200", aliases: &["H200-141", "H200-SXM"], maker: Maker::Nvidia, mib: 143_771 },
    Kind { name: "B200", aliases: &["B200-180", "B200-SXM"], maker: Maker::Nvidia, mib: 183_359 },
    Kind { name: "MI300X", aliases: &["MI300X-192"], maker: Maker::Amd, mib: 196_592 },
];

/// A GPU must have so much more memory to be proposed as the larger one: a few MiB are no reason to change.
const LARGER_FACTOR: (u64, u64) = (11, 10);

impl Kind {
    fn gpu(&self) -> Gpu {
        Gpu { name: self.name.to_owned(), memory_bytes: self.mib * MIB }
    }

    fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }
}

/// The names, from the least memory to the most.
fn known() -> String {
    KINDS.map(|kind| kind.name).join(", ")
}

impl Gpu {
    /// By any of its names: `H100`, `h100-80gb`, `NVIDIA H200`.
    ///
    /// # Errors
    /// When no GPU is called so; the text lists those that are known.
    pub fn named(name: &str) -> Result<Self, GpuFault> {
        let upper = name.trim().to_uppercase().replace([' ', '_'], "-");
        let plain = upper.strip_prefix("NVIDIA-").or_else(|| upper.strip_prefix("AMD-")).unwrap_or(&upper);
        let plain = plain.strip_suffix("GB").unwrap_or(plain).replace("GB-", "-");
        let found = KINDS.iter().find(|kind| kind.is_called(&plain));
        found.map(Kind::gpu).ok_or_else(|| GpuFault::Unknown { name: name.to_owned() })
    }

    /// GPUs of the same maker with clearly more memory, the least first.
    #[must_use]
    pub fn larger(&self) -> Vec<Self> {
        let maker = KINDS.iter().find(|kind| kind.is_called(&self.name)).map(|kind| kind.maker);
        let (more, than) = LARGER_FACTOR;
        let is_larger = |gpu: &Self| gpu.memory_bytes / more >= self.memory_bytes / than;
        let same_maker = KINDS.iter().filter(|kind| kind.maker == maker.unwrap_or(Maker::Nvidia));
        same_maker.map(Kind::gpu).filter(is_larger).collect()
    }

    /// Whether vLLM takes the defaults of a large GPU on it.
    #[must_use]
    pub fn takes_large_steps(&self) -> bool {
        self.memory_bytes >= LARGE_BYTES && !self.name.to_lowercase().contains("a100")
    }
}

impl Rack {
    /// `H100:8`, or `H100` for one.
    ///
    /// # Errors
    /// When the name or the number is of no use.
    pub fn parse(text: &str) -> Result<Self, GpuFault> {
        let (name, count) = match text.rsplit_once(':') {
            None => (text, 1),
            Some((name, count)) => {
                (name, count.parse().map_err(|_| GpuFault::Count { text: text.to_owned() })?)
            }
        };
        Self::of(Gpu::named(name)?, count)
    }

    /// # Errors
    /// When so many GPUs are neither one node nor whole nodes.
    pub fn of(gpu: Gpu, count: u64) -> Result<Self, GpuFault> {
        let is_one_node = (1..=NODE_GPUS).contains(&count);
        if is_one_node || (count.is_multiple_of(NODE_GPUS) && (1..=COUNT_MAX).contains(&count)) {
            Ok(Self { gpu, count })
        } else {
            Err(GpuFault::Nodes { count })
        }
    }

    /// GPUs of one of its nodes.
    #[must_use]
    pub fn node_gpus(&self) -> u64 {
        self.count.min(NODE_GPUS)
    }

    /// As it is typed.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}:{}", self.gpu.name, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_known_by_any_of_its_names() {
        for (text, name, count) in [
            ("H100:8", "H100", 8),
            ("h100-80gb:16", "H100", 16),
            ("NVIDIA H200", "H200", 1),
            ("A100-SXM4-80GB:4", "A100-80", 4),
            ("a100-40:2", "A100-40", 2),
            ("L40S:8", "L40S", 8),
            ("b200_180gb:8", "B200", 8),
        ] {
            let rack = Rack::parse(text).expect(text);
            assert_eq!((rack.gpu.name.as_str(), rack.count), (name, count), "{text}");
        }
        assert_eq!(Gpu::named("H100").expect("known").memory_bytes, 81_559 << 20);
        assert_eq!(Gpu::named("MI300X").expect("known").memory_bytes, 206_141_652_992);
    }

    #[test]
    fn what_names_no_gpus_is_refused_with_the_way_out() {
        for (text, said) in [
            ("H101:8", "known are A10G, L4, A100-40,"),
            ("A100:8", "A100-80"),
            ("H100:", "write it as H100:8"),
            ("H100:x", "write it as H100:8"),
            ("H100:0", "1 to 8"),
            ("H100:12", "whole nodes of 8"),
            ("H100:72", "up to 64"),
            ("", "known are"),
        ] {
            let fault = Rack::parse(text).expect_err(text).to_string();
            assert!(fault.contains(said), "{text}: {fault}");
        }
    }

    #[test]
    fn a_larger_gpu_is_of_the_same_maker_and_clearly_larger() {
        let larger = |name: &str| {
            let larger = Gpu::named(name).expect(name).larger();
            larger.into_iter().map(|gpu| gpu.name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(larger("H100"), "H100-NVL H200 B200");
        assert_eq!(larger("B200"), "");
        assert_eq!(larger("MI300X"), "");
        let memory = KINDS.map(|kind| kind.mib);
        assert!(memory.is_sorted());
    }
}
