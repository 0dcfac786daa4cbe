//! What nearly every function embeds: configuration space, BARs that follow it, and an id.

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::address::SlotAddress;
use super::bar::{self, BarKind, BarSpec};
use super::config::{ConfigSpace, ConfigState};
use super::function::{Attachment, Spaces};
use super::inspect::{FunctionView, RegionView};
use super::regs;
use crate::bus::Bus;
use crate::state::{StateError, Stateful};

/// The read-only identity registers of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Class code: base class, sub-class, programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor and device (header type 0 only).
    pub subsystem: (u16, u16),
    /// The header type register.
    pub header: u8,
    /// The interrupt pin: 0 none, 1 INTA.
    pub pin: u8,
}

/// Told where a BAR is, whenever that changes: `Some(base)` mapped, `None` not.
pub type BarMoved = Box<dyn Fn(usize, Option<u64>) + Send + Sync>;

/// Configuration space with BARs that are mapped where it says.
pub struct PciCore {
    id: String,
    config: Mutex<ConfigSpace>,
    at_reset: Mutex<ConfigSpace>,
    bars: Vec<BarSpec>,
    moved: BarMoved,
    /// Makes "see what the registers say, then map it" one step. Held while calling `Bus` and
    /// `moved`, which never call back into configuration space.
    placement: Mutex<Placement>,
}

struct Placement {
    spaces: Option<Spaces>,
    address: SlotAddress,
    mapped: Vec<Option<u64>>,
}

impl PciCore {
    /// A core whose header is filled in from `identity` and `bars`. More registers and
    /// capabilities are added by `build`.
    ///
    /// # Errors
    /// What `build` reports.
    pub fn new<E>(
        id: &str,
        identity: Identity,
        bars: Vec<BarSpec>,
        moved: BarMoved,
        build: impl FnOnce(&mut ConfigSpace) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut config = header(identity);
        for bar in &bars {
            bar.describe(&mut config);
        }
        build(&mut config)?;
        let mapped = vec![None; bars.len()];
        Ok(Self {
            id: id.to_owned(),
            at_reset: Mutex::new(config.clone()),
            config: Mutex::new(config),
            bars,
            moved,
            placement: Mutex::new(Placement {
                spaces: None,
                address: SlotAddress::slot(0),
                mapped,
            }),
        })
    }

    /// A core without BARs and capabilities.
    #[must_use]
    pub fn plain(id: &str, identity: Identity) -> Self {
        let built = Self::new(id, identity, Vec::new(), Box::new(|_, _| {}), |_| {
            Ok::<(), Infallible>(())
        });
        match built {
            Ok(core) => core,
            Err(never) => match never {},
        }
    }

