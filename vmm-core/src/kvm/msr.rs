//! Model-specific registers: which are reset, and what a boot loader leaves in some of them.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{KvmError, KvmVm};

/// The time stamp counter goes on through a reset, as KVM keeps the vCPUs' counters in step.
const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_UCODE_REV: u32 = 0x8b;
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MSR_IA32_MTRR_DEF_TYPE: u32 = 0x2ff;

/// `IA32_MISC_ENABLE`: fast string operations (Intel SDM volume 4, table 2-2).
const FAST_STRINGS: u64 = 1;
/// `IA32_MTRR_DEF_TYPE`: MTRRs enabled, default type write-back (Intel SDM volume 3, 12.11.2.1).
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// How many MSRs KVM takes in one call at most.
const BATCH: usize = 256;

/// The MSRs to save and restore on this host.
///
/// # Errors
/// KVM does not tell.
pub(super) fn saved_list(vm: &KvmVm) -> Result<Vec<u32>, KvmError> {
    let list = vm
        .system()
        .get_msr_index_list()
        .map_err(KvmError::ioctl("the list of MSRs"))?;
    Ok(list
        .as_slice()
        .iter()
        .copied()
        .filter(|&index| index != MSR_IA32_TSC)
        .collect())
}

/// Reads `list`, leaving out what this vCPU does not have.
pub(super) fn read(cpu: &VcpuFd, list: &[u32]) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let mut wanted: Vec<kvm_msr_entry> = list
        .iter()
        .map(|&index| kvm_msr_entry {
            index,
            ..Default::default()
        })
        .collect();
    let mut found = Vec::with_capacity(wanted.len());
    while !wanted.is_empty() {
        let batch = wanted.len().min(BATCH);
        let mut msrs = table(&wanted[..batch])?;
        let read = cpu
            .get_msrs(&mut msrs)
            .map_err(KvmError::ioctl("reading MSRs"))?
            .min(batch);
        found.extend_from_slice(&msrs.as_slice()[..read]);
        // KVM stops at the first one it does not have: leave that out and go on.
        wanted.drain(..batch.min(read + usize::from(read < batch)));
    }
    Ok(found)
}

/// Writes `entries`, leaving out what this vCPU refuses.
pub(super) fn write(cpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), KvmError> {
    let mut rest = entries;
    while !rest.is_empty() {
        let batch = rest.len().min(BATCH);
        let written = cpu
            .set_msrs(&table(&rest[..batch])?)
            .map_err(KvmError::ioctl("writing MSRs"))?
            .min(batch);
        if let Some(refused) = rest[..batch].get(written) {
            tracing::debug!(index = refused.index, "MSR not restored");
        }
        rest = &rest[batch.min(written + usize::from(written < batch))..];
    }
    Ok(())
}

/// What a boot loader (or firmware) leaves: fast strings, and memory write-back by default.
pub(super) fn boot(microcode: Option<u64>) -> Vec<kvm_msr_entry> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let mut entries = vec![
        entry(MSR_IA32_MISC_ENABLE, FAST_STRINGS),
        entry(MSR_IA32_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    entries.extend(microcode.map(|revision| entry(MSR_IA32_UCODE_REV, revision)));
    entries
}

fn table(entries: &[kvm_msr_entry]) -> Result<Msrs, KvmError> {
    Msrs::from_entries(entries).map_err(|_| KvmError::Ioctl {
        what: "a table of MSRs",
        source: std::io::Error::from_raw_os_error(libc::E2BIG),
    })
}
