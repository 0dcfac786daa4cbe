//! The LPC bridge at 00:1f.0: ICH9's, as far as software looks at it.
//!
//! ```text
//!   PMBASE, ACPI_CONTROL ─► ports:  + 0x00 AcpiPm, + 0x60 Tco
//!   RCBA ────────────────► memory: the chipset's registers, with the watchdog's bit
//! ```
//!
//! Its registers are where firmware would have left them, and firmware may move what they place.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::acpi_pm::{AcpiPm, PM_BASE, PM_LEN};
use super::tco::{self, ChipsetRegisters, Tco};
use crate::bus::{Bus, BusDevice};
use crate::lifecycle::Lifecycle;
use crate::pci::address::SlotAddress;
use crate::pci::core::{Identity, PciCore};
use crate::pci::function::{Attachment, PciFunction, Spaces};
use crate::pci::host_bridge::{SUBSYSTEM, VENDOR_INTEL};
use crate::pci::inspect::FunctionView;
use crate::pci::regs::HEADER_MULTIFUNCTION;
use crate::state::{Empty, NothingToSave, Parts, StateError, Stateful};

/// Where software expects the bridge.
pub const ADDRESS: Option<SlotAddress> = SlotAddress::new(0x1f, 0);

const DEVICE_LPC: u16 = 0x2918;
const PMBASE: u16 = 0x40;
const PMBASE_BITS: u32 = 0xff80;
const ACPI_CONTROL: u16 = 0x44;
const ACPI_ENABLE: u8 = 1 << 7;
const PIRQ_ROUTES: [u16; 2] = [0x60, 0x68];
/// Where the chipset's configuration registers are, and where firmware puts them.
const RCBA: u16 = 0xf0;
const RCBA_BITS: u32 = 0xffff_c001;
const RCBA_OPEN: u32 = 1;
const CHIPSET_BASE: u32 = 0xfed1_c000;
/// Where the watchdog is in the ports of power management.
const TCO: u64 = 0x60;

/// The bridge.
pub struct Lpc {
    core: PciCore,
    pm: Arc<AcpiPm>,
    watchdog: Arc<Tco>,
    /// Makes "see what the registers say, then map it" one step: held while `Bus` is changed, which
    /// never calls back.
    windows: Mutex<Windows>,
}

#[derive(Default)]
struct Windows {
    spaces: Option<Spaces>,
    /// Where the ports are, and the chipset's registers.
    ports: Option<u64>,
    registers: Option<u64>,
}

impl Lpc {
    /// An LPC bridge, with what it shows the guest.
    #[must_use]
    pub fn new(pm: Arc<AcpiPm>, watchdog: Arc<Tco>) -> Self {
        let identity = Identity {
            vendor: VENDOR_INTEL,
            device: DEVICE_LPC,
            revision: 2,
            class: [0x06, 0x01, 0x00],
            subsystem: SUBSYSTEM,
            header: HEADER_MULTIFUNCTION,
            pin: 0,
        };
        let core = PciCore::plain("", identity);
        core.amend(|config| {
            // Bit 0: the block is in I/O space. ACPI_CONTROL: decoding on, SCI on IRQ 9.
            config.store32(PMBASE, u32::try_from(PM_BASE).unwrap_or(0) | 1);
            config.allow(PMBASE, &PMBASE_BITS.to_le_bytes());
            config.store(ACPI_CONTROL, &[ACPI_ENABLE]);
            config.allow(ACPI_CONTROL, &[ACPI_ENABLE]);
            config.store32(RCBA, CHIPSET_BASE | RCBA_OPEN);
            config.allow(RCBA, &RCBA_BITS.to_le_bytes());
            for routes in PIRQ_ROUTES {
                // "Not routed": interrupts go to the IOAPIC.
                config.store32(routes, 0x8080_8080);
                config.allow(routes, &[0x8f; 4]);
            }
        });
        Self {
            core,
            pm,
            watchdog,
            windows: Mutex::default(),
        }
    }

    fn windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the registers have the ports and the chipset's registers now.
    fn wanted(&self) -> (Option<u64>, Option<u64>) {
        let config = self.core.config();
        let ports = u64::from(config.load32(PMBASE) & PMBASE_BITS);
        let decodes = config.load8(ACPI_CONTROL) & ACPI_ENABLE != 0 && ports != 0;
        let registers = config.load32(RCBA);
        let base = u64::from(registers & RCBA_BITS & !RCBA_OPEN);
        let is_open = registers & RCBA_OPEN != 0 && base != 0;
        (decodes.then_some(ports), is_open.then_some(base))
    }

    fn place(&self) {
        let mut windows = self.windows();
        let Windows {
            spaces: Some(spaces),
            ports,
            registers,
        } = &mut *windows
        else {
            return;
        };
        let (wanted_ports, wanted_registers) = self.wanted();
        move_to(&spaces.io, ports, wanted_ports, &self.port_block());
        let block = self.register_block();
        move_to(&spaces.memory, registers, wanted_registers, &block);
    }

    fn port_block(&self) -> [Placed; 2] {
        [
            (0, TCO, Arc::clone(&self.pm) as _),
            (TCO, PM_LEN - TCO, Arc::clone(&self.watchdog) as _),
        ]
    }

    fn register_block(&self) -> [Placed; 1] {
        let registers = ChipsetRegisters(Arc::clone(&self.watchdog));
        [(0, tco::CHIPSET_LEN, Arc::new(registers))]
    }
}

/// A device of a block, at an offset in it, and its length.
type Placed = (u64, u64, Arc<dyn BusDevice>);

