//! Requests that failed and are done again: each waits until its queue is started again, which is
//! when the machine goes on.
//!
//! ```text
//!   worker ── keep ──► Waiting ── take ──► worker of the next start
//!                        │ ▲
//!                  save  ▼ │ load
//!                     snapshot
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// A request that waits, and what a snapshot keeps of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingState<T> {
    /// The queue it came by.
    pub queue: usize,
    /// The request.
    #[serde(flatten)]
    pub request: T,
}

/// More requests of a queue wait than it has descriptors: its driver gave one of them twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a descriptor of a request that waits was made available once more")]
pub(super) struct Surplus;

/// What waits of all queues of a device, in the order in which it failed.
#[derive(Debug)]
pub(super) struct Waiting<T>(Mutex<Vec<WaitingState<T>>>);

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Waiting<T> {
    /// Keeps a request of a queue with so many descriptors.
    pub(super) fn keep(&self, queue: usize, size: u16, request: T) -> Result<(), Surplus> {
        let mut list = self.lock();
        let own = list.iter().filter(|one| one.queue == queue).count();
        if own >= usize::from(size) {
            return Err(Surplus);
        }
        list.push(WaitingState { queue, request });
        Ok(())
    }

    /// Takes the requests of a queue.
    pub(super) fn take(&self, queue: usize) -> Vec<T> {
        let mut list = self.lock();
        let own = list.extract_if(.., |one| one.queue == queue);
        own.map(|one| one.request).collect()
    }

    /// The driver begins anew.
    pub(super) fn forget(&self) {
        let forgotten = std::mem::take(&mut *self.lock());
        drop(forgotten);
    }

    /// Whether any request is like this.
    pub(super) fn any(&self, is: impl Fn(&T) -> bool) -> bool {
        self.lock().iter().any(|one| is(&one.request))
    }

    /// Changes requests, which stay where they are.
    pub(super) fn change(&self, change: impl Fn(&mut T)) {
        self.lock()
            .iter_mut()
            .for_each(|one| change(&mut one.request));
    }

    /// What a snapshot keeps.
    pub(super) fn save(&self) -> Vec<WaitingState<T>>
    where
        T: Clone,
    {
        self.lock().clone()
    }

    /// Waits for what a snapshot kept, of queues with so many descriptors each.
    ///
    /// # Errors
    /// There is no such queue, or more waits than it has descriptors; in words.
    pub(super) fn load(&self, saved: Vec<WaitingState<T>>, sizes: &[u16]) -> Result<(), String> {
        for (queue, size) in sizes.iter().enumerate() {
            let count = saved.iter().filter(|one| one.queue == queue).count();
            if count > usize::from(*size) {
                return Err(format!(
                    "waiting: {count} requests of queue {queue}, which has room for {size}"
                ));
            }
        }
        let queues = sizes.len();
        if let Some(stray) = saved.iter().find(|one| one.queue >= queues) {
            return Err(format!(
                "waiting: a request of queue {}, and this device has {queues}",
                stray.queue
            ));
        }
        *self.lock() = saved;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<WaitingState<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_wait_than_a_queue_has_descriptors_and_each_goes_to_its_own() {
        let waiting = Waiting::default();
        for (queue, request) in [(0, 'a'), (1, 'b'), (0, 'c')] {
            assert_eq!(waiting.keep(queue, 2, request), Ok(()));
        }
        assert_eq!(waiting.keep(0, 2, 'd'), Err(Surplus));
        assert_eq!(waiting.take(0), ['a', 'c']);
        assert_eq!(waiting.take(0), []);
        assert!(waiting.any(|one| *one == 'b'));
        waiting.forget();
        assert!(!waiting.any(|_| true));
    }
}
