//! The LPC bridge at 00:1f.0: ICH9's, as far as software looks at it.
//!
//! Its registers are where firmware would have left them: PMBASE points at [`super::acpi_pm`]'s
//! block and cannot be moved. RCBA can be written, and nothing is behind it.

use super::acpi_pm::PM_BASE;
use crate::lifecycle::Lifecycle;
use crate::pci::address::SlotAddress;
use crate::pci::core::{Identity, PciCore};
use crate::pci::function::{Attachment, PciFunction};
use crate::pci::host_bridge::{SUBSYSTEM, VENDOR_INTEL};
use crate::pci::inspect::FunctionView;
use crate::pci::regs::HEADER_MULTIFUNCTION;
use crate::state::{Empty, NothingToSave, Parts, StateError, Stateful};

/// Where software expects the bridge.
pub const ADDRESS: Option<SlotAddress> = SlotAddress::new(0x1f, 0);

const DEVICE_LPC: u16 = 0x2918;
const PMBASE: u16 = 0x40;
const ACPI_CONTROL: u16 = 0x44;
const PIRQ_ROUTES: [u16; 2] = [0x60, 0x68];
/// Where the chipset's configuration registers would be.
const RCBA: u16 = 0xf0;
const RCBA_BITS: u32 = 0xffff_c001;

/// The bridge.
pub struct Lpc(PciCore);

impl Lpc {
    /// An LPC bridge.
    #[must_use]
    pub fn new() -> Self {
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
            config.store(ACPI_CONTROL, &[0x80]);
            config.allow(RCBA, &RCBA_BITS.to_le_bytes());
            for routes in PIRQ_ROUTES {
                // "Not routed": interrupts go to the IOAPIC.
                config.store32(routes, 0x8080_8080);
                config.allow(routes, &[0x8f; 4]);
            }
        });
        Self(core)
    }
}

impl Default for Lpc {
    fn default() -> Self {
        Self::new()
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
        vec![("config", &self.0)]
    }
}

impl Lifecycle for Lpc {
    fn reset(&self) {
        self.0.reset();
    }
}

impl PciFunction for Lpc {
    fn id(&self) -> &str {
        self.0.id()
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.0.write(offset, data);
    }

    fn attach(&self, attachment: Attachment) {
        self.0.attach(&attachment);
    }

    fn detach(&self) {
        self.0.detach();
    }

    fn inspect(&self) -> FunctionView {
        self.0.inspect()
    }
}
