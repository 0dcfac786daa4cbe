//! The host bridge at 00:00.0: Intel's Q35 memory controller hub, as far as software looks at it.

use super::address::SlotAddress;
use super::core::{Identity, PciCore};
use super::function::{Attachment, PciFunction};
use super::inspect::FunctionView;
use crate::lifecycle::Lifecycle;

/// Intel's vendor id.
pub const VENDOR_INTEL: u16 = 0x8086;
/// The Q35 MCH.
pub const DEVICE_MCH: u16 = 0x29c0;
/// The subsystem ids of a part of an emulated machine.
pub const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);

/// The MCH. It has no registers of its own: the ECAM window is where the machine puts it, and the
/// guest learns that from the MCFG table.
pub struct HostBridge(PciCore);

impl HostBridge {
    /// A host bridge.
    #[must_use]
    pub fn new() -> Self {
        let identity = Identity {
            vendor: VENDOR_INTEL,
            device: DEVICE_MCH,
            revision: 0,
            class: [0x06, 0x00, 0x00],
            subsystem: SUBSYSTEM,
            header: 0,
            pin: 0,
        };
        Self(PciCore::plain("", identity))
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl Lifecycle for HostBridge {
    fn reset(&self) {
        self.0.reset();
    }
}

impl PciFunction for HostBridge {
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
        debug_assert_eq!(attachment.address, SlotAddress::slot(0));
        self.0.attach(&attachment);
    }

    fn detach(&self) {
        self.0.detach();
    }

    fn inspect(&self) -> FunctionView {
        self.0.inspect()
    }
}
