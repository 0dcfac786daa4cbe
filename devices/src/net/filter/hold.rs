//! Packets that wait together.
//!
//! ```text
//!               a packet came                     its time is over, or the filter is off
//!   ┌─────────┐ ─────────────► ┌─────────┐ timer ┌───────────┐
//!   │ Nothing │                │ Waiting │ ────► │ Releasing │ goes on while there is room behind it
//!   └─────────┘ ◄───────────── └─────────┘       └───────────┘
//!        ▲            all are gone                     │
//!        └─────────────────────────────────────────────┘
//! ```
//!
//! While its memory is full nothing is taken: the guest, or who sends to it, waits.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use super::store::Store;
use super::{Place, Way};
use crate::net::packet::Packet;
use crate::reactor::{Reactor, Readiness, Ready, Timer};

/// Packets that a filter keeps.
pub(super) struct Hold {
    place: Arc<Place>,
    interval: Duration,
    kept: Mutex<Kept>,
    timer: OnceLock<Timer>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Nothing,
    Waiting,
    Releasing,
}

#[derive(Default)]
struct Kept {
    phase: Phase,
    rx: Store,
    tx: Store,
}

impl Kept {
    fn on(&mut self, way: Way) -> &mut Store {
        match way {
            Way::Rx => &mut self.rx,
            Way::Tx => &mut self.tx,
        }
    }
}

impl Hold {
    /// Keeps packets for the filter at `place`, no longer than `interval`.
    pub(super) fn new(
        place: &Arc<Place>,
        interval: Duration,
        reactor: &Reactor,
    ) -> io::Result<Arc<Self>> {
        let hold = Arc::new(Self {
            place: Arc::clone(place),
            interval,
            kept: Mutex::default(),
            timer: OnceLock::new(),
        });
        let timer = reactor.timer(Arc::new(Tick(Arc::downgrade(&hold))))?;
        hold.timer.set(timer).ok();
        Ok(hold)
    }

    /// Whether there is room for any packet.
    pub(super) fn has_room(&self, way: Way) -> bool {
        self.kept().on(way).has_room()
    }

    /// Keeps a packet, for which there is room.
    pub(super) fn keep(&self, way: Way, packet: &Packet<'_>) {
        let mut kept = self.kept();
        kept.on(way).put(packet);
        if kept.phase == Phase::Nothing {
            kept.phase = Phase::Waiting;
            if let Some(timer) = self.timer.get() {
                timer.arm(self.interval);
            }
        }
    }

    /// There is room behind it again, or the filter was switched off.
    pub(super) fn go_on(&self) {
        let is_due = self.kept().phase == Phase::Releasing;
        if is_due || !self.place.is_on() {
            self.release();
        }
    }

    /// Lets packets go, as far as there is room.
    fn release(&self) {
        let Some(chain) = self.place.chain.upgrade() else {
            return;
        };
        let mut kept = self.kept();
        for way in self.place.queue.ways() {
            let store = kept.on(*way);
            while let Some(packet) = store.first() {
                if !chain.has_room(*way, Some(&self.place)) {
                    break;
                }
                chain.bring_in(*way, &self.place, packet);
                store.pop();
            }
        }
        let is_empty = kept.rx.is_empty() && kept.tx.is_empty();
        kept.phase = if is_empty {
            Phase::Nothing
        } else {
            Phase::Releasing
        };
        drop(kept);
        chain.brought_in();
        chain.made_room();
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Tick(Weak<Hold>);

impl Ready for Tick {
    fn ready(&self, _readiness: Readiness) {
        if let Some(hold) = self.0.upgrade() {
            hold.release();
        }
    }
}
