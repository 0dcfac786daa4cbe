//! The nodes `file` and `host_device`: an open file, its bytes in its own order.
//!
//! ```text
//!   NodeSpec ─► fdset::open ─► kind? length? alignment? ─► FileNode
//!                                                            │ extent
//!                           At { the file, the same offset } ┘ (bounced if O_DIRECT forbids it)
//! ```
//!
//! To become writable the node opens its name once more, and takes only the same file (device and
//! number). It keeps the read-only one for the way back, which then asks nobody and cannot fail.

mod anew;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use fdset::{Access, Door, Expected, Identity, OpenError, OpenFile, Request, Wish};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Whence, ftruncate, lseek};

use super::alignment::{Alignment, probe};
use super::lock::{ImageLock, Locking};
use crate::engine::transfer::{bounce_read, bounce_write, send_zeroes};
use crate::engine::{Io, Window};
use crate::error::BlockError;
use crate::node::{
    BlockNode, Claim, Extent, ExtentGuard, Intent, IoFuture, Limits, Place, ResizeError,
    ResizeFuture, Status, WriteFlags, ZeroFlags,
};
use crate::permission::Usage;
use crate::reopen::Prepared;
use crate::slot::Slot;
use crate::spec::{FileSpec, NodeOptions};

/// Bytes that are stored of a file that was empty and grows: no storage has larger sectors.
const FIRST_BLOCK: u64 = 4096;

/// What a file node's driver takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file: the driver `file`.
    Regular,
    /// A block device: the driver `host_device`.
    BlockDevice,
}

impl FileKind {
    fn driver(self) -> &'static str {
        match self {
            Self::Regular => "file",
            Self::BlockDevice => "host_device",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Regular => "a regular file",
            Self::BlockDevice => "a block device",
        }
    }

    fn of(file: &OpenFile) -> io::Result<Option<Self>> {
        let kind = SFlag::from_bits_truncate(fstat(file)?.st_mode) & SFlag::S_IFMT;
        Ok(match kind {
            SFlag::S_IFREG => Some(Self::Regular),
            SFlag::S_IFBLK => Some(Self::BlockDevice),
            _ => None,
        })
    }
}

/// A node over an open file.
#[derive(Debug)]
pub struct FileNode {
    /// The node's name, and that of the file: both to open it again.
    name: String,
    spec: FileSpec,
    kind: FileKind,
    file: Slot<Arc<OpenFile>>,
    /// The read-only file, while a node that began with it is writable.
    resting: Slot<Option<Arc<OpenFile>>>,
    shape: Arc<Shape>,
    lock: Arc<ImageLock>,
    /// Cleared when the file system refused: asking once is enough.
    zero_range: AtomicBool,
    punch_hole: AtomicBool,
}

/// What requests look at, and what a change of options changes.
#[derive(Debug)]
struct Shape {
    len: AtomicU64,
    request_alignment: AtomicU32,
    memory_alignment: AtomicU32,
    /// Whether the page cache is bypassed because the node's options say so.
    direct: AtomicBool,
    no_flush: AtomicBool,
}

impl Shape {
    /// With O_DIRECT a file ends with a whole block, whose rest reads as zeros; the first write there
    /// makes it longer.
    fn measure(&self, len: u64, alignment: Alignment) {
        let len = len.next_multiple_of(u64::from(alignment.request));
        self.len.store(len, Ordering::Relaxed);
        self.request_alignment
            .store(alignment.request, Ordering::Relaxed);
        self.memory_alignment
            .store(alignment.memory, Ordering::Relaxed);
    }

    fn alignment(&self) -> Alignment {
        Alignment {
            request: self.request_alignment.load(Ordering::Relaxed),
            memory: self.memory_alignment.load(Ordering::Relaxed),
        }
    }
}

impl FileNode {
    /// Opens `filename` for the node `name`. Returns the node and whether it is read-only after
    /// all.
    ///
    /// # Errors
    /// It cannot be opened with the access wanted, or is not what the driver takes.
    pub fn open(
        door: &Door,
        name: &str,
        spec: &FileSpec,
        kind: FileKind,
        options: &NodeOptions,
    ) -> Result<(Self, bool), BlockError> {
        let (file, read_only) = open_file(door, name, spec, options)?;
        Ok((Self::over(file, name, spec, kind, options)?, read_only))
    }

