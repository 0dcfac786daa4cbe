//! Guest memory: one alias for the whole workspace, and nothing else.
//!
//! Guest memory is deliberately not a seam. Every device, the block engine and the vCPUs use the
//! same concrete type, so that no signature carries type parameters for it.

use std::io;

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// The guest's physical memory, replaceable as a whole (memory hotplug) while devices use it.
///
/// Take a view with `memory()` for the length of one request; never keep the view.
pub type GuestMem = GuestMemoryAtomic<GuestMemoryMmap<AtomicBitmap>>;

/// One consistent view of guest memory, as `GuestMem::memory` gives it.
pub type GuestMemView = GuestMemoryMmap<AtomicBitmap>;

/// Who gives the host back what is behind pages of guest memory.
pub trait Reclaim: Send + Sync {
    /// Takes the pages of `len` bytes at the guest's address `start`: what stands in them is lost,
    /// and they cost nothing until the guest touches them again. Where the host's pages are larger,
    /// only those that lie wholly inside.
    ///
    /// # Errors
    /// The range is no RAM from end to end, or the kernel refuses.
    fn reclaim(&self, start: u64, len: u64) -> io::Result<()>;
}

/// Who can also have the host's memory there before the guest touches it.
pub trait Populate: Reclaim {
    /// Takes memory of the host for all of the `len` bytes at the guest's address `start`; what
    /// stands in them stays.
    ///
    /// # Errors
    /// The range is no RAM from end to end, or the host does not have so much.
    fn populate(&self, start: u64, len: u64) -> io::Result<()>;
}
