//! What the tree needs of a bridge: the bus behind it, and the numbers the guest gave it; and the
//! registers that all bridges have.

use std::sync::Arc;

use super::address::SlotAddress;
use super::bus::PciBus;
use super::config::ConfigSpace;
use super::error::PciError;
use super::inspect::WindowView;
use super::regs;

/// The bus numbers programmed into a bridge. All zero means: closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusNumbers {
    /// The bus in front.
    pub primary: u8,
    /// The bus behind.
    pub secondary: u8,
    /// The highest bus behind.
    pub subordinate: u8,
}

impl BusNumbers {
    /// As they stand in the register [`regs::PRIMARY_BUS`].
    #[must_use]
    pub const fn of(register: u32) -> Self {
        let [primary, secondary, subordinate, _] = register.to_le_bytes();
        Self {
            primary,
            secondary,
            subordinate,
        }
    }

    /// Whether a configuration access for `bus` goes through the bridge.
    #[must_use]
    pub const fn forwards(self, bus: u8) -> bool {
        self.secondary != 0 && self.secondary <= bus && bus <= self.subordinate
    }
}

/// The bridge side of a function.
pub trait Bridge: Send + Sync {
    /// The bus behind it.
    fn bus(&self) -> &Arc<PciBus>;

    /// The numbers as programmed now.
    fn numbers(&self) -> BusNumbers;

    /// The memory and the prefetchable window as programmed now.
    fn windows(&self) -> (WindowView, WindowView);

    /// A function has appeared on the bus behind. `running`: tell the guest.
    fn plugged(&self, running: bool);

    /// Asks the guest to let go of the device at `address`, whose function `id` is. When it has,
    /// the bridge takes all functions of that device off its bus and reports each.
    ///
    /// # Errors
    /// The guest was asked before and has not answered, or is at work on the slot.
    fn request_unplug(&self, address: SlotAddress, id: &str) -> Result<(), PciError>;

    /// Takes the device at `address` off the bus behind, now, and reports each of its functions.
    fn eject(&self, address: SlotAddress);

    /// A function has been taken off the bus behind because its plugging had to be undone: look
    /// again. `running`: tell the guest.
    fn withdrawn(&self, running: bool);
}

/// Describes the registers that each bridge here has: bus numbers, memory and prefetchable window,
/// and of bridge control what `control` says. No bridge forwards ports: nothing behind one has any.
pub(super) fn describe(config: &mut ConfigSpace, control: u16) {
    config.allow(regs::PRIMARY_BUS, &[0xff; 3]);
    for window in [regs::MEMORY_BASE, regs::PREFETCH_BASE] {
        config.allow(window, &[0xf0, 0xff, 0xf0, 0xff]);
        // Closed: the base above the limit.
        config.store16(window, 0xfff0);
    }
    for low in [regs::PREFETCH_BASE, regs::PREFETCH_LIMIT] {
        let wide = config.load16(low) | 1;
        config.store16(low, wide);
    }
    config.allow(regs::PREFETCH_BASE_HIGH, &[0xff; 8]);
    config.allow(regs::BRIDGE_CONTROL, &control.to_le_bytes());
}

/// The memory and the prefetchable window as they stand in the registers.
pub(super) fn windows(config: &ConfigSpace) -> (WindowView, WindowView) {
    let low = |at| u64::from(config.load16(at) & 0xfff0) << 16;
    let high = |at| u64::from(config.load32(at)) << 32;
    let memory = WindowView {
        base: low(regs::MEMORY_BASE),
        limit: low(regs::MEMORY_LIMIT) | 0xf_ffff,
    };
    let prefetchable = WindowView {
        base: high(regs::PREFETCH_BASE_HIGH) | low(regs::PREFETCH_BASE),
        limit: high(regs::PREFETCH_LIMIT_HIGH) | low(regs::PREFETCH_LIMIT) | 0xf_ffff,
    };
    (memory, prefetchable)
}

/// Resets what is behind: the guest has set the bit of bridge control for it.
pub(super) fn reset_secondary(bus: &PciBus) {
    for (_, function) in bus.functions() {
        function.reset();
    }
}
