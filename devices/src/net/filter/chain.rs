//! All filters of a netdev, between its backend and its card.
//!
//! ```text
//!                    ┌───────────────────── Chain ─────────────────────┐
//!   card.send ──────►│ rx: filters, last to first ──► going ───────────│─► backend.send
//!   card.receive ◄───│ coming ◄── tx: filters, first to last ◄─────────│── backend.receive
//!                    └───────────────▲─────────────────▲───────────────┘
//!                                    └ bring_in ───────┘ inlets and holds
//! ```
//!
//! A card that takes packets has them filtered in its own buffer, without a copy. Only what it does not
//! take now is read ahead into `coming`; only what the backend does not take waits in `going`, so that
//! no packet is filtered twice. Who finds no room goes on when there is some: `made_room`.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::store::Store;
use super::{Filter, FilterError, Place, Verdict, Way};
use crate::net::LONGEST;
use crate::net::backend::{Abilities, NetBackend, NetFrontend, Offloads, Received, Sent};
use crate::net::netdev::Netdev;
use crate::net::packet::{Packet, Whole};
use crate::reactor::Reactor;

/// How many packets are taken from the backend before other devices get their turn.
const BATCH: usize = 256;

/// The filters of a netdev.
pub struct Chain {
    me: Weak<Self>,
    netdev: Weak<Netdev>,
    backend: Arc<dyn NetBackend>,
    reactor: Reactor,
    /// In the order of packets from the netdev.
    filters: Mutex<Arc<[Arc<Filter>]>>,
    card: Mutex<Option<Weak<dyn NetFrontend>>>,
    /// Packets that the card has not taken yet.
    coming: Mutex<Store>,
    /// Packets that the backend has not taken yet.
    going: Mutex<Store>,
    /// Where packets are read ahead.
    buffer: Mutex<Box<[u8]>>,
    /// The card was told that there is no room.
    full: AtomicBool,
    /// Somebody found no room.
    stuck: AtomicBool,
}