    /// The id in the device tree.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The registers, for the device's own changes. Hold the guard for a few lines only.
    pub fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        lock(&self.config)
    }

    /// Changes a register now and in the state that a reset goes back to (for what is known only
    /// when the function is plugged).
    pub fn amend(&self, change: impl Fn(&mut ConfigSpace)) {
        change(&mut lock(&self.at_reset));
        change(&mut self.config());
    }

    /// Fills `data` from configuration space.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// Takes a guest's write and moves the BARs if it concerns them.
    pub fn write(&self, offset: u16, data: &[u8]) {
        self.config().write(offset, data);
        // COMMAND and the BARs are all the registers that place something.
        if offset < bar::register(bar::COUNT - 1) + 4 {
            self.place();
        }
    }

    /// The function has a place: BARs may be mapped from now on.
    pub fn attach(&self, attachment: &Attachment) {
        let mut placement = lock(&self.placement);
        placement.spaces = Some(attachment.spaces.clone());
        placement.address = attachment.address;
        drop(placement);
        self.place();
    }

    /// Unmaps everything for good.
    pub fn detach(&self) {
        let mut placement = lock(&self.placement);
        let Some(spaces) = placement.spaces.take() else {
            return;
        };
        for (bar, mapped) in self.bars.iter().zip(&mut placement.mapped) {
            if let Some(base) = mapped.take() {
                space_of(&spaces, bar.kind).remove(base);
                (self.moved)(bar.index, None);
            }
        }
    }

    /// Back to the registers after power-on; nothing is mapped.
    pub fn reset(&self) {
        let fresh = lock(&self.at_reset).clone();
        *self.config() = fresh;
        self.place();
    }

    /// The BAR `index`, for accesses that do not come over a bus.
    #[must_use]
    pub fn bar(&self, index: usize) -> Option<&BarSpec> {
        self.bars.iter().find(|bar| bar.index == index)
    }

    /// Whether COMMAND keeps the function from driving INTx.
    #[must_use]
    pub fn intx_disabled(&self) -> bool {
        self.config().load16(regs::COMMAND) & regs::COMMAND_INTX_DISABLE != 0
    }

    fn place(&self) {
        let mut placement = lock(&self.placement);
        let Placement { spaces, mapped, .. } = &mut *placement;
        let Some(spaces) = spaces else { return };
        for (bar, mapped) in self.bars.iter().zip(mapped) {
            let wanted = bar.decode(&self.config());
            if wanted == *mapped {
                continue;
            }
            let space = space_of(spaces, bar.kind);
            if let Some(old) = mapped.take() {
                space.remove(old);
                (self.moved)(bar.index, None);
            }
            let Some(base) = wanted else { continue };
            // A BAR on top of another device stays unmapped until it is moved: which of the two
            // answers is undefined on hardware, too.
            match space.insert(base, bar.rounded(), bar.device.clone()) {
                Ok(()) => {
                    *mapped = Some(base);
                    (self.moved)(bar.index, Some(base));
                }
                Err(overlap) => {
                    tracing::debug!(id = self.id, bar = bar.index, %overlap, "BAR not mapped");
                }
            }
        }
    }

    /// The registers as `query-pci` shows them.
    #[must_use]
    pub fn inspect(&self) -> FunctionView {
        let (address, mapped) = {
            let placement = lock(&self.placement);
            (placement.address, placement.mapped.clone())
        };
        let config = self.config();
        let is_bridge = config.load8(regs::HEADER_TYPE) & 0x7f == regs::HEADER_BRIDGE;
        FunctionView {
            id: self.id.clone(),
            bus: 0,
            address,
            class: config.load16(regs::REVISION + 2),
            vendor: config.load16(regs::VENDOR),
            device: config.load16(regs::DEVICE),
            subsystem: (!is_bridge).then(|| {
                (
                    config.load16(regs::SUBSYSTEM),
                    config.load16(regs::SUBSYSTEM + 2),
                )
            }),
            irq: config.load8(regs::INTERRUPT_LINE),
            irq_pin: config.load8(regs::INTERRUPT_PIN),
            regions: self
                .bars
                .iter()
                .zip(mapped)
                .map(|(bar, address)| RegionView {
                    index: bar.index,
                    kind: bar.kind,
                    size: bar.rounded(),
                    address,
                })
                .collect(),
            bridge: None,
        }
    }
}

impl Stateful for PciCore {
    type State = ConfigState;

    fn save(&self) -> ConfigState {
        self.config().save()
    }

    fn load(&self, state: ConfigState) -> Result<(), StateError> {
        self.config().load(&state)
    }

    fn settle(&self) {
        self.place();
    }
}

fn header(identity: Identity) -> ConfigSpace {
    let mut config = ConfigSpace::new();
    config.store16(regs::VENDOR, identity.vendor);
    config.store16(regs::DEVICE, identity.device);
    let [class, subclass, interface] = identity.class;
    config.store(
        regs::REVISION,
        &[identity.revision, interface, subclass, class],
    );
    config.store(regs::HEADER_TYPE, &[identity.header]);
    if identity.header & 0x7f != regs::HEADER_BRIDGE {
        let (vendor, device) = identity.subsystem;
        config.store16(regs::SUBSYSTEM, vendor);
        config.store16(regs::SUBSYSTEM + 2, device);
    }
    config.store(regs::INTERRUPT_PIN, &[identity.pin]);
    // I/O, memory and master are writable even without such a BAR: drivers check that they stick.
    let command = regs::COMMAND_IO
        | regs::COMMAND_MEMORY
        | regs::COMMAND_MASTER
        | regs::COMMAND_INTX_DISABLE
        | 1 << 6
        | 1 << 8;
    config.allow(regs::COMMAND, &command.to_le_bytes());
    // Cache line size: writable scratch, as software expects.
    config.allow(0x0c, &[0xff]);
    config.allow(regs::INTERRUPT_LINE, &[0xff]);
    config
}

fn space_of(spaces: &Spaces, kind: BarKind) -> &Bus {
    match kind {
        BarKind::Io => &spaces.io,
        BarKind::Memory32 | BarKind::Memory64 => &spaces.memory,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
