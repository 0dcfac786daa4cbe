//! What is behind guest memory: anonymous pages, a memfd, or a file; opened here or passed in.
//!
//! A backend is opened once and mapped by the machine that uses it. It keeps its file and lease,
//! so a passed fd can be mapped again after a reset, and its set stays known while in use.
#![expect(unsafe_code, reason = "madvise on mappings")]
// UNSAFETY: no safe wrapper tells the kernel how to treat a guest's pages.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use devices::memory::{GuestMem, GuestMemView};
use fdset::{Access, Door, HugePageSize, Lease, MemfdSpec, OpenError, OpenFile, Request, Role};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use super::{Layout, MemoryError};

const PAGE: u64 = 4096;
/// What a process has addresses for: 47 bits of them.
const ADDRESSABLE: u64 = 1 << 47;
const PAGE_SIZE: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// Where the pages come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMemory {
    /// Anonymous memory of this process.
    Anonymous,
    /// A memfd made here.
    Memfd {
        /// Seal its size.
        sealed: bool,
        /// Use huge pages.
        huge: Option<HugePageSize>,
    },
    /// What `fdset::open` finds under this name: a path, `fd:NAME`, `/dev/fdset/N`.
    File {
        /// The name.
        name: String,
        /// Where in the file the memory begins, a multiple of the page size.
        offset: u64,
    },
}

/// One memory backend, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamBackendSpec {
    /// The object's id, for errors; `pc.ram` for the machine's own.
    pub id: String,
    /// Bytes; a multiple of the page size.
    pub size: u64,
    /// Where the pages come from.
    pub host: HostMemory,
    /// Whether writes are seen by others who map the same file.
    pub share: bool,
    /// Take all pages now instead of at the first touch.
    pub prealloc: bool,
    /// Let the kernel merge equal pages (KSM).
    pub merge: bool,
    /// Include the pages in a core dump of this process.
    pub dump: bool,
}

impl RamBackendSpec {
    /// `size` bytes of private anonymous memory: what `-m` alone means.
    #[must_use]
    pub fn anonymous(id: &str, size: u64) -> Self {
        Self {
            id: id.to_owned(),
            size,
            host: HostMemory::Anonymous,
            share: false,
            prealloc: false,
            merge: true,
            dump: true,
        }
    }
}

/// An opened backend, ready to be mapped.
#[derive(Debug)]
pub struct RamBackend {
    spec: RamBackendSpec,
    file: Option<Arc<File>>,
    offset: u64,
    /// Keeps the fd set known while the memory is in use.
    _lease: Option<Lease>,
}

impl RamBackend {
    /// Opens (or makes) the file behind the memory and checks that it is large enough.
    ///
    /// # Errors
    /// The size is zero, unaligned, larger than the file or than any process can map, or there is
    /// no such file.
    pub fn open(door: &Door, spec: RamBackendSpec) -> Result<Self, MemoryError> {
        let page = page_of(&spec.host);
        if spec.size == 0 {
            return Err(MemoryError::Empty { id: spec.id });
        }
        if !spec.size.is_multiple_of(page) {
            return Err(MemoryError::Unaligned {
                id: spec.id,
                size: spec.size,
                page,
            });
        }
        if spec.size > ADDRESSABLE {
            return Err(MemoryError::TooLarge {
                id: spec.id,
                size: spec.size,
                limit: "this process can map",
            });
        }
        let (file, offset) = match &spec.host {
            HostMemory::Anonymous => (None, 0),
            HostMemory::Memfd { sealed, huge } => (Some(memfd(door, &spec, *sealed, *huge)?), 0),
            HostMemory::File { name, offset } => (Some(open(door, &spec, name)?), *offset),
        };
        if let Some(file) = &file {
            check_size(&spec, file, offset)?;
        }
        let (file, lease) = match file.map(OpenFile::into_file) {
            Some((file, lease)) => (Some(Arc::new(file)), lease),
            None => (None, None),
        };
        Ok(Self {
            spec,
            file,
            offset,
            _lease: lease,
        })
    }

    /// What it was made from.
    #[must_use]
    pub fn spec(&self) -> &RamBackendSpec {
        &self.spec
    }

    /// Maps the whole backend where `layout` places RAM.
    ///
    /// # Errors
    /// The kernel refuses a mapping, or there is not enough memory to preallocate.
    pub fn map(&self, layout: &Layout) -> Result<GuestMem, MemoryError> {
        let mut regions = Vec::new();
        let mut offset = self.offset;
        for (start, len) in layout.ram() {
            regions.push(self.map_part(start, len, offset)?);
            offset = offset.saturating_add(len);
        }
        let view = GuestMemView::from_regions(regions).map_err(|source| MemoryError::Regions {
            id: self.spec.id.clone(),
            source,
        })?;
        Ok(GuestMem::new(view))
    }

