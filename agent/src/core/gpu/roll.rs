//! Which GPUs the node has: met, missed, found again.

use std::collections::BTreeSet;

use cic_common::gpu::{GpuSample, PciAddress};
use cic_common::time::Mono;

use super::device::{Device, Presence};

/// GPUs of a node that are told apart. The largest machines have 16.
pub(super) const GPUS_MAX: usize = 32;

/// The GPUs that are known.
#[derive(Debug, Default)]
pub(super) struct Roll {
    /// In the order in which they were met; at most `GPUS_MAX`.
    devices: Vec<Device>,
}

impl Roll {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Device> {
        self.devices.iter_mut()
    }

    /// The GPU, where there is one.
    pub(super) fn only(&mut self) -> Option<&mut Device> {
        match self.devices.as_mut_slice() {
            [device] => Some(device),
            [] | [_, _, ..] => None,
        }
    }

    /// Drops notes that were quiet long enough, and what was known by nothing else.
    pub(super) fn expire(&mut self, now: Mono) {
        self.devices.iter_mut().for_each(|device| device.expire(now));
        self.devices.retain(|device| device.uuid.is_some() || !device.marks.is_empty());
    }

    /// The GPU of this uuid, else of this address; a new one when there is none and room is left.
    pub(super) fn device(&mut self, uuid: Option<&str>, pci: Option<&PciAddress>) -> Option<&mut Device> {
        let has_uuid = |device: &Device| uuid.is_some() && device.uuid.as_deref() == uuid;
        let has_pci = |device: &Device| {
            pci.is_some() && device.pci.as_ref() == pci && (uuid.is_none() || device.uuid.is_none())
        };
        let index = self.devices.iter().position(has_uuid).or_else(|| self.devices.iter().position(has_pci));
        let index = match index {
            Some(index) => index,
            None if self.devices.len() < GPUS_MAX => {
                self.devices.push(Device::at(pci.cloned()));
                self.devices.len() - 1
            }
            None => return None,
        };
        let device = self.devices.get_mut(index)?;
        if device.uuid.is_none() {
            device.uuid = uuid.map(ToOwned::to_owned);
        }
        Some(device)
    }

    /// Joins a GPU that was known by its PCI address alone, from the kernel log, with the one whose sample has it.
    pub(super) fn adopt(&mut self, sample: &GpuSample) {
        let is_known = self.devices.iter().any(|device| device.uuid.as_ref() == Some(&sample.uuid));
        let nameless = self
            .devices
            .iter()
            .position(|device| device.uuid.is_none() && device.pci.is_some() && device.pci == sample.pci);
        if let (true, Some(index)) = (is_known, nameless) {
            let nameless = self.devices.remove(index);
            if let Some(device) = self.device(Some(&sample.uuid), None) {
                nameless.marks.into_iter().for_each(|mark| device.mark(mark));
            }
        }
    }

    /// Finds the GPUs that the driver does not show any more: those in `lost`, and where it counts fewer than are known
    /// all that have no sample.
    pub(super) fn miss(&mut self, now: Mono, count: u32, sampled: &[String], lost: &[String]) {
        let (unnamed, named): (Vec<&String>, Vec<&String>) =
            lost.iter().take(GPUS_MAX).partition(|name| index_in(name).is_some());
        for uuid in &named {
            if let Some(device) = self.device(Some(uuid), None) {
                device.vanished(now);
            }
        }
        let shown: Vec<&String> = sampled.iter().chain(named).collect();
        self.miss_unnamed(now, &shown, &unnamed);
        // One that the driver still counts is there, though its sample failed.
        let known_count =
            self.devices.iter().filter(|device| device.uuid.is_some() && !is_stand_in(device)).count();
        if usize::try_from(count).is_ok_and(|count| count < known_count) {
            let is_missing =
                |device: &&mut Device| device.uuid.as_ref().is_some_and(|uuid| !sampled.contains(uuid));
            self.devices.iter_mut().filter(is_missing).for_each(|device| device.vanished(now));
        }
    }

    /// Those that were lost before the probe could ask for their uuid and are called by their index: the one that was
    /// there, else one that this run never sampled, else a stand-in, which is dropped with its name.
    fn miss_unnamed(&mut self, now: Mono, shown: &[&String], names: &[&String]) {
        let is_open = |device: &Device| !device.uuid.as_ref().is_some_and(|uuid| shown.contains(&uuid));
        let mut gone = Vec::new();
        let mut stand_ins = Vec::new();
        let mut unsampled = self
            .devices
            .iter()
            .enumerate()
            .filter(|(_, device)| device.index().is_none() && is_open(device) && !is_stand_in(device));
        for name in names {
            let index = index_in(name);
            // One that was lost before may have had the index too.
            let had_it = |is_lost: bool| {
                let has = |device: &Device| {
                    device.index() == index && is_open(device) && device.is_lost() == is_lost
                };
                self.devices.iter().position(has)
            };
            let was_there = had_it(false).or_else(|| had_it(true));
            match was_there.or_else(|| unsampled.next().map(|(at, _)| at)) {
                Some(at) => gone.push(at),
                None => stand_ins.push(*name),
            }
        }
        for at in gone {
            self.devices[at].vanished(now);
        }
        self.devices.retain(|device| {
            !is_stand_in(device) || device.uuid.as_ref().is_some_and(|uuid| stand_ins.contains(&uuid))
        });
        for name in stand_ins {
            if let Some(device) = self.device(Some(name), None) {
                device.vanished(now);
            }
        }
    }

    /// Every GPU with its index, no two with the same: the driver's of now; else the last that it had, or the first
    /// that is free where it never had one or another has it.
    pub(super) fn indexed(&self) -> Vec<(u32, &Device)> {
        let mut indexed: Vec<_> = self.indices().into_iter().zip(&self.devices).collect();
        indexed.sort_by_key(|(index, _)| *index);
        indexed
    }

    /// As [`Self::indexed`].
    pub(super) fn indexed_mut(&mut self) -> Vec<(u32, &mut Device)> {
        let mut indexed: Vec<_> = self.indices().into_iter().zip(&mut self.devices).collect();
        indexed.sort_by_key(|(index, _)| *index);
        indexed
    }

    /// The index of each device.
    fn indices(&self) -> Vec<u32> {
        let mut taken = BTreeSet::new();
        let mut indices: Vec<Option<u32>> = vec![None; self.devices.len()];
        for is_sampled in [true, false] {
            for (place, device) in indices.iter_mut().zip(&self.devices) {
                let known = device.index().or_else(|| index_in(device.uuid.as_deref()?));
                if (device.presence() == Presence::Sampled) == is_sampled {
                    *place = known.filter(|index| taken.insert(*index));
                }
            }
        }
        let mut free = (0..).filter(|index| !taken.contains(index));
        indices.into_iter().map(|index| index.or_else(|| free.next()).unwrap_or(u32::MAX)).collect()
    }
}

/// Whether it is known by nothing but the name that [`index_in`] reads.
fn is_stand_in(device: &Device) -> bool {
    device.uuid.as_deref().and_then(index_in).is_some()
}

/// The index in the name that the probe gives a GPU whose uuid it never learnt: `index 3`.
fn index_in(name: &str) -> Option<u32> {
    name.strip_prefix("index ")?.parse().ok()
}
