//! How a device reaches the guest's CPUs, and how the guest's doorbells reach a device.
//!
//! These traits are defined by their consumers, the devices. `vmm-core` implements them over KVM
//! (irqfd, interrupt routing, ioeventfd); tests implement them over counters.
//!
//! ```text
//!   device ── Interrupt::trigger ──► MsiVector (irqfd + route)  ──► in-kernel LAPIC
//!   device ── IrqLine::set ────────► GSI (level)                ──► in-kernel IOAPIC
//!   guest  ── write to a doorbell ─► Doorbells (ioeventfd)      ──► eventfd of the queue
//! ```

use std::fmt;
use std::os::fd::BorrowedFd;

use vmm_sys_util::eventfd::EventFd;

/// Something a device can use to get the guest's attention.
pub trait Interrupt: Send + Sync {
    /// Tells the guest that there is news. Never blocks; spurious calls are allowed.
    fn trigger(&self);

    /// The eventfd that has the same effect as [`trigger`](Self::trigger) when written, for kernel
    /// backends (vhost, VFIO). `None` where no such fd exists (a masked or emulated line).
    fn eventfd(&self) -> Option<BorrowedFd<'_>>;
}

/// A level-triggered interrupt line: legacy devices, INTx, the ACPI SCI.
pub trait IrqLine: Send + Sync {
    /// Drives the line. Setting it to the level it already has is harmless.
    fn set(&self, high: bool);
}

/// Drives `line` as `wanted` says, also when it changes its mind meanwhile: whoever sets the line
/// last has looked after setting it. For state that several threads change without a lock around
/// the line.
pub fn drive(line: &dyn IrqLine, wanted: impl Fn() -> bool) {
    loop {
        let high = wanted();
        line.set(high);
        if wanted() == high {
            return;
        }
    }
}

/// What a PCI function writes to raise a message-signalled interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// The message address (for x86 in the `0xfee0_0000` page).
    pub address: u64,
    /// The message data.
    pub data: u32,
}

/// One message-signalled interrupt of one function.
pub trait MsiVector: Interrupt {
    /// Sets where the vector points: `Some` when the guest has programmed and unmasked it, `None`
    /// when it is masked. A trigger while masked is swallowed: the MSI-X table keeps the pending
    /// bit, not the vector.
    ///
    /// # Errors
    /// The interrupt controller has no room for one more route.
    fn route(&self, message: Option<MsiMessage>) -> Result<(), IrqError>;
}

/// Hands out message-signalled interrupts.
pub trait MsiController: Send + Sync {
    /// A new, masked vector. Dropping it gives everything back.
    ///
    /// # Errors
    /// No interrupt or eventfd is left.
    fn vector(&self) -> Result<Box<dyn MsiVector>, IrqError>;

    /// Sends one message now, without a vector of its own: for functions with plain MSI (root
    /// ports) whose interrupts are rare.
    fn send(&self, message: MsiMessage);
}

/// Lets a guest write reach an eventfd without a visit to the VMM.
pub trait Doorbells: Send + Sync {
    /// From now on a guest write of `len` bytes (0: of any size) to the memory address `address`
    /// signals `fd`.
    ///
    /// # Errors
    /// The address is taken or the kernel refused.
    fn assign(&self, address: u64, len: usize, fd: &EventFd) -> Result<(), IrqError>;

    /// Takes back what [`assign`](Self::assign) gave. Unknown addresses are ignored.
    fn unassign(&self, address: u64, len: usize, fd: &EventFd);
}

/// Why an interrupt or a doorbell could not be had.
#[derive(Debug)]
pub struct IrqError {
    /// What was wanted: `MSI-X vector`, `doorbell at 0xfe00_3000`.
    pub wanted: String,
    /// What the kernel or the controller said.
    pub source: std::io::Error,
}

impl fmt::Display for IrqError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {} to be had", self.wanted)
    }
}

impl std::error::Error for IrqError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
