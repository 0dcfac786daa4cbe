//! The device: fills the driver's buffers as far as source and quota reach.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use mio::Interest;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use super::entropy::Entropy;
use super::quota::{Quota, Rate};
use crate::memory::GuestMemView;
use crate::reactor::{Reactor, Readiness, Ready, Registration};
use crate::repeats::Repeats;
use crate::state::{Empty, NothingToSave, StateError, Stateful};
use crate::virtio::device::{ActiveQueue, DriverNotifier, VirtioDevice, VirtioError};
use crate::virtio::ring::{Broken, Ring, Slot};
use crate::vm_clock::{VmClock, VmTimer};

/// An entropy source (virtio 1.2, section 5).
const DEVICE_TYPE: u16 = 4;

const QUEUE_SIZES: [u16; 1] = [8];

/// The most that one buffer is given; a driver asks again for more.
const CHUNK: usize = 4 << 10;

/// How many buffers are filled before other devices get their turn.
const BATCH: usize = 32;

/// A random number generator for the guest.
pub struct VirtioRng {
    me: Weak<Self>,
    source: Arc<dyn Entropy>,
    quota: Mutex<Quota>,
    reactor: Reactor,
    clock: VmClock,
    slot: Slot,
    features: AtomicU64,
    driver: OnceLock<Arc<dyn DriverNotifier>>,
    /// Set at the first failure of the source, to report it once.
    failed: AtomicBool,
    /// Waits that could not be begun: the driver's next buffer tries again.
    stopped: Repeats,
    source_watch: Mutex<Option<Registration>>,
    timer: Mutex<Option<VmTimer>>,
}

/// Why the device stopped filling.
enum Pause {
    /// No buffer is left.
    Idle,
    /// The batch is done, buffers may be left.
    Batch,
    /// The source has nothing now.
    Source,
    /// The quota is spent.
    Quota(Duration),
}

impl VirtioRng {
    /// A device that gives bytes of `source` at `rate`, by `clock`.
    #[must_use]
    pub fn new(
        source: Arc<dyn Entropy>,
        rate: Rate,
        reactor: Reactor,
        clock: VmClock,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            source,
            quota: Mutex::new(Quota::new(rate)),
            reactor,
            clock,
            slot: Slot::default(),
            features: AtomicU64::new(0),
            driver: OnceLock::new(),
            failed: AtomicBool::new(false),
            stopped: Repeats::default(),
            source_watch: Mutex::new(None),
            timer: Mutex::new(None),
        })
    }

    fn serve(&self) {
        let outcome = self.slot.with(|ring, memory| self.fill(ring, memory));
        let done = match outcome {
            None | Some(Ok(Pause::Idle)) => Ok(()),
            Some(Ok(Pause::Batch)) => self.slot.rearm(),
            Some(Ok(Pause::Source)) => self.await_source(),
            Some(Ok(Pause::Quota(period))) => self.await_quota(period),
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
            tracing::error!(times, %error, "virtio-rng cannot wait and stops");
        }
    }

    fn fill(&self, ring: &mut Ring, memory: &GuestMemView) -> Result<Pause, Broken> {
        let mut chunk = [0; CHUNK];
        for _ in 0..BATCH {
            let now = self.clock.now();
            let left = match self.quota().left(now) {
                Ok(left) => usize::try_from(left).unwrap_or(usize::MAX),
                Err(period) => return Ok(Pause::Quota(period)),
            };
            let Some(chain) = ring.next(memory)? else {
                return Ok(Pause::Idle);
            };
            let wanted = chain.writable()?.min(left).min(CHUNK);
            let filled = match self.take(&mut chunk[..wanted]) {
                Some(filled) => filled,
                None => {
                    ring.put_back();
                    return Ok(Pause::Source);
                }
            };
            let written = chain.scatter(chunk.get(..filled).unwrap_or_default())?;
            ring.add_used(memory, &chain, written)?;
            self.quota().spend(written as u64, now);
        }
        Ok(Pause::Batch)
    }

    /// Asks the source; `None` when it has nothing now, or never again.
    fn take(&self, buffer: &mut [u8]) -> Option<usize> {
        if buffer.is_empty() {
            return Some(0);
        }
        loop {
            let error = match self.source.fill(buffer) {
                Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                Ok(count) => return Some(count),
                Err(error) => error,
            };
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return None,
                _ => {
                    if !self.failed.swap(true, Ordering::Relaxed) {
                        tracing::error!(%error, "the entropy source of virtio-rng gives no more");
                    }
                    return None;
                }
            }
        }
    }

    fn await_source(&self) -> io::Result<()> {
        let Some(watched) = self.source.watched() else {
            return Ok(());
        };
        if self.failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut watch = lock(&self.source_watch);
        match &*watch {
            Some(_) => Ok(()),
            None => {
                let registered =
                    self.reactor
                        .register(watched, Interest::READABLE, self.handler())?;
                *watch = Some(registered);
                Ok(())
            }
        }
    }

    fn await_quota(&self, period: Duration) -> io::Result<()> {
        let mut timer = lock(&self.timer);
        if timer.is_none() {
            *timer = Some(self.clock.timer(&self.reactor, self.handler())?);
        }
        if let Some(timer) = &*timer {
            timer.arm(period);
        }
        Ok(())
    }

    fn handler(&self) -> Arc<dyn Ready> {
        Arc::new(Handler(Weak::clone(&self.me)))
    }

    fn quota(&self) -> MutexGuard<'_, Quota> {
        lock(&self.quota)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kicks, a readable source and the timer all mean the same: try again.
struct Handler(Weak<VirtioRng>);

impl Ready for Handler {
    fn ready(&self, _readiness: Readiness) {
        if let Some(rng) = self.0.upgrade() {
            rng.serve();
        }
    }
}

impl NothingToSave for VirtioRng {
    const KIND: &'static str = "virtio-rng";
}

/// How much of a quota is left is the host's.
impl Stateful for VirtioRng {
    type State = Empty<Self>;

    fn save(&self) -> Empty<Self> {
        Empty::default()
    }

    fn load(&self, _state: Empty<Self>) -> Result<(), StateError> {
        Ok(())
    }
}

impl VirtioDevice for VirtioRng {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_RING_F_INDIRECT_DESC) | (1 << VIRTIO_RING_F_EVENT_IDX)
    }

    fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::SeqCst);
    }

    fn config_read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn config_write(&self, _offset: u64, _data: &[u8]) {}

    fn attach(&self, driver: Arc<dyn DriverNotifier>) {
        self.driver.set(driver).ok();
    }

    fn start_queue(&self, index: usize, queue: ActiveQueue) -> Result<(), VirtioError> {
        if index != 0 {
            return Err(VirtioError::NoSuchQueue {
                index,
                count: QUEUE_SIZES.len(),
            });
        }
        let features = self.features.load(Ordering::SeqCst);
        self.slot
            .start(index, queue, features, &self.reactor, self.handler())
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        (index == 0).then(|| self.slot.stop()).flatten()
    }

    fn reset(&self) {
        self.features.store(0, Ordering::SeqCst);
    }
}

impl fmt::Debug for VirtioRng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioRng").finish_non_exhaustive()
    }
}
