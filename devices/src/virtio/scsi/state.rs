//! What a snapshot keeps of a controller. The units on its bus are their own to save, and come after
//! it: loading it switches them on anew.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::device::{MOST_CDB, MOST_SENSE, VirtioScsi};
use super::request::Postponed;
use crate::state::{SavedState, StateError, Stateful};
use crate::virtio::waiting::WaitingState;

/// A controller beside its negotiation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioScsiState {
    /// How many bytes of sense a response has.
    pub sense_size: u32,
    /// How many bytes of a command a request has.
    pub cdb_size: u32,
    /// Whether the driver missed an event.
    pub missed_event: bool,
    /// What failed while the machine was told to stop at failures, oldest first.
    pub waiting: Vec<WaitingState<Postponed>>,
}

impl SavedState for VirtioScsiState {
    const KIND: &'static str = "virtio-scsi";
    const VERSION: u32 = 2;
}

impl Stateful for VirtioScsi {
    type State = VirtioScsiState;

    fn save(&self) -> VirtioScsiState {
        VirtioScsiState {
            sense_size: self.controller.sense_size.load(Ordering::Relaxed),
            cdb_size: self.controller.cdb_size.load(Ordering::Relaxed),
            missed_event: self.events.missed.load(Ordering::Acquire),
            waiting: self.controller.waiting.save(),
        }
    }

    fn load(&self, state: VirtioScsiState) -> Result<(), StateError> {
        let (sense, cdb) = (state.sense_size, state.cdb_size);
        if sense > MOST_SENSE || !(1..=MOST_CDB).contains(&cdb) {
            return Err(VirtioScsiState::refused(format!(
                "sense_size {sense} and cdb_size {cdb}: wanted up to {MOST_SENSE}, and 1 to \
                 {MOST_CDB}"
            )));
        }
        let waiting = self
            .controller
            .waiting
            .load(state.waiting, &self.queue_sizes);
        waiting.map_err(VirtioScsiState::refused)?;
        self.controller.sense_size.store(sense, Ordering::Relaxed);
        self.controller.cdb_size.store(cdb, Ordering::Relaxed);
        let missed = &self.events.missed;
        missed.store(state.missed_event, Ordering::Release);
        Ok(())
    }
}