impl Chain {
    /// A chain without filters before the backend of `netdev`, which does not know of it yet.
    pub(super) fn before(netdev: &Arc<Netdev>) -> Result<Arc<Self>, FilterError> {
        let backend = netdev.backend().ok_or(FilterError::NoNetdev)?;
        if backend.server().is_some() {
            return Err(FilterError::Served(netdev.id().to_owned()));
        }
        let queues = backend.queues();
        if queues > 1 {
            let netdev = netdev.id().to_owned();
            return Err(FilterError::Multiqueue { netdev, queues });
        }
        Ok(Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            netdev: Arc::downgrade(netdev),
            backend,
            reactor: netdev.reactor().clone(),
            filters: Mutex::new(Arc::new([])),
            card: Mutex::default(),
            coming: Mutex::default(),
            going: Mutex::default(),
            buffer: Mutex::new(vec![0; LONGEST].into_boxed_slice()),
            full: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
        }))
    }

    /// The backend behind the filters.
    pub(in crate::net) fn backend(&self) -> Arc<dyn NetBackend> {
        Arc::clone(&self.backend)
    }

    pub(super) fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// Which of the filters has this id.
    pub(super) fn find(&self, id: &str) -> Option<usize> {
        self.filters().iter().position(|one| one.place.id == id)
    }

    /// The ids of the filters.
    pub(in crate::net) fn ids(&self) -> Vec<String> {
        let filters = self.filters();
        filters.iter().map(|one| one.place.id.clone()).collect()
    }

    /// Puts a filter before the one that is `at` that place now.
    pub(super) fn insert(&self, at: usize, filter: &Arc<Filter>) {
        let mut filters = lock(&self.filters);
        let mut more = filters.to_vec();
        more.insert(at.min(more.len()), Arc::clone(filter));
        *filters = more.into();
    }

    /// Takes a filter out; whether it was the last.
    pub(super) fn remove(&self, filter: &Arc<Filter>) -> bool {
        let mut filters = lock(&self.filters);
        let rest = filters.iter().filter(|one| !Arc::ptr_eq(one, filter));
        let rest: Arc<[_]> = rest.map(Arc::clone).collect();
        let is_empty = rest.is_empty();
        *filters = rest;
        is_empty
    }

    fn filters(&self) -> Arc<[Arc<Filter>]> {
        Arc::clone(&lock(&self.filters))
    }

    fn card(&self) -> Option<Arc<dyn NetFrontend>> {
        lock(&self.card).as_ref()?.upgrade()
    }

    fn is_up(&self) -> bool {
        self.netdev.upgrade().is_some_and(|netdev| netdev.is_up())
    }

    /// Whether there is room for a packet behind `from`, or behind all.
    pub(super) fn has_room(&self, way: Way, from: Option<&Place>) -> bool {
        let end = match way {
            Way::Rx => lock(&self.going).has_room(),
            Way::Tx => lock(&self.coming).has_room(),
        };
        let has_room = end && self.behind(way, from, |filter| filter.has_room(way));
        if !has_room {
            self.stuck.store(true, Ordering::Release);
        }
        has_room
    }

    /// Whether a packet gets past all filters behind `from`.
    fn passes(&self, way: Way, from: Option<&Place>, packet: &Packet<'_>) -> bool {
        self.behind(way, from, |filter| {
            filter.look(way, packet) == Verdict::Passes
        })
    }

    /// Whether `holds` of every filter that a packet from `from`, or from an end, meets. They are asked
    /// one after the other, until it does not.
    fn behind(&self, way: Way, from: Option<&Place>, holds: impl Fn(&Filter) -> bool) -> bool {
        let filters = self.filters();
        match way {
            Way::Rx => every(filters.iter().rev(), from, holds),
            Way::Tx => every(filters.iter(), from, holds),
        }
    }

    /// Takes in a packet of an inlet or a hold, which has looked for [room](Self::has_room). On the
    /// reactor's thread, outside of any card's work; [`brought_in`](Self::brought_in) follows.
    pub(super) fn bring_in(&self, way: Way, from: &Place, bytes: &[u8]) {
        let whole = Whole::new(bytes);
        let packet = whole.packet();
        // Without a card there is no cable.
        if self.card().is_none() || !self.is_up() || !self.passes(way, Some(from), &packet) {
            return;
        }
        match way {
            Way::Rx => self.hand_out(&packet),
            Way::Tx => {
                lock(&self.coming).put(&packet);
            }
        }
    }

    /// All packets that can now have been brought in.
    pub(super) fn brought_in(&self) {
        self.backend.flush(0);
        if !lock(&self.coming).is_empty()
            && let Some(card) = self.card()
        {
            card.readable(0);
        }
    }

    /// Gives the backend a packet, or keeps it.
    fn hand_out(&self, packet: &Packet<'_>) {
        let mut going = lock(&self.going);
        if !going.is_empty() || self.backend.send(0, packet) == Sent::Full {
            going.put(packet);
        }
    }

    /// Gives the backend what it did not take before; whether nothing is left.
    fn push_out(&self) -> bool {
        let mut going = lock(&self.going);
        if going.is_empty() {
            return true;
        }
        while let Some(bytes) = going.first() {
            if self.backend.send(0, &Whole::new(bytes).packet()) == Sent::Full {
                return false;
            }
            going.pop();
        }
        drop(going);
        self.made_room();
        true
    }

    /// There is more room than before: who found none looks again, later, for a card may be at work.
    pub(super) fn made_room(&self) {
        if self.stuck.swap(false, Ordering::AcqRel) {
            self.later(Self::go_on);
        }
    }

    fn go_on(&self) {
        for filter in self.filters().iter() {
            filter.go_on();
        }
        if self.full.swap(false, Ordering::AcqRel)
            && let Some(card) = self.card()
        {
            card.writable(0);
        }
        self.readable(0);
    }

    /// Has the reactor do something after what is going on now.
    fn later(&self, what: fn(&Self)) {
        let me = Weak::clone(&self.me);
        let told = self.reactor.run(move || {
            if let Some(me) = me.upgrade() {
                what(&me);
            }
        });
        if let Err(error) = told {
            tracing::error!(%error, "filters cannot go on");
        }
    }

    /// The next packet of the backend that gets past the filters.
    fn fetch(&self, buffer: &mut [u8]) -> Received {
        for _ in 0..BATCH {
            if !self.has_room(Way::Tx, None) {
                return Received::Nothing;
            }
            let Received::Packet(count) = self.backend.receive(0, buffer) else {
                return Received::Nothing;
            };
            let whole = Whole::new(buffer.get(..count).unwrap_or_default());
            // Without a link the card drops it, and nobody sees it.
            if !self.is_up() || self.passes(Way::Tx, None, &whole.packet()) {
                return Received::Packet(count);
            }
        }
        // The filters took them all.
        self.later(|me| me.readable(0));
        Received::Nothing
    }

    /// Has what the card does not take now filtered all the same.
    fn read_ahead(&self) {
        let mut buffer = lock(&self.buffer);
        for _ in 0..BATCH {
            let Received::Packet(count) = self.fetch(&mut buffer) else {
                return;
            };
            let whole = Whole::new(buffer.get(..count).unwrap_or_default());
            lock(&self.coming).put(&whole.packet());
        }
        self.later(|me| me.readable(0));
    }
}

