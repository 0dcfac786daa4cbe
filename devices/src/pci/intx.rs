//! INTx: four wires shared by everybody.
//!
//! Several functions hang on one wire, so a wire is high while *any* of them drives it. The pin
//! rotates with the device number at each bus (PCI-to-PCI bridge 1.2, table 9-1; PCI Express Base
//! 5.0, 2.2.8.1), and the root's four wires are GSIs that the machine's `_PRT` names:
//! `wire = (device + pin) & 3`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::irq::IrqLine;

/// One wire that several sources drive.
pub struct Wire {
    line: Arc<dyn IrqLine>,
    drivers: AtomicUsize,
    /// Makes "note the source, count, drive the line" one step; the line never calls back.
    settling: Mutex<()>,
}

impl Wire {
    /// A wire that ends at `line`.
    #[must_use]
    pub fn new(line: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self {
            line,
            drivers: AtomicUsize::new(0),
            settling: Mutex::new(()),
        })
    }

    /// A new source; dropping it lets go of the wire.
    #[must_use]
    pub fn source(self: &Arc<Self>) -> Arc<dyn IrqLine> {
        Arc::new(Source {
            wire: Arc::clone(self),
            high: AtomicBool::new(false),
        })
    }

    fn change(&self, source: &AtomicBool, high: bool) {
        let _settling = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        // In here, because two threads that change one source in turn must also count in turn.
        if source.swap(high, Ordering::Relaxed) == high {
            return;
        }
        let before = self.drivers.load(Ordering::Relaxed);
        let after = if high {
            before.saturating_add(1)
        } else {
            before.saturating_sub(1)
        };
        self.drivers.store(after, Ordering::Relaxed);
        if (before == 0) != (after == 0) {
            self.line.set(after != 0);
        }
    }
}

struct Source {
    wire: Arc<Wire>,
    high: AtomicBool,
}

impl IrqLine for Source {
    fn set(&self, high: bool) {
        self.wire.change(&self.high, high);
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// The four wires of one bus, INTA to INTD.
#[derive(Clone)]
pub struct Wires([Arc<Wire>; 4]);

impl Wires {
    /// The root's wires, ending at the lines of four GSIs.
    #[must_use]
    pub fn new(lines: [Arc<dyn IrqLine>; 4]) -> Self {
        Self(lines.map(Wire::new))
    }

    /// The wire that INTA of the device `device` on this bus is connected to.
    #[must_use]
    pub fn inta(&self, device: u8) -> &Arc<Wire> {
        let [a, b, c, d] = &self.0;
        match device & 3 {
            0 => a,
            1 => b,
            2 => c,
            _ => d,
        }
    }

    /// The wires of the bus behind the bridge at `device`.
    #[must_use]
    pub fn behind(&self, device: u8) -> Self {
        Self([0, 1, 2, 3].map(|pin: u8| Arc::clone(self.inta(device.wrapping_add(pin)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Level(AtomicBool);
    impl IrqLine for Level {
        fn set(&self, high: bool) {
            self.0.store(high, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_wire_is_high_while_any_source_drives_it() {
        let level = Arc::new(Level::default());
        let wire = Wire::new(Arc::clone(&level) as Arc<dyn IrqLine>);
        let (one, two) = (wire.source(), wire.source());
        one.set(true);
        one.set(true);
        two.set(true);
        one.set(false);
        assert!(level.0.load(Ordering::Relaxed));
        drop(two);
        assert!(!level.0.load(Ordering::Relaxed));
    }

    #[test]
    fn a_wire_is_low_after_two_threads_have_fought_over_a_source() {
        let level = Arc::new(Level::default());
        let wire = Wire::new(Arc::clone(&level) as Arc<dyn IrqLine>);
        let source = wire.source();
        std::thread::scope(|scope| {
            for high in [true, false] {
                let source = &source;
                scope.spawn(move || (0..20_000).for_each(|_| source.set(high)));
            }
        });
        source.set(false);
        assert_eq!(wire.drivers.load(Ordering::Relaxed), 0);
        assert!(!level.0.load(Ordering::Relaxed));
    }

    #[test]
    fn pins_rotate_with_the_device_number() {
        let lines = [0, 1, 2, 3].map(|_| Arc::new(Level::default()) as Arc<dyn IrqLine>);
        let root = Wires::new(lines);
        assert!(Arc::ptr_eq(root.inta(5), root.inta(1)));
        assert!(Arc::ptr_eq(root.behind(1).inta(2), root.inta(3)));
    }
}
