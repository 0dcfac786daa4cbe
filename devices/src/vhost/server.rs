//! The seam between a device and whoever serves its queues in its place.

use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::GuestMemView;

/// Serves queues of one device, outside of this process.
///
/// [`ServedQueues`](super::ServedQueues) promises: `set_features` and `set_memory` come before the
/// first queue is started; at most one `start_queue` for an index without a `stop_queue` between;
/// calls come one at a time. Indices are the device's. No call waits for the guest.
pub trait QueueServer: Send + Sync {
    /// Which features, of queues and of the kind of device, may be offered to a driver as far as
    /// this server is concerned; what it has no part in is among them. Never changes.
    fn features(&self) -> u64;

    /// Whether it could work on this memory.
    ///
    /// # Errors
    /// It could not: the error says why, and what would help.
    fn could_reach(&self, _memory: &GuestMemView) -> io::Result<()> {
        Ok(())
    }

    /// Takes what the driver and the device have agreed on.
    ///
    /// # Errors
    /// The server refuses.
    fn set_features(&self, features: u64) -> io::Result<()>;

    /// From now on guest memory is this; also while queues run.
    ///
    /// # Errors
    /// The server refuses: too many regions, or regions without what it needs of them.
    fn set_memory(&self, memory: &GuestMemView) -> io::Result<()>;

    /// Gives a queue to the server.
    ///
    /// # Errors
    /// The server refuses; then it does not have the queue.
    fn start_queue(&self, index: usize, queue: &ServedQueue<'_>) -> io::Result<()>;

    /// Has a started queue write to `call` from now on when buffers were used.
    ///
    /// # Errors
    /// The server refuses.
    fn set_call(&self, index: usize, call: BorrowedFd<'_>) -> io::Result<()>;

    /// Takes a queue back: nothing of it is under way when this returns, and it is not served
    /// whatever the outcome. Returns the index of the next available chain.
    ///
    /// # Errors
    /// The server does not say where it stands, or is gone.
    fn stop_queue(&self, index: usize) -> io::Result<u16>;
}

/// A queue to be served.
#[derive(Clone, Copy, Debug)]
pub struct ServedQueue<'a> {
    /// How many descriptors it has: a power of two.
    pub size: u16,
    /// The index of the next available chain.
    pub next: u16,
    /// Where it lies.
    pub rings: Rings,
    /// Written by the guest's doorbell, and already written once.
    pub kick: BorrowedFd<'a>,
    /// To be written when buffers were used.
    pub call: BorrowedFd<'a>,
    /// To be written when the driver has broken the rules.
    pub error: BorrowedFd<'a>,
}

/// Where a queue's three parts lie in this process's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// The table of descriptors.
    pub descriptors: u64,
    /// What the driver makes available.
    pub available: u64,
    /// What the device has used.
    pub used: u64,
}

impl Rings {
    /// Finds the parts, which the driver has placed at these guest addresses, of a queue of `size`
    /// entries. `None` if one of them is not in one piece of guest memory.
    #[must_use]
    pub fn find(
        memory: &GuestMemView,
        (descriptors, available, used): (u64, u64, u64),
        size: u16,
    ) -> Option<Self> {
        let size = usize::from(size);
        // Virtio 1.2, 2.7: flags and index before each ring, an event index behind it.
        let place = |address: u64, len: usize| {
            let mut slices = memory.get_slices(GuestAddress(address), len);
            let slice = slices.next()?.ok()?;
            // A second one would be somewhere else.
            (slice.len() == len).then(|| slice.ptr_guard().as_ptr() as u64)
        };
        Some(Self {
            descriptors: place(descriptors, size.checked_mul(16)?)?,
            available: place(available, size.checked_mul(2)?.checked_add(6)?)?,
            used: place(used, size.checked_mul(8)?.checked_add(6)?)?,
        })
    }
}