/// Whether `holds` of all behind `from`, and `from` is among them.
fn every<'a>(
    mut met: impl Iterator<Item = &'a Arc<Filter>>,
    from: Option<&Place>,
    holds: impl Fn(&Filter) -> bool,
) -> bool {
    from.is_none_or(|from| met.any(|one| ptr::eq(&raw const *one.place, from)))
        && met.all(|one| holds(one))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NetBackend for Chain {
    fn abilities(&self) -> Abilities {
        self.backend.abilities()
    }

    fn queues(&self) -> u16 {
        self.backend.queues()
    }

    fn set_offloads(&self, offloads: Offloads) {
        self.backend.set_offloads(offloads);
    }

    fn use_queues(&self, count: u16) -> io::Result<()> {
        self.backend.use_queues(count)
    }

    fn attach(&self, frontend: Weak<dyn NetFrontend>) -> io::Result<()> {
        *lock(&self.card) = Some(frontend);
        let me: Weak<Self> = Weak::clone(&self.me);
        self.backend.attach(me)
    }

    fn detach(&self) {
        let gone = lock(&self.card).take();
        drop(gone);
        self.backend.detach();
        lock(&self.coming).clear();
        lock(&self.going).clear();
        self.full.store(false, Ordering::Release);
    }

    fn send(&self, _queue: usize, packet: &Packet<'_>) -> Sent {
        if !self.push_out() || !self.has_room(Way::Rx, None) {
            self.full.store(true, Ordering::Release);
            return Sent::Full;
        }
        if self.passes(Way::Rx, None, packet) {
            self.hand_out(packet);
        }
        Sent::Done
    }

    fn flush(&self, queue: usize) {
        self.backend.flush(queue);
    }

    fn receive(&self, _queue: usize, buffer: &mut [u8]) -> Received {
        let (kept, is_empty) = {
            let mut coming = lock(&self.coming);
            (coming.take(buffer), coming.is_empty())
        };
        match kept {
            Some(count) => {
                if is_empty {
                    self.made_room();
                }
                Received::Packet(count)
            }
            None => self.fetch(buffer),
        }
    }

    fn is_linked(&self) -> bool {
        self.backend.is_linked()
    }

    fn describe(&self) -> String {
        self.backend.describe()
    }
}

impl NetFrontend for Chain {
    fn readable(&self, queue: usize) {
        if let Some(card) = self.card() {
            card.readable(queue);
            self.read_ahead();
        }
    }

    fn writable(&self, queue: usize) {
        if !self.push_out() {
            return;
        }
        self.backend.flush(queue);
        if self.full.swap(false, Ordering::AcqRel)
            && let Some(card) = self.card()
        {
            card.writable(queue);
        }
    }

    fn link_changed(&self) {
        if let Some(card) = self.card() {
            card.link_changed();
        }
    }
}
