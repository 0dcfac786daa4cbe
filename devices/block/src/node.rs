//! A node of the block graph: the seam between whoever wants blocks and whoever has them.
//!
//! ```text
//!   virtio-blk, job ──► NodeRef ── extent(offset, len) ──► At { file, offset }  one SQE, no box
//!                          │                          ├──► Zero                 fill
//!                          │                          └──► Slow ──► BlockNode::read …  (boxed future)
//!                          └ range, read-only and alignment are checked here, once
//! ```
//!
//! A driver (a [`BlockNode`]) is called only through its [`NodeRef`], which promises: ranges lie
//! inside the node and are not empty; writes never reach a read-only node; windows are as long as
//! the range. The driver promises in exchange: no panic whatever an image holds; an
//! [`Extent::At`] stays true until its guard is dropped.
//!
//! What changes while a node lives changes drained, on the main loop ([`crate::drain`]): its
//! children ([`Slot`](crate::Slot)), its options ([`crate::reopen`]), the name of what backs it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fdset::{Door, Identity, OpenFile, Wish};

use crate::bitmap::Bitmaps;
use crate::engine::{Io, Window};
use crate::error::BlockError;
use crate::format::blkdebug::breakpoints::Breakpoints;
use crate::format::cbw::Snapshot;
use crate::format::qcow2::{Details, ImageError, SnapshotChange};
pub use crate::node_ref::NodeRef;
use crate::permission::Usage;
use crate::reopen::{OtherImage, Prepared, Untouched};
use crate::spec::{DriverSpec, NodeOptions};

/// The future of a slow operation. It stays on the thread that made it.
pub type IoFuture<'a, T = ()> = Pin<Box<dyn Future<Output = io::Result<T>> + 'a>>;

/// The same for work that owns what it needs.
pub type OwnedFuture = IoFuture<'static>;

/// The largest node: offsets must fit the kernel's signed ones.
pub const MAX_LEN: u64 = i64::MAX as u64;

/// What a lookup is for. A write may not use an extent that only a read can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// The range will be read.
    Read,
    /// The range will be written.
    Write,
}

/// Where the first bytes of a range are. It covers at least one byte and at most the range.
#[derive(Debug)]
pub enum Extent {
    /// In an open file: go there directly.
    At {
        /// The file.
        file: Arc<OpenFile>,
        /// Where in the file.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Host memory must be aligned to this many bytes (O_DIRECT); 1 where it need not.
        memory_alignment: u32,
        /// Hold it until the operation has completed: the mapping does not move before.
        guard: ExtentGuard,
    },
    /// Known to read as zeros.
    Zero {
        /// How many bytes.
        len: u64,
    },
    /// Only the driver knows how: allocation, copy on write, compression, bounce buffers.
    Slow {
        /// How many bytes.
        len: u64,
    },
}

/// Keeps a mapping in place. A driver whose mappings move counts its guards and waits for them
/// before it discards, shrinks or pivots.
#[derive(Debug, Default)]
pub struct ExtentGuard(Option<Arc<AtomicUsize>>);

impl ExtentGuard {
    /// For a mapping that never moves.
    pub fn unmoving() -> Self {
        Self(None)
    }

    /// One more holder, counted in `holders` until the guard drops.
    pub fn counted(holders: &Arc<AtomicUsize>) -> Self {
        holders.fetch_add(1, Ordering::AcqRel);
        Self(Some(Arc::clone(holders)))
    }
}

impl ExtentGuard {
    /// Whether the mapping never moves, so that another guard may stand for this one.
    #[must_use]
    pub fn is_unmoving(&self) -> bool {
        self.0.is_none()
    }
}

impl Extent {
    /// How many bytes it covers.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "an extent covers at least one byte"
    )]
    pub fn len(&self) -> u64 {
        match self {
            Self::At { len, .. } | Self::Zero { len } | Self::Slow { len } => *len,
        }
    }
}

impl Drop for ExtentGuard {
    fn drop(&mut self) {
        if let Some(holders) = &self.0 {
            holders.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// What a node can do and wants. Changes only while the node's users are parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Offsets and lengths of reads and writes must be multiples of this many bytes (a power of
    /// two): above 1 only with O_DIRECT.
    pub request_alignment: u32,
    /// Whether a discard may free space.
    pub discard: bool,
    /// Whether zeros can be written without sending them.
    pub write_zeroes: bool,
}

/// How a write is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// Complete only when the bytes would survive a power cut.
    pub durable: bool,
    /// Store them compressed where the driver can ([`BlockNode::compresses`]) and that saves space.
    pub compress: bool,
}

/// How zeros are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// The space may be given back to the host.
    pub unmap: bool,
    /// Complete only when the zeros would survive a power cut.
    pub durable: bool,
}

