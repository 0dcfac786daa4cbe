//! What a snapshot keeps of a virtio device's negotiation: features, status, queues.
//!
//! Where a queue stands (`next_avail`, `next_used`) is known to whoever serves it. On a paused machine
//! that is this room; while the queue runs it is a worker, and the indices are left out.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

use super::interrupt::SignalsState;
use super::status::{Phase, Status};
use crate::state::{SavedState, StateError};

/// The negotiation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Which half of the offered features is shown.
    pub offered_select: u32,
    /// Which half of the accepted features is written.
    pub accepted_select: u32,
    /// The features that the driver has written.
    pub accepted: u64,
    /// Which queue's registers are shown.
    pub queue_select: u16,
    /// Status and interrupts.
    #[serde(flatten)]
    pub signals: SignalsState,
    /// The queues.
    pub queues: Vec<QueueRegistersState>,
}

/// One queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegistersState {
    /// How many descriptors it has.
    pub size: u16,
    /// Whether the driver has enabled it.
    pub enabled: bool,
    /// Where the descriptors are.
    pub descriptors: u64,
    /// Where the driver's ring is.
    pub driver: u64,
    /// Where the device's ring is.
    pub device: u64,
    /// Where the device stands in them, if the queue was started and is not with a worker.
    pub place: Option<QueuePlace>,
    /// Whether it is with a worker; never in a state that can be loaded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub running: bool,
}

/// Where a device stands in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePlace {
    /// The next entry of the driver's ring to be taken.
    pub next_avail: u16,
    /// The next entry of the device's ring to be written.
    pub next_used: u16,
}

impl From<QueueState> for QueuePlace {
    fn from(state: QueueState) -> Self {
        Self {
            next_avail: state.next_avail,
            next_used: state.next_used,
        }
    }
}

impl SavedState for TransportState {
    const KIND: &'static str = "virtio-pci";
    const VERSION: u32 = 1;
}

impl TransportState {
    /// How far the driver had come.
    ///
    /// # Errors
    /// No driver of a device with queues of at most `sizes` entries that offers `offered` leaves it
    /// in this state.
    pub(super) fn check(&self, offered: u64, sizes: &[u16]) -> Result<Phase, StateError> {
        let status = self.signals.status;
        let phase = Phase::of(Status::from_bits_retain(status)).ok_or_else(|| {
            Self::refused(format!("status: {status:#x}, which no driver leads to"))
        })?;
        let strange = self.accepted & !offered;
        if matches!(phase, Phase::Agreed | Phase::Running) && strange != 0 {
            return Err(Self::refused(format!(
                "accepted: features {strange:#x}, which this device does not offer"
            )));
        }
        if self.queues.len() != sizes.len() {
            return Err(Self::refused(format!(
                "queues: {}, and this device has {}",
                self.queues.len(),
                sizes.len()
            )));
        }
        for (index, (queue, most)) in self.queues.iter().zip(sizes).enumerate() {
            queue
                .check(phase, *most)
                .map_err(|what| Self::refused(format!("queues[{index}]: {what}")))?;
        }
        Ok(phase)
    }
}

impl QueueRegistersState {
    fn check(&self, phase: Phase, most: u16) -> Result<(), String> {
        if self.running {
            return Err(
                "running: it was with a worker, saved before the machine was paused".into(),
            );
        }
        if self.place.is_none() {
            return Ok(());
        }
        // A driver may give up, or be given up, while its queues run.
        if !self.enabled || !matches!(phase, Phase::Running | Phase::Failed) {
            return Err("place: of a queue that no driver has started".into());
        }
        if !self.size.is_power_of_two() || self.size > most {
            return Err(format!(
                "size: {}, wanted a power of two up to {most}",
                self.size
            ));
        }
        Ok(())
    }
}
