//! What a PCI function has on its other side: lines, vectors and doorbells that do nothing, but
//! that a driver can wait for.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use devices::irq::{Doorbells, Interrupt, IrqError, IrqLine, MsiController, MsiMessage, MsiVector};
use devices::reactor::Reactor;
use vmm_sys_util::eventfd::EventFd;

/// How long a driver waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// The thread of slow devices: one for all inputs.
pub(crate) fn reactor() -> &'static Reactor {
    static REACTOR: OnceLock<Reactor> = OnceLock::new();
    REACTOR.get_or_init(Reactor::new)
}

/// A line that can be waited for.
#[derive(Default)]
pub(crate) struct Line {
    high: Mutex<bool>,
    changed: Condvar,
}

impl Line {
    /// Four of them, as a bus wants them.
    pub(crate) fn four() -> [Arc<Self>; 4] {
        std::array::from_fn(|_| Arc::default())
    }

    /// Waits until it is high.
    pub(crate) fn wait(&self) {
        let high = self.high.lock().expect("nobody panics");
        let waited = self
            .changed
            .wait_timeout_while(high, PATIENCE, |high| !*high);
        let (high, _) = waited.expect("nobody panics");
        assert!(*high, "no interrupt has come");
    }
}

impl IrqLine for Line {
    fn set(&self, high: bool) {
        *self.high.lock().expect("nobody panics") = high;
        self.changed.notify_all();
    }
}

/// Vectors and doorbells that lead nowhere.
pub(crate) struct Nowhere;

impl MsiController for Nowhere {
    fn vector(&self) -> Result<Box<dyn MsiVector>, IrqError> {
        Ok(Box::new(Self))
    }

    fn send(&self, _message: MsiMessage) {}
}

impl Interrupt for Nowhere {
    fn trigger(&self) {}

    fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl MsiVector for Nowhere {
    fn route(&self, _message: Option<MsiMessage>) -> Result<(), IrqError> {
        Ok(())
    }
}

impl Doorbells for Nowhere {
    fn assign(&self, _address: u64, _len: usize, _fd: &EventFd) -> Result<(), IrqError> {
        Ok(())
    }

    fn unassign(&self, _address: u64, _len: usize, _fd: &EventFd) {}
}