    fn map_part(
        &self,
        start: u64,
        len: u64,
        offset: u64,
    ) -> Result<GuestRegionMmap<AtomicBitmap>, MemoryError> {
        let spec = &self.spec;
        let size = usize::try_from(len).map_err(|_| MemoryError::TooLarge {
            id: spec.id.clone(),
            size: len,
            limit: "this process can map",
        })?;
        let mut flags = if spec.share {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        flags |= libc::MAP_NORESERVE;
        let mut builder =
            MmapRegionBuilder::new_with_bitmap(size, AtomicBitmap::new(size, PAGE_SIZE))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        match &self.file {
            Some(file) => {
                builder = builder
                    .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset))
                    .with_hugetlbfs(page_of(&spec.host) > PAGE);
            }
            None => flags |= libc::MAP_ANONYMOUS,
        }
        let mapping = builder
            .with_mmap_flags(flags)
            .build()
            .map_err(|source| self.failed("mapping", into_io(source)))?;
        self.advise(mapping.as_ptr(), size)?;
        GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or_else(|| MemoryError::TooLarge {
            id: spec.id.clone(),
            size: len,
            limit: "the guest can address",
        })
    }

    /// Tells the kernel about merging, dumping, and prefers large pages where it can choose.
    fn advise(&self, start: *mut u8, size: usize) -> Result<(), MemoryError> {
        let spec = &self.spec;
        if !spec.dump {
            advise(start, size, libc::MADV_DONTDUMP)
                .map_err(|source| self.failed("leaving it out of core dumps", source))?;
        }
        if self.file.is_none() {
            // Both are wishes: a kernel without KSM or transparent huge pages refuses them.
            if spec.merge {
                let _ = advise(start, size, libc::MADV_MERGEABLE);
            }
            let _ = advise(start, size, libc::MADV_HUGEPAGE);
        }
        if spec.prealloc {
            advise(start, size, libc::MADV_POPULATE_WRITE)
                .map_err(|source| self.failed("preallocation", source))?;
        }
        // A child (`-daemonize`, tests) must not get the guest's memory.
        advise(start, size, libc::MADV_DONTFORK)
            .map_err(|source| self.failed("keeping it from child processes", source))
    }

    fn failed(&self, what: &'static str, source: io::Error) -> MemoryError {
        MemoryError::Map {
            id: self.spec.id.clone(),
            what,
            source,
        }
    }
}

fn memfd(
    door: &Door,
    spec: &RamBackendSpec,
    sealed: bool,
    huge: Option<HugePageSize>,
) -> Result<OpenFile, MemoryError> {
    let wanted = MemfdSpec {
        size: spec.size,
        sealed,
        huge,
    };
    fdset::memfd(door, &spec.id, wanted, Role::Memory, &reason(spec)).map_err(not_opened(spec))
}

fn open(door: &Door, spec: &RamBackendSpec, name: &str) -> Result<OpenFile, MemoryError> {
    // A private mapping never writes to the file: a read-only fd is enough.
    let access = if spec.share {
        Access::ReadWrite
    } else {
        Access::ReadOnly
    };
    let reason = reason(spec);
    fdset::open(door, &Request::new(name, access, Role::Memory, &reason)).map_err(not_opened(spec))
}

fn not_opened(spec: &RamBackendSpec) -> impl FnOnce(OpenError) -> MemoryError {
    |source| MemoryError::Open {
        id: spec.id.clone(),
        source: Box::new(source),
    }
}

fn reason(spec: &RamBackendSpec) -> String {
    format!("memory backend '{}'", spec.id)
}

fn check_size(spec: &RamBackendSpec, file: &OpenFile, offset: u64) -> Result<(), MemoryError> {
    if !offset.is_multiple_of(PAGE) {
        return Err(MemoryError::Unaligned {
            id: format!("{} (offset)", spec.id),
            size: offset,
            page: PAGE,
        });
    }
    let size = file.size().map_err(|source| MemoryError::NotMemory {
        id: spec.id.clone(),
        source,
    })?;
    match offset.checked_add(spec.size) {
        Some(end) if end <= size => Ok(()),
        _ => Err(MemoryError::FileTooShort {
            id: spec.id.clone(),
            file: size,
            size: offset.saturating_add(spec.size),
        }),
    }
}

/// The size that a mapping's length must be a multiple of.
fn page_of(host: &HostMemory) -> u64 {
    match host {
        HostMemory::Memfd {
            huge: Some(huge), ..
        } => match huge {
            HugePageSize::Size1G => 1 << 30,
            HugePageSize::Default | HugePageSize::Size2M => 2 << 20,
        },
        _ => PAGE,
    }
}

fn advise(start: *mut u8, size: usize, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the range is a mapping that was just made, and none of the advice used here
    // changes what it holds.
    if unsafe { libc::madvise(start.cast(), size, advice) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn into_io(error: MmapRegionError) -> io::Error {
    match error {
        MmapRegionError::Mmap(error) => error,
        other => io::Error::other(other),
    }
}
