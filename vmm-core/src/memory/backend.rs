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
use fdset::{
    Access, Door, HugePageSize, Kind, Lease, MemfdSpec, Nature, OpenError, OpenFile, Request, Role,
};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use super::{Layout, MemoryError, bus_error};

const PAGE: u64 = 4096;
/// What one memory slot of KVM takes: a page less than 8 TiB (`KVM_MEM_MAX_NR_PAGES`). No machine
/// could use more, and to map it only to be refused later takes long.
const SLOT: u64 = ((1 << 31) - 1) * PAGE;
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
    /// Whether the file is only read. What a device writes into such memory (the guest cannot) is
    /// seen by nobody else.
    pub read_only: bool,
    /// Take all pages now instead of at the first touch.
    pub prealloc: bool,
    /// Whether huge pages are the guest's from the start; others are as the host's overcommit policy
    /// says.
    pub reserve: bool,
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
            read_only: false,
            prealloc: false,
            reserve: true,
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
    /// The size of the pages behind it.
    page: u64,
    /// Keeps the fd set known while the memory is in use.
    lease: Option<Lease>,
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
        if spec.size > SLOT {
            return Err(MemoryError::TooLarge {
                id: spec.id,
                size: spec.size,
                limit: "a memory slot of KVM takes (8796093018112); lower the size",
            });
        }
        let (file, offset) = match &spec.host {
            HostMemory::Anonymous => (None, 0),
            HostMemory::Memfd { sealed, huge } => (Some(memfd(door, &spec, *sealed, *huge)?), 0),
            HostMemory::File { name, offset } => (Some(open(door, &spec, name)?), *offset),
        };
        let mut page = PAGE;
        if let Some(file) = &file {
            page = check_pages(&spec, file, offset)?;
            // One that cannot be grown is too short, and told so.
            let _ = file.fill_empty(offset.saturating_add(spec.size));
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
            page,
            lease,
        })
    }

    /// What it was made from.
    #[must_use]
    pub fn spec(&self) -> &RamBackendSpec {
        &self.spec
    }

    /// The size of the host's pages behind it, in bytes.
    #[must_use]
    pub fn page(&self) -> u64 {
        self.page
    }

    /// One more fd for the file behind it, under the same lease.
    ///
    /// # Errors
    /// It has no file, or this process no fd left.
    pub fn another_file(&self) -> Result<OpenFile, MemoryError> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound.into());
        let fd = file.and_then(|file| file.try_clone());
        let fd = fd.map_err(|source| self.failed("an fd of its own", source))?;
        Ok(OpenFile::new(fd.into(), self.lease.clone()))
    }

    /// Maps the whole backend where `layout` places RAM.
    ///
    /// # Errors
    /// The kernel refuses a mapping, or there is not enough memory to preallocate.
    pub fn map(&self, layout: &Layout) -> Result<GuestMem, MemoryError> {
        Self::map_all(std::slice::from_ref(self), layout)
    }

    /// Maps the backends one after the other where `layout` places RAM.
    ///
    /// # Errors
    /// See [`map`](Self::map).
    pub fn map_all(backends: &[Self], layout: &Layout) -> Result<GuestMem, MemoryError> {
        bus_error::be_ready();
        let sizes: Vec<u64> = backends.iter().map(|backend| backend.spec.size).collect();
        let mut regions = Vec::new();
        for (backend, pieces) in backends.iter().zip(layout.deal(&sizes)) {
            let mut offset = backend.offset;
            for (start, len) in pieces {
                regions.push(backend.map_part(start, len, offset)?);
                offset = offset.saturating_add(len);
            }
        }
        let view = GuestMemView::from_regions(regions).map_err(|source| MemoryError::Regions {
            id: backends
                .first()
                .map_or_else(String::new, |one| one.spec.id.clone()),
            source,
        })?;
        Ok(GuestMem::new(view))
    }

    /// Maps the whole backend to be guest memory from `start` on.
    ///
    /// # Errors
    /// See [`map`](Self::map).
    pub fn map_at(&self, start: u64) -> Result<GuestRegionMmap<AtomicBitmap>, MemoryError> {
        self.map_part(start, self.spec.size, self.offset)
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
        let mut flags = if spec.share && !spec.read_only {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        // Huge pages are reserved unless told otherwise: a guest that touches one which is not there
        // ends the process.
        if self.page == PAGE || !spec.reserve {
            flags |= libc::MAP_NORESERVE;
        }
        let mut builder =
            MmapRegionBuilder::new_with_bitmap(size, AtomicBitmap::new(size, PAGE_SIZE))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        match &self.file {
            Some(file) => {
                builder = builder
                    .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset))
                    .with_hugetlbfs(self.page > PAGE);
            }
            None => flags |= libc::MAP_ANONYMOUS,
        }
        let mapping = builder
            .with_mmap_flags(flags)
            .build()
            .map_err(|source| self.failed("mapping", into_io(source)))?;
        if self.file.is_some() {
            bus_error::watch(mapping.as_ptr(), size, &self.title());
        }
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
            // Writing would make a copy of each page of a file that is only read.
            let populate = match spec.read_only {
                true => libc::MADV_POPULATE_READ,
                false => libc::MADV_POPULATE_WRITE,
            };
            advise(start, size, populate).map_err(|source| self.failed("preallocation", source))?;
        }
        // A child (`-daemonize`, tests) must not get the guest's memory.
        advise(start, size, libc::MADV_DONTFORK)
            .map_err(|source| self.failed("keeping it from child processes", source))
    }

    /// What the last words call it.
    fn title(&self) -> String {
        let id = &self.spec.id;
        match &self.spec.host {
            HostMemory::File { name, .. } => format!("memory backend '{id}' ('{name}')"),
            HostMemory::Memfd { .. } | HostMemory::Anonymous => format!("memory backend '{id}'"),
        }
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
    fdset::memfd(door, &spec.id, wanted, Role::Memory, &reason(spec)).map_err(not_opened)
}

