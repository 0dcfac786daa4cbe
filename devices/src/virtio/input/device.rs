//! The device: two queues, a window of answers, and what waits for the driver.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_INPUT;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use super::event::{EVENT_SIZE, InputEvent, codes};
use super::model::InputModel;
use crate::memory::GuestMemView;
use crate::reactor::{Reactor, Readiness, Ready};
use crate::repeats::Repeats;
use crate::state::{SavedState, StateError, Stateful};
use crate::virtio::device::{ActiveQueue, DriverNotifier, VirtioDevice, VirtioError, read_config};
use crate::virtio::ring::{Broken, Ring, Slot};

/// The queue for events; the other one is for what the driver says of lamps.
const EVENTS: usize = 0;
const QUEUE_SIZES: [u16; 2] = [64, 64];

/// How many chains are served before other devices get their turn.
const BATCH: usize = 32;
/// How many events wait at most for a driver that takes none.
const WAITING: usize = 1024;

/// Where the answer is (virtio 1.2, 5.8.5): behind `select`, `subsel`, `size` and five bytes of nothing.
const SELECT: u64 = 0;
const SUBSEL: u64 = 1;
const SIZE: usize = 2;
const ANSWER: usize = 8;

/// What a snapshot keeps of it beside the negotiation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputState {
    /// What the driver asks for.
    pub select: u8,
    /// Of what.
    pub subsel: u8,
    /// Which lamps are lit, a bit for each.
    pub lamps: u32,
    /// What the driver has no buffers for yet.
    pub waiting: VecDeque<InputEvent>,
}

impl SavedState for InputState {
    const KIND: &'static str = "virtio-input";
    const VERSION: u32 = 1;
}

/// A keyboard, mouse or tablet.
pub struct VirtioInput {
    me: Weak<Self>,
    model: InputModel,
    serial: String,
    reactor: Reactor,
    slots: [Slot; QUEUE_SIZES.len()],
    features: AtomicU64,
    /// Whether a driver has been there since the last reset.
    has_driver: AtomicBool,
    state: Mutex<InputState>,
    driver: OnceLock<Arc<dyn DriverNotifier>>,
    /// Reports that came when too much waited.
    lost: Repeats,
    stopped: Repeats,
}

impl VirtioInput {
    /// A device that nobody has touched yet.
    #[must_use]
    pub fn new(model: InputModel, serial: String, reactor: Reactor) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            model,
            serial,
            reactor,
            slots: Default::default(),
            features: AtomicU64::new(0),
            has_driver: AtomicBool::new(false),
            state: Mutex::default(),
            driver: OnceLock::new(),
            lost: Repeats::default(),
            stopped: Repeats::default(),
        })
    }

    /// What it is.
    #[must_use]
    pub fn model(&self) -> InputModel {
        self.model
    }

    /// Which lamps are lit, a bit for each `LED_*`.
    #[must_use]
    pub fn lamps(&self) -> u32 {
        self.state().lamps
    }

    /// Tells the guest what happened at the same time. Without a driver nobody hears of it.
    pub fn report(&self, events: &[InputEvent]) {
        if !self.has_driver.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.state();
        let is_room = state.waiting.len() + events.len() < WAITING;
        if is_room {
            state.waiting.extend(events);
            state.waiting.push_back(InputEvent::END);
        }
        drop(state);
        if is_room {
            self.serve(EVENTS);
        } else if let Some(times) = self.lost.note() {
            tracing::warn!(times, "the driver of virtio-input takes no events");
        }
    }

    fn state(&self) -> MutexGuard<'_, InputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, index: usize) {
        let Some(slot) = self.slots.get(index) else {
            return;
        };
        let outcome = slot.with(|ring, memory| {
            if index == EVENTS {
                self.deliver(ring, memory)
            } else {
                self.take_status(ring, memory)
            }
        });
        let done = match outcome {
            None | Some(Ok(false)) => Ok(()),
            Some(Ok(true)) => slot.rearm(),
            Some(Err(Broken)) => {
                if let Some(driver) = self.driver.get() {
                    driver.needs_reset();
                }
                Ok(())
            }
        };
        if let Err(error) = done
            && let Some(times) = self.stopped.note()
        {
            tracing::error!(times, %error, "virtio-input cannot go on");
        }
    }

    /// Gives the driver what waits, an event for each buffer; whether there may be more to do.
    fn deliver(&self, ring: &mut Ring, memory: &GuestMemView) -> Result<bool, Broken> {
        for _ in 0..BATCH {
            if self.state().waiting.is_empty() {
                return Ok(false);
            }
            let Some(chain) = ring.next(memory)? else {
                return Ok(false);
            };
            if chain.writable()? < EVENT_SIZE {
                return Err(Broken);
            }
            let Some(event) = self.state().waiting.pop_front() else {
                ring.put_back();
                return Ok(false);
            };
            let written = chain.scatter(&event.to_bytes())?;
            ring.add_used(memory, &chain, written)?;
        }
        Ok(true)
    }

    /// Takes what the driver says of lamps; whether there may be more.
    fn take_status(&self, ring: &mut Ring, memory: &GuestMemView) -> Result<bool, Broken> {
        for _ in 0..BATCH {
            let Some(chain) = ring.next(memory)? else {
                return Ok(false);
            };
            let mut bytes = [0; EVENT_SIZE];
            if chain.gather(0, &mut bytes)? == EVENT_SIZE {
                self.take_lamp(InputEvent::from_bytes(bytes));
            }
            ring.add_used(memory, &chain, 0)?;
        }
        Ok(true)
    }

    fn take_lamp(&self, event: InputEvent) {
        let known = event.kind == codes::EV_LED && self.model.has(event.kind, event.code);
        let Some(bit) = 1_u32.checked_shl(event.code.into()).filter(|_| known) else {
            return;
        };
        let mut state = self.state();
        if event.value == 0 {
            state.lamps &= !bit;
        } else {
            state.lamps |= bit;
        }
    }
}

