//! What a q35 can be: how many vCPUs, how much memory.

use super::MAX_VCPUS;
use crate::kvm::cpuid::CpuTopology;
use crate::machine::MachineError;
use crate::memory::Layout;

const LEAST_MEMORY: u64 = 2 << 20;

/// Checks the vCPUs' arrangement; returns the highest APIC id.
pub(super) fn check_topology(topology: CpuTopology, vcpus: u32) -> Result<u32, MachineError> {
    let wrong = || MachineError::Topology {
        vcpus,
        sockets: topology.sockets,
        dies: topology.dies,
        cores: topology.cores,
        threads: topology.threads,
        limit: MAX_VCPUS,
    };
    let total = topology.total().ok_or_else(wrong)?;
    let fits = (1..=total).contains(&vcpus) && total <= MAX_VCPUS;
    let highest = if fits {
        topology.apic_id(total - 1)
    } else {
        u32::MAX
    };
    if highest < MAX_VCPUS {
        Ok(highest)
    } else {
        Err(wrong())
    }
}

/// Where `size` bytes of RAM lie, and `room` more for memory devices, on a CPU with so many bits of
/// address.
pub(super) fn layout(size: u64, room: u64, bits: u32) -> Result<Layout, MachineError> {
    if size < LEAST_MEMORY {
        return Err(MachineError::MemoryTooSmall {
            size,
            least: LEAST_MEMORY,
        });
    }
    let too_large = MachineError::MemoryTooLarge {
        size: size.saturating_add(room),
        bits,
    };
    Layout::with_devices(size, room, bits).ok_or(too_large)
}
