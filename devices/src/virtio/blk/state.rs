//! What a snapshot keeps of a disk: its cache, and the requests that wait for the machine to go on.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::VirtioBlk;
use super::request::Postponed;
use crate::state::{SavedState, StateError, Stateful};
use crate::virtio::waiting::WaitingState;

/// A disk beside its negotiation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkState {
    /// Whether the driver has the cache written back and not through.
    pub writeback: bool,
    /// What failed while the machine was told to stop at failures, oldest first.
    pub waiting: Vec<WaitingState<Postponed>>,
}

impl SavedState for BlkState {
    const KIND: &'static str = "virtio-blk";
    const VERSION: u32 = 1;
}

impl Stateful for VirtioBlk {
    type State = BlkState;

    fn save(&self) -> BlkState {
        BlkState {
            writeback: self.disk.writeback.load(Ordering::Relaxed),
            waiting: self.disk.waiting.save(),
        }
    }

    fn load(&self, state: BlkState) -> Result<(), StateError> {
        let waiting = self.disk.waiting.load(state.waiting, &self.queue_sizes);
        waiting.map_err(BlkState::refused)?;
        self.disk
            .writeback
            .store(state.writeback, Ordering::Relaxed);
        Ok(())
    }
}
