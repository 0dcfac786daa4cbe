//! The PCI function that carries a virtio device: ids, capabilities, BARs, interrupts.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use super::bell::Bell;
use super::capability::{self, Window};
use super::interrupt::Signals;
use super::layout::{
    DEVICE_ID, MSIX_BAR, REGISTERS_BAR, REGISTERS_LEN, REVISION, SUBSYSTEM, VENDOR, class,
};
use super::registers::Registers;
use super::state::TransportState;
use super::view::VirtioView;
use crate::bus::BusDevice;
use crate::irq::{Doorbells, MsiController};
use crate::lifecycle::Lifecycle;
use crate::memory::GuestMem;
use crate::pci::bar::{BarKind, BarSpec};
use crate::pci::bus::BusKind;
use crate::pci::config::ConfigSpace;
use crate::pci::core::{Identity, PciCore};
use crate::pci::error::PciError;
use crate::pci::express;
use crate::pci::function::{Attachment, PciFunction};
use crate::pci::inspect::FunctionView;
use crate::pci::msix::Msix;
use crate::pci::regs;
use crate::state::{Parts, StateError, Stateful};
use crate::virtio::device::VirtioDevice;

/// What the device behind the function is called among its parts.
pub const BACKEND: &str = "virtio-backend";

/// What a virtio function needs.
pub struct VirtioPciSpec {
    /// The device's id in the device tree.
    pub id: String,
    /// The device itself.
    pub device: Arc<dyn VirtioDevice>,
    /// Where its rings and buffers live.
    pub memory: GuestMem,
    /// Where its vectors come from.
    pub msi: Arc<dyn MsiController>,
    /// Where its doorbells are given in.
    pub doorbells: Arc<dyn Doorbells>,
    /// How many MSI-X vectors it has, at least 1: one for each queue and one for configuration
    /// changes is [`VirtioPciSpec::vectors_for`].
    pub vectors: u16,
    /// Whether functions 1 to 7 of its device may be used, too.
    pub multifunction: bool,
}

impl VirtioPciSpec {
    /// One vector for each queue of `device`, and one for its configuration.
    #[must_use]
    pub fn vectors_for(device: &dyn VirtioDevice) -> u16 {
        u16::try_from(device.queue_sizes().len().saturating_add(1)).unwrap_or(u16::MAX)
    }
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    core: PciCore,
    registers: Arc<Registers>,
    signals: Arc<Signals>,
    msix: Arc<Msix>,
    places: Capabilities,
}

/// Where the capabilities are that need a hand.
#[derive(Clone, Copy)]
struct Capabilities {
    express: u16,
    msix: u16,
    window: Window,
}

impl VirtioPci {
    /// The function for `spec.device`, not plugged yet.
    ///
    /// # Errors
    /// The vectors cannot be had.
    pub fn new(spec: VirtioPciSpec) -> Result<Arc<Self>, PciError> {
        let msix =
            Msix::new(spec.msi.as_ref(), spec.vectors).map_err(|source| PciError::Interrupt {
                id: spec.id.clone(),
                source,
            })?;
        let queues = spec.device.queue_sizes().len();
        let signals = Signals::new(Arc::clone(&msix), queues);
        let bell = Bell::new(spec.doorbells, queues);
        let identity = identity(spec.device.device_type(), spec.multifunction);
        let registers = Registers::new(
            spec.device,
            spec.memory,
            Arc::clone(&signals),
            Arc::clone(&bell),
        );
        let bars = vec![
            BarSpec {
                index: REGISTERS_BAR,
                kind: BarKind::Memory32,
                size: REGISTERS_LEN,
                device: Arc::clone(&registers) as Arc<dyn BusDevice>,
            },
            BarSpec {
                index: MSIX_BAR,
                kind: BarKind::Memory32,
                size: msix.bar_size(),
                device: Arc::clone(&msix) as Arc<dyn BusDevice>,
            },
        ];
        let moved = Box::new(move |index, base| {
            if index == REGISTERS_BAR {
                bell.move_to(base);
            }
        });
        let mut places = None;
        let built = PciCore::new(&spec.id, identity, bars, moved, |config| {
            places = add_capabilities(config, &msix);
            Ok::<(), Infallible>(())
        });
        let core = match built {
            Ok(core) => core,
            Err(never) => match never {},
        };
        let places = places.ok_or(PciError::NoRoom { id: spec.id })?;
        Ok(Arc::new(Self {
            core,
            registers,
            signals,
            msix,
            places,
        }))
    }

