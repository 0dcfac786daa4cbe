//! A device's books on the queues that a server has.
//!
//! A queue's interrupt is handed to the server as it is where it is an eventfd (MSI-X); else the
//! server gets one of ours, and `dev-io` passes its writes on. Which of the two is right changes with
//! the driver's vectors: [`ServedQueues::call_changed`].
#![expect(
    unsafe_code,
    reason = "vmm-sys-util's EventFd lends itself only as a number"
)]
// UNSAFETY: a number is made a borrowed fd again, for as long as its owner is borrowed.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::Interest;
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::server::{QueueServer, Rings, ServedQueue, ServedView};
use crate::irq::Interrupt;
use crate::memory::{GuestMem, GuestMemView};
use crate::reactor::{Reactor, Readiness, Ready, Registration};
use crate::repeats::Repeats;
use crate::virtio::device::{ActiveQueue, DriverNotifier, VirtioError};

/// Virtio's feature of version 1, which every driver here has accepted.
const F_VERSION_1: u64 = 1 << 32;

/// The queues of one device that are with a server.
pub struct ServedQueues {
    reactor: Reactor,
    /// Held while calling the server, which never calls back.
    running: Mutex<Vec<Option<Running>>>,
}

/// A queue that is with the server.
struct Running {
    queue: Queue,
    memory: GuestMem,
    kick: EventFd,
    interrupt: Arc<dyn Interrupt>,
    relay: Relay,
    driver: Arc<dyn DriverNotifier>,
    /// Tells the driver of a server that gave up.
    _broken: Registration,
}

/// Passes the server's calls on to an interrupt that is no eventfd.
struct Relay {
    event: Arc<EventFd>,
    _watch: Registration,
}

impl ServedQueues {
    /// None of `count` queues is with a server yet.
    #[must_use]
    pub fn new(reactor: Reactor, count: usize) -> Self {
        Self {
            reactor,
            running: Mutex::new((0..count).map(|_| None).collect()),
        }
    }

    /// Whether a queue is with a server.
    pub fn any(&self) -> bool {
        self.lock().iter().any(Option::is_some)
    }

    /// A look at the queue `index`, if it is with a server.
    pub fn view(&self, index: usize) -> Option<ServedView> {
        let running = self.lock();
        let queue = running.get(index)?.as_ref()?;
        Some(ServedView {
            rings: queue.rings(&queue.memory.memory())?,
            kick: queue.kick.as_raw_fd(),
            call: queue.call().as_raw_fd(),
        })
    }

