//! Guest memory: where it lies and what is behind it.
//!
//! This room places RAM and the device windows in the guest's physical address space, maps the
//! host memory behind it, and reads files straight into it. It must never know KVM (slots are
//! made from what it maps), PCI devices, or QAPI: a backend comes as a resolved spec.
//!
//! ```text
//!   RamBackendSpec ──► RamBackend ──────┐
//!   (anonymous, memfd, file; an fd)     ├─► Ram::map ─► GuestMem ─► kvm::Slots, devices
//!   total size ──────► Layout ──────────┘
//!   a memory device ──► Places ──► RamBackend::map_at ──► one region more, while it is there
//!   kernel, initrd ──► load::pread ─────────────────────► guest memory
//! ```
//!
//! Read next: [`layout`] (the map), [`backend`] (what is behind it), `bus_error` (when that is gone),
//! [`load`], [`places`] (where memory devices go).

pub mod backend;
mod bus_error;
pub mod layout;
pub mod load;
pub mod places;
mod reclaim;

pub use backend::{HostMemory, RamBackend, RamBackendSpec};
pub use layout::{E820Entry, E820Kind, Layout};
pub use places::{PlaceError, PlaceWish, Places};
pub use reclaim::RamReclaim;

/// A mapping of guest memory is about to go: the last words name it no more.
pub fn forget_mapping(region: &vm_memory::GuestRegionMmap<vm_memory::bitmap::AtomicBitmap>) {
    bus_error::forget(region.as_ptr(), region.size());
}

/// The id of the memory that a machine makes itself.
pub const RAM_ID: &str = "pc.ram";

/// Why guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size does not fit the pages behind it.
    #[error(
        "memory backend '{id}': size {size} is not a multiple of the page size {page}: \
         use {}",
        size.next_multiple_of(*page)
    )]
    Unaligned {
        /// The backend.
        id: String,
        /// The size asked for, in bytes.
        size: u64,
        /// The page size, in bytes.
        page: u64,
    },
    /// No memory at all.
    #[error("memory backend '{id}': size 0, wanted at least one page")]
    Empty {
        /// The backend.
        id: String,
    },
    /// More than a process can map, or than the guest can address.
    #[error("memory backend '{id}': {size} bytes are more than {limit}")]
    TooLarge {
        /// The backend.
        id: String,
        /// The size asked for, in bytes.
        size: u64,
        /// What the limit is.
        limit: &'static str,
    },
    /// The file is shorter than the memory it should hold.
    #[error(
        "memory backend '{id}': the file has {file} bytes, the backend wants {size}: \
         grow the file or lower the size"
    )]
    FileTooShort {
        /// The backend.
        id: String,
        /// The file's size in bytes.
        file: u64,
        /// The backend's size in bytes.
        size: u64,
    },
    /// The fd is not something that can be guest memory.
    #[error("memory backend '{id}': the file cannot hold guest memory")]
    NotMemory {
        /// The backend.
        id: String,
        /// What the kernel said about its size.
        #[source]
        source: std::io::Error,
    },
    /// Opening the backend's file failed. Whose it is stands in the reason.
    #[error(transparent)]
    Open(Box<fdset::OpenError>),
    /// Mapping failed.
    #[error("memory backend '{id}': {what} failed")]
    Map {
        /// The backend.
        id: String,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The regions do not make an address space.
    #[error("memory backend '{id}': its regions do not make an address space")]
    Regions {
        /// The backend.
        id: String,
        /// Which rule is broken.
        #[source]
        source: vm_memory::GuestRegionCollectionError,
    },
}
