//! The device's ways to its driver: used buffers, configuration changes, "I am broken".
//!
//! Nothing here takes a lock of the transport, so a device's worker may call it at any time, also
//! while the transport waits for that worker to stop.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::status::Status;
use crate::irq::{Interrupt, IrqLine, drive};
use crate::pci::msix::Msix;
use crate::virtio::device::DriverNotifier;

/// "No vector" in a vector register (virtio 1.2, 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// ISR bit: a queue has used buffers.
const ISR_QUEUE: u8 = 1;
/// ISR bit: the configuration has changed.
const ISR_CONFIG: u8 = 2;

/// Interrupts, and the registers that the device changes by itself.
pub struct Signals {
    msix: Arc<Msix>,
    line: OnceLock<Arc<dyn IrqLine>>,
    /// COMMAND keeps the function from driving its line.
    line_disabled: AtomicBool,
    isr: AtomicU8,
    status: AtomicU8,
    generation: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
}

/// What a snapshot keeps of the signals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalsState {
    /// The status register.
    pub status: u8,
    /// The interrupt status.
    pub isr: u8,
    /// How often the configuration has changed, modulo 256.
    pub generation: u8,
    /// The vector for configuration changes; 65535 is none.
    pub config_vector: u16,
    /// The vectors of the queues.
    pub queue_vectors: Vec<u16>,
}

impl Signals {
    /// Signals of a device with `queues` queues.
    #[must_use]
    pub fn new(msix: Arc<Msix>, queues: usize) -> Arc<Self> {
        Arc::new(Self {
            msix,
            line: OnceLock::new(),
            line_disabled: AtomicBool::new(false),
            isr: AtomicU8::new(0),
            status: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        })
    }

    /// The line for INTx, known when the function is plugged.
    pub fn set_line(&self, line: impl FnOnce() -> Arc<dyn IrqLine>) {
        self.line.get_or_init(line);
    }

    /// COMMAND has changed.
    pub fn disable_line(&self, disabled: bool) {
        self.line_disabled.store(disabled, Ordering::Release);
        self.settle_line();
    }

    /// The status register.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::from_bits_retain(self.status.load(Ordering::Acquire))
    }

    /// Adds bits to the status register.
    pub fn add_status(&self, bits: Status) {
        self.status.fetch_or(bits.bits(), Ordering::AcqRel);
    }

    /// How often the configuration has changed, modulo 256.
    #[must_use]
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// The vector for configuration changes.
    #[must_use]
    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// Sets it; a vector that does not exist becomes [`NO_VECTOR`], which tells the driver.
    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector
            .store(self.existing(vector), Ordering::Release);
    }

    /// The vector of a queue.
    #[must_use]
    pub fn queue_vector(&self, queue: usize) -> u16 {
        self.queue_vectors
            .get(queue)
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Sets it, as [`set_config_vector`](Self::set_config_vector).
    pub fn set_queue_vector(&self, queue: usize, vector: u16) {
        if let Some(register) = self.queue_vectors.get(queue) {
            register.store(self.existing(vector), Ordering::Release);
        }
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.count() {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// Reads and clears the ISR; the line falls.
    #[must_use]
    pub fn take_isr(&self) -> u8 {
        let isr = self.isr.swap(0, Ordering::AcqRel);
        self.settle_line();
        isr
    }

    /// Back to the state after a reset of the device.
    pub fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.isr.store(0, Ordering::Release);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.settle_line();
    }

    /// What a snapshot keeps of them.
    pub(super) fn save(&self) -> SignalsState {
        let load = |vector: &AtomicU16| vector.load(Ordering::Acquire);
        SignalsState {
            status: self.status().bits(),
            isr: self.isr.load(Ordering::Acquire),
            generation: self.generation(),
            config_vector: self.config_vector(),
            queue_vectors: self.queue_vectors.iter().map(load).collect(),
        }
    }

    /// Goes on from a snapshot. Vectors that do not exist become [`NO_VECTOR`].
    pub(super) fn load(&self, state: &SignalsState) {
        self.status.store(state.status, Ordering::Release);
        let isr = state.isr & (ISR_QUEUE | ISR_CONFIG);
        self.isr.store(isr, Ordering::Release);
        self.generation.store(state.generation, Ordering::Release);
        self.set_config_vector(state.config_vector);
        for (queue, vector) in state.queue_vectors.iter().enumerate() {
            self.set_queue_vector(queue, *vector);
        }
    }

    fn raise(&self, bit: u8, vector: u16) {
        if self.msix.enabled() {
            if vector != NO_VECTOR {
                self.msix.trigger(vector);
            }
        } else {
            self.isr.fetch_or(bit, Ordering::AcqRel);
            self.settle_line();
        }
    }

    fn settle_line(&self) {
        if let Some(line) = self.line.get() {
            drive(line.as_ref(), || {
                // With MSI-X enabled a function has no line (PCI Local Bus 3.0, 6.8.3.3).
                self.isr.load(Ordering::Acquire) != 0
                    && !self.line_disabled.load(Ordering::Acquire)
                    && !self.msix.enabled()
            });
        }
    }
}

impl DriverNotifier for Signals {
    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if self.status().contains(Status::DRIVER_OK) {
            // Both bits, as QEMU: a driver without vectors then looks at its queues too, and its
            // tests wait for it.
            self.raise(ISR_CONFIG | ISR_QUEUE, self.config_vector());
        }
    }

    fn needs_reset(&self) {
        self.add_status(Status::NEEDS_RESET);
        // "If DRIVER_OK is set", the driver is told (virtio 1.2, 2.1.2).
        if self.status().contains(Status::DRIVER_OK) {
            self.raise(ISR_CONFIG, self.config_vector());
        }
    }
}

/// The interrupt of one queue.
pub struct QueueInterrupt {
    signals: Arc<Signals>,
    queue: usize,
}

impl QueueInterrupt {
    /// The interrupt of queue `queue`.
    #[must_use]
    pub const fn new(signals: Arc<Signals>, queue: usize) -> Self {
        Self { signals, queue }
    }
}

impl Interrupt for QueueInterrupt {
    fn trigger(&self) {
        self.signals
            .raise(ISR_QUEUE, self.signals.queue_vector(self.queue));
    }

    fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        if !self.signals.msix.enabled() {
            return None;
        }
        self.signals
            .msix
            .eventfd(self.signals.queue_vector(self.queue))
    }
}