fn open(door: &Door, spec: &RamBackendSpec, name: &str) -> Result<OpenFile, MemoryError> {
    // A private mapping never writes to the file: a read-only fd is enough.
    let access = if spec.share && !spec.read_only {
        Access::ReadWrite
    } else {
        Access::ReadOnly
    };
    let reason = reason(spec);
    let request = Request::new(name, access, Role::Memory, &reason).or_unnamed_within();
    let file = fdset::open(door, &request).map_err(not_opened)?;
    // What is empty was made for this memory a moment ago, and nobody else has it.
    let is_used = file.size().is_ok_and(|size| size > 0);
    let is_memfd = Nature::of(&file).kind == Kind::Memfd;
    if !file.seal_length() && is_memfd && is_used && spec.share {
        tracing::warn!(
            backend = spec.id,
            "the memfd has no seal against being cut short: whoever else has it could end this \
             process; make it with MFD_ALLOW_SEALING"
        );
    }
    Ok(file)
}

fn not_opened(error: OpenError) -> MemoryError {
    MemoryError::Open(Box::new(error))
}

fn reason(spec: &RamBackendSpec) -> String {
    format!("memory backend '{}'", spec.id)
}

/// The page size of the file, of which both size and offset must be multiples.
fn check_pages(spec: &RamBackendSpec, file: &OpenFile, offset: u64) -> Result<u64, MemoryError> {
    let page = file.page_size().map_err(not_memory(spec))?;
    for (what, bytes) in [("", spec.size), (" (offset)", offset)] {
        if !bytes.is_multiple_of(page) {
            return Err(MemoryError::Unaligned {
                id: format!("{}{what}", spec.id),
                size: bytes,
                page,
            });
        }
    }
    Ok(page)
}

fn not_memory(spec: &RamBackendSpec) -> impl Fn(io::Error) -> MemoryError {
    |source| MemoryError::NotMemory {
        id: spec.id.clone(),
        source,
    }
}

