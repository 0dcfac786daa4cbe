//! One stay in the guest and what ended it: port and memory accesses go to the buses, everything
//! else becomes news for the VM's owner. Nothing here allocates on the way of an access.
#![expect(
    unsafe_code,
    reason = "the width of a string access is in a union of kvm_run"
)]
// UNSAFETY: kvm-ioctls joins the elements of a string access without telling their width.

use std::fmt;
use std::sync::Arc;

use devices::bus::Bus;
use devices::notice::Notice;
use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_SYSTEM_EVENT_CRASH,
    KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

/// The two address spaces that a vCPU's exits go to.
#[derive(Clone)]
pub struct Buses {
    /// Ports.
    pub pio: Arc<Bus>,
    /// Memory that is not RAM.
    pub mmio: Arc<Bus>,
}

/// News from a vCPU, which has paused itself before it sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuEvent {
    /// The guest asked for something that concerns the whole machine: a triple fault is a reset.
    Notice(Notice),
    /// The vCPU cannot go on: the VM enters the run state `internal-error`.
    Fault {
        /// Which vCPU.
        index: usize,
        /// Why.
        fault: VcpuFault,
    },
}

/// Why a vCPU cannot go on. `Display` is the one line for the log and the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuFault {
    /// KVM_EXIT_INTERNAL_ERROR: KVM met an instruction or a state it cannot handle.
    Internal {
        /// KVM's reason (`KVM_INTERNAL_ERROR_*`): 1 is a failed emulation.
        suberror: u32,
        /// The instruction bytes, as many of the 15 as KVM fetched.
        instruction: [u8; 15],
        /// How many of them are valid.
        length: u8,
        /// Where the guest was.
        rip: u64,
    },
    /// KVM_EXIT_FAIL_ENTRY: the hardware refused the guest's state.
    Entry {
        /// The hardware's reason.
        reason: u64,
    },
    /// An exit that no x86 machine of this kind can cause.
    Unexpected {
        /// `KVM_EXIT_*`.
        exit: u32,
    },
    /// KVM_RUN itself failed.
    Run {
        /// The error's number.
        errno: i32,
    },
}

impl fmt::Display for VcpuFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal {
                suberror,
                instruction,
                length,
                rip,
            } => {
                write!(
                    f,
                    "KVM internal error, suberror {suberror}, at rip {rip:#x}"
                )?;
                let bytes = instruction.get(..usize::from(*length)).unwrap_or_default();
                if !bytes.is_empty() {
                    f.write_str(", instruction bytes")?;
                }
                bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
            }
            Self::Entry { reason } => {
                write!(f, "the CPU refused to enter the guest, reason {reason:#x}")
            }
            Self::Unexpected { exit } => write!(f, "unexpected KVM exit {exit}"),
            Self::Run { errno } => write!(
                f,
                "KVM_RUN failed: {}",
                std::io::Error::from_raw_os_error(*errno)
            ),
        }
    }
}

/// How a stay in the guest ended.
pub(super) enum Stay {
    /// An access was served, or a signal came: look at the orders and go on.
    GoOn,
    /// The vCPU must pause.
    Pause(Pause),
}

/// Why a vCPU pauses by itself.
pub(super) enum Pause {
    /// News for the whole machine.
    Notice(Notice),
    /// It cannot go on.
    Fault(VcpuFault),
}

