//! Interrupts and doorbells that need no visit to the VMM: irqfd, ioeventfd, and the GSI table.
//!
//! ```text
//!   GSI 0..23   the IOAPIC's pins; 0..15 also the two PICs (ISA timer: GSI 0 on pin 2)
//!   GSI 24..    one per MSI vector, taken at `vector()`, given back on drop
//! ```
//!
//! Replacing the table makes the kernel wait for all readers, which costs a guest's boot up to a
//! millisecond each time. So it happens only when a message really changes: masking a vector
//! leaves its route in place and swallows the trigger instead.
#![expect(
    unsafe_code,
    reason = "an ioctl that kvm-ioctls does not offer, and a borrowed eventfd"
)]
// UNSAFETY: kvm-ioctls registers an ioeventfd without a datamatch only with length 0, and
// vmm-sys-util's EventFd lends itself only as a number.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::irq::{Doorbells, Interrupt, IrqError, IrqLine, MsiController, MsiMessage, MsiVector};
use devices::repeats::Repeats;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_ioeventfd, kvm_ioeventfd_flag_nr_deassign,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi, kvm_msi,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::{KvmError, KvmVm};

/// How many pins the IOAPIC has, and the first GSI that is a message.
pub const IOAPIC_PINS: u32 = 24;
/// The kernel's limit on entries of the table (`KVM_MAX_IRQ_ROUTES`).
const MAX_GSI: u32 = 4096;

/// `_IOW(KVMIO, 0x79, struct kvm_ioeventfd)`, whose size is 64.
const KVM_IOEVENTFD: libc::c_ulong = 0x4040_ae79;

/// The guest's interrupt wiring.
pub struct KvmIrqs {
    vm: Arc<KvmVm>,
    /// The message of each taken GSI; `None` until the guest programs it. Leaf lock: only the
    /// kernel is called with it.
    messages: Mutex<BTreeMap<u32, Option<MsiMessage>>>,
    this: std::sync::Weak<Self>,
}

impl KvmIrqs {
    /// Wires up the interrupt chips.
    ///
    /// # Errors
    /// The kernel refuses the table.
    pub fn new(vm: Arc<KvmVm>) -> Result<Arc<Self>, KvmError> {
        let irqs = Arc::new_cyclic(|this| Self {
            vm,
            messages: Mutex::default(),
            this: this.clone(),
        });
        irqs.write_table(&BTreeMap::new())
            .map_err(|source| KvmError::Ioctl {
                what: "the interrupt routing table",
                source,
            })?;
        Ok(irqs)
    }

    /// The line of one IOAPIC pin.
    #[must_use]
    pub fn line(&self, gsi: u32) -> Arc<dyn IrqLine> {
        Arc::new(GsiLine {
            vm: Arc::clone(&self.vm),
            gsi,
            refused: Repeats::default(),
        })
    }

    /// How many vectors are taken: for leak checks.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Option<MsiMessage>>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_gsi(&self) -> io::Result<u32> {
        let mut messages = self.lock();
        let gsi = (IOAPIC_PINS..MAX_GSI)
            .find(|gsi| !messages.contains_key(gsi))
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        messages.insert(gsi, None);
        Ok(gsi)
    }

    fn set_message(&self, gsi: u32, message: Option<MsiMessage>) -> io::Result<()> {
        let mut messages = self.lock();
        let before = messages.insert(gsi, message).flatten();
        if before == message {
            return Ok(());
        }
        let written = self.write_table(&messages);
        if written.is_err() {
            messages.insert(gsi, before);
        }
        written
    }

    fn write_table(&self, messages: &BTreeMap<u32, Option<MsiMessage>>) -> io::Result<()> {
        let mut entries = chip_entries();
        entries.extend(
            messages
                .iter()
                .filter_map(|(&gsi, message)| message.map(|message| msi_entry(gsi, message))),
        );
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::from_raw_os_error(libc::ENOSPC))?;
        self.vm.fd().set_gsi_routing(&table).map_err(into_io)
    }
}

impl MsiController for KvmIrqs {
    fn vector(&self) -> Result<Box<dyn MsiVector>, IrqError> {
        let wanted = |source| IrqError {
            wanted: "MSI vector".into(),
            source,
        };
        let irqs = self
            .this
            .upgrade()
            .ok_or_else(|| wanted(io::Error::from_raw_os_error(libc::ENODEV)))?;
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(wanted)?;
        let gsi = self.take_gsi().map_err(wanted)?;
        Ok(Box::new(Vector {
            irqs,
            gsi,
            event,
            unmasked: AtomicBool::new(false),
            lent: AtomicBool::new(false),
            attached: Mutex::new(false),
        }))
    }

    fn send(&self, message: MsiMessage) {
        let (address_lo, address_hi) = split(message.address);
        let msi = kvm_msi {
            address_lo,
            address_hi,
            data: message.data,
            ..Default::default()
        };
        if let Err(error) = self.vm.fd().signal_msi(msi) {
            // The guest chose the address and data: a nonsense message is its own loss.
            tracing::debug!(?message, %error, "MSI not delivered");
        }
    }
}

impl Doorbells for KvmIrqs {
    fn assign(&self, address: u64, len: usize, fd: &EventFd) -> Result<(), IrqError> {
        self.doorbell(address, len, fd, 0)
            .map_err(|source| IrqError {
                wanted: format!("doorbell at {address:#x}"),
                source,
            })
    }