    /// The same over a file that is open already.
    ///
    /// # Errors
    /// It is not what the driver takes.
    pub fn over(
        file: OpenFile,
        name: &str,
        spec: &FileSpec,
        kind: FileKind,
        options: &NodeOptions,
    ) -> Result<Self, BlockError> {
        let filename = &spec.filename;
        let storage = |what| {
            move |source: io::Error| BlockError::Storage {
                node: name.to_owned(),
                filename: filename.clone(),
                what,
                source,
            }
        };
        let came = FileKind::of(&file).map_err(storage("read the kind"))?;
        if came != Some(kind) {
            return Err(BlockError::WrongKind {
                driver: kind.driver(),
                filename: filename.clone(),
                wanted: kind.noun(),
                came: came.map_or("neither a file nor a block device", FileKind::noun),
            });
        }
        if options.cache.direct {
            set_direct(&file).map_err(storage("switch on O_DIRECT"))?;
        }
        let len = file.size().map_err(storage("read the size"))?;
        let alignment = probe(file.as_fd()).map_err(storage("read the alignment"))?;
        let shape = Shape {
            len: AtomicU64::new(0),
            request_alignment: AtomicU32::new(1),
            memory_alignment: AtomicU32::new(1),
            direct: AtomicBool::new(options.cache.direct),
            no_flush: AtomicBool::new(options.cache.no_flush),
        };
        shape.measure(len, alignment);
        Ok(Self {
            name: name.to_owned(),
            spec: spec.clone(),
            kind,
            file: Slot::new(Arc::new(file)),
            resting: Slot::new(None),
            shape: Arc::new(shape),
            lock: Arc::new(ImageLock::new(spec.locking)),
            zero_range: AtomicBool::new(true),
            punch_hole: AtomicBool::new(true),
        })
    }

    /// A file gets the length; a block device has its own, which may have changed since. Returns
    /// how many bytes of a file without any block want one.
    fn set_length(&self, len: u64) -> Result<u64, ResizeError> {
        let file = self.file.load();
        if self.kind == FileKind::BlockDevice {
            let own = file.size().map_err(ResizeError::Storage)?;
            if len > own {
                return Err(ResizeError::Unable("Cannot grow device files"));
            }
            self.shape.len.store(own, Ordering::Relaxed);
            return Ok(0);
        }
        let signed = i64::try_from(len).map_err(|error| {
            ResizeError::Storage(io::Error::new(io::ErrorKind::InvalidInput, error))
        })?;
        ftruncate(&file, signed).map_err(|errno| ResizeError::Storage(errno.into()))?;
        let had = self.shape.len.swap(len, Ordering::Relaxed);
        Ok(if had == 0 { len.min(FIRST_BLOCK) } else { 0 })
    }

    /// Changes the length. A file without any block tells nobody who reads it how its storage is
    /// aligned: it gets its first one. One that cannot be had makes the file no worse.
    async fn lengthen(&self, io: &Io, len: u64) -> Result<(), ResizeError> {
        let first = self.set_length(len)?;
        if first > 0 {
            let _had = io.allocate(&self.file.load(), 0, 0, first).await;
        }
        Ok(())
    }

    fn buffer_alignment(&self) -> usize {
        let alignment = self.shape.alignment();
        alignment.memory.max(alignment.request) as usize
    }

