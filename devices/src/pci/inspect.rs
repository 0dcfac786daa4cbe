//! What can be seen of the tree from outside: `query-pci` and the placing of addresses read it.

use super::address::SlotAddress;
use super::bar::BarKind;
use super::bus::BusKind;

/// A BAR as it stands now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionView {
    /// Which BAR.
    pub index: usize,
    /// Space and width.
    pub kind: BarKind,
    /// Size in bytes, a power of two.
    pub size: u64,
    /// Where it is mapped; `None` while it is not.
    pub address: Option<u64>,
}

/// An inclusive range of addresses that a bridge forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowView {
    /// The first address.
    pub base: u64,
    /// The last address; below `base` while the window is closed.
    pub limit: u64,
}

/// A bridge: its bus numbers, its windows, and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeView {
    /// The name of the bus behind it.
    pub bus: String,
    /// What kind of slots that has.
    pub kind: BusKind,
    /// The number of the bus it sits on, as programmed.
    pub primary: u8,
    /// The number of the bus behind it.
    pub secondary: u8,
    /// The highest bus number behind it.
    pub subordinate: u8,
    /// The memory window.
    pub memory: WindowView,
    /// The prefetchable memory window.
    pub prefetchable: WindowView,
    /// The functions behind it.
    pub functions: Vec<FunctionView>,
}

/// One function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionView {
    /// Its id in the device tree; empty for a part of the machine.
    pub id: String,
    /// The number of its bus, as programmed.
    pub bus: u8,
    /// Its place on the bus.
    pub address: SlotAddress,
    /// Base class in bits 15..8, sub-class in bits 7..0.
    pub class: u16,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor and device; `None` for a bridge.
    pub subsystem: Option<(u16, u16)>,
    /// The interrupt line register.
    pub irq: u8,
    /// The interrupt pin: 0 none, 1 INTA to 4 INTD.
    pub irq_pin: u8,
    /// Its BARs.
    pub regions: Vec<RegionView>,
    /// What is behind it, if it is a bridge.
    pub bridge: Option<BridgeView>,
}