    /// The device behind the function.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn VirtioDevice> {
        self.registers.device()
    }

    /// A look at the device and its driver.
    #[must_use]
    pub fn view(&self) -> VirtioView {
        VirtioView::of(&self.registers)
    }

    /// The driver reads the window's data: what it shows is fetched from the BAR.
    fn fetch_window(&self) {
        let target = self.places.window.target(&self.core.config());
        let mut value = [0; 4];
        if let Some((device, offset, data)) = target.and_then(|(bar, offset, length)| {
            let device = self.reach(bar, offset, length)?;
            Some((device, offset, value.get_mut(..length)?))
        }) {
            device.read(offset, data);
        }
        self.places.window.show(&mut self.core.config(), value);
    }

    /// The driver has written the window's data: it goes to the BAR.
    fn flush_window(&self) {
        let (target, value) = {
            let config = self.core.config();
            let window = self.places.window;
            (window.target(&config), window.value(&config))
        };
        if let Some((device, offset, data)) = target.and_then(|(bar, offset, length)| {
            let device = self.reach(bar, offset, length)?;
            Some((device, offset, value.get(..length)?))
        }) {
            device.write(offset, data);
        }
    }

    /// Who answers in BAR `bar`, if the access lies inside.
    fn reach(&self, bar: usize, offset: u64, length: usize) -> Option<&Arc<dyn BusDevice>> {
        let bar = self.core.bar(bar)?;
        let end = offset.checked_add(u64::try_from(length).ok()?)?;
        (end <= bar.rounded()).then_some(&bar.device)
    }
}

fn identity(device_type: u16, multifunction: bool) -> Identity {
    Identity {
        vendor: VENDOR,
        device: DEVICE_ID.wrapping_add(device_type),
        revision: REVISION,
        class: class(device_type),
        subsystem: (VENDOR, SUBSYSTEM),
        header: if multifunction {
            regs::HEADER_MULTIFUNCTION
        } else {
            0
        },
        pin: 1,
    }
}

fn add_capabilities(config: &mut ConfigSpace, msix: &Msix) -> Option<Capabilities> {
    let window = capability::add_all(config)?;
    Some(Capabilities {
        window,
        msix: msix.add(config, u8::try_from(MSIX_BAR).ok()?)?,
        express: express::add_endpoint(config)?,
    })
}

impl Stateful for VirtioPci {
    type State = TransportState;

    fn save(&self) -> TransportState {
        self.registers.save()
    }

    fn load(&self, state: TransportState) -> Result<(), StateError> {
        self.registers.load(&state)
    }

    /// The device comes behind the negotiation, which tells it the driver's features.
    fn parts(&self) -> Parts<'_> {
        vec![
            ("config", &self.core),
            ("msix", self.msix.as_ref()),
            (BACKEND, self.registers.device().as_ref()),
        ]
    }

    fn settle(&self) {
        self.signals.disable_line(self.core.intx_disabled());
    }
}

impl Lifecycle for VirtioPci {
    fn pause(&self) {
        self.registers.pause();
    }

    fn resume(&self) {
        self.registers.resume();
    }

    fn reset(&self) {
        self.registers.reset();
        self.msix.reset();
        self.core.reset();
        self.signals.disable_line(false);
    }
}

impl PciFunction for VirtioPci {
    fn id(&self) -> &str {
        self.core.id()
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        if self.places.window.touches(offset, data.len()) {
            self.fetch_window();
        }
        self.core.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.core.write(offset, data);
        if self.places.window.touches(offset, data.len()) {
            self.flush_window();
        }
        let control = self.core.config().load16(self.places.msix + 2);
        let was_enabled = self.msix.enabled();
        self.msix.set_control(control);
        if was_enabled != self.msix.enabled() {
            self.registers.interrupts_moved();
        }
        self.signals.disable_line(self.core.intx_disabled());
    }

    fn attach(&self, attachment: Attachment) {
        let device = attachment.address.device();
        self.signals
            .set_line(|| attachment.wires.inta(device).source());
        let at = self.places.express;
        self.core.amend(|config| match attachment.bus {
            BusKind::Root => express::integrate(config, at),
            BusKind::Port => {}
            BusKind::Conventional => express::withdraw(config, at),
        });
        self.core.attach(&attachment);
    }

    fn detach(&self) {
        self.core.detach();
        self.registers.retire();
        self.msix.reset();
    }

    fn memory_changed(&self) -> io::Result<()> {
        self.registers.memory_changed()
    }

    fn inspect(&self) -> FunctionView {
        self.core.inspect()
    }
}

#[cfg(test)]
mod tests;
