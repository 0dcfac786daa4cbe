//! Guest memory: one alias for the whole workspace, and nothing else.
//!
//! Guest memory is deliberately not a seam. Every device, the block engine and the vCPUs use the
//! same concrete type, so that no signature carries type parameters for it.

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// The guest's physical memory, replaceable as a whole (memory hotplug) while devices use it.
///
/// Take a view with `memory()` for the length of one request; never keep the view.
pub type GuestMem = GuestMemoryAtomic<GuestMemoryMmap<AtomicBitmap>>;

/// One consistent view of guest memory, as `GuestMem::memory` gives it.
pub type GuestMemView = GuestMemoryMmap<AtomicBitmap>;
