//! The controller: configuration, queues, and the units that come and go.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak, mpsc};

use block::IoThread;
use virtio_bindings::virtio_ids::VIRTIO_ID_SCSI;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use super::events::{self, Event, EventQueue};
use super::request::{Postponed, Sizes};
use super::units::{Address, MAX_LUN, MAX_TARGET, PlugError, Units};
use super::worker::{self, Carries};
use crate::reactor::{Reactor, Readiness, Ready};
use crate::repeats::Repeats;
use crate::scsi::ScsiUnit;
use crate::virtio::device::{ActiveQueue, DriverNotifier, VirtioDevice, VirtioError, read_config};
use crate::virtio::waiting::Waiting;

/// How many request queues a controller can have.
pub const QUEUES: RangeInclusive<u16> = 1..=1022;
/// How many descriptors a queue can have, as powers of two.
pub const QUEUE_SIZES: RangeInclusive<u16> = 4..=1024;

/// Features (virtio 1.2, 5.6.3).
const F_HOTPLUG: u32 = 1;
const F_CHANGE: u32 = 2;

/// The queues before those of requests.
const CONTROL: usize = 0;
const EVENTS: usize = 1;
const REQUESTS: usize = 2;

/// What a driver finds, and may change, in the configuration (5.6.4).
const SENSE_SIZE: u32 = 96;
const CDB_SIZE: u32 = 32;
const SENSE_OFFSET: u64 = 20;
const CDB_OFFSET: u64 = 24;
pub(super) const MOST_SENSE: u32 = 4096;
pub(super) const MOST_CDB: u32 = 255;
/// The header of a request before its CDB, and of a response before its sense bytes.
const REQUEST_FIELDS: u32 = 19;
const RESPONSE_FIELDS: u32 = 12;

/// What a controller is made of, resolved.
#[derive(Clone, Debug)]
pub struct VirtioScsiSpec {
    /// The device's id, for logs; its bus is called `ID.0`.
    pub id: String,
    /// How many request queues, one of [`QUEUES`].
    pub queues: u16,
    /// Descriptors in each queue: a power of two, one of [`QUEUE_SIZES`].
    pub queue_size: u16,
    /// The longest request in sectors of 512 bytes, as the driver is told.
    pub max_sectors: u32,
    /// How many requests a unit is given at a time, as the driver is told.
    pub cmd_per_lun: u32,
    /// Whether the driver is told of units that come and go.
    pub hotplug: bool,
    /// Whether the driver is told of units whose length changes.
    pub param_change: bool,
    /// Where the queues run.
    pub iothread: IoThread,
}

/// A number of a controller is out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Property 'virtio-scsi-pci.{name}' takes {wanted}, not {came}")]
pub struct SpecError {
    name: &'static str,
    wanted: &'static str,
    came: u32,
}

/// What the queues share.
pub(super) struct Controller {
    id: String,
    pub(super) units: Units,
    pub(super) waiting: Waiting<Postponed>,
    driver: OnceLock<Arc<dyn DriverNotifier>>,
    pub(super) sense_size: AtomicU32,
    pub(super) cdb_size: AtomicU32,
    broken_queues: Repeats,
}

impl Controller {
    pub(super) fn sizes(&self) -> Sizes {
        let whole = |fields: u32, size: &AtomicU32| {
            usize::try_from(fields + size.load(Ordering::Relaxed)).unwrap_or(0)
        };
        Sizes {
            header: whole(REQUEST_FIELDS, &self.cdb_size),
            response: whole(RESPONSE_FIELDS, &self.sense_size),
        }
    }

    pub(super) fn break_off(&self, what: &str, why: &dyn std::error::Error) {
        if let Some(times) = self.broken_queues.note() {
            tracing::warn!(device = %self.id, times, %why, "virtio-scsi: {what}");
        }
        if let Some(driver) = self.driver.get() {
            driver.needs_reset();
        }
    }
}

/// A queue that runs on the io-thread.
struct Running {
    stop: Arc<AtomicBool>,
    /// The doorbell once more: a stop rings it, so that the worker looks.
    kick: EventFd,
    done: mpsc::Receiver<Queue>,
}

/// A virtio SCSI controller.
pub struct VirtioScsi {
    me: Weak<Self>,
    spec: VirtioScsiSpec,
    reactor: Reactor,
    pub(super) controller: Arc<Controller>,
    pub(super) events: EventQueue,
    pub(super) queue_sizes: Vec<u16>,
    features: AtomicU64,
    running: Mutex<Vec<Option<Running>>>,
}

