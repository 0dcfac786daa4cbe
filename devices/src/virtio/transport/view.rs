//! What is shown of a virtio device besides what a snapshot keeps: what it offers, and what lies in
//! its rings now.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::registers::Registers;
use super::state::{QueueRegistersState, TransportState};
use super::status::Status;
use crate::memory::GuestMemView;
use crate::vhost::ServedView;

/// One look at a virtio device.
#[derive(Clone, Debug)]
pub struct VirtioView {
    /// Its type (virtio 1.2, section 5).
    pub device_type: u16,
    /// The features it offers.
    pub offered: u64,
    /// If somebody outside of this process serves queues of it now: the features that this one can do.
    pub server: Option<u64>,
    /// What its driver has written.
    pub negotiated: TransportState,
    /// Its queues.
    pub queues: Vec<QueueView>,
}

/// One queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueView {
    /// How many descriptors it can have.
    pub most: u16,
    /// What the driver has written, and where the device stands.
    pub registers: QueueRegistersState,
    /// What lies in its rings, once the driver has started the device.
    pub rings: Option<RingIndices>,
    /// How its server has it, if somebody outside of this process serves it now.
    pub outside: Option<ServedView>,
}

/// How far the two sides of a queue are, as its rings in guest memory say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingIndices {
    /// The driver's: the next entry that it will make available.
    pub available: u16,
    /// The device's: the next entry that it will give back.
    pub used: u16,
}

impl VirtioView {
    /// What the status register says.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::from_bits_retain(self.negotiated.signals.status)
    }

    pub(super) fn of(registers: &Registers) -> Self {
        let negotiated = registers.save();
        let device = registers.device();
        let status = Status::from_bits_retain(negotiated.signals.status);
        let memory = registers.memory().memory();
        let view = |(index, (registers, most)): (usize, (&QueueRegistersState, &u16))| QueueView {
            most: *most,
            registers: *registers,
            outside: device.queue_outside(index),
            rings: (registers.enabled && status.contains(Status::DRIVER_OK))
                .then(|| RingIndices::of(registers, &memory))
                .flatten(),
        };
        let queues = negotiated.queues.iter().zip(device.queue_sizes());
        Self {
            device_type: device.device_type(),
            offered: registers.offered(),
            server: device.served_outside(),
            queues: queues.enumerate().map(view).collect(),
            negotiated,
        }
    }
}

impl RingIndices {
    /// `None` if the rings are not in guest memory.
    fn of(registers: &QueueRegistersState, memory: &GuestMemView) -> Option<Self> {
        // Both rings begin with two bytes of flags (virtio 1.2, 2.7.6 and 2.7.8).
        let index = |ring: u64| {
            let place = GuestAddress(ring.checked_add(2)?);
            let index = memory.load(place, Ordering::Acquire);
            index.ok().map(u16::from_le)
        };
        Some(Self {
            available: index(registers.driver)?,
            used: index(registers.device)?,
        })
    }
}
