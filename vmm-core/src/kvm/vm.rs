//! The VM as KVM sees it: checked capabilities, the in-kernel interrupt chips, and the handles
//! from which slots, interrupts and vCPUs are made.
#![expect(unsafe_code, reason = "an fd handed in becomes a Kvm handle")]
// UNSAFETY: kvm-ioctls takes a passed fd only through FromRawFd.

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_PIT_SPEAKER_DUMMY, KVM_PMU_CAP_DISABLE, Msrs, kvm_enable_cap,
    kvm_msr_entry, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::KvmError;

/// The version every KVM since Linux 2.6.22 reports.
const API_VERSION: i32 = 12;

/// Three pages that KVM on old Intel hosts uses for real mode; reserved in the memory map.
/// They end where the firmware's flash window would begin.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;

/// Microcode revision, a "feature" MSR that a passed-through CPU takes from the host.
const MSR_IA32_UCODE_REV: u32 = 0x8b;

/// What the machine cannot run without, and for what.
const REQUIRED: &[(Cap, &str, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "guest memory"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR", "real mode"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "-cpu host"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP", "the interrupt chips"),
    (Cap::Pit2, "KVM_CAP_PIT2", "the interval timer"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING", "MSI"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI", "PCIe hotplug"),
    (Cap::Irqfd, "KVM_CAP_IRQFD", "virtio"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD", "virtio"),
    (
        Cap::ImmediateExit,
        "KVM_CAP_IMMEDIATE_EXIT",
        "pausing vCPUs",
    ),
    (Cap::MpState, "KVM_CAP_MP_STATE", "resetting vCPUs"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS", "resetting vCPUs"),
    (Cap::Xsave, "KVM_CAP_XSAVE", "resetting vCPUs"),
    (Cap::Xcrs, "KVM_CAP_XCRS", "resetting vCPUs"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS", "resetting vCPUs"),
];

/// A KVM virtual machine. Dropped last: memory, interrupts and vCPUs hold it.
pub struct KvmVm {
    kvm: Kvm,
    fd: VmFd,
}

impl KvmVm {
    /// Makes a VM with in-kernel PIC, IOAPIC, LAPICs and PIT from the `/dev/kvm` that was handed
    /// in (or opened through `fdset::open`).
    ///
    /// # Errors
    /// The fd is not `/dev/kvm`, a required capability is missing, or the kernel refuses.
    pub fn new(device: OwnedFd) -> Result<Arc<Self>, KvmError> {
        // SAFETY: `into_raw_fd` gives up ownership of an open fd, which Kvm takes over. That it
        // is /dev/kvm is checked next; an ioctl on any other file only fails.
        let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(KvmError::NotKvm { version });
        }
        for &(cap, capability, needed_for) in REQUIRED {
            if !kvm.check_extension(cap) {
                return Err(KvmError::MissingCapability {
                    capability,
                    needed_for,
                });
            }
        }
        let fd = create_vm(&kvm)?;
        fd.set_identity_map_address(IDENTITY_MAP)
            .map_err(KvmError::ioctl("the identity map page"))?;
        fd.set_tss_address(TSS)
            .map_err(KvmError::ioctl("the task state pages"))?;
        fd.create_irq_chip()
            .map_err(KvmError::ioctl("the in-kernel interrupt chips"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        fd.create_pit2(pit)
            .map_err(KvmError::ioctl("the in-kernel interval timer"))?;
        Ok(Arc::new(Self { kvm, fd }))
    }

    /// Checks that `wanted` vCPUs, the highest of them with APIC id `highest_id`, can run here.
    ///
    /// # Errors
    /// More than the host's KVM allows.
    pub fn check_vcpus(&self, wanted: usize, highest_id: u32) -> Result<(), KvmError> {
        let max = self.kvm.get_max_vcpus();
        if wanted > max {
            return Err(KvmError::TooManyVcpus { wanted, max });
        }
        let ids = self.kvm.get_max_vcpu_id();
        let highest = usize::try_from(highest_id).unwrap_or(usize::MAX);
        if highest >= ids {
            return Err(KvmError::TooManyVcpus {
                wanted: highest.saturating_add(1),
                max: ids,
            });
        }
        Ok(())
    }

    /// Whether this host's KVM has an optional capability.
    #[must_use]
    pub fn has(&self, cap: Cap) -> bool {
        self.kvm.check_extension(cap)
    }

    /// Leaves the guest no performance counters, also those that CPUID does not tell of (AMD's first
    /// four). Only before there is a vCPU, and where KVM can.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn forgo_counters(&self) -> Result<(), KvmError> {
        let known = self.kvm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
        if u32::try_from(known).unwrap_or(0) & KVM_PMU_CAP_DISABLE == 0 {
            return Ok(());
        }
        let cap = kvm_enable_cap {
            cap: KVM_CAP_PMU_CAPABILITY,
            args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
            ..Default::default()
        };
        self.fd
            .enable_cap(&cap)
            .map_err(KvmError::ioctl("a guest without performance counters"))
    }

    /// The system handle: CPUID, MSR lists.
    pub(crate) fn system(&self) -> &Kvm {
        &self.kvm
    }

    /// The VM handle.
    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// The host's microcode revision, as the guest may see it; `None` where KVM does not tell.
    pub(crate) fn microcode(&self) -> Option<u64> {
        let entry = kvm_msr_entry {
            index: MSR_IA32_UCODE_REV,
            ..Default::default()
        };
        let mut msrs = Msrs::from_entries(&[entry]).ok()?;
        let read = self.kvm.get_msrs(&mut msrs).ok()?;
        msrs.as_slice()
            .first()
            .filter(|_| read == 1)
            .map(|m| m.data)
    }
}

impl AsRawFd for KvmVm {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// KVM_CREATE_VM waits for a task that may be interrupted by a signal; it is then simply retried.
fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            other => return other.map_err(KvmError::ioctl("a virtual machine")),
        }
    }
}
