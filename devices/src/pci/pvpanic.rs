//! The panic notifier as a PCI function: one byte behind BAR 0, with the bits that the port on the
//! ISA bus has (QEMU's `docs/specs/pvpanic`).

use std::convert::Infallible;
use std::sync::Arc;

use super::bar::{BarKind, BarSpec};
use super::core::{Identity, PciCore};
use super::function::{Attachment, PciFunction};
use super::inspect::FunctionView;
use super::regs;
use crate::bus::BusDevice;
use crate::legacy::Pvpanic;
use crate::lifecycle::Lifecycle;
use crate::notice::NoticeSink;
use crate::state::{Empty, NothingToSave, Parts, StateError, Stateful};

/// The ids that drivers know it by.
const VENDOR: u16 = 0x1b36;
const DEVICE: u16 = 0x0011;
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);
/// A system peripheral of no other kind.
const CLASS: [u8; 3] = [0x08, 0x80, 0];
/// The bytes behind its BAR.
const SIZE: u64 = 2;

/// The function.
pub struct PvpanicPci(PciCore);

impl PvpanicPci {
    /// A function that reports those of `events` that there are to `notices`, not plugged yet.
    #[must_use]
    pub fn new(id: &str, notices: NoticeSink, events: u8, multifunction: bool) -> Arc<Self> {
        let identity = Identity {
            vendor: VENDOR,
            device: DEVICE,
            revision: 1,
            class: CLASS,
            subsystem: SUBSYSTEM,
            header: if multifunction {
                regs::HEADER_MULTIFUNCTION
            } else {
                0
            },
            pin: 0,
        };
        let bars = vec![BarSpec {
            index: 0,
            kind: BarKind::Memory32,
            size: SIZE,
            device: Arc::new(Port(Pvpanic::new(notices, events))),
        }];
        let built = PciCore::new(id, identity, bars, Box::new(|_, _| {}), |_| {
            Ok::<(), Infallible>(())
        });
        match built {
            Ok(core) => Arc::new(Self(core)),
            Err(never) => match never {},
        }
    }
}

/// The port at the BAR's first byte; the rest is nothing.
struct Port(Pvpanic);

impl BusDevice for Port {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == 0 {
            self.0.read(0, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 0 {
            self.0.write(0, data);
        }
    }
}

impl NothingToSave for PvpanicPci {
    const KIND: &'static str = "pvpanic-pci";
}

impl Stateful for PvpanicPci {
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

impl Lifecycle for PvpanicPci {
    fn reset(&self) {
        self.0.reset();
    }
}

impl PciFunction for PvpanicPci {
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::address::SlotAddress;
    use super::super::bus::BusKind;
    use super::super::function::Spaces;
    use super::super::intx::Wires;
    use super::super::mock::Level;
    use super::*;
    use crate::irq::IrqLine;
    use crate::legacy::pvpanic::EVENTS;
    use crate::notice::Notice;

    #[test]
    fn its_byte_is_where_its_bar_says_and_nowhere_after_it_left() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&heard);
        let notices = NoticeSink::new(move |notice| sink.lock().unwrap().push(notice));
        let function = PvpanicPci::new("panic", notices, 0xff, false);
        let spaces = Spaces::default();
        let lines: [Arc<dyn IrqLine>; 4] = std::array::from_fn(|_| Arc::new(Level::default()) as _);
        function.attach(Attachment {
            spaces: spaces.clone(),
            address: SlotAddress::slot(4),
            wires: Wires::new(lines),
            bus: BusKind::Root,
        });
        function.config_write(0x10, &0xe000_0000_u32.to_le_bytes());
        function.config_write(0x04, &[2, 0]);
        let mut events = [0; 2];
        spaces.memory.read(0xe000_0000, &mut events);
        assert_eq!(events, [EVENTS, 0]);
        spaces.memory.write(0xe000_0001, &[1]);
        spaces.memory.write(0xe000_0000, &[1]);
        function.reset();
        spaces.memory.write(0xe000_0000, &[1]);
        function.detach();
        assert_eq!(*heard.lock().unwrap(), [Notice::GuestPanicked]);
    }
}
