//! What tests put on the other side of a PCI function: lines, vectors, doorbells and notices that
//! remember.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::irq::{Doorbells, Interrupt, IrqError, IrqLine, MsiController, MsiMessage, MsiVector};
use crate::notice::{Notice, NoticeSink};

/// A line that remembers its level.
#[derive(Default)]
pub(crate) struct Level(AtomicBool);

impl Level {
    pub(crate) fn high(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl IrqLine for Level {
    fn set(&self, high: bool) {
        self.0.store(high, Ordering::SeqCst);
    }
}

/// A vector's doings, seen from the controller.
#[derive(Default)]
pub(crate) struct VectorLog {
    pub(crate) route: Mutex<Option<MsiMessage>>,
    pub(crate) triggered: AtomicUsize,
}

struct LoggedVector(Arc<VectorLog>);

impl Interrupt for LoggedVector {
    fn trigger(&self) {
        assert!(
            self.0.route.lock().unwrap().is_some(),
            "a masked vector is never triggered"
        );
        self.0.triggered.fetch_add(1, Ordering::SeqCst);
    }

    fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl MsiVector for LoggedVector {
    fn route(&self, message: Option<MsiMessage>) -> Result<(), IrqError> {
        *self.0.route.lock().unwrap() = message;
        Ok(())
    }
}

/// A controller that remembers its vectors and what was sent without one.
#[derive(Default)]
pub(crate) struct Controller {
    pub(crate) vectors: Mutex<Vec<Arc<VectorLog>>>,
    pub(crate) sent: Mutex<Vec<MsiMessage>>,
}

impl Controller {
    pub(crate) fn vector_log(&self, index: usize) -> Arc<VectorLog> {
        Arc::clone(&self.vectors.lock().unwrap()[index])
    }

    pub(crate) fn triggered(&self, index: usize) -> usize {
        self.vector_log(index).triggered.load(Ordering::SeqCst)
    }

    pub(crate) fn sent(&self) -> usize {
        self.sent.lock().unwrap().len()
    }
}

impl MsiController for Controller {
    fn vector(&self) -> Result<Box<dyn MsiVector>, IrqError> {
        let log = Arc::new(VectorLog::default());
        self.vectors.lock().unwrap().push(Arc::clone(&log));
        Ok(Box::new(LoggedVector(log)))
    }

    fn send(&self, message: MsiMessage) {
        self.sent.lock().unwrap().push(message);
    }
}

/// Doorbells that remember which addresses are assigned.
#[derive(Default)]
pub(crate) struct Bells(pub(crate) Mutex<Vec<u64>>);

impl Doorbells for Bells {
    fn assign(&self, address: u64, _len: usize, _fd: &EventFd) -> Result<(), IrqError> {
        self.0.lock().unwrap().push(address);
        Ok(())
    }

    fn unassign(&self, address: u64, _len: usize, _fd: &EventFd) {
        self.0.lock().unwrap().retain(|&other| other != address);
    }
}

/// Four lines that nobody looks at.
pub(crate) fn lines() -> [Arc<dyn IrqLine>; 4] {
    [0, 1, 2, 3].map(|_| Arc::new(Level::default()) as Arc<dyn IrqLine>)
}

/// A sink, and what it has heard.
pub(crate) fn notices() -> (NoticeSink, Arc<Mutex<Vec<Notice>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hear = Arc::clone(&heard);
    (
        NoticeSink::new(move |notice| hear.lock().unwrap().push(notice)),
        heard,
    )
}