    /// Gives the queue `index` to `server`, with the `features` of the device that were agreed on.
    /// When the server finds that the rules are broken, `driver` is told.
    ///
    /// # Errors
    /// The rings are not in guest memory, or the server refuses.
    pub fn start(
        &self,
        server: &dyn QueueServer,
        index: usize,
        active: ActiveQueue,
        features: u64,
        driver: Arc<dyn DriverNotifier>,
    ) -> Result<(), VirtioError> {
        let mut running = self.lock();
        let refused = |what: &str| {
            let what = what.to_owned();
            move |source| VirtioError::Backend {
                index,
                what,
                source,
            }
        };
        if running.iter().all(Option::is_none) {
            server
                .set_features(features | F_VERSION_1)
                .map_err(refused("telling its server the features"))?;
            server
                .set_memory(&active.memory.memory())
                .map_err(refused("telling its server of guest memory"))?;
        }
        let error = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(refused("no eventfd"))?);
        let gone = Arc::new(Gone {
            driver,
            index,
            told: Repeats::default(),
        });
        let started = self
            .prepare(active, &error, gone)
            .map_err(refused("watching its eventfds"))?;
        let queue = started
            .describe(&error)
            .ok_or(VirtioError::BadRing { index })?;
        server
            .start_queue(index, &queue)
            .map_err(refused("giving it to its server"))?;
        if let Some(place) = running.get_mut(index) {
            *place = Some(started);
        }
        Ok(())
    }

    fn prepare(
        &self,
        active: ActiveQueue,
        error: &Arc<EventFd>,
        gone: Arc<Gone>,
    ) -> io::Result<Running> {
        let ActiveQueue {
            queue,
            memory,
            kick,
            interrupt,
        } = active;
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let watch = |fd: &Arc<EventFd>, handler: Arc<dyn Ready>| {
            self.reactor
                .register(Arc::clone(fd) as _, Interest::READABLE, handler)
        };
        let called = Arc::new(Called {
            event: Arc::clone(&event),
            interrupt: Arc::clone(&interrupt),
        });
        let relay = Relay {
            _watch: watch(&event, called)?,
            event,
        };
        Ok(Running {
            driver: Arc::clone(&gone.driver),
            _broken: watch(error, gone)?,
            queue,
            memory,
            kick,
            interrupt,
            relay,
        })
    }

    /// Takes the queue `index` back from `server`, to where it stands; `None` if it did not have it.
    pub fn stop(&self, server: &dyn QueueServer, index: usize) -> Option<QueueState> {
        let stopped = self.lock().get_mut(index)?.take();
        let mut stopped = stopped?;
        let next = server.stop_queue(index);
        let used = stopped.used();
        let next = next.unwrap_or_else(|error| {
            tracing::warn!(index, %error, "a queue's server does not say where it stands");
            // Nothing is under way: what was taken was used, as far as anybody knows.
            used
        });
        stopped.queue.set_next_avail(next);
        stopped.queue.set_next_used(used);
        Some(stopped.queue.state())
    }

    /// The interrupt of the queue `index` may be another eventfd now, or none.
    pub fn call_changed(&self, server: &dyn QueueServer, index: usize) {
        let running = self.lock();
        let Some(Some(queue)) = running.get(index) else {
            return;
        };
        if let Err(error) = server.set_call(index, queue.call()) {
            tracing::warn!(index, %error, "a queue's server does not take its interrupt");
        }
    }

    /// Guest memory has other regions now. A queue whose rings are gone with their memory is taken
    /// from the server, which knows them by this process's addresses, and its driver is told.
    ///
    /// # Errors
    /// The server refuses; it goes on with the regions before.
    pub fn memory_changed(&self, server: &dyn QueueServer) -> io::Result<()> {
        let mut running = self.lock();
        let Some(first) = running.iter().flatten().next() else {
            // It is told with the first queue.
            return Ok(());
        };
        let view = first.memory.memory();
        let mut lost = Vec::new();
        for (index, place) in running.iter_mut().enumerate() {
            let is_lost = |queue: &mut Running| queue.rings(&view).is_none();
            if let Some(queue) = place.take_if(is_lost) {
                if let Err(error) = server.stop_queue(index) {
                    tracing::debug!(index, %error, "a queue without rings stands nowhere");
                }
                lost.push(queue);
            }
        }
        let told = server.set_memory(&view);
        drop(running);
        lost.iter().for_each(|queue| queue.driver.needs_reset());
        told
    }

    /// Whether the queue `index` is with the server.
    #[must_use]
    pub fn has(&self, index: usize) -> bool {
        self.lock().get(index).is_some_and(Option::is_some)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// What the server is told; `None` if the rings are not in guest memory.
    fn describe<'a>(&'a self, error: &'a EventFd) -> Option<ServedQueue<'a>> {
        let queue = &self.queue;
        Some(ServedQueue {
            size: queue.size(),
            next: queue.next_avail(),
            rings: self.rings(&self.memory.memory())?,
            kick: lend(&self.kick),
            call: self.call(),
            error: lend(error),
        })
    }

    /// Where the rings are in this process, if they are in `view`.
    fn rings(&self, view: &GuestMemView) -> Option<Rings> {
        let queue = &self.queue;
        let rings = (queue.desc_table(), queue.avail_ring(), queue.used_ring());
        if !queue.is_valid(view) {
            return None;
        }
        Rings::find(view, rings, queue.size())
    }

    fn call(&self) -> BorrowedFd<'_> {
        let direct = self.interrupt.eventfd();
        direct.unwrap_or_else(|| lend(&self.relay.event))
    }

    /// How far the server has come, as the driver sees it.
    fn used(&self) -> u16 {
        let view = self.memory.memory();
        let place = self.queue.used_ring().checked_add(2).map(GuestAddress);
        let index = place.and_then(|place| view.load::<u16>(place, Ordering::Acquire).ok());
        index.map_or(self.queue.next_used(), u16::from_le)
    }
}

/// The server has used buffers.
struct Called {
    event: Arc<EventFd>,
    interrupt: Arc<dyn Interrupt>,
}

impl Ready for Called {
    fn ready(&self, _readiness: Readiness) {
        // Emptied first: what is written after this is an edge of its own.
        if self.event.read().is_ok() {
            self.interrupt.trigger();
        }
    }
}

/// The server has found that the driver breaks the rules.
struct Gone {
    driver: Arc<dyn DriverNotifier>,
    index: usize,
    told: Repeats,
}

impl Ready for Gone {
    fn ready(&self, _readiness: Readiness) {
        if let Some(times) = self.told.note() {
            tracing::warn!(
                index = self.index,
                times,
                "a queue's server finds it broken"
            );
        }
        self.driver.needs_reset();
    }
}

fn lend(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd is open as long as `event` lives, which the borrow cannot outlive.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

impl fmt::Debug for ServedQueues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServedQueues").finish_non_exhaustive()
    }
}