/// Moves a block from where it is to where it should be.
fn move_to(bus: &Bus, mapped: &mut Option<u64>, wanted: Option<u64>, block: &[Placed]) {
    if *mapped == wanted {
        return;
    }
    if let Some(base) = mapped.take() {
        take_off(bus, base, block);
    }
    let Some(base) = wanted else { return };
    for (at, (offset, len, device)) in block.iter().enumerate() {
        if let Err(overlap) = bus.insert(base + offset, *len, Arc::clone(device)) {
            tracing::debug!(%overlap, "a block of the LPC bridge is not mapped");
            take_off(bus, base, &block[..at]);
            return;
        }
    }
    *mapped = wanted;
}

fn take_off(bus: &Bus, base: u64, block: &[Placed]) {
    for (offset, ..) in block {
        bus.remove(base + offset);
    }
}

impl NothingToSave for Lpc {
    const KIND: &'static str = "lpc";
}

impl Stateful for Lpc {
    type State = Empty<Self>;

    fn save(&self) -> Empty<Self> {
        Empty::default()
    }

    fn load(&self, _state: Empty<Self>) -> Result<(), StateError> {
        Ok(())
    }

    fn parts(&self) -> Parts<'_> {
        vec![("config", &self.core)]
    }

    fn settle(&self) {
        self.place();
    }
}

impl Lifecycle for Lpc {
    fn reset(&self) {
        self.core.reset();
        self.place();
    }
}

impl PciFunction for Lpc {
    fn id(&self) -> &str {
        self.core.id()
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.core.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.core.write(offset, data);
        self.place();
    }

    fn attach(&self, attachment: Attachment) {
        self.core.attach(&attachment);
        self.windows().spaces = Some(attachment.spaces.clone());
        self.place();
    }

    fn detach(&self) {
        self.core.detach();
        let mut windows = self.windows();
        let Some(spaces) = windows.spaces.take() else {
            return;
        };
        move_to(&spaces.io, &mut windows.ports, None, &self.port_block());
        let block = self.register_block();
        move_to(&spaces.memory, &mut windows.registers, None, &block);
    }

    fn inspect(&self) -> FunctionView {
        self.core.inspect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::IrqLine;
    use crate::legacy::Clock;
    use crate::pci::bus::BusKind;
    use crate::pci::intx::Wires;
    use crate::pci::mock::{Level, notices};
    use crate::reactor::Reactor;
    use crate::vm_clock::{TestedClock, VmClock};
    use crate::watchdog::WatchdogHost;

    /// A plugged bridge, and the spaces that it maps its blocks into.
    fn bridge() -> (Lpc, Spaces) {
        let (notices, _) = notices();
        let pm = AcpiPm::new(Clock::wall(), Arc::new(Level::default()), notices.clone());
        let host = WatchdogHost {
            reactor: Reactor::new(),
            clock: VmClock::Tested(TestedClock::new()),
            notices,
        };
        let bridge = Lpc::new(pm, Tco::new(host, true).unwrap());
        let spaces = Spaces::default();
        let lines: [Arc<dyn IrqLine>; 4] = std::array::from_fn(|_| Arc::new(Level::default()) as _);
        bridge.attach(Attachment {
            spaces: spaces.clone(),
            address: ADDRESS.unwrap(),
            wires: Wires::new(lines),
            bus: BusKind::Root,
        });
        (bridge, spaces)
    }

    /// What the watchdog's timer begins with, seen through ports at `base`.
    fn timer(spaces: &Spaces, base: u64) -> Option<u16> {
        let mut data = [0; 2];
        let answered = spaces.io.read(base + TCO + 0x12, &mut data);
        answered.then_some(u16::from_le_bytes(data))
    }

    #[test]
    fn the_ports_are_where_the_guest_puts_them_and_come_back_with_a_reset() {
        let (bridge, spaces) = bridge();
        assert_eq!(timer(&spaces, PM_BASE), Some(4));
        bridge.config_write(PMBASE, &0xb001_u32.to_le_bytes());
        assert_eq!(
            (timer(&spaces, PM_BASE), timer(&spaces, 0xb000)),
            (None, Some(4))
        );
        bridge.config_write(ACPI_CONTROL, &[0]);
        assert_eq!(timer(&spaces, 0xb000), None);
        bridge.reset();
        assert_eq!(timer(&spaces, PM_BASE), Some(4));
        bridge.detach();
        assert_eq!(timer(&spaces, PM_BASE), None);
    }

    #[test]
    fn a_block_that_overlaps_another_device_is_not_mapped_by_half() {
        let (bridge, spaces) = bridge();
        let (other, _) = self::bridge();
        let device = Arc::clone(&other.watchdog);
        spaces.io.insert(0xb060, 4, device).unwrap();
        bridge.config_write(PMBASE, &0xb000_u32.to_le_bytes());
        assert!(!spaces.io.read(0xb000, &mut [0]));
        bridge.config_write(PMBASE, &0xc000_u32.to_le_bytes());
        assert_eq!(timer(&spaces, 0xc000), Some(4));
    }

    #[test]
    fn the_chipsets_registers_tell_of_the_watchdog_where_firmware_put_them() {
        let (bridge, spaces) = bridge();
        let seen = |base: u64| {
            let mut data = [0; 4];
            let answered = spaces.memory.read(base + 0x3410, &mut data);
            answered.then_some(data)
        };
        assert_eq!(seen(CHIPSET_BASE.into()), Some([0x20, 0, 0, 0]));
        bridge.config_write(RCBA, &0xd000_0000_u32.to_le_bytes());
        assert_eq!((seen(CHIPSET_BASE.into()), seen(0xd000_0000)), (None, None));
        bridge.config_write(RCBA, &0xd000_0001_u32.to_le_bytes());
        assert_eq!(seen(0xd000_0000), Some([0x20, 0, 0, 0]));
    }
}
