//! The nodes `file` and `host_device`: an open file, its bytes in its own order.
//!
//! ```text
//!   NodeSpec ─► fdset::open ─► kind? length? alignment? ─► FileNode
//!                                                            │ extent
//!                           At { the file, the same offset } ┘ (bounced if O_DIRECT forbids it)
//! ```

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fdset::{Access, Door, OpenError, OpenFile, Request, Role};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::ftruncate;

use super::alignment::{Alignment, probe};
use crate::engine::transfer::{bounce_read, bounce_write, send_zeroes};
use crate::engine::{Io, Window};
use crate::error::BlockError;
use crate::node::{
    BlockNode, Extent, ExtentGuard, Intent, IoFuture, Limits, ResizeError, WriteFlags, ZeroFlags,
};
use crate::spec::NodeOptions;

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
    file: Arc<OpenFile>,
    kind: FileKind,
    len: AtomicU64,
    alignment: Alignment,
    no_flush: bool,
    /// Cleared when the file system refused: asking once is enough.
    zero_range: AtomicBool,
    punch_hole: AtomicBool,
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
        filename: &str,
        kind: FileKind,
        options: &NodeOptions,
    ) -> Result<(Self, bool), BlockError> {
        let (file, read_only) = open_file(door, name, filename, options)?;
        let storage = |what| {
            move |source: io::Error| BlockError::Storage {
                node: name.to_owned(),
                filename: filename.to_owned(),
                what,
                source,
            }
        };
        let came = FileKind::of(&file).map_err(storage("read the kind"))?;
        if came != Some(kind) {
            return Err(BlockError::WrongKind {
                driver: kind.driver(),
                filename: filename.to_owned(),
                wanted: kind.noun(),
                came: came.map_or("neither a file nor a block device", FileKind::noun),
            });
        }
        if options.cache.direct {
            set_direct(&file).map_err(storage("switch on O_DIRECT"))?;
        }
        let len = file.size().map_err(storage("read the size"))?;
        let alignment = probe(file.as_fd()).map_err(storage("read the alignment"))?;
        if !len.is_multiple_of(u64::from(alignment.request)) {
            return Err(BlockError::UnalignedDirect {
                node: name.to_owned(),
                filename: filename.to_owned(),
                len,
                alignment: alignment.request,
            });
        }
        let node = Self {
            file: Arc::new(file),
            kind,
            len: AtomicU64::new(len),
            alignment,
            no_flush: options.cache.no_flush,
            zero_range: AtomicBool::new(true),
            punch_hole: AtomicBool::new(true),
        };
        Ok((node, read_only))
    }

    /// A file gets the length; a block device has its own, which may have changed since.
    fn set_length(&self, len: u64) -> Result<u64, ResizeError> {
        if self.kind == FileKind::BlockDevice {
            let own = self.file.size().map_err(ResizeError::Storage)?;
            if len > own {
                return Err(ResizeError::Unable("Cannot grow device files"));
            }
            return Ok(own);
        }
        let signed = i64::try_from(len).map_err(|error| {
            ResizeError::Storage(io::Error::new(io::ErrorKind::InvalidInput, error))
        })?;
        ftruncate(&self.file, signed).map_err(|errno| ResizeError::Storage(errno.into()))?;
        Ok(len)
    }

    fn buffer_alignment(&self) -> usize {
        self.alignment.memory.max(self.alignment.request) as usize
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
        match io.allocate(&self.file, mode, offset, len).await {
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
            return send_zeroes(io, &self.file, offset, len, alignment, flags.durable).await;
        }
        if flags.durable && !self.no_flush {
            io.sync(&self.file).await?;
        }
        Ok(())
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
    filename: &str,
    options: &NodeOptions,
) -> Result<(OpenFile, bool), OpenError> {
    let reason = format!("node '{name}'");
    let request =
        |access| Request::new(filename, access, Role::Image, &reason).direct(options.cache.direct);
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

/// A passed fd may have come without O_DIRECT.
fn set_direct(file: &OpenFile) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_DIRECT) {
        fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT))?;
    }
    Ok(())
}

impl BlockNode for FileNode {
    fn length(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.alignment.request,
            discard: true,
            write_zeroes: true,
        }
    }

    fn extent(&self, offset: u64, len: u64, _intent: Intent) -> Extent {
        Extent::At {
            file: Arc::clone(&self.file),
            offset,
            len,
            memory_alignment: self.alignment.memory,
            guard: ExtentGuard::unmoving(),
        }
    }

    fn read<'a>(&'a self, io: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        Box::pin(bounce_read(
            io,
            &self.file,
            offset,
            into,
            self.buffer_alignment(),
        ))
    }

    fn write<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        from: Window<'a>,
        flags: WriteFlags,
    ) -> IoFuture<'a> {
        let alignment = self.buffer_alignment();
        Box::pin(bounce_write(
            io,
            &self.file,
            offset,
            from,
            alignment,
            flags.durable,
        ))
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
            if !self.no_flush {
                io.sync(&self.file).await?;
            }
            Ok(())
        })
    }

    fn resize(&self, len: u64) -> Result<(), ResizeError> {
        let len = self.set_length(len)?;
        self.len.store(len, Ordering::Relaxed);
        Ok(())
    }
}
