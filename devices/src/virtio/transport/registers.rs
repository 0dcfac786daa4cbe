//! The registers' BAR: common configuration (virtio 1.2, 4.1.4.3), ISR, device configuration and
//! doorbells, and the queues that follow from them.
//!
//! One lock, `negotiation`, makes each driver's write one step with what it causes (features,
//! queues started and stopped). It is the outermost lock of a device: held while calling
//! [`VirtioDevice`], which answers through [`Signals`] only, never through here.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bell::Bell;
use super::interrupt::{QueueInterrupt, Signals};
use super::layout::{COMMON, DEVICE, ISR, MAX_QUEUES, NOTIFY, NOTIFY_STRIDE, REGION_LEN};
use super::negotiation::{Negotiation, Place, QueueRegisters};
use super::state::TransportState;
use super::status::{Phase, Status, Step};
use crate::bus::BusDevice;
use crate::irq::Interrupt;
use crate::memory::GuestMem;
use crate::repeats::Repeats;
use crate::state::{SavedState, StateError};
use crate::virtio::device::{ActiveQueue, DriverNotifier, VirtioDevice, VirtioError, read_config};

/// Feature: the device follows version 1 of the specification. Always offered, always demanded.
pub const F_VERSION_1: u64 = 1 << 32;
/// Feature: used_event and avail_event.
pub const F_EVENT_IDX: u64 = 1 << 29;

/// The length of the common configuration.
const COMMON_LEN: usize = 0x40;

/// A device with its registers.
pub struct Registers {
    device: Arc<dyn VirtioDevice>,
    memory: GuestMem,
    signals: Arc<Signals>,
    bell: Arc<Bell>,
    negotiation: Mutex<Negotiation>,
    /// Queues that did not start: a driver may try for ever.
    refused: Repeats,
}

