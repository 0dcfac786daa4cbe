//! What the tree needs of a bridge: the bus behind it, and the numbers the guest gave it.

use std::sync::Arc;

use super::bus::PciBus;
use super::error::PciError;
use super::inspect::WindowView;

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

    /// Asks the guest to let go of what is behind. When it has, the bridge takes the functions
    /// off its bus and reports each.
    ///
    /// # Errors
    /// The guest was asked before and has not answered, or is at work on the slot.
    fn request_unplug(&self, id: &str) -> Result<(), PciError>;

    /// Takes everything off the bus behind, now, and reports each function.
    fn eject(&self);

    /// A function has been taken off the bus behind because its plugging had to be undone: look
    /// again. `running`: tell the guest.
    fn withdrawn(&self, running: bool);
}
