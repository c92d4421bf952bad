//! Everything that can be read of one GPU at one moment.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::action::RecoveryAction;
use crate::units::Bytes;

/// Where a GPU sits on the PCI bus: `0000:3b:00`, lower case, without the function.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PciAddress(String);

/// Text that is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no PCI address like 0000:3b:00")]
pub struct NoPciAddress(String);

impl FromStr for PciAddress {
    type Err = NoPciAddress;

    /// Takes every spelling in use: `00000000:3B:00.0` (NVML), `0000:3b:00` (kernel log), `3b:00` (without domain).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NoPciAddress(text.to_owned());
        let bare = text.split_once('.').map_or(text, |(bare, _function)| bare);
        let mut parts = bare.rsplit(':');
        let hex = |part: Option<&str>| {
            let part = part.filter(|part| !part.is_empty() && part.len() <= 8);
            part.and_then(|part| u32::from_str_radix(part, 16).ok())
        };
        let device = hex(parts.next()).ok_or_else(wrong)?;
        let bus = hex(parts.next()).ok_or_else(wrong)?;
        let domain = match parts.next() {
            Some(part) => hex(Some(part)).ok_or_else(wrong)?,
            None => 0,
        };
        if parts.next().is_some() || bus > 0xff || device > 0x1f {
            return Err(wrong());
        }
        Ok(Self(format!("{domain:04x}:{bus:02x}:{device:02x}")))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A process that holds memory of a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProcess {
    pub pid: u32,
    /// `None` where the driver does not say (inside containers, under MIG).
    pub memory_used: Option<Bytes>,
}

/// The driver as it was found.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuInventory {
    /// Such as `580.95.05`.
    pub driver_version: Option<String>,
    /// The newest CUDA this driver supports, as 1000 × major + 10 × minor: 13000 is 13.0.
    pub cuda_version: Option<u32>,
    pub nvml_version: Option<String>,
}

/// One GPU. A field is `None` when this driver or this card does not say; nothing is guessed.
///
/// Sources: NVML API reference, `nvmlDeviceGet…` of the like name unless a field id is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuSample {
    /// NVML's index, which may change with a reboot.
    pub index: u32,
    pub uuid: String,
    pub pci: Option<PciAddress>,
    pub name: String,
    /// Shares of the last sample period of the driver, 0 to 100.
    pub utilization_percent: Option<u32>,
    pub memory_utilization_percent: Option<u32>,
    pub memory_used: Option<Bytes>,
    pub memory_total: Option<Bytes>,
    pub temperature_c: Option<u32>,
    /// Field 82, `NVML_FI_DEV_MEMORY_TEMP`.
    pub memory_temperature_c: Option<u32>,
    pub power_mw: Option<u32>,
    pub power_limit_mw: Option<u32>,
    pub clock_sm_mhz: Option<u32>,
    pub clock_memory_mhz: Option<u32>,
    /// Bits of `nvmlClocksEventReasons`.
    pub throttle_reasons: Option<u64>,
    /// ECC errors since the driver was loaded.
    pub ecc_volatile_corrected: Option<u64>,
    pub ecc_volatile_uncorrected: Option<u64>,
    /// ECC errors over the card's life.
    pub ecc_aggregate_corrected: Option<u64>,
    pub ecc_aggregate_uncorrected: Option<u64>,
    /// Pages retired for single-bit and double-bit errors (before Ampere).
    pub retired_pages_single: Option<u32>,
    pub retired_pages_double: Option<u32>,
    pub retired_pages_pending: Option<bool>,
    /// Rows remapped (Ampere and later).
    pub remapped_rows_corrected: Option<u32>,
    pub remapped_rows_uncorrected: Option<u32>,
    pub remap_pending: Option<bool>,
    pub remap_failed: Option<bool>,
    /// Sums over all links.
    pub nvlink_replay_errors: Option<u64>,
    pub nvlink_recovery_errors: Option<u64>,
    pub nvlink_crc_errors: Option<u64>,
    pub pcie_replays: Option<u32>,
    pub pcie_link_width: Option<u32>,
    pub pcie_link_width_max: Option<u32>,
    pub pcie_link_generation: Option<u32>,
    pub pcie_link_generation_max: Option<u32>,
    pub mig_enabled: Option<bool>,
    pub persistence_enabled: Option<bool>,
    /// Field 230.
    pub recovery_action: Option<RecoveryAction>,
    /// `None` when the list cannot be read, which is not an empty list.
    pub processes: Option<Vec<GpuProcess>>,
}

impl GpuSample {
    /// A GPU of which nothing is known but where it is.
    #[must_use]
    pub fn unknown(index: u32, uuid: String) -> Self {
        Self {
            index,
            uuid,
            pci: None,
            name: String::new(),
            utilization_percent: None,
            memory_utilization_percent: None,
            memory_used: None,
            memory_total: None,
            temperature_c: None,
            memory_temperature_c: None,
            power_mw: None,
            power_limit_mw: None,
            clock_sm_mhz: None,
            clock_memory_mhz: None,
            throttle_reasons: None,
            ecc_volatile_corrected: None,
            ecc_volatile_uncorrected: None,
            ecc_aggregate_corrected: None,
            ecc_aggregate_uncorrected: None,
            retired_pages_single: None,
            retired_pages_double: None,
            retired_pages_pending: None,
            remapped_rows_corrected: None,
            remapped_rows_uncorrected: None,
            remap_pending: None,
            remap_failed: None,
            nvlink_replay_errors: None,
            nvlink_recovery_errors: None,
            nvlink_crc_errors: None,
            pcie_replays: None,
            pcie_link_width: None,
            pcie_link_width_max: None,
            pcie_link_generation: None,
            pcie_link_generation_max: None,
            mig_enabled: None,
            persistence_enabled: None,
            recovery_action: None,
            processes: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pci_address_has_one_spelling() {
        for text in ["00000000:3B:00.0", "0000:3b:00", "0000:3B:00.0", "3b:00", "0:3b:0"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), "0000:3b:00", "{text}");
        }
        for text in ["", "3b", "x:3b:00", "1:2:3:4", "0000:3b:", "0000:1ff:00"] {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }
}
