//! Doorbells: from the guest's write to the queue's eventfd, by the shortest way there is.
//!
//! While a queue runs and its BAR is mapped, the doorbell's address is given to
//! [`Doorbells`] (an ioeventfd); it follows the BAR. A write that comes the long way, through an
//! exit, signals the same eventfd.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::layout::{NOTIFY, NOTIFY_STRIDE};
use crate::irq::Doorbells;
use crate::repeats::Repeats;

/// The doorbells of one device.
pub struct Bell {
    doorbells: Arc<dyn Doorbells>,
    /// Held while calling [`Doorbells`], which never calls back.
    state: Mutex<State>,
    /// Doorbells that KVM did not take: a guest may move the BAR for ever.
    unassigned: Repeats,
}

#[derive(Default)]
struct State {
    bar: Option<u64>,
    kicks: Vec<Option<EventFd>>,
}

/// Where the doorbell of `queue` is when the BAR is at `bar`.
fn address(bar: u64, queue: usize) -> u64 {
    let queue = u64::try_from(queue).unwrap_or(u64::MAX);
    bar.wrapping_add(NOTIFY)
        .wrapping_add(queue.wrapping_mul(NOTIFY_STRIDE.into()))
}

impl Bell {
    /// Doorbells for `queues` queues, none of which rings yet.
    #[must_use]
    pub fn new(doorbells: Arc<dyn Doorbells>, queues: usize) -> Arc<Self> {
        Arc::new(Self {
            doorbells,
            state: Mutex::new(State {
                bar: None,
                kicks: (0..queues).map(|_| None).collect(),
            }),
            unassigned: Repeats::default(),
        })
    }

    /// The BAR is at `bar` now, or nowhere.
    pub fn move_to(&self, bar: Option<u64>) {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.bar, bar);
        for (queue, kick) in state.kicks.iter().enumerate() {
            let Some(kick) = kick else { continue };
            if let Some(bar) = before {
                self.doorbells.unassign(address(bar, queue), 0, kick);
            }
            if let Some(bar) = bar {
                self.assign(bar, queue, kick);
            }
        }
    }

    /// Queue `queue` runs: its doorbell signals `kick`.
    pub fn connect(&self, queue: usize, kick: EventFd) {
        let mut state = self.lock();
        if let Some(bar) = state.bar {
            self.assign(bar, queue, &kick);
        }
        if let Some(place) = state.kicks.get_mut(queue) {
            *place = Some(kick);
        }
    }

    /// Queue `queue` has stopped.
    pub fn disconnect(&self, queue: usize) {
        let mut state = self.lock();
        let bar = state.bar;
        let Some(kick) = state.kicks.get_mut(queue).and_then(Option::take) else {
            return;
        };
        if let Some(bar) = bar {
            self.doorbells.unassign(address(bar, queue), 0, &kick);
        }
        drop(state);
        // The eventfd is closed here, outside the lock.
        drop(kick);
    }

    /// The guest has written to the doorbell of `queue` and it came to us.
    pub fn ring(&self, queue: usize) {
        if let Some(Some(kick)) = self.lock().kicks.get(queue) {
            // A full counter is a ring that has not been heard yet: nothing is lost.
            if let Err(error) = kick.write(1) {
                tracing::debug!(queue, %error, "doorbell");
            }
        }
    }

    /// A doorbell that cannot be assigned still works, by exits.
    fn assign(&self, bar: u64, queue: usize, kick: &EventFd) {
        if let Err(error) = self.doorbells.assign(address(bar, queue), 0, kick)
            && let Some(times) = self.unassigned.note()
        {
            tracing::warn!(queue, times, %error, "doorbell goes by exits");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
