//! What a snapshot keeps of a disk: its cache, and the requests that wait for the machine to go on.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::VirtioBlk;
use super::request::Postponed;
use crate::state::{SavedState, StateError, Stateful};

/// A disk beside its negotiation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkState {
    /// Whether the driver has the cache written back and not through.
    pub writeback: bool,
    /// What failed while the machine was told to stop at failures, oldest first.
    pub waiting: Vec<WaitingState>,
}

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingState {
    /// The queue it came by.
    pub queue: usize,
    /// The request.
    #[serde(flatten)]
    pub request: Postponed,
}

impl SavedState for BlkState {
    const KIND: &'static str = "virtio-blk";
    const VERSION: u32 = 1;
}

impl Stateful for VirtioBlk {
    type State = BlkState;

    fn save(&self) -> BlkState {
        let waiting = self.disk.waiting();
        let wait = |(queue, request): &(usize, Postponed)| WaitingState {
            queue: *queue,
            request: request.clone(),
        };
        BlkState {
            writeback: self.disk.writeback.load(Ordering::Relaxed),
            waiting: waiting.iter().map(wait).collect(),
        }
    }

    fn load(&self, state: BlkState) -> Result<(), StateError> {
        for (queue, size) in self.queue_sizes.iter().enumerate() {
            let own = state.waiting.iter().filter(|one| one.queue == queue);
            let count = own.count();
            if count > usize::from(*size) {
                return Err(BlkState::refused(format!(
                    "waiting: {count} requests of queue {queue}, which has room for {size}"
                )));
            }
        }
        let queues = self.queue_sizes.len();
        if let Some(stray) = state.waiting.iter().find(|one| one.queue >= queues) {
            return Err(BlkState::refused(format!(
                "waiting: a request of queue {}, and this disk has {queues}",
                stray.queue
            )));
        }
        let waiting = state.waiting.into_iter();
        *self.disk.waiting() = waiting.map(|one| (one.queue, one.request)).collect();
        self.disk
            .writeback
            .store(state.writeback, Ordering::Relaxed);
        Ok(())
    }
}
