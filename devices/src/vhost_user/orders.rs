//! What a device wants of its back end, whether one is there or not.
//!
//! ```text
//!   device ── start, stop, set … ─► Orders ◄── next: what differs from what is applied ── session
//!      ▲                              │
//!      └── waits, but not for ever ◄──┘ stopped(base), or the session is over
//! ```

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::session::Offer;
use super::table::Table;
use crate::vhost::{Rings, ServedQueue};

/// How many changes of the configuration space wait for a back end.
const MOST_WRITES: usize = 64;

/// Where requests under way are kept while a back end is away.
#[derive(Debug)]
pub(super) struct Inflight {
    pub(super) payload: Vec<u8>,
    pub(super) memory: OwnedFd,
}

/// A queue to be served, with fds of its own: it outlives connections.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) size: u16,
    pub(super) next: u16,
    pub(super) rings: Rings,
    pub(super) kick: OwnedFd,
    pub(super) error: OwnedFd,
}

impl Served {
    pub(super) fn new(queue: &ServedQueue<'_>) -> io::Result<Self> {
        Ok(Self {
            size: queue.size,
            next: queue.next,
            rings: queue.rings,
            kick: queue.kick.try_clone_to_owned()?,
            error: queue.error.try_clone_to_owned()?,
        })
    }
}

/// Something to be done by a session.
pub(super) enum Order {
    Features(u64),
    Memory(Arc<Table>),
    Inflight(Option<Arc<Inflight>>),
    Start {
        index: u32,
        queue: Arc<Served>,
        base: u16,
        call: Arc<OwnedFd>,
        enabled: bool,
    },
    Call {
        index: u32,
        call: Arc<OwnedFd>,
    },
    Stop {
        index: u32,
    },
    Enable {
        index: u32,
        enabled: bool,
    },
    Config {
        offset: u32,
        bytes: Vec<u8>,
    },
    Rarp([u8; 6]),
}

/// What a session has told its back end.
#[derive(Default)]
pub(super) struct Applied {
    features: Option<u64>,
    /// By the table's number.
    memory: u64,
    inflight: bool,
    queues: Vec<Option<AppliedQueue>>,
}

/// What a back end was told of a queue that it has.
#[derive(Clone, Copy)]
struct AppliedQueue {
    /// By the numbers of start and call.
    start: u64,
    calls: u64,
    enabled: bool,
}

/// How a connection stands.
#[derive(Clone, Debug)]
pub(super) enum Link {
    /// There is none.
    Gone,
    /// The back end has not told yet what it offers.
    Greeting,
    /// It is there.
    Ready,
}

#[derive(Default)]
struct Slot {
    wanted: Option<Arc<Served>>,
    call: Option<Arc<OwnedFd>>,
    /// Grows with each start, and with each call.
    start: u64,
    calls: u64,
    /// The session has begun to give it to the back end and has not got it back.
    held: bool,
    /// A back end had it since it was started.
    touched: bool,
    /// Where it stood when it was stopped.
    base: Option<u16>,
}

struct State {
    link: Link,
    /// What the first back end offered: the device is made by it.
    offer: Option<Arc<Offer>>,
    /// Why the last connection has ended.
    ended: Option<String>,
    features: Option<u64>,
    table: Option<Arc<Table>>,
    tables: u64,
    inflight: Option<Arc<Inflight>>,
    slots: Vec<Slot>,
    /// How many of them, from the first on, are to be looked at.
    used: usize,
    size: u16,
    config: Vec<u8>,
    writes: VecDeque<(u32, Vec<u8>)>,
    rarp: Option<[u8; 6]>,
}

/// The orders, shared by the device and its sessions.
pub(super) struct Orders {
    state: Mutex<State>,
    changed: Condvar,
}

impl Orders {
    /// For a device of `queues` queues.
    pub(super) fn new(queues: usize) -> Self {
        Self {
            state: Mutex::new(State {
                link: Link::Gone,
                offer: None,
                ended: None,
                features: None,
                table: None,
                tables: 0,
                inflight: None,
                slots: (0..queues).map(|_| Slot::default()).collect(),
                used: queues,
                size: 0,
                config: Vec::new(),
                writes: VecDeque::new(),
                rarp: None,
            }),
            changed: Condvar::new(),
        }
    }

    /// A back end has come.
    pub(super) fn begin(&self) {
        self.lock().link = Link::Greeting;
    }