impl Registers {
    /// The registers of `device`, after power-on.
    #[must_use]
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        memory: GuestMem,
        signals: Arc<Signals>,
        bell: Arc<Bell>,
    ) -> Arc<Self> {
        device.attach(Arc::clone(&signals) as Arc<dyn DriverNotifier>);
        let negotiation = Mutex::new(Negotiation::new(device.queue_sizes()));
        Arc::new(Self {
            device,
            memory,
            signals,
            bell,
            negotiation,
            refused: Repeats::default(),
        })
    }

    /// The device behind the registers.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn VirtioDevice> {
        &self.device
    }

    /// Where its rings live.
    pub(super) fn memory(&self) -> &GuestMem {
        &self.memory
    }

    fn lock(&self) -> MutexGuard<'_, Negotiation> {
        self.negotiation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The features that a driver is offered.
    pub(super) fn offered(&self) -> u64 {
        self.device.features() | F_VERSION_1
    }

    /// Takes all queues back; the device touches no guest memory until [`resume`](Self::resume).
    pub fn pause(&self) {
        let mut negotiation = self.lock();
        negotiation.paused = true;
        for (index, queue) in negotiation.queues.iter_mut().enumerate() {
            if matches!(queue.place, Place::Running) {
                self.bell.disconnect(index);
                queue.place = match self.device.stop_queue(index) {
                    Some(state) => Place::Paused(state),
                    None => Place::Idle,
                };
            }
        }
    }

    /// Gives the queues back where they were.
    pub fn resume(&self) {
        let mut negotiation = self.lock();
        negotiation.paused = false;
        for (index, queue) in negotiation.queues.iter_mut().enumerate() {
            if let Place::Paused(state) = queue.place {
                queue.place = self.start_or_break(index, state);
            }
        }
    }

    /// A reset of the device, by status or by the machine.
    pub fn reset(&self) {
        self.reset_locked(&mut self.lock());
    }

    /// A reset after which nothing starts again: the function is unplugged.
    pub fn retire(&self) {
        let mut negotiation = self.lock();
        negotiation.retired = true;
        self.reset_locked(&mut negotiation);
    }

    /// The driver has enabled or disabled MSI-X: all interrupts go another way.
    pub fn interrupts_moved(&self) {
        for (index, queue) in self.lock().queues.iter().enumerate() {
            if matches!(queue.place, Place::Running) {
                self.device.interrupt_moved(index);
            }
        }
    }

    /// Guest memory has other regions from now on. No queue starts or stops meanwhile.
    ///
    /// # Errors
    /// The device cannot work with these.
    pub fn memory_changed(&self) -> io::Result<()> {
        let _negotiation = self.lock();
        self.device.memory_changed()
    }

    fn reset_locked(&self, negotiation: &mut Negotiation) {
        for (index, queue) in negotiation.queues.iter().enumerate() {
            if matches!(queue.place, Place::Running) {
                self.bell.disconnect(index);
                self.device.stop_queue(index);
            }
        }
        self.device.reset();
        *negotiation = Negotiation {
            paused: negotiation.paused,
            retired: negotiation.retired,
            ..Negotiation::new(self.device.queue_sizes())
        };
        self.signals.reset();
    }

    /// What a snapshot keeps.
    pub(super) fn save(&self) -> TransportState {
        let negotiation = self.lock();
        TransportState {
            offered_select: negotiation.offered_select,
            accepted_select: negotiation.accepted_select,
            accepted: negotiation.accepted,
            queue_select: negotiation.queue_select,
            signals: self.signals.save(),
            queues: negotiation
                .queues
                .iter()
                .map(QueueRegisters::save)
                .collect(),
        }
    }

    /// Goes on from a snapshot, while paused: queues start at the next [`resume`](Self::resume).
    ///
    /// # Errors
    /// The machine runs, or the device is never in that state; nothing has changed.
    pub(super) fn load(&self, state: &TransportState) -> Result<(), StateError> {
        let mut negotiation = self.lock();
        let has_begun = |queue: &QueueRegisters| matches!(queue.place, Place::Running);
        if negotiation.queues.iter().any(has_begun) {
            return Err(TransportState::refused("the device runs: pause it first"));
        }
        let phase = state.check(self.offered(), self.device.queue_sizes())?;
        self.device.reset();
        if matches!(phase, Phase::Agreed | Phase::Running | Phase::Failed) {
            let known = state.accepted & self.device.features();
            self.device.set_features(known);
        }
        let event_idx = state.accepted & F_EVENT_IDX != 0;
        negotiation.phase = phase;
        negotiation.offered_select = state.offered_select;
        negotiation.accepted_select = state.accepted_select;
        negotiation.accepted = state.accepted;
        negotiation.queue_select = state.queue_select;
        for (queue, saved) in negotiation.queues.iter_mut().zip(&state.queues) {
            queue.load(saved, event_idx);
        }
        self.signals.load(&state.signals);
        Ok(())
    }

    fn start_or_break(&self, index: usize, state: QueueState) -> Place {
        match self.start(index, state) {
            Ok(()) => Place::Running,
            Err(error) => {
                if let Some(times) = self.refused.note() {
                    tracing::warn!(times, %error, "virtio device needs a reset");
                }
                self.signals.needs_reset();
                Place::Idle
            }
        }
    }

    fn start(&self, index: usize, state: QueueState) -> Result<(), VirtioError> {
        let bad = |_| VirtioError::BadRing { index };
        let queue = Queue::try_from(state).map_err(bad)?;
        if !queue.is_valid(&*self.memory.memory()) {
            return Err(VirtioError::BadRing { index });
        }
        let no_eventfd = |source| VirtioError::Backend {
            index,
            what: "no eventfd for the doorbell".to_owned(),
            source,
        };
        let kick = EventFd::new(EFD_NONBLOCK).map_err(no_eventfd)?;
        let bell = kick.try_clone().map_err(no_eventfd)?;
        // Buffers may have been made available before anybody listened.
        kick.write(1).map_err(no_eventfd)?;
        let interrupt: Arc<dyn Interrupt> =
            Arc::new(QueueInterrupt::new(Arc::clone(&self.signals), index));
        self.device.start_queue(
            index,
            ActiveQueue {
                queue,
                memory: self.memory.clone(),
                kick,
                interrupt,
            },
        )?;
        self.bell.connect(index, bell);
        Ok(())
    }

    /// Starts a queue, or leaves it for [`resume`](Self::resume) while paused.
    fn launch(&self, index: usize, negotiation: &mut Negotiation) {
        let event_idx = negotiation.accepted & F_EVENT_IDX != 0;
        let Negotiation {
            paused, retired, ..
        } = *negotiation;
        let Some(queue) = negotiation.queues.get_mut(index) else {
            return;
        };
        if retired || !queue.enabled || !matches!(queue.place, Place::Idle) {
            return;
        }
        let state = queue.describe(event_idx);
        queue.place = if paused {
            Place::Paused(state)
        } else {
            self.start_or_break(index, state)
        };
    }

    fn write_status(&self, negotiation: &mut Negotiation, value: u8) {
        if value == 0 {
            self.reset_locked(negotiation);
            return;
        }
        let written = Status::from_bits_truncate(value);
        while let Some((bit, step, to)) = negotiation.phase.step(self.signals.status(), written) {
            if step == Step::Agree && !self.agree(negotiation.accepted) {
                // FEATURES_OK stays clear: the driver reads it back and gives up.
                return;
            }
            if step == Step::Run && negotiation.phase == Phase::Driving {
                // Without FEATURES_OK the driver has accepted nothing, whatever it wrote.
                negotiation.accepted = 0;
                self.device.set_features(0);
            }
            negotiation.phase = to;
            self.signals.add_status(bit);
            if step == Step::Run {
                for index in 0..negotiation.queues.len() {
                    self.launch(index, negotiation);
                }
            }
        }
    }

    fn agree(&self, accepted: u64) -> bool {
        let agreed = accepted & !self.offered() == 0 && accepted & F_VERSION_1 != 0;
        if agreed {
            self.device.set_features(accepted & self.device.features());
        }
        agreed
    }

    /// The common configuration as the driver reads it now.
    fn common(&self) -> [u8; COMMON_LEN] {
        let negotiation = self.lock();
        let half = |features: u64, select: u32| match select {
            0 => low(features),
            1 => low(features >> 32),
            _ => [0; 4],
        };
        let selected = negotiation.selected().copied().unwrap_or_default();
        let queue = usize::from(negotiation.queue_select);
        let exists = negotiation.selected().is_some();
        let notify = if exists { negotiation.queue_select } else { 0 };
        let count = u16::try_from(negotiation.queues.len()).unwrap_or(0);
        let fields: [(usize, &[u8]); 16] = [
            (0x00, &negotiation.offered_select.to_le_bytes()),
            (0x04, &half(self.offered(), negotiation.offered_select)),
            (0x08, &negotiation.accepted_select.to_le_bytes()),
            (
                0x0c,
                &half(negotiation.accepted, negotiation.accepted_select),
            ),
            (0x10, &self.signals.config_vector().to_le_bytes()),
            (0x12, &count.to_le_bytes()),
            (0x14, &[self.signals.status().bits()]),
            (0x15, &[self.signals.generation()]),
            (0x16, &negotiation.queue_select.to_le_bytes()),
            (0x18, &selected.size.to_le_bytes()),
            (0x1a, &self.signals.queue_vector(queue).to_le_bytes()),
            (0x1c, &u16::from(selected.enabled).to_le_bytes()),
            (0x1e, &notify.to_le_bytes()),
            (0x20, &selected.descriptors.to_le_bytes()),
            (0x28, &selected.driver.to_le_bytes()),
            (0x30, &selected.device.to_le_bytes()),
        ];
        let mut image = [0; COMMON_LEN];
        for (at, bytes) in fields {
            for (to, &from) in image.iter_mut().skip(at).zip(bytes) {
                *to = from;
            }
        }
        image
    }

    /// A write of the common configuration: whole fields, or halves of the 64-bit ones
    /// (4.1.3.1); anything else is ignored.
    fn write_common(&self, offset: u64, data: &[u8]) {
        let negotiation = &mut *self.lock();
        match (offset, data) {
            (0x00, &[a, b, c, d]) => {
                negotiation.offered_select = u32::from_le_bytes([a, b, c, d]);
            }
            (0x08, &[a, b, c, d]) => {
                negotiation.accepted_select = u32::from_le_bytes([a, b, c, d]);
            }
            (0x0c, &[a, b, c, d]) => negotiation.accept(u32::from_le_bytes([a, b, c, d])),
            (0x10, &[a, b]) => self.signals.set_config_vector(u16::from_le_bytes([a, b])),
            (0x14, &[value]) => self.write_status(negotiation, value),
            (0x16, &[a, b]) => negotiation.queue_select = u16::from_le_bytes([a, b]),
            (0x18, &[a, b]) => {
                if let Some(queue) = negotiation.configurable() {
                    queue.size = u16::from_le_bytes([a, b]);
                }
            }
            (0x1a, &[a, b]) => {
                let queue = usize::from(negotiation.queue_select);
                self.signals
                    .set_queue_vector(queue, u16::from_le_bytes([a, b]));
                if let Some(selected) = negotiation.selected()
                    && matches!(selected.place, Place::Running)
                {
                    self.device.interrupt_moved(queue);
                }
            }
            (0x1c, &[a, b]) => self.enable(negotiation, u16::from_le_bytes([a, b])),
            (0x20..=0x37, _) => negotiation.write_ring(offset - 0x20, data),
            _ => {}
        }
    }

    /// Only a one has a meaning: a queue is disabled by resetting the device.
    fn enable(&self, negotiation: &mut Negotiation, value: u16) {
        if value != 1 {
            return;
        }
        let Some(queue) = negotiation.configurable() else {
            return;
        };
        queue.enabled = true;
        if negotiation.phase == Phase::Running {
            self.launch(usize::from(negotiation.queue_select), negotiation);
        }
    }
}

impl Drop for Registers {
    /// Every started queue is stopped before the device goes.
    fn drop(&mut self) {
        self.retire();
    }
}

fn low(value: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = value.to_le_bytes();
    [a, b, c, d]
}

impl BusDevice for Registers {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let within = offset % REGION_LEN;
        match offset - within {
            COMMON => read_config(&self.common(), within, data),
            ISR if within == 0 => {
                if let Some(first) = data.first_mut() {
                    *first = self.signals.take_isr();
                }
            }
            DEVICE => self.device.config_read(within, data),
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let within = offset % REGION_LEN;
        match offset - within {
            COMMON => self.write_common(within, data),
            DEVICE => self.device.config_write(within, data),
            NOTIFY => {
                let queue = within / u64::from(NOTIFY_STRIDE);
                self.bell.ring(usize::try_from(queue).unwrap_or(MAX_QUEUES));
            }
            _ => {}
        }
    }
}
