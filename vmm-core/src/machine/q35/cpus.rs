//! vCPUs that come and go while the machine is there.

use std::sync::Arc;

use super::Q35;
use crate::kvm::cpuid::CpuTopology;
use crate::kvm::{Vcpu, VcpuSet};
use crate::machine::MachineError;
use crate::machine::acpi::CpuEntry;

/// The APIC ids of all places for vCPUs; none where the places are as many as the vCPUs that are
/// there from the start.
pub(super) fn places(topology: CpuTopology, vcpus: u32) -> Vec<u32> {
    let total = topology.total().unwrap_or(vcpus);
    let places = if total > vcpus { total } else { 0 };
    (0..places).map(|index| topology.apic_id(index)).collect()
}

impl Q35 {
    /// How many vCPUs it has now.
    #[must_use]
    pub fn vcpu_count(&self) -> u32 {
        u32::try_from(self.vcpus.iter().count()).unwrap_or(u32::MAX)
    }

    /// The vCPUs, for `query-cpus-fast` and for pausing after a fault.
    #[must_use]
    pub fn vcpus(&self) -> &VcpuSet {
        &self.vcpus
    }

    /// How they are arranged.
    #[must_use]
    pub fn topology(&self) -> CpuTopology {
        self.identity.topology
    }

    /// The type of its vCPUs, in the object tree's words.
    #[must_use]
    pub fn cpu_type(&self) -> &str {
        &self.identity.cpu_type
    }

    /// How many vCPUs there is room for.
    #[must_use]
    pub fn cpu_places(&self) -> u32 {
        self.topology().total().unwrap_or(1)
    }

    /// Plugs the vCPU of the place `index` in. Once the machine has been powered on (`hot`) the
    /// guest is told, and where it `runs` the vCPU waits for it at once.
    ///
    /// # Errors
    /// It is there, the machine has no such place or its vCPUs stay as they are, or KVM or the
    /// host refuses.
    pub fn plug_cpu(&mut self, index: u32, hot: bool, runs: bool) -> Result<(), MachineError> {
        let number = index as usize;
        let registers = self.board.cpu_hotplug().cloned();
        let is_free = index < self.cpu_places() && self.vcpus.find(number).is_none();
        let Some(registers) = registers.filter(|_| is_free) else {
            return Err(MachineError::CpuPlace { index });
        };
        let report = Arc::clone(&self.vcpu_events);
        let buses = self.board.buses().clone();
        let vcpu = match self.vcpus.take_parked(number) {
            Some(parked) => parked.start(buses, report).map_err(|(parked, error)| {
                self.vcpus.keep_parked(parked);
                error
            })?,
            None => {
                let id = self.topology().apic_id(index);
                Vcpu::new(&self.vm, index, &self.model, id, buses, report)?
            }
        };
        vcpu.reset(None)?;
        if runs && !self.held {
            vcpu.resume();
        }
        self.vcpus.insert(vcpu);
        registers.plug(number, hot);
        Ok(())
    }

    /// Asks the guest to let the vCPU of the place `index` go.
    ///
    /// # Errors
    /// It is not there, is the one that boots, or the machine's vCPUs stay as they are.
    pub fn request_unplug_cpu(&self, index: u32) -> Result<(), MachineError> {
        let registers = self.board.cpu_hotplug();
        let is_there = index != 0 && self.vcpus.find(index as usize).is_some();
        let registers = registers.filter(|_| is_there);
        let registers = registers.ok_or(MachineError::CpuPlace { index })?;
        registers.request_unplug(index as usize);
        Ok(())
    }

    /// Takes the vCPU of the place `index` out, which the guest has let go of; whether it was
    /// there.
    pub fn unplug_cpu(&mut self, index: u32) -> bool {
        let is_there = self.vcpus.find(index as usize).is_some();
        self.vcpus.park(index as usize);
        is_there
    }

    /// Each place as the firmware tables name it.
    pub(super) fn cpu_entries(&self) -> Vec<CpuEntry> {
        let topology = self.topology();
        let entry = |(index, present)| CpuEntry {
            apic_id: topology.apic_id(index),
            present,
        };
        match self.board.cpu_hotplug() {
            Some(registers) => (0..).zip(registers.present()).map(entry).collect(),
            None => (0..self.vcpu_count())
                .map(|index| entry((index, true)))
                .collect(),
        }
    }
}
