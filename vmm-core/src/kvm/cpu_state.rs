//! What a vCPU was when it was created: the state a reset goes back to.
#![expect(
    unsafe_code,
    reason = "KVM_SET_XSAVE reads a buffer whose size the caller vouches for"
)]
// UNSAFETY: kvm-ioctls marks set_xsave unsafe.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use super::{BootEntry, KvmError, KvmVm, msr};

/// The local vector table entry for LINT1 and what it is wired to: NMI (Intel SDM volume 3,
/// figure 11-8).
const LAPIC_LVT1: usize = 0x360;
const DELIVER_NMI: u8 = 4;

/// All registers of a vCPU that a reset restores.
pub struct CpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Box<kvm_xsave>,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    msrs: Vec<kvm_msr_entry>,
    /// What a boot loader leaves, written last.
    boot_msrs: Vec<kvm_msr_entry>,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    mp: kvm_mp_state,
}

impl CpuState {
    /// Takes down what `cpu` is now. Its CPUID must have been set: it decides which MSRs exist.
    ///
    /// # Errors
    /// KVM refuses to tell.
    pub fn capture(vm: &KvmVm, cpu: &VcpuFd) -> Result<Self, KvmError> {
        let mut lapic = cpu
            .get_lapic()
            .map_err(KvmError::ioctl("reading the local APIC"))?;
        lapic.regs[LAPIC_LVT1] = 0;
        lapic.regs[LAPIC_LVT1 + 1] = DELIVER_NMI.cast_signed();
        lapic.regs[LAPIC_LVT1 + 2] = 0;
        let boot_msrs = msr::boot(vm.microcode());
        let mut msrs = msr::read(cpu, &msr::saved_list(vm)?)?;
        msrs.retain(|saved| !boot_msrs.iter().any(|boot| boot.index == saved.index));
        Ok(Self {
            regs: cpu
                .get_regs()
                .map_err(KvmError::ioctl("reading registers"))?,
            sregs: cpu
                .get_sregs()
                .map_err(KvmError::ioctl("reading system registers"))?,
            xsave: Box::new(
                cpu.get_xsave()
                    .map_err(KvmError::ioctl("reading the FPU"))?,
            ),
            xcrs: cpu
                .get_xcrs()
                .map_err(KvmError::ioctl("reading extended control registers"))?,
            debug: cpu
                .get_debug_regs()
                .map_err(KvmError::ioctl("reading debug registers"))?,
            events: cpu
                .get_vcpu_events()
                .map_err(KvmError::ioctl("reading pending events"))?,
            mp: cpu
                .get_mp_state()
                .map_err(KvmError::ioctl("reading the run state"))?,
            msrs,
            boot_msrs,
            lapic,
        })
    }

    /// Puts everything back, and then [`prepare`](Self::prepare)s.
    ///
    /// # Errors
    /// KVM refuses a register.
    pub fn restore(&self, cpu: &VcpuFd, entry: Option<BootEntry>) -> Result<(), KvmError> {
        // SAFETY: the buffer is the whole fixed-size structure. No feature with a larger state
        // (AMX) is offered to the guest: KVM leaves those out unless the process asks for them.
        unsafe { cpu.set_xsave(&self.xsave) }.map_err(KvmError::ioctl("writing the FPU"))?;
        cpu.set_xcrs(&self.xcrs)
            .map_err(KvmError::ioctl("writing extended control registers"))?;
        cpu.set_debug_regs(&self.debug)
            .map_err(KvmError::ioctl("writing debug registers"))?;
        msr::write(cpu, &self.msrs)?;
        cpu.set_vcpu_events(&self.events)
            .map_err(KvmError::ioctl("writing pending events"))?;
        self.prepare(cpu, entry)
    }

    /// Makes a vCPU that is as it was captured ready to run: with an `entry` (only the first one
    /// has it) at a kernel's first instruction; without, the first one halts and the others wait
    /// for INIT and SIPI, as they always do.
    ///
    /// # Errors
    /// KVM refuses a register.
    pub fn prepare(&self, cpu: &VcpuFd, entry: Option<BootEntry>) -> Result<(), KvmError> {
        let regs = entry.map_or(self.regs, |entry| entry.regs(&self.regs));
        let sregs = entry.map_or(self.sregs, |entry| entry.sregs(&self.sregs));
        let mut mp = self.mp;
        if entry.is_none() && mp.mp_state == KVM_MP_STATE_RUNNABLE {
            mp.mp_state = KVM_MP_STATE_HALTED;
        }
        cpu.set_mp_state(mp)
            .map_err(KvmError::ioctl("writing the run state"))?;
        cpu.set_sregs(&sregs)
            .map_err(KvmError::ioctl("writing system registers"))?;
        cpu.set_regs(&regs)
            .map_err(KvmError::ioctl("writing registers"))?;
        msr::write(cpu, &self.boot_msrs)?;
        cpu.set_lapic(&self.lapic)
            .map_err(KvmError::ioctl("writing the local APIC"))
    }
}