/// Why a node's length did not change.
#[derive(Debug)]
pub enum ResizeError {
    /// It cannot, whatever the storage is; why.
    Unable(&'static str),
    /// The storage failed.
    Storage(io::Error),
    /// The node below refused.
    Below(BlockError),
}

/// The future of a change of the length.
pub type ResizeFuture<'a> = Pin<Box<dyn Future<Output = Result<(), ResizeError>> + 'a>>;

/// The future of a change of an image's snapshots.
pub type SnapshotFuture<'a> = Pin<Box<dyn Future<Output = Result<(), ImageError>> + 'a>>;

/// The future of an image that is opened in place of another.
pub type ImageFuture<'a> = Pin<Box<dyn Future<Output = Result<OtherImage, ImageError>> + 'a>>;

/// What is behind the first bytes of a range, for whoever copies a node or shows its map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// How many bytes are alike: at least one, at most the range.
    pub len: u64,
    /// What they are.
    pub place: Place,
}

/// What some bytes of a node are, seen from that node alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Stored here. `at` is where in the node's `file` child (or in its own file) they lie as they
    /// are; `None` where they are compressed or in pieces.
    Data {
        /// The offset in bytes, if there is one.
        at: Option<u64>,
    },
    /// Zeros, and this node says so: what is below does not show through.
    Zero,
    /// Not stored here: the backing node has them, zeros beyond its end or without one.
    Below,
}

/// What other processes are told of a node's users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// They will also do this: may they?
    Widen(Usage),
    /// They do no more than this.
    Narrow(Usage),
    /// They do this, as was agreed.
    Assert(Usage),
}

/// A driver: what implements one kind of node. See the module for what both sides promise.
///
/// What not every driver can do has a default, said beside it.
pub trait BlockNode: Send + Sync {
    /// The node's length in bytes, now. At most [`MAX_LEN`].
    fn length(&self) -> u64;

    /// What the node can do and wants.
    fn limits(&self) -> Limits;

    /// Where the bytes at `offset` are. Must be quick: it runs for every request.
    fn extent(&self, offset: u64, len: u64, intent: Intent) -> Extent;

    /// Reads a range that `extent` called slow.
    fn read<'a>(&'a self, io: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a>;

