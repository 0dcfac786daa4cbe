//! What a PCI function is to the tree.

use std::io;
use std::sync::Arc;

use super::address::SlotAddress;
use super::bridge::Bridge;
use super::bus::BusKind;
use super::inspect::FunctionView;
use super::intx::Wires;
use crate::bus::Bus;
use crate::lifecycle::Lifecycle;
use crate::state::AnyStateful;

/// The two address spaces that BARs are mapped into.
#[derive(Clone, Default)]
pub struct Spaces {
    /// Ports.
    pub io: Arc<Bus>,
    /// Memory.
    pub memory: Arc<Bus>,
}

/// What a function is given when it is plugged.
#[derive(Clone)]
pub struct Attachment {
    /// Where its BARs are mapped.
    pub spaces: Spaces,
    /// Its place on the bus.
    pub address: SlotAddress,
    /// The bus's interrupt wires.
    pub wires: Wires,
    /// The bus: on the root bus a PCI Express function is an *integrated endpoint*, on a
    /// conventional one no PCI Express function at all.
    pub bus: BusKind,
}

/// A PCI function: an endpoint, a bridge, or a part of the chipset.
///
/// The tree promises: `attach` once before any access, `detach` once after the last one that it
/// starts; accesses may come from several vCPUs at once, with any offset below 4096 and any
/// length from 1 to 8. The function promises: no panic; what lies behind the end of its registers
/// reads as zero; `detach` returns when nothing is mapped and no queue runs.
pub trait PciFunction: Lifecycle + AnyStateful {
    /// The id in the device tree; empty for a part of the machine.
    fn id(&self) -> &str;

    /// Fills `data` from configuration space.
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// Takes a guest's write to configuration space.
    fn config_write(&self, offset: u16, data: &[u8]);

    /// The function has a place now.
    fn attach(&self, attachment: Attachment);

    /// The function loses its place: unmap everything, stop all work.
    fn detach(&self);

    /// Guest memory has other regions from now on.
    ///
    /// # Errors
    /// It cannot work with these, and goes on with those before, which are kept for it.
    fn memory_changed(&self) -> io::Result<()> {
        Ok(())
    }

    /// The bridge side, if it is one.
    fn bridge(&self) -> Option<&dyn Bridge> {
        None
    }

    /// Registers as `query-pci` shows them; `bus` and `bridge` are filled in by the tree.
    fn inspect(&self) -> FunctionView;
}