    fn unassign(&self, address: u64, len: usize, fd: &EventFd) {
        let flags = 1 << kvm_ioeventfd_flag_nr_deassign;
        if let Err(error) = self.doorbell(address, len, fd, flags) {
            tracing::debug!(address, len, %error, "doorbell was not assigned");
        }
    }
}

impl KvmIrqs {
    fn doorbell(&self, addr: u64, len: usize, fd: &EventFd, flags: u32) -> io::Result<()> {
        let len = u32::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let bell = kvm_ioeventfd {
            addr,
            len,
            fd: fd.as_raw_fd(),
            flags,
            ..Default::default()
        };
        // SAFETY: the fd is a VM's, and the kernel only reads one `kvm_ioeventfd`.
        let answer = unsafe { ioctl_with_ref(self.vm.fd(), KVM_IOEVENTFD, &bell) };
        if answer == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// One MSI vector: an eventfd that the kernel turns into a message.
struct Vector {
    irqs: Arc<KvmIrqs>,
    gsi: u32,
    event: EventFd,
    unmasked: AtomicBool,
    /// Whether a kernel backend may hold the eventfd: masking must then really detach it.
    lent: AtomicBool,
    /// Whether the eventfd is connected to the GSI. Leaf lock: only the kernel is called with it.
    attached: Mutex<bool>,
}

impl Vector {
    fn attach(&self, wanted: bool) -> io::Result<()> {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if *attached == wanted {
            return Ok(());
        }
        let vm = self.irqs.vm.fd();
        if wanted {
            vm.register_irqfd(&self.event, self.gsi).map_err(into_io)?;
        } else {
            vm.unregister_irqfd(&self.event, self.gsi)
                .map_err(into_io)?;
        }
        *attached = wanted;
        Ok(())
    }
}

impl Interrupt for Vector {
    fn trigger(&self) {
        if self.unmasked.load(Ordering::Acquire) {
            // Fails only when the counter is full, and then the interrupt is pending already.
            let _ = self.event.write(1);
        }
    }

    fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        self.lent.store(true, Ordering::Release);
        // Masked before it was lent, it may be attached still.
        if !self.unmasked.load(Ordering::Acquire)
            && let Err(error) = self.attach(false)
        {
            tracing::debug!(gsi = self.gsi, %error, "a masked vector stays attached");
        }
        // SAFETY: the eventfd is open as long as `self` lives, which the borrow cannot outlive.
        Some(unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) })
    }
}

impl MsiVector for Vector {
    fn route(&self, message: Option<MsiMessage>) -> Result<(), IrqError> {
        let Some(message) = message else {
            self.unmasked.store(false, Ordering::Release);
            if self.lent.load(Ordering::Acquire) {
                self.attach(false).map_err(no_route)?;
            }
            return Ok(());
        };
        self.irqs
            .set_message(self.gsi, Some(message))
            .and_then(|()| self.attach(true))
            .map_err(no_route)?;
        self.unmasked.store(true, Ordering::Release);
        Ok(())
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        if let Err(error) = self.attach(false) {
            tracing::debug!(gsi = self.gsi, %error, "irqfd was not attached");
        }
        // The stale route stays in the kernel's table until the next change: nothing can
        // trigger it, and the number may be reused at once.
        self.irqs.lock().remove(&self.gsi);
    }
}

/// One pin of the IOAPIC (and of the PIC behind it).
struct GsiLine {
    vm: Arc<KvmVm>,
    gsi: u32,
    refused: Repeats,
}

impl IrqLine for GsiLine {
    fn set(&self, high: bool) {
        if let Err(error) = self.vm.fd().set_irq_line(self.gsi, high)
            && let Some(times) = self.refused.note()
        {
            tracing::error!(gsi = self.gsi, times, %error, "interrupt line not driven");
        }
    }
}

fn no_route(source: io::Error) -> IrqError {
    IrqError {
        wanted: "MSI route".into(),
        source,
    }
}

fn into_io(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// An address as KVM wants it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the two halves of an address"
)]
fn split(address: u64) -> (u32, u32) {
    (address as u32, (address >> 32) as u32)
}

/// The chips' own pins: ISA interrupts reach both the PICs and the IOAPIC. The timer is on the
/// IOAPIC's pin 2, which the MADT's interrupt source override says.
fn chip_entries() -> Vec<kvm_irq_routing_entry> {
    let mut entries = Vec::new();
    for gsi in 0..IOAPIC_PINS {
        if gsi < 8 {
            entries.push(chip_entry(gsi, KVM_IRQCHIP_PIC_MASTER, gsi));
        } else if gsi < 16 {
            entries.push(chip_entry(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8));
        }
        match gsi {
            0 => entries.push(chip_entry(0, KVM_IRQCHIP_IOAPIC, 2)),
            2 => {}
            _ => entries.push(chip_entry(gsi, KVM_IRQCHIP_IOAPIC, gsi)),
        }
    }
    entries
}

fn chip_entry(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        },
        ..Default::default()
    }
}

fn msi_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let (address_lo, address_hi) = split(message.address);
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo,
                address_hi,
                data: message.data,
                ..Default::default()
            },
        },
        ..Default::default()
    }
}
