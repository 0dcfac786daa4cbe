//! Hubs inside this process, for tests: what a card sends by one port comes out at all others.
//!
//! ```text
//!   card A ── port ─┐ Hub: ports, each with packets that wait
//!   card B ── port ─┘
//! ```

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::backend::{Abilities, NetBackend, NetFrontend, Offloads, Received, Sent};
use super::packet::Packet;
use super::{HEADER, LONGEST};
use crate::reactor::Reactor;

/// How many packets wait at a port whose card does not take them; later ones are dropped.
const WAITING: usize = 64;

/// A hub.
#[derive(Default)]
pub struct Hub {
    ports: Mutex<Vec<Weak<HubPort>>>,
}

impl Hub {
    /// Another port.
    pub fn port(self: &Arc<Self>, number: i32, reactor: &Reactor) -> Arc<HubPort> {
        let port = Arc::new_cyclic(|me| HubPort {
            me: Weak::clone(me),
            hub: Arc::clone(self),
            number,
            reactor: reactor.clone(),
            frontend: Mutex::default(),
            waiting: Mutex::default(),
            told: AtomicBool::new(false),
        });
        let mut ports = self.ports();
        ports.retain(|port| port.strong_count() > 0);
        ports.push(Arc::downgrade(&port));
        port
    }

    /// The ports but `me`.
    fn others(&self, me: &Weak<HubPort>) -> Vec<Arc<HubPort>> {
        let ports = self.ports();
        let others = ports.iter().filter(|port| !Weak::ptr_eq(port, me));
        others.filter_map(Weak::upgrade).collect()
    }

    fn ports(&self) -> MutexGuard<'_, Vec<Weak<HubPort>>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A port of a hub.
pub struct HubPort {
    me: Weak<Self>,
    hub: Arc<Hub>,
    number: i32,
    reactor: Reactor,
    frontend: Mutex<Option<Weak<dyn NetFrontend>>>,
    waiting: Mutex<VecDeque<Vec<u8>>>,
    /// The card will look.
    told: AtomicBool,
}

impl HubPort {
    /// Keeps a packet for this port's card, if there is one.
    fn keep(&self, packet: &[u8]) {
        if self.frontend().is_none() {
            return;
        }
        {
            let mut waiting = self.waiting();
            if waiting.len() == WAITING {
                return;
            }
            waiting.push_back(packet.to_vec());
        }
        if self.told.swap(true, Ordering::AcqRel) {
            return;
        }
        let me = Weak::clone(&self.me);
        // Later, for the sender is still at work on its own queue.
        let job = move || {
            if let Some(me) = me.upgrade() {
                me.told.store(false, Ordering::Release);
                if let Some(card) = me.frontend().as_ref().and_then(Weak::upgrade) {
                    card.readable(0);
                }
            }
        };
        if let Err(error) = self.reactor.run(job) {
            tracing::error!(%error, "a hub cannot tell a card of its packets");
        }
    }

    fn frontend(&self) -> Option<Weak<dyn NetFrontend>> {
        let frontend = self.frontend.lock().unwrap_or_else(PoisonError::into_inner);
        frontend.clone()
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NetBackend for HubPort {
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }

    fn queues(&self) -> u16 {
        1
    }

    fn set_offloads(&self, _offloads: Offloads) {}

    fn use_queues(&self, _count: u16) -> io::Result<()> {
        Ok(())
    }

    fn attach(&self, frontend: Weak<dyn NetFrontend>) -> io::Result<()> {
        *self.frontend.lock().unwrap_or_else(PoisonError::into_inner) = Some(frontend);
        Ok(())
    }

    fn detach(&self) {
        *self.frontend.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.waiting().clear();
    }

    fn send(&self, _queue: usize, packet: &Packet<'_>) -> Sent {
        let others = self.hub.others(&self.me);
        if others.is_empty() {
            return Sent::Done;
        }
        let mut bytes = vec![0; packet.len().min(LONGEST)];
        packet.copy(0, &mut bytes);
        for port in others {
            port.keep(&bytes);
        }
        Sent::Done
    }

    fn receive(&self, _queue: usize, buffer: &mut [u8]) -> Received {
        let Some(packet) = self.waiting().pop_front() else {
            return Received::Nothing;
        };
        match buffer.get_mut(..packet.len()) {
            Some(room) if packet.len() > HEADER => {
                room.copy_from_slice(&packet);
                // No other side has promised anything about it.
                room.iter_mut().take(HEADER).for_each(|byte| *byte = 0);
                Received::Packet(packet.len())
            }
            _ => Received::Nothing,
        }
    }

    fn describe(&self) -> String {
        format!("hub={}", self.number)
    }
}
