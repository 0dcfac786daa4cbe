//! The only place in the workspace that names KVM.
//!
//! This room turns a passed `/dev/kvm` into a VM with in-kernel interrupt chips, memory slots,
//! interrupts and doorbells, and vCPU threads. It must never know PCI, virtio, QMP, or which
//! machine it is part of: it takes guest memory, two buses and an entry point, and gives back
//! exits that need a decision.
//!
//! ```text
//!            OwnedFd of /dev/kvm
//!                   │
//!   KvmVm ──────────┼──────────────┬────────────────┐
//!   │ slots         │ irqfd        │ vcpu (thread)  │
//!   ▼               ▼              ▼                ▼
//!   guest memory    MSI vectors,   run loop ──► Bus (ports, memory)
//!                   lines,              └─────► VcpuEvent (to the VM's owner)
//!                   doorbells
//! ```
//!
//! Read next: [`vm`] (what is required of the host), [`vcpu`] (the life of a vCPU), [`irqfd`]
//! (how a device interrupts), [`cpuid`] (what the guest is told about its CPU), [`cpu_models`] (which
//! CPUs there are to be had).

pub mod chip_devices;
pub mod chips;
pub mod clock;
pub mod cpu_models;
pub mod cpu_state;
pub mod cpuid;
pub mod irqfd;
pub mod msr;
pub mod regs;
pub mod run;
pub mod slots;
pub mod vcpu;
mod vcpu_set;
pub mod vm;

pub use irqfd::KvmIrqs;
pub use regs::BootEntry;
pub use run::{Buses, VcpuEvent, VcpuFault};
pub use vcpu::{Vcpu, VcpuOrder, VcpuState};
pub use vcpu_set::VcpuSet;
pub use vm::KvmVm;

#[cfg(test)]
pub(crate) mod tests;

/// Why KVM could not do what the machine needs.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The passed fd does not answer as KVM does.
    #[error(
        "the KVM device handed in is not /dev/kvm: KVM_GET_API_VERSION answered {version}, wanted 12"
    )]
    NotKvm {
        /// What the version ioctl returned.
        version: i32,
    },
    /// The host's KVM lacks something the machine cannot do without.
    #[error("this host's KVM lacks {capability}, which {needed_for} needs")]
    MissingCapability {
        /// The capability, as the kernel's documentation names it.
        capability: &'static str,
        /// What needs it.
        needed_for: &'static str,
    },
    /// More vCPUs than the kernel can run.
    #[error("{wanted} vCPUs wanted, this host's KVM runs at most {max}")]
    TooManyVcpus {
        /// How many were asked for.
        wanted: usize,
        /// How many KVM allows.
        max: usize,
    },
    /// The CPU model wants what this host does not have, and nothing may be left out.
    #[error(
        "CPU model '{model}': the host doesn't support requested features: {features}; leave out \
         'enforce' and the guest does without them"
    )]
    LacksFeatures {
        /// The model.
        model: &'static str,
        /// Their names.
        features: String,
    },
    /// More bits of physical address than the host has.
    #[error("phys-bits={bits}: this host has {max}; give at most so many, or host-phys-bits=on")]
    PhysicalBits {
        /// How many were asked for.
        bits: u32,
        /// How many the host has.
        max: u32,
    },
    /// No memory slot is left.
    #[error("all {max} memory slots of this host's KVM are in use")]
    NoSlotLeft {
        /// How many there are.
        max: usize,
    },
    /// A slot that does not exist was named.
    #[error("memory slot {slot} does not exist")]
    NoSuchSlot {
        /// The slot.
        slot: u32,
    },
    /// An operation that needs a paused vCPU met a running or stopped one.
    #[error("vCPU {index} is {state:?}, wanted Paused")]
    NotPaused {
        /// The vCPU.
        index: usize,
        /// What it is.
        state: VcpuState,
    },
    /// A vCPU's thread could not be started.
    #[error("the thread of vCPU {index} could not be started")]
    Thread {
        /// The vCPU.
        index: usize,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// An ioctl failed.
    #[error("KVM refused {what}")]
    Ioctl {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

impl KvmError {
    /// Gives a `map_err` closure that names what was tried.
    pub(crate) fn ioctl(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Ioctl {
            what,
            source: std::io::Error::from_raw_os_error(error.errno()),
        }
    }
}
