//! All GPUs, one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use cic_common::gpu::{GpuSample, ProbeFault, ProbeMessage};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use crate::nvml::fault_of;
use crate::read::Reader;
use crate::voice::Voice;

/// Why there is no round.
#[derive(Debug)]
pub(crate) enum RoundError {
    /// The driver does not even count its GPUs.
    Driver(ProbeFault),
    /// Nobody listens any more.
    Deaf(io::Error),
}

impl From<io::Error> for RoundError {
    fn from(error: io::Error) -> Self {
        Self::Deaf(error)
    }
}

/// The GPUs that were seen since the probe started, each as it was seen last.
#[derive(Debug, Default)]
pub(crate) struct Gpus {
    seen: BTreeMap<String, GpuSample>,
}

/// What became of one index.
enum Found {
    Read(GpuSample),
    /// It is there and says nothing just now.
    Mute(String),
    Lost(String),
    /// It is none of ours: this user may not see it.
    Nothing,
}

impl Gpus {
    /// Samples every GPU; announces each to `voice` before.
    ///
    /// A GPU that was seen before and is not counted or not reachable now is lost. One that was lost before this
    /// probe started has no uuid that could be asked for; it is called by its index.
    ///
    /// # Errors
    /// When the driver does not count its GPUs, or nobody listens.
    pub(crate) fn sample(
        &mut self,
        nvml: &Nvml,
        is_full: bool,
        voice: Option<Voice>,
    ) -> Result<ProbeMessage, RoundError> {
        let announce = |call: String| voice.map_or(Ok(()), |voice| voice.calling(call));
        announce("count GPUs".to_owned())?;
        let count = nvml.device_count();
        let device_count =
            count.map_err(|error| RoundError::Driver(fault_of("nvmlDeviceGetCount", &error)))?;
        let (mut samples, mut lost) = (Vec::new(), BTreeSet::new());
        for index in 0..device_count {
            announce(format!("sample gpu {index}"))?;
            match self.find(nvml, index, is_full) {
                Found::Read(sample) => {
                    self.seen.insert(sample.uuid.clone(), sample.clone());
                    samples.push(sample);
                }
                Found::Mute(uuid) => samples.push(GpuSample::unknown(index, uuid)),
                Found::Lost(name) => {
                    lost.insert(name);
                }
                Found::Nothing => {}
            }
        }
        let is_sampled = |uuid: &String| samples.iter().any(|sample| sample.uuid == *uuid);
        lost.extend(self.seen.keys().cloned());
        let lost = lost.into_iter().filter(|uuid| !is_sampled(uuid)).collect();
        Ok(ProbeMessage::Sampled { is_full, device_count, samples, lost })
    }

    fn find(&self, nvml: &Nvml, index: u32, is_full: bool) -> Found {
        let (device, uuid) = match identify(nvml, index) {
            Ok(found) => found,
            Err(NvmlError::GpuLost) => {
                return Found::Lost(self.at(index).unwrap_or(format!("index {index}")));
            }
            Err(error) => {
                return match (self.at(index), error) {
                    // What `nvidia-smi` says of a GPU off the bus: no device handle, "Unknown Error". It may have
                    // been so before this probe started.
                    (seen, NvmlError::Unknown) => Found::Lost(seen.unwrap_or(format!("index {index}"))),
                    (Some(uuid), _) => Found::Mute(uuid),
                    (None, _) => Found::Nothing,
                };
            }
        };
        let mut reader = Reader::new(&device);
        let mut sample = match self.seen.get(&uuid) {
            Some(last) if !is_full => GpuSample { index, ..last.clone() },
            _ => {
                let mut sample = GpuSample::unknown(index, uuid.clone());
                reader.read_slow(&mut sample);
                sample
            }
        };
        if !reader.is_lost() {
            reader.read_cheap(&mut sample);
        }
        if reader.is_lost() { Found::Lost(uuid) } else { Found::Read(sample) }
    }

    /// The GPU that was last seen at `index`.
    fn at(&self, index: u32) -> Option<String> {
        self.seen.values().find(|sample| sample.index == index).map(|sample| sample.uuid.clone())
    }
}

fn identify(nvml: &Nvml, index: u32) -> Result<(Device<'_>, String), NvmlError> {
    let device = nvml.device_by_index(index)?;
    let uuid = device.uuid()?;
    Ok((device, uuid))
}