impl VirtioScsi {
    /// A controller with nothing on its bus.
    ///
    /// # Errors
    /// A number is out of range.
    pub fn new(spec: VirtioScsiSpec, reactor: Reactor) -> Result<Arc<Self>, SpecError> {
        check_numbers(&spec)?;
        let controller = Controller {
            id: spec.id.clone(),
            units: Units::default(),
            waiting: Waiting::default(),
            driver: OnceLock::new(),
            sense_size: AtomicU32::new(SENSE_SIZE),
            cdb_size: AtomicU32::new(CDB_SIZE),
            broken_queues: Repeats::default(),
        };
        let queues = usize::from(spec.queues) + REQUESTS;
        Ok(Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            reactor,
            controller: Arc::new(controller),
            events: EventQueue::default(),
            queue_sizes: vec![spec.queue_size; queues],
            features: AtomicU64::new(0),
            running: Mutex::new((0..queues).map(|_| None).collect()),
            spec,
        }))
    }

    /// What it is made of.
    #[must_use]
    pub fn spec(&self) -> &VirtioScsiSpec {
        &self.spec
    }

    /// What its bus is called.
    #[must_use]
    pub fn bus_name(&self) -> String {
        format!("{}.0", self.spec.id)
    }

    /// The target and the unit's number there, if the unit is on this bus.
    #[must_use]
    pub fn address_of(&self, unit: &Arc<ScsiUnit>) -> Option<(u8, u16)> {
        let mut all = self.controller.units.all().into_iter();
        all.find_map(|(at, seated)| Arc::ptr_eq(&seated.unit, unit).then_some((at.target, at.lun)))
    }

    /// Where a unit would be put that wants this target and this number there, or either, or none.
    ///
    /// # Errors
    /// The place is taken, or none is free.
    pub fn place(&self, target: Option<u8>, lun: Option<u16>) -> Result<Address, PlugError> {
        self.controller.units.place(target, lun)
    }

    /// Adds a unit at a place that is free, and tells the driver.
    pub fn plug(&self, address: Address, unit: Arc<ScsiUnit>) {
        self.controller.units.add(address, unit);
        self.tell(address, Event::Plugged, F_HOTPLUG);
    }

    /// Takes a unit off the bus and tells the driver. Requests may still be on their way to its
    /// medium: its node is drained by the caller. What waits for the unit ends when its queue is
    /// started again, at no unit.
    pub fn unplug(&self, unit: &Arc<ScsiUnit>) {
        if let Some(address) = self.controller.units.remove(unit) {
            self.controller.waiting.change(|request| {
                if request.is_for(address) {
                    request.leave();
                }
            });
            self.tell(address, Event::Unplugged, F_HOTPLUG);
        }
    }

    /// The length of a unit's medium has changed.
    pub fn capacity_changed(&self, unit: &Arc<ScsiUnit>) {
        unit.capacity_changed();
        let all = self.controller.units.all();
        if let Some((at, _)) = all.iter().find(|(_, it)| Arc::ptr_eq(&it.unit, unit)) {
            self.tell(*at, Event::Resized, F_CHANGE);
        }
    }

    fn tell(&self, address: Address, event: Event, feature: u32) {
        if self.features.load(Ordering::SeqCst) & 1 << feature == 0 {
            return;
        }
        if self.events.tell(address, event).is_err() {
            self.event_queue_is_broken();
        }
    }

    fn refill(&self) {
        if self.events.refill().is_err() {
            self.event_queue_is_broken();
        }
    }

    fn event_queue_is_broken(&self) {
        let why = std::io::Error::from_raw_os_error(libc::EFAULT);
        self.controller.break_off("the event queue is broken", &why);
    }

    fn config(&self) -> [u8; 36] {
        let mut config = [0; 36];
        let words = [
            u32::from(self.spec.queues),
            // A header and a response go with each request.
            u32::from(self.spec.queue_size) - 2,
            self.spec.max_sectors,
            self.spec.cmd_per_lun,
            events::LEN,
            self.controller.sense_size.load(Ordering::Relaxed),
            self.controller.cdb_size.load(Ordering::Relaxed),
            // No channel but the first.
            u32::from(MAX_TARGET) << 16,
            u32::from(MAX_LUN),
        ];
        for (to, word) in config.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        config
    }

    fn running(&self) -> MutexGuard<'_, Vec<Option<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, index: usize, active: ActiveQueue) -> Result<(), VirtioError> {
        let cloned = active.kick.try_clone();
        let kick = cloned.map_err(|source| VirtioError::Backend {
            index,
            what: "duplicate the doorbell".to_owned(),
            source,
        })?;
        let carries = if index == CONTROL {
            Carries::Control
        } else {
            Carries::Requests
        };
        let (tell, done) = mpsc::sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let (controller, theirs) = (Arc::clone(&self.controller), Arc::clone(&stop));
        self.spec.iothread.spawn(move |io| async move {
            let queue = worker::run(io, controller, (index, carries), active, theirs).await;
            // Nobody waits if the whole device is gone.
            drop(tell.send(queue));
        });
        if let Some(slot) = self.running().get_mut(index) {
            *slot = Some(Running { stop, kick, done });
        }
        Ok(())
    }
}

