//! The device: one queue for flush requests.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use super::durable::Durable;
use crate::memory::GuestMemView;
use crate::reactor::{Reactor, Readiness, Ready};
use crate::repeats::Repeats;
use crate::state::{Empty, NothingToSave, StateError, Stateful};
use crate::virtio::device::{ActiveQueue, DriverNotifier, VirtioDevice, VirtioError, read_config};
use crate::virtio::ring::{Broken, Chain, Ring, Slot};

/// The queue for requests.
const QUEUE_SIZES: [u16; 1] = [128];
/// The bytes of a request: its type.
const REQUEST_LEN: usize = 4;
/// The only type of request (virtio 1.3, 5.19.6).
const FLUSH: u32 = 0;
/// Answers (5.19.7.2).
const DONE: i32 = 0;
const FAILED: i32 = -1;

/// Where the memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmemSpec {
    /// Where the region begins in guest memory.
    pub address: u64,
    /// Its length in bytes.
    pub size: u64,
}

/// What the device needs of its host.
pub struct PmemHost {
    /// Who makes the region's bytes durable.
    pub memory: Arc<dyn Durable>,
    /// The thread it runs on.
    pub reactor: Reactor,
}

/// The sync that is under way.
#[derive(Debug, Default)]
struct Flight {
    /// Tells it from those before it, which nobody waits for any more.
    number: u64,
    /// How many requests it answers; 0 while there is none.
    requests: u16,
}

impl Flight {
    /// Begins with so many requests, unless there are none or a sync is under way; its number.
    fn begin(&mut self, requests: u16) -> Option<u64> {
        if requests == 0 || self.requests != 0 {
            return None;
        }
        self.number = self.number.wrapping_add(1);
        self.requests = requests;
        Some(self.number)
    }

    /// How many requests the sync of this number answers, which has ended.
    fn end(&mut self, number: u64) -> u16 {
        if number != self.number {
            return 0;
        }
        std::mem::take(&mut self.requests)
    }
}

/// Persistent memory.
pub struct VirtioPmem {
    me: Weak<Self>,
    spec: PmemSpec,
    host: PmemHost,
    slot: Slot,
    features: AtomicU64,
    /// Taken inside the ring's lock: nothing is called with it.
    flight: Mutex<Flight>,
    driver: OnceLock<Arc<dyn DriverNotifier>>,
    failures: Repeats,
}

impl VirtioPmem {
    /// A region that is guest memory.
    #[must_use]
    pub fn new(spec: PmemSpec, host: PmemHost) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            spec,
            host,
            slot: Slot::default(),
            features: AtomicU64::new(0),
            flight: Mutex::default(),
            driver: OnceLock::new(),
            failures: Repeats::default(),
        })
    }

    /// The driver has kicked.
    fn look(&self) {
        let outcome = self.slot.with(|ring, memory| self.begin(ring, memory));
        self.go_on(outcome);
    }

    /// Has what waits in the ring made durable, unless a sync is under way; its number.
    fn begin(&self, ring: &mut Ring, memory: &GuestMemView) -> Result<Option<u64>, Broken> {
        let waiting = ring.waiting(memory)?;
        Ok(self.flight().begin(waiting))
    }

    fn go_on(&self, outcome: Option<Result<Option<u64>, Broken>>) {
        match outcome {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(number))) => {
                let me = Weak::clone(&self.me);
                self.host.memory.sync(Box::new(move |result| {
                    if let Some(device) = me.upgrade() {
                        device.synced(number, result);
                    }
                }));
            }
            Some(Err(Broken)) => {
                if let Some(driver) = self.driver.get() {
                    driver.needs_reset();
                }
            }
        }
    }

    /// The sync of this number has ended: answers those who waited for it.
    fn synced(&self, number: u64, result: io::Result<()>) {
        if let Err(error) = &result
            && let Some(times) = self.failures.note()
        {
            tracing::error!(times, %error, "what the guest wrote to persistent memory may be lost");
        }
        let answer = if result.is_ok() { DONE } else { FAILED };
        let outcome = self.slot.with(|ring, memory| {
            let requests = self.flight().end(number);
            for _ in 0..requests {
                let Some(chain) = ring.next(memory)? else {
                    break;
                };
                let written = reply(&chain, answer)?;
                ring.add_used(memory, &chain, written)?;
            }
            self.begin(ring, memory)
        });
        self.go_on(outcome);
    }

    fn flight(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers a request, which fails where it is no flush. One that is none at all, or that leaves no
/// room for its answer, breaks the device.
fn reply(chain: &Chain<'_>, answer: i32) -> Result<usize, Broken> {
    let mut request = [0; REQUEST_LEN];
    let answer_bytes = |answer: i32| answer.to_le_bytes();
    if chain.gather(0, &mut request)? < request.len()
        || chain.writable()? < answer_bytes(answer).len()
    {
        return Err(Broken);
    }
    let answer = match u32::from_le_bytes(request) {
        FLUSH => answer,
        _ => FAILED,
    };
    chain.scatter(&answer_bytes(answer))
}

/// A kick of the queue.
struct Kick(Weak<VirtioPmem>);

impl Ready for Kick {
    fn ready(&self, _readiness: Readiness) {
        if let Some(memory) = self.0.upgrade() {
            memory.look();
        }
    }
}

impl NothingToSave for VirtioPmem {
    const KIND: &'static str = "virtio-pmem";
}

/// Requests that wait for a sync still stand in the ring.
impl Stateful for VirtioPmem {
    type State = Empty<Self>;

    fn save(&self) -> Empty<Self> {
        Empty::default()
    }

    fn load(&self, _state: Empty<Self>) -> Result<(), StateError> {
        Ok(())
    }
}

impl VirtioDevice for VirtioPmem {
    fn device_type(&self) -> u16 {
        u16::try_from(VIRTIO_ID_PMEM).unwrap_or_default()
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::SeqCst);
    }

    /// `struct virtio_pmem_config` (virtio 1.3, 5.19.4).
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let words = [self.spec.address, self.spec.size].map(u64::to_le_bytes);
        read_config(words.as_flattened(), offset, data);
    }

    fn config_write(&self, _offset: u64, _data: &[u8]) {}

    fn attach(&self, driver: Arc<dyn DriverNotifier>) {
        self.driver.set(driver).ok();
    }

    fn start_queue(&self, index: usize, queue: ActiveQueue) -> Result<(), VirtioError> {
        if index != 0 {
            return Err(VirtioError::NoSuchQueue { index, count: 1 });
        }
        let features = self.features.load(Ordering::SeqCst);
        let handler = Arc::new(Kick(Weak::clone(&self.me)));
        let reactor = &self.host.reactor;
        self.slot.start(index, queue, features, reactor, handler)
    }

    /// A sync that is under way goes on, and nobody hears of its end: who waited for it still stands
    /// in the ring, and is asked for again.
    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        if index != 0 {
            return None;
        }
        self.slot.stop_after(|_| self.flight().requests = 0)
    }

    fn reset(&self) {
        self.features.store(0, Ordering::SeqCst);
    }
}

impl fmt::Debug for VirtioPmem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioPmem")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}
