//! Queues of packets that are served outside of this process, and their way back.
//!
//! ```text
//!                 link up, and the backend has a server
//!     with us ────────────────────────────────────────► with the server
//!   (dev-io, `receive`, `transmit`) ◄──────────────────
//!                 link down, or the netdev is removed
//! ```
//!
//! While the link is down packets of the guest are dropped here, as they are without a server. The
//! queue for commands is always with us.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use virtio_queue::{Queue, QueueState};
use vmm_sys_util::eventfd::EventFd;

use super::card::{Role, VirtioNet, lock};
use crate::irq::Interrupt;
use crate::memory::GuestMem;
use crate::net::NetBackend;
use crate::reactor::Reactor;
use crate::vhost::{QueueServer, ServedQueues, ServedView};
use crate::virtio::device::{ActiveQueue, VirtioError};

/// A card's books on who serves its queues of packets.
pub(super) struct Outside {
    queues: ServedQueues,
    /// Held while queues are started, stopped and change hands, so that this and the link agree.
    places: Mutex<Places>,
}

struct Places {
    /// Whether the backend tells us of packets.
    watched: bool,
    started: Vec<Option<Started>>,
}

/// What it takes to start a queue again.
struct Started {
    memory: GuestMem,
    kick: EventFd,
    interrupt: Arc<dyn Interrupt>,
    /// Whether the server has it.
    outside: bool,
}

impl Outside {
    /// Books on `count` queues, none of which is started. The backend tells us of packets.
    pub(super) fn new(reactor: Reactor, count: usize) -> Self {
        Self {
            queues: ServedQueues::new(reactor, count),
            places: Mutex::new(Places {
                watched: true,
                started: (0..count).map(|_| None).collect(),
            }),
        }
    }

    /// A look at the queue `index`, if the server has it.
    pub(super) fn view(&self, index: usize) -> Option<ServedView> {
        self.queues.view(index)
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Started {
    fn of(active: &ActiveQueue) -> io::Result<Self> {
        Ok(Self {
            memory: active.memory.clone(),
            kick: active.kick.try_clone()?,
            interrupt: Arc::clone(&active.interrupt),
            outside: false,
        })
    }

    fn at(&self, index: usize, state: QueueState) -> Result<ActiveQueue, VirtioError> {
        let kick = self.kick.try_clone();
        Ok(ActiveQueue {
            queue: Queue::try_from(state).map_err(|_| VirtioError::BadRing { index })?,
            memory: self.memory.clone(),
            kick: kick.map_err(|source| no_eventfd(index, source))?,
            interrupt: Arc::clone(&self.interrupt),
        })
    }
}

fn no_eventfd(index: usize, source: io::Error) -> VirtioError {
    VirtioError::Backend {
        index,
        what: "no eventfd for the doorbell".to_owned(),
        source,
    }
}

impl VirtioNet {
    fn server(&self) -> Option<Arc<dyn QueueServer>> {
        self.backend()?.server()
    }

    /// Starts a queue of packets where it belongs now.
    pub(super) fn start_packets(
        &self,
        outside: &Outside,
        index: usize,
        active: ActiveQueue,
    ) -> Result<(), VirtioError> {
        let mut places = outside.places();
        let mut started = Started::of(&active).map_err(|source| no_eventfd(index, source))?;
        started.outside = self.put(outside, index, active)?;
        if let Some(place) = places.started.get_mut(index) {
            *place = Some(started);
        }
        self.settle(&mut places);
        Ok(())
    }

    /// Takes a queue of packets back from whoever has it.
    pub(super) fn stop_packets(&self, outside: &Outside, index: usize) -> Option<QueueState> {
        let mut places = outside.places();
        let started = places.started.get_mut(index)?.take()?;
        let state = self.take(outside, index, started.outside);
        self.settle(&mut places);
        state
    }

    /// The link came or went, or the netdev is about to be removed.
    pub(super) fn change_hands(&self, outside: &Outside) {
        let mut places = outside.places();
        let wanted = self.is_up() && self.server().is_some();
        for (index, place) in places.started.iter_mut().enumerate() {
            let Some(started) = place.as_mut().filter(|one| one.outside != wanted) else {
                continue;
            };
            let state = self.take(outside, index, started.outside);
            let moved = state.map(|state| self.put(outside, index, started.at(index, state)?));
            match moved {
                Some(Ok(is_outside)) => started.outside = is_outside,
                Some(Err(error)) => {
                    tracing::error!(device = %self.id(), %error, "a queue is lost on its way");
                    *place = None;
                    self.needs_reset();
                }
                None => *place = None,
            }
        }
        self.settle(&mut places);
    }

    /// What the server can do, if it has a queue.
    pub(super) fn server_at_work(&self, outside: &Outside) -> Option<u64> {
        let server = self.server().filter(|_| outside.queues.any())?;
        Some(server.features())
    }

    /// A queue's interrupt goes another way now.
    pub(super) fn call_moved(&self, outside: &Outside, index: usize) {
        if let Some(server) = self.server() {
            outside.queues.call_changed(server.as_ref(), index);
        }
    }

    /// Guest memory has other regions now.
    ///
    /// # Errors
    /// The server does not take them.
    pub(super) fn memory_moved(&self, outside: &Outside) -> io::Result<()> {
        match self.server() {
            Some(server) => outside.queues.memory_changed(server.as_ref()),
            None => Ok(()),
        }
    }

    /// Gives a queue to whom it belongs now; whether that is the server.
    fn put(
        &self,
        outside: &Outside,
        index: usize,
        active: ActiveQueue,
    ) -> Result<bool, VirtioError> {
        let up: Option<Arc<dyn NetBackend>> = self.backend_if_up();
        match up.and_then(|backend| backend.server()).zip(self.driver()) {
            Some((server, driver)) => {
                if let Some(pair) = self.pairs.get(index / 2) {
                    // What waits for room would come behind what the server brings.
                    lock(&pair.inbound).forget();
                }
                let features = self.negotiated();
                outside
                    .queues
                    .start(server.as_ref(), index, active, features, driver)?;
                Ok(true)
            }
            None => {
                self.start_here(index, active)?;
                Ok(false)
            }
        }
    }

    fn take(&self, outside: &Outside, index: usize, is_outside: bool) -> Option<QueueState> {
        if is_outside {
            outside.queues.stop(self.server()?.as_ref(), index)
        } else {
            self.slot(self.role(index)?)?.stop()
        }
    }

    /// Who has no queue here hears of no packet: each would wake `dev-io` for nothing.
    fn settle(&self, places: &mut Places) {
        let wanted = places.started.iter().flatten().all(|one| !one.outside);
        let Some(backend) = self.backend().filter(|_| wanted != places.watched) else {
            return;
        };
        places.watched = wanted;
        if !wanted {
            backend.detach();
            return;
        }
        let me: Weak<Self> = self.weak();
        if let Err(error) = backend.attach(me) {
            tracing::error!(device = %self.id(), %error, "the netdev cannot be listened to");
        }
    }

    /// Whether `role` is a queue of packets.
    pub(super) fn is_packets(role: Role) -> bool {
        matches!(role, Role::Receive(_) | Role::Transmit(_))
    }
}