/// A kick of one queue.
struct Kick(Weak<VirtioInput>, usize);

impl Ready for Kick {
    fn ready(&self, _readiness: Readiness) {
        if let Some(input) = self.0.upgrade() {
            input.serve(self.1);
        }
    }
}

impl Stateful for VirtioInput {
    type State = InputState;

    fn save(&self) -> InputState {
        self.state().clone()
    }

    fn load(&self, state: InputState) -> Result<(), StateError> {
        if state.waiting.len() > WAITING {
            return Err(InputState::refused(format!(
                "waiting: {} events, and at most {WAITING} wait",
                state.waiting.len()
            )));
        }
        *self.state() = state;
        Ok(())
    }
}

impl VirtioDevice for VirtioInput {
    fn device_type(&self) -> u16 {
        u16::try_from(VIRTIO_ID_INPUT).unwrap_or_default()
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_RING_F_INDIRECT_DESC) | (1 << VIRTIO_RING_F_EVENT_IDX)
    }

    fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::Release);
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let (select, subsel) = {
            let state = self.state();
            (state.select, state.subsel)
        };
        let answer = self.model.answer(&self.serial, select, subsel);
        let mut config = [0; ANSWER + super::model::ANSWER];
        config[..=SIZE].copy_from_slice(&[select, subsel, answer.size()]);
        config[ANSWER..].copy_from_slice(answer.bytes());
        read_config(&config, offset, data);
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state();
        for (at, byte) in (offset..=SUBSEL).zip(data) {
            match at {
                SELECT => state.select = *byte,
                _ => state.subsel = *byte,
            }
        }
    }

    fn attach(&self, driver: Arc<dyn DriverNotifier>) {
        self.driver.set(driver).ok();
    }

    fn start_queue(&self, index: usize, queue: ActiveQueue) -> Result<(), VirtioError> {
        let slot = self.slots.get(index).ok_or(VirtioError::NoSuchQueue {
            index,
            count: QUEUE_SIZES.len(),
        })?;
        self.has_driver.store(true, Ordering::Release);
        let features = self.features.load(Ordering::Acquire);
        let handler = Arc::new(Kick(Weak::clone(&self.me), index));
        slot.start(index, queue, features, &self.reactor, handler)
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        self.slots.get(index)?.stop()
    }

    fn reset(&self) {
        self.features.store(0, Ordering::Release);
        self.has_driver.store(false, Ordering::Release);
        *self.state() = InputState::default();
    }
}

impl fmt::Debug for VirtioInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioInput")
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}
