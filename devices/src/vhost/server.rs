//! The seam between a device and whoever serves its queues in its place.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

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

/// One look at a queue that is with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServedView {
    /// Where it lies in this process, which is how servers in the kernel know it.
    pub rings: Rings,
    /// This process's number of the eventfd that the doorbell writes to.
    pub kick: RawFd,
    /// The same of the one that the server writes to when buffers were used.
    pub call: RawFd,
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
    /// How many bytes the three parts of a queue of `size` entries take, in their order here.
    #[must_use]
    pub fn lengths(size: u16) -> [u32; 3] {
        let size = u32::from(size);
        // Virtio 1.2, 2.7: flags and index before each ring, an event index behind it.
        [size * 16, size * 2 + 6, size * 8 + 6]
    }

    /// Finds the parts, which the driver has placed at these guest addresses, of a queue of `size`
    /// entries. `None` if one of them is not in one piece of guest memory.
    #[must_use]
    pub fn find(
        memory: &GuestMemView,
        (descriptors, available, used): (u64, u64, u64),
        size: u16,
    ) -> Option<Self> {
        let [of_descriptors, of_available, of_used] = Self::lengths(size);
        let place = |address: u64, len: u32| {
            let len = usize::try_from(len).ok()?;
            let mut slices = memory.get_slices(GuestAddress(address), len);
            let slice = slices.next()?.ok()?;
            // A second one would be somewhere else.
            (slice.len() == len).then(|| slice.ptr_guard().as_ptr() as u64)
        };
        Some(Self {
            descriptors: place(descriptors, of_descriptors)?,
            available: place(available, of_available)?,
            used: place(used, of_used)?,
        })
    }
}