/// Enters the guest once.
pub(super) fn enter(cpu: &mut VcpuFd, buses: &Buses) -> Stay {
    let exit = match cpu.run() {
        Ok(exit) => exit,
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
            cpu.set_kvm_immediate_exit(0);
            return Stay::GoOn;
        }
        Err(error) => {
            return fault(VcpuFault::Run {
                errno: error.errno(),
            });
        }
    };
    match exit {
        VcpuExit::MmioRead(address, bytes) => {
            buses.mmio.read(address, bytes);
        }
        VcpuExit::MmioWrite(address, bytes) => {
            buses.mmio.write(address, bytes);
        }
        VcpuExit::IoIn(port, bytes) => {
            let (start, len) = (bytes.as_mut_ptr(), bytes.len());
            let width = port_width(cpu.get_kvm_run());
            // SAFETY: the slice that `run` gave, in the pages behind kvm_run; taken apart only
            // to look at kvm_run in between, which ends before them.
            let bytes = unsafe { std::slice::from_raw_parts_mut(start, len) };
            for element in bytes.chunks_mut(width) {
                buses.pio.read(u64::from(port), element);
            }
        }
        VcpuExit::IoOut(port, bytes) => {
            let (start, len) = (bytes.as_ptr(), bytes.len());
            let width = port_width(cpu.get_kvm_run());
            // SAFETY: as for IoIn.
            let bytes = unsafe { std::slice::from_raw_parts(start, len) };
            for element in bytes.chunks(width) {
                buses.pio.write(u64::from(port), element);
            }
        }
        VcpuExit::Shutdown => return Stay::Pause(Pause::Notice(Notice::Reset)),
        VcpuExit::SystemEvent(kind, _) => return system_event(kind),
        VcpuExit::FailEntry(reason, _) => return fault(VcpuFault::Entry { reason }),
        VcpuExit::InternalError => return fault(internal_error(cpu)),
        // A HLT with the LAPIC in the kernel never exits; if it does, there is nothing to do.
        VcpuExit::Hlt
        | VcpuExit::Intr
        | VcpuExit::IrqWindowOpen
        | VcpuExit::SetTpr
        | VcpuExit::IoapicEoi(_) => {}
        _ => {
            let exit = cpu.get_kvm_run().exit_reason;
            return fault(VcpuFault::Unexpected { exit });
        }
    }
    Stay::GoOn
}

/// Lets KVM finish an access whose answer is still in `kvm_run`, without running the guest: only
/// then do the registers show a whole instruction (Linux `Documentation/virt/kvm/api.rst`, 5).
pub(super) fn complete_access(cpu: &mut VcpuFd) {
    cpu.set_kvm_immediate_exit(1);
    // Ends with EINTR by construction.
    let _ = cpu.run();
    cpu.set_kvm_immediate_exit(0);
}

fn fault(fault: VcpuFault) -> Stay {
    Stay::Pause(Pause::Fault(fault))
}

fn system_event(kind: u32) -> Stay {
    Stay::Pause(Pause::Notice(match kind {
        KVM_SYSTEM_EVENT_SHUTDOWN => Notice::PowerOff,
        KVM_SYSTEM_EVENT_RESET => Notice::Reset,
        KVM_SYSTEM_EVENT_CRASH => Notice::GuestPanicked,
        _ => {
            return fault(VcpuFault::Unexpected {
                exit: kvm_bindings::KVM_EXIT_SYSTEM_EVENT,
            });
        }
    }))
}

/// The width of one element of the port access that `run` describes: 1, 2 or 4.
fn port_width(run: &kvm_run) -> usize {
    // SAFETY: only called after KVM_EXIT_IO, for which the kernel fills this member; any bit
    // pattern is a valid u8.
    let size = unsafe { run.__bindgen_anon_1.io.size };
    usize::from(size).max(1)
}

fn internal_error(cpu: &mut VcpuFd) -> VcpuFault {
    let rip = cpu.get_regs().map_or(0, |regs| regs.rip);
    let run = cpu.get_kvm_run();
    // SAFETY: only called after KVM_EXIT_INTERNAL_ERROR, for which the kernel fills this member
    // (`emulation_failure` begins as `internal` does); any bit pattern is valid.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    let told = failure.suberror == kvm_bindings::KVM_INTERNAL_ERROR_EMULATION
        && failure.ndata >= 3
        && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
    // SAFETY: the flag says that the kernel filled this part of the union; plain bytes anyway.
    let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    VcpuFault::Internal {
        suberror: failure.suberror,
        instruction: bytes.insn_bytes,
        length: if told { bytes.insn_size.min(15) } else { 0 },
        rip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_internal_error_is_one_line_with_the_bytes() {
        let mut instruction = [0; 15];
        instruction[..2].copy_from_slice(&[0x0f, 0xae]);
        let fault = VcpuFault::Internal {
            suberror: 1,
            instruction,
            length: 2,
            rip: 0x100,
        };
        assert_eq!(
            fault.to_string(),
            "KVM internal error, suberror 1, at rip 0x100, instruction bytes 0f ae"
        );
    }
}