fn check_numbers(spec: &VirtioScsiSpec) -> Result<(), SpecError> {
    let size = spec.queue_size;
    let checks = [
        (
            "num_queues",
            "1 to 1022",
            u32::from(spec.queues),
            QUEUES.contains(&spec.queues),
        ),
        (
            "virtqueue_size",
            "a power of two from 4 to 1024",
            size.into(),
            size.is_power_of_two() && QUEUE_SIZES.contains(&size),
        ),
        (
            "cmd_per_lun",
            "1 or more",
            spec.cmd_per_lun,
            spec.cmd_per_lun > 0,
        ),
        (
            "max_sectors",
            "1 or more",
            spec.max_sectors,
            spec.max_sectors > 0,
        ),
    ];
    match checks.into_iter().find(|(.., fits)| !fits) {
        None => Ok(()),
        Some((name, wanted, came, _)) => Err(SpecError { name, wanted, came }),
    }
}

/// The driver gave buffers for events.
struct Refilled(Weak<VirtioScsi>);

impl Ready for Refilled {
    fn ready(&self, _readiness: Readiness) {
        if let Some(scsi) = self.0.upgrade() {
            scsi.refill();
        }
    }
}

impl VirtioDevice for VirtioScsi {
    fn device_type(&self) -> u16 {
        u16::try_from(VIRTIO_ID_SCSI).unwrap_or_default()
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        [
            (VIRTIO_RING_F_INDIRECT_DESC, true),
            (VIRTIO_RING_F_EVENT_IDX, true),
            (F_HOTPLUG, self.spec.hotplug),
            (F_CHANGE, self.spec.param_change),
        ]
        .into_iter()
        .filter(|(_, offered)| *offered)
        .fold(0, |features, (bit, _)| features | 1 << bit)
    }

    fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::SeqCst);
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config(), offset, data);
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else {
            return;
        };
        match offset {
            SENSE_OFFSET if value <= MOST_SENSE => {
                self.controller.sense_size.store(value, Ordering::Relaxed);
            }
            CDB_OFFSET if (1..=MOST_CDB).contains(&value) => {
                self.controller.cdb_size.store(value, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn attach(&self, driver: Arc<dyn DriverNotifier>) {
        self.controller.driver.set(driver).ok();
    }

    fn start_queue(&self, index: usize, mut active: ActiveQueue) -> Result<(), VirtioError> {
        let count = self.queue_sizes.len();
        if index >= count {
            return Err(VirtioError::NoSuchQueue { index, count });
        }
        let features = self.features.load(Ordering::SeqCst);
        if index == EVENTS {
            let handler = Arc::new(Refilled(Weak::clone(&self.me)));
            let slot = &self.events.slot;
            return slot.start(index, active, features, &self.reactor, handler);
        }
        if !active.queue.is_valid(&*active.memory.memory()) {
            return Err(VirtioError::BadRing { index });
        }
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        active.queue.set_event_idx(event_idx);
        self.spawn(index, active)
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        if index == EVENTS {
            return self.events.slot.stop();
        }
        let running = self.running().get_mut(index).and_then(Option::take)?;
        running.stop.store(true, Ordering::Release);
        if let Err(error) = running.kick.write(1) {
            tracing::error!(device = %self.spec.id, queue = index, %error, "cannot wake a queue");
        }
        let units = self.controller.units.all();
        let hurrying = units.iter().filter_map(|(_, seated)| seated.unit.hurry());
        let _hurrying: Vec<_> = hurrying.collect();
        running.done.recv().ok().map(|queue| queue.state())
    }

    fn reset(&self) {
        self.features.store(0, Ordering::SeqCst);
        self.events.reset();
        let controller = &self.controller;
        controller.waiting.forget();
        controller.sense_size.store(SENSE_SIZE, Ordering::Relaxed);
        controller.cdb_size.store(CDB_SIZE, Ordering::Relaxed);
        for (_, seated) in controller.units.all() {
            seated.unit.power_on();
        }
    }
}

impl Drop for VirtioScsi {
    fn drop(&mut self) {
        for index in 0..self.queue_sizes.len() {
            self.stop_queue(index);
        }
    }
}

impl fmt::Debug for VirtioScsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioScsi")
            .field("spec", &self.spec)
            .field("units", &self.controller.units)
            .finish_non_exhaustive()
    }
}