    /// Writes a range that `extent` did not place, or that is to be stored compressed.
    fn write<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        from: Window<'a>,
        flags: WriteFlags,
    ) -> IoFuture<'a>;

    /// Makes a range read as zeros.
    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> IoFuture<'a>;

    /// Tells that the contents of a range are of no more use.
    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a>;

    /// Makes every completed write durable.
    fn flush<'a>(&'a self, io: &'a Io) -> IoFuture<'a>;

    /// What the first bytes of a range are. By default, data at no known place.
    fn status<'a>(&'a self, _io: &'a Io, _offset: u64, len: u64) -> IoFuture<'a, Status> {
        let place = Place::Data { at: None };
        Box::pin(std::future::ready(Ok(Status { len, place })))
    }

    /// Changes the length; what is added reads as zeros, whatever the backing node holds there.
    /// The node is writable, and nobody writes beyond the new end meanwhile.
    fn resize<'a>(&'a self, _io: &'a Io, _len: u64) -> ResizeFuture<'a> {
        let unable = ResizeError::Unable("its driver has no length to change");
        Box::pin(std::future::ready(Err(unable)))
    }

    /// Copies into this node what shows through from below in a range, where nothing is stored here
    /// yet; what is written at the same moment wins, and what the node reads as never changes. By
    /// default `ENOTSUP`.
    fn populate<'a>(&'a self, _io: &'a Io, _offset: u64, _len: u64) -> IoFuture<'a> {
        Box::pin(std::future::ready(Err(errno(libc::ENOTSUP))))
    }

    /// Whether it may store compressed what is written with [`WriteFlags::compress`]. By default
    /// that means nothing to it.
    fn compresses(&self) -> bool {
        false
    }

    /// The node whose extents this one hands on as its own, and where in it this one begins; for
    /// the books of the node below, which does not see such requests.
    fn below(&self) -> Option<(NodeRef, u64)> {
        None
    }

    /// Writes down everything that the driver keeps in memory, and marks the image as closed where
    /// its format knows such a mark; the node is drained. Called before it becomes read-only, is
    /// handed to another process or is removed. The driver goes on, and marks it open again with
    /// the first write that follows. By default a flush.
    fn settle<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        self.flush(io)
    }

    /// Reads anew what is kept in memory of the storage: another process may have written to it since
    /// the node was settled. The node is drained, and what is below it was asked before. By default
    /// nothing is kept.
    fn renew<'a>(&'a self, _io: &'a Io, _read_only: bool) -> IoFuture<'a> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Opens the image in `file`, which will be the first child, in place of the one that the node has;
    /// that one is drained and settled. Nothing is written. By default there is no image.
    fn prepare_image<'a>(
        &'a self,
        _io: &'a Io,
        _file: NodeRef,
        _read_only: bool,
    ) -> ImageFuture<'a> {
        let why = "its driver keeps no image".to_owned();
        Box::pin(std::future::ready(Err(ImageError::Cannot(why))))
    }

    /// What [`prepare_reopen`](Self::prepare_reopen) will open to become so, and cannot do without.
    fn reopening_opens(&self, _to: &NodeOptions) -> Option<Wish> {
        None
    }

    /// Prepares for other options, of which the driver's body has a stake in `read_only` and
    /// `cache`. Runs on the main loop, changes nothing that stays if it is given up, and does what
    /// can fail; becoming writable writes nothing. By default there is nothing to prepare.
    ///
    /// # Errors
    /// It cannot be so.
    fn prepare_reopen(
        &self,
        _door: &Door,
        _to: &NodeOptions,
    ) -> Result<Box<dyn Prepared>, BlockError> {
        Ok(Box::new(Untouched))
    }

    /// Prepares for what only this driver has to be as `to` says, over the node `over` in place of
    /// its first child if one is given; `name` is its own, for the error. What the node keeps in
    /// memory was written down before it is committed. Otherwise as
    /// [`prepare_reopen`](Self::prepare_reopen).
    ///
    /// # Errors
    /// It cannot be so.
    fn prepare_driver(
        &self,
        _name: &str,
        _to: &DriverSpec,
        _over: Option<&NodeRef>,
    ) -> Result<Box<dyn Prepared>, BlockError> {
        Ok(Box::new(Untouched))
    }

    /// Records in the image which file backs it (`None`: none) and that file's format. The node is
    /// writable and drained. Changes the header only: the node in the slot is the graph's business.
    /// By default `ENOTSUP`.
    fn change_backing<'a>(
        &'a self,
        _io: &'a Io,
        _file: Option<&'a str>,
        _format: Option<&'a str>,
    ) -> IoFuture<'a> {
        Box::pin(std::future::ready(Err(errno(libc::ENOTSUP))))
    }

    /// What the image's header says backs it, as it stands there: file and format. By default
    /// nothing.
    fn backing_name(&self) -> Option<(String, Option<String>)> {
        None
    }

    /// Changes the states that an image keeps inside, or goes back to one. The node is writable and
    /// drained. By default it cannot.
    fn change_snapshots<'a>(&'a self, _io: &'a Io, _change: SnapshotChange) -> SnapshotFuture<'a> {
        let why = "its driver keeps no internal snapshots".to_owned();
        Box::pin(std::future::ready(Err(ImageError::Cannot(why))))
    }

    /// The bytes that the node's own storage takes on the host, for lists; those of nodes below
    /// count of themselves. By default nothing is known.
    fn stored(&self) -> Option<u64> {
        None
    }

    /// The file whose users are told of each other; see [`claim`](Self::claim). By default there is
    /// none.
    fn shared_file(&self) -> Option<Identity> {
        None
    }

    /// Tells other processes, where the storage has a way to, what the node's users do. Runs on the
    /// main loop. By default nobody is told.
    ///
    /// # Errors
    /// Another process does not agree to a [`Claim::Widen`].
    fn claim(&self, _claim: Claim) -> Result<(), BlockError> {
        Ok(())
    }

    /// The node's bitmaps: those that the image keeps, to begin with. Asked once. By default none.
    fn bitmaps(&self) -> Arc<Bitmaps> {
        Arc::default()
    }

    /// Whether one more bitmap could be stored, and why not. By default none can. In the text,
    /// `{node}` stands for the node's name.
    ///
    /// # Errors
    /// It could not.
    fn check_storable(&self, _name: &str, _granularity: u64) -> Result<(), String> {
        Err("Can't store persistent bitmaps to {node}: Operation not supported".to_owned())
    }

    /// Has the image say that the bitmaps which it keeps are out of date; they will be right again
    /// when it is settled. The node is writable. By default there are none.
    fn claim_bitmaps<'a>(&'a self, _io: &'a Io) -> IoFuture<'a> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// The disk under it as it was, which a node for readers can stand on. By default there is none.
    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        None
    }

    /// Where a tester can have requests of this node held. By default nowhere.
    fn breakpoints(&self) -> Option<&Breakpoints> {
        None
    }

    /// What an image says of itself, for lists. By default nothing.
    fn details(&self) -> Option<Details> {
        None
    }
}

pub(crate) fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}