    /// It has told what it offers; `false` if that is less than what the device was made by.
    pub(super) fn ready(&self, offer: &Offer) -> bool {
        let mut state = self.lock();
        let first = state.offer.get_or_insert_with(|| Arc::new(offer.clone()));
        if first.features & !offer.features != 0 || offer.queues < first.queues {
            return false;
        }
        state.config.clone_from(&offer.config);
        state.link = Link::Ready;
        state.ended = None;
        drop(state);
        self.changed.notify_all();
        true
    }

    /// It is gone: no queue is with it any more. Whether it had been [`ready`](Self::ready).
    pub(super) fn end(&self, why: Option<String>) -> bool {
        let mut state = self.lock();
        let was_ready = matches!(state.link, Link::Ready);
        state.link = Link::Gone;
        if why.is_some() {
            state.ended = why;
        }
        for slot in &mut state.slots {
            slot.held = false;
        }
        drop(state);
        self.changed.notify_all();
        was_ready
    }

    /// What the first back end offered, as soon as there is one; else why there is none.
    pub(super) fn wait_ready(&self, patience: Duration) -> Result<Arc<Offer>, Option<String>> {
        let state = self.lock();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, patience, |state| !matches!(state.link, Link::Ready))
            .unwrap_or_else(PoisonError::into_inner);
        match (&state.link, &state.offer) {
            (Link::Ready, Some(offer)) => Ok(Arc::clone(offer)),
            _ => Err(state.ended.clone()),
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.lock().link, Link::Ready)
    }

    pub(super) fn offer(&self) -> Option<Arc<Offer>> {
        self.lock().offer.clone()
    }

    pub(super) fn set_features(&self, features: u64) {
        self.lock().features = Some(features);
    }

    pub(super) fn set_memory(&self, table: Table) {
        let mut state = self.lock();
        state.tables += 1;
        let before = state.table.replace(Arc::new(table));
        drop(state);
        drop(before);
    }

    /// How many queues there are, and how many entries the longest has.
    pub(super) fn extent(&self) -> (u16, u16) {
        let state = self.lock();
        let count = u16::try_from(state.slots.len()).unwrap_or(u16::MAX);
        (count, state.size)
    }

    pub(super) fn start(&self, index: usize, queue: Served, call: OwnedFd) -> io::Result<()> {
        let mut state = self.lock();
        state.size = state.size.max(queue.size);
        let slot = state
            .slots
            .get_mut(index)
            .ok_or(io::ErrorKind::InvalidInput)?;
        slot.start += 1;
        slot.touched = false;
        slot.base = None;
        let before = (
            slot.wanted.replace(Arc::new(queue)),
            slot.call.replace(Arc::new(call)),
        );
        drop(state);
        drop(before);
        Ok(())
    }

    pub(super) fn set_call(&self, index: usize, call: OwnedFd) {
        let mut state = self.lock();
        let before = state.slots.get_mut(index).and_then(|slot| {
            slot.calls += 1;
            slot.call.replace(Arc::new(call))
        });
        drop(state);
        drop(before);
    }

    /// Only the first `count` queues are to be looked at; the others are kept as they are.
    pub(super) fn use_queues(&self, count: usize) {
        self.lock().used = count;
    }

    /// The queue is not wanted any more. Whether a back end has it.
    pub(super) fn stop(&self, index: usize) -> bool {
        let mut state = self.lock();
        let Some(slot) = state.slots.get_mut(index) else {
            return false;
        };
        let before = (slot.wanted.take(), slot.call.take());
        let held = slot.held;
        drop(state);
        drop(before);
        held
    }

    /// Where the queue stands, when the back end has given it back; `None` if it does not in time.
    pub(super) fn wait_stopped(&self, index: usize, patience: Duration) -> Option<u16> {
        let is_held = |state: &mut State| state.slots.get(index).is_some_and(|slot| slot.held);
        let state = self.lock();
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, patience, is_held)
            .unwrap_or_else(PoisonError::into_inner);
        state.slots.get_mut(index)?.base.take()
    }

    /// The session has got a queue back.
    pub(super) fn stopped(&self, index: u32, base: u16) {
        let mut state = self.lock();
        let place = usize::try_from(index).unwrap_or(usize::MAX);
        if let Some(slot) = state.slots.get_mut(place) {
            slot.held = false;
            slot.base = Some(base);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Keeps the memory for what is under way.
    pub(super) fn keep_inflight(&self, inflight: Inflight) -> Arc<Inflight> {
        let kept = Arc::new(inflight);
        let before = self.lock().inflight.replace(Arc::clone(&kept));
        drop(before);
        kept
    }

    /// The device was reset: nothing is under way, and no address is to be made known.
    pub(super) fn forget(&self) {
        let mut state = self.lock();
        let gone = (state.inflight.take(), std::mem::take(&mut state.writes));
        state.rarp = None;
        drop(state);
        drop(gone);
    }

    pub(super) fn read_config(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = state.config.get(start..).unwrap_or_default();
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = rest.get(at).copied().unwrap_or(0);
        }
    }

    pub(super) fn set_config(&self, config: Vec<u8>) {
        self.lock().config = config;
    }

    /// The driver's change of the configuration space; more than wait already are forgotten.
    pub(super) fn write_config(&self, offset: u32, bytes: &[u8]) {
        let mut state = self.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(bytes.len());
        let Some(place) = state.config.get_mut(start..end) else {
            return;
        };
        place.copy_from_slice(bytes);
        if state.writes.len() < MOST_WRITES {
            state.writes.push_back((offset, bytes.to_vec()));
        }
    }

    pub(super) fn send_rarp(&self, mac: [u8; 6]) {
        self.lock().rarp = Some(mac);
    }

    /// What differs from what is applied; it is taken for applied from now on.
    pub(super) fn next(&self, applied: &mut Applied) -> Option<Order> {
        self.lock().next(applied)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self, applied: &mut Applied) -> Option<Order> {
        applied.queues.resize(self.slots.len(), None);
        for ((index, slot), done) in (0..).zip(&self.slots).zip(&mut applied.queues) {
            let is_old = done.is_some_and(|done| slot.wanted.is_none() || done.start != slot.start);
            if is_old {
                *done = None;
                return Some(Order::Stop { index });
            }
        }
        let is_used = self.slots.iter().any(|slot| slot.wanted.is_some());
        if !is_used {
            return self.next_small();
        }
        if let Some(features) = self.features.filter(|now| applied.features != Some(*now)) {
            applied.features = Some(features);
            return Some(Order::Features(features));
        }
        if let Some(table) = self
            .table
            .as_ref()
            .filter(|_| applied.memory != self.tables)
        {
            applied.memory = self.tables;
            return Some(Order::Memory(Arc::clone(table)));
        }
        if !std::mem::replace(&mut applied.inflight, true) {
            return Some(Order::Inflight(self.inflight.clone()));
        }
        self.next_start(applied)
            .or_else(|| self.next_call(applied))
            .or_else(|| self.next_enable(applied))
            .or_else(|| self.next_small())
    }

    fn next_start(&mut self, applied: &mut Applied) -> Option<Order> {
        let table = self.table.as_ref();
        let used_queues = self.used;
        for ((index, slot), done) in (0_u32..).zip(&mut self.slots).zip(&mut applied.queues) {
            let (None, Some(queue), Some(call)) = (&done, &slot.wanted, &slot.call) else {
                continue;
            };
            // Of a back end before only what was used is known.
            let used = table.and_then(|table| table.used_index(queue.rings.used));
            let base = match (slot.touched, used) {
                (true, Some(used)) => used,
                _ => queue.next,
            };
            (slot.touched, slot.held) = (true, true);
            let enabled = is_among(index, used_queues);
            *done = Some(AppliedQueue {
                start: slot.start,
                calls: slot.calls,
                enabled,
            });
            return Some(Order::Start {
                index,
                queue: Arc::clone(queue),
                base,
                call: Arc::clone(call),
                enabled,
            });
        }
        None
    }

    fn next_call(&self, applied: &mut Applied) -> Option<Order> {
        for ((index, slot), done) in (0..).zip(&self.slots).zip(&mut applied.queues) {
            if let (Some(done), Some(call)) = (done, &slot.call)
                && done.calls != slot.calls
            {
                done.calls = slot.calls;
                let call = Arc::clone(call);
                return Some(Order::Call { index, call });
            }
        }
        None
    }

    fn next_enable(&self, applied: &mut Applied) -> Option<Order> {
        for (index, done) in (0..).zip(&mut applied.queues) {
            let enabled = is_among(index, self.used);
            if let Some(done) = done.as_mut().filter(|done| done.enabled != enabled) {
                done.enabled = enabled;
                return Some(Order::Enable { index, enabled });
            }
        }
        None
    }

    fn next_small(&mut self) -> Option<Order> {
        if let Some((offset, bytes)) = self.writes.pop_front() {
            return Some(Order::Config { offset, bytes });
        }
        self.rarp.take().map(Order::Rarp)
    }
}

/// Whether the queue `index` is one of the first `count`.
fn is_among(index: u32, count: usize) -> bool {
    usize::try_from(index).is_ok_and(|index| index < count)
}