    /// Tries fallocate; `Ok(false)` if this storage cannot do that.
    async fn fallocate(
        &self,
        io: &Io,
        mode: i32,
        able: &AtomicBool,
        offset: u64,
        len: u64,
    ) -> io::Result<bool> {
        if !able.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match io.allocate(&self.file.load(), mode, offset, len).await {
            Ok(_) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::ENOTTY) => {
                    able.store(false, Ordering::Relaxed);
                    Ok(false)
                }
                // A range off the device's blocks; another one may fit.
                Some(libc::EINVAL) => Ok(false),
                _ => Err(error),
            },
        }
    }

    async fn zero(&self, io: &Io, offset: u64, len: u64, flags: ZeroFlags) -> io::Result<()> {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let punch = libc::FALLOC_FL_PUNCH_HOLE | keep;
        let range = libc::FALLOC_FL_ZERO_RANGE | keep;
        let done = (flags.unmap
            && self
                .fallocate(io, punch, &self.punch_hole, offset, len)
                .await?)
            || self
                .fallocate(io, range, &self.zero_range, offset, len)
                .await?;
        if !done {
            let alignment = self.buffer_alignment();
            return send_zeroes(io, &self.file.load(), offset, len, alignment, flags.durable).await;
        }
        if flags.durable && !self.shape.no_flush.load(Ordering::Relaxed) {
            io.sync(&self.file.load()).await?;
        }
        Ok(())
    }

    /// Where data and holes are, as the file system tells it.
    fn look(&self, offset: u64, len: u64) -> io::Result<Status> {
        let whole = |place| Status { len, place };
        let data = Place::Data { at: Some(offset) };
        if self.kind == FileKind::BlockDevice {
            return Ok(whole(data));
        }
        let file = self.file.load();
        let start = i64::try_from(offset).map_err(io::Error::other)?;
        let until = |end: i64| u64::try_from(end).map_or(0, |end| end.saturating_sub(offset));
        match lseek(file.as_fd(), start, Whence::SeekData) {
            Ok(first) if first > start => Ok(Status {
                len: until(first).min(len),
                place: Place::Zero,
            }),
            Ok(_) => match lseek(file.as_fd(), start, Whence::SeekHole) {
                Ok(end) => Ok(Status {
                    len: until(end).min(len).max(1),
                    place: data,
                }),
                Err(_) => Ok(whole(data)),
            },
            // Nothing but a hole up to the end, or beyond it.
            Err(nix::errno::Errno::ENXIO) => Ok(whole(Place::Zero)),
            // A file system that cannot tell.
            Err(_) => Ok(whole(data)),
        }
    }

    /// The same file with the other access mode.
    fn open_again(&self, door: &Door, to: &NodeOptions) -> Result<OpenFile, BlockError> {
        let to = NodeOptions {
            auto_read_only: false,
            ..*to
        };
        let (file, _) = open_file(door, &self.name, &self.spec, &to)?;
        let storage = |what| {
            move |source: io::Error| BlockError::Storage {
                node: self.name.clone(),
                filename: self.spec.filename.clone(),
                what,
                source,
            }
        };
        let had = self.file.load().identity();
        let had = had.map_err(storage("read the identity"))?;
        let came = file.identity().map_err(storage("read the identity"))?;
        if had != came {
            return Err(BlockError::OtherFile {
                node: self.name.clone(),
                filename: self.spec.filename.clone(),
                had,
                came,
            });
        }
        if to.cache.direct {
            set_direct(&file).map_err(storage("switch on O_DIRECT"))?;
        }
        Ok(file)
    }

    async fn punch(&self, io: &Io, offset: u64, len: u64) -> io::Result<()> {
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // Storage that cannot free space keeps it: a discard is advice.
        self.fallocate(io, punch, &self.punch_hole, offset, len)
            .await
            .map(drop)
    }
}

/// Opens read-write, or read-only where that is wanted or (auto-read-only) all there is.
fn open_file(
    door: &Door,
    name: &str,
    spec: &FileSpec,
    options: &NodeOptions,
) -> Result<(OpenFile, bool), OpenError> {
    let reason = format!("node '{name}'");
    let request = |access| {
        Request::new(&spec.filename, access, spec.role, &reason).direct(options.cache.direct)
    };
    if options.read_only {
        return Ok((fdset::open(door, &request(Access::ReadOnly))?, true));
    }
    match fdset::open(door, &request(Access::ReadWrite)) {
        Ok(file) => Ok((file, false)),
        Err(error)
            if options.auto_read_only
                && matches!(error.errno(), libc::EACCES | libc::EPERM | libc::EROFS) =>
        {
            match fdset::open(door, &request(Access::ReadOnly)) {
                Ok(file) => Ok((file, true)),
                Err(_) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

fn is_read_only(file: &OpenFile) -> bool {
    // Asked of the kernel: a read-only node may have been given an fd that can write.
    fcntl(file, FcntlArg::F_GETFL)
        .is_ok_and(|flags| flags & OFlag::O_ACCMODE.bits() == OFlag::O_RDONLY.bits())
}

/// A passed fd may have come without O_DIRECT.
fn set_direct(file: &OpenFile) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_DIRECT) {
        fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT))?;
    }
    Ok(())
}