fn check_size(spec: &RamBackendSpec, file: &OpenFile, offset: u64) -> Result<(), MemoryError> {
    let size = file.size().map_err(not_memory(spec))?;
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

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use fdset::{FdRegistry, Handover, Origin, Scope};
    use nix::unistd::ftruncate;

    use super::*;

    const SIZE: u64 = 1 << 20;

    fn door() -> Door {
        Door::new(Arc::new(FdRegistry::new()), Scope::Process)
    }

    fn in_file(name: &str, size: u64) -> RamBackendSpec {
        RamBackendSpec {
            host: HostMemory::File {
                name: name.to_owned(),
                offset: 0,
            },
            share: true,
            ..RamBackendSpec::anonymous("m", size)
        }
    }

    fn give(door: &Door, name: &str, fd: impl Into<OwnedFd>) {
        let passed = Handover::new(fd.into(), Origin::CommandLine);
        let registry = door.registry();
        registry
            .add_named(Scope::Process, name, passed)
            .expect("a good name");
    }

    fn refusal(door: &Door, spec: RamBackendSpec) -> String {
        let error = RamBackend::open(door, spec).expect_err("refused");
        qapi_schema::QmpError::from_error(&error).to_string()
    }

    fn memfd_with(size: i64, flags: nix::sys::memfd::MFdFlags) -> OwnedFd {
        #[expect(clippy::disallowed_methods, reason = "makes what a manager hands over")]
        let fd = nix::sys::memfd::memfd_create("test", flags).expect("a memfd");
        ftruncate(&fd, size).expect("room");
        fd
    }

    #[test]
    fn a_memfd_that_becomes_guest_memory_can_no_longer_be_cut_short() {
        use nix::sys::memfd::MFdFlags;
        let size = i64::try_from(SIZE).expect("it is small");
        for (flags, sealed) in [
            (MFdFlags::MFD_ALLOW_SEALING, true),
            (MFdFlags::empty(), false),
        ] {
            let door = door();
            let memory = memfd_with(size, flags);
            give(&door, "m", memory.try_clone().expect("an fd"));
            let _backend = RamBackend::open(&door, in_file("fd:m", SIZE)).expect("large enough");
            assert_eq!(ftruncate(&memory, 0).is_err(), sealed, "{flags:?}");
        }
    }

    #[test]
    fn an_error_names_the_backend_once_and_says_what_was_wanted() {
        let text = refusal(&door(), in_file("/nowhere/m", SIZE));
        assert_eq!(
            text,
            "Could not open '/nowhere/m' read-write as guest memory of memory backend 'm': \
             No such file or directory (os error 2)"
        );
    }

    #[test]
    fn what_no_memory_slot_takes_is_refused_before_anything_is_opened() {
        for size in [SLOT + PAGE, 1 << 46, u64::MAX - (PAGE - 1)] {
            let text = refusal(&door(), in_file("/nowhere/m", size));
            assert_eq!(
                text,
                format!(
                    "memory backend 'm': {size} bytes are more than a memory slot of KVM takes \
                     (8796093018112); lower the size"
                )
            );
        }
    }

    #[test]
    fn a_directory_gives_memory_of_the_whole_size_and_keeps_no_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_str().expect("text");
        let backend = RamBackend::open(&door(), in_file(path, SIZE)).expect("made");
        let file = backend.file.as_ref().expect("a file");
        assert_eq!(file.metadata().expect("it is open").len(), SIZE);
        let names = std::fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(names, 0);
        let layout = Layout::new(SIZE, 40).expect("a layout");
        backend.map(&layout).expect("mapped");
    }

    #[test]
    fn an_empty_file_is_grown_where_it_may_be_and_a_short_one_is_left_alone() {
        let door = door();
        let empty = tempfile::tempfile().expect("a file");
        give(&door, "m", empty.try_clone().expect("an fd"));
        RamBackend::open(&door, in_file("fd:m", SIZE)).expect("grown");
        assert_eq!(empty.metadata().expect("it is open").len(), SIZE);

        let short = tempfile::tempfile().expect("a file");
        short.set_len(PAGE).expect("room");
        give(&door, "m", short.try_clone().expect("an fd"));
        let text = refusal(&door, in_file("fd:m", SIZE));
        assert!(text.contains("grow the file or lower the size"), "{text}");
        assert_eq!(short.metadata().expect("it is open").len(), PAGE);
    }
}
