//! The vCPUs of a machine: those that are in it, paused and resumed together, and those that were
//! taken out and may come back.

use super::vcpu::ParkedVcpu;
use super::{BootEntry, KvmError, Vcpu};

/// All vCPUs of a machine.
#[derive(Default)]
pub struct VcpuSet {
    /// In the order of their indices.
    vcpus: Vec<Vcpu>,
    parked: Vec<ParkedVcpu>,
}

impl VcpuSet {
    /// Joins vCPUs; the first is the one that boots.
    #[must_use]
    pub fn new(vcpus: Vec<Vcpu>) -> Self {
        Self {
            vcpus,
            parked: Vec::new(),
        }
    }

    /// Each vCPU, in the order of their indices.
    pub fn iter(&self) -> impl Iterator<Item = &Vcpu> {
        self.vcpus.iter()
    }

    /// The vCPU with this index.
    #[must_use]
    pub fn find(&self, index: usize) -> Option<&Vcpu> {
        self.vcpus.iter().find(|vcpu| vcpu.index() == index)
    }

    /// Adds a vCPU whose index none has.
    pub fn insert(&mut self, vcpu: Vcpu) {
        let index = vcpu.index();
        let place = self.vcpus.partition_point(|other| other.index() < index);
        self.vcpus.insert(place, vcpu);
    }

    /// Takes the vCPU with this index out and ends its thread.
    pub fn park(&mut self, index: usize) {
        let found = self.vcpus.iter().position(|vcpu| vcpu.index() == index);
        if let Some(found) = found {
            let parked = self.vcpus.remove(found).park();
            self.parked.extend(parked);
        }
    }

    /// The vCPU with this index that was taken out before.
    pub fn take_parked(&mut self, index: usize) -> Option<ParkedVcpu> {
        let found = self.parked.iter().position(|vcpu| vcpu.index() == index)?;
        Some(self.parked.swap_remove(found))
    }

    /// Takes back what could not be started.
    pub fn keep_parked(&mut self, parked: Option<Box<ParkedVcpu>>) {
        self.parked.extend(parked.map(|parked| *parked));
    }

    /// Lets all run.
    pub fn resume(&self) {
        self.vcpus.iter().for_each(Vcpu::resume);
    }

    /// Returns when all have left the guest.
    pub fn pause(&self) {
        self.vcpus.iter().for_each(Vcpu::begin_pause);
        self.vcpus.iter().for_each(Vcpu::wait_paused);
    }

    /// Back to power-on, the first vCPU at `entry`, the others waiting for it. All are paused.
    ///
    /// # Errors
    /// See [`Vcpu::reset`].
    pub fn reset(&self, entry: Option<BootEntry>) -> Result<(), KvmError> {
        self.vcpus.iter().try_for_each(|vcpu| {
            let entry = entry.filter(|_| vcpu.index() == 0);
            vcpu.reset(entry)
        })
    }
}