impl Drop for FileNode {
    fn drop(&mut self) {
        // A copy of the fd may live on with whoever handed it in.
        self.lock.narrow(&self.file.load(), Usage::NONE);
    }
}

impl BlockNode for FileNode {
    fn length(&self) -> u64 {
        self.shape.len.load(Ordering::Relaxed)
    }

    fn stored(&self) -> Option<u64> {
        let stat = fstat(self.file.load().as_fd()).ok()?;
        u64::try_from(stat.st_blocks).ok()?.checked_mul(512)
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.shape.alignment().request,
            discard: true,
            write_zeroes: true,
        }
    }

    fn extent(&self, offset: u64, len: u64, _intent: Intent) -> Extent {
        Extent::At {
            file: self.file.load(),
            offset,
            len,
            memory_alignment: self.shape.alignment().memory,
            guard: ExtentGuard::unmoving(),
        }
    }

    fn read<'a>(&'a self, io: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        let alignment = self.buffer_alignment();
        let block = u64::from(self.shape.alignment().request);
        Box::pin(async move {
            bounce_read(io, &self.file.load(), offset, into, (alignment, block)).await
        })
    }

    fn write<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        from: Window<'a>,
        flags: WriteFlags,
    ) -> IoFuture<'a> {
        let alignment = self.buffer_alignment();
        Box::pin(async move {
            let file = self.file.load();
            bounce_write(io, &file, offset, from, alignment, flags.durable).await
        })
    }

    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> IoFuture<'a> {
        Box::pin(self.zero(io, offset, len, flags))
    }

    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(self.punch(io, offset, len))
    }

    fn flush<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(async move {
            if !self.shape.no_flush.load(Ordering::Relaxed) {
                io.sync(&self.file.load()).await?;
            }
            Ok(())
        })
    }

    fn status<'a>(&'a self, _: &'a Io, offset: u64, len: u64) -> IoFuture<'a, Status> {
        Box::pin(std::future::ready(self.look(offset, len)))
    }

    fn resize<'a>(&'a self, io: &'a Io, len: u64) -> ResizeFuture<'a> {
        Box::pin(self.lengthen(io, len))
    }

    fn shared_file(&self) -> Option<Identity> {
        let is_locked = self.spec.locking != Locking::Off;
        is_locked.then(|| self.file.load().identity().ok())?
    }

    fn claim(&self, claim: Claim) -> Result<(), BlockError> {
        let file = self.file.load();
        match claim {
            Claim::Narrow(usage) => self.lock.narrow(&file, usage),
            Claim::Assert(usage) => self.lock.assert(&file, usage),
            Claim::Widen(usage) => {
                let widened = self.lock.widen(&file, usage);
                return widened.map_err(|why| BlockError::Locked {
                    filename: self.spec.filename.clone(),
                    why: why.to_string(),
                });
            }
        }
        Ok(())
    }

    fn renew<'a>(&'a self, _: &'a Io, _: bool) -> IoFuture<'a> {
        let measured = self.file.load().size();
        let measured = measured.map(|len| self.shape.measure(len, self.shape.alignment()));
        Box::pin(std::future::ready(measured))
    }

    fn reopening_opens(&self, to: &NodeOptions) -> Option<Wish> {
        // Back to reading there is a file at rest, or the one in use will do.
        if to.read_only || !is_read_only(&self.file.load()) {
            return None;
        }
        let FileSpec { filename, role, .. } = &self.spec;
        let reason = format!("node '{}'", self.name);
        let request = Request::new(filename, Access::ReadWrite, *role, &reason);
        let expected = match self.kind {
            FileKind::Regular => Expected::RegularFile,
            FileKind::BlockDevice => Expected::BlockDevice,
        };
        Some(Wish::new(&request.direct(to.cache.direct), expected))
    }

    fn prepare_reopen(
        &self,
        door: &Door,
        to: &NodeOptions,
    ) -> Result<Box<dyn Prepared>, BlockError> {
        Ok(Box::new(self.anew(door, to)?))
    }
}
