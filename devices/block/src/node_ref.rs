//! The handle to a node: what every driver's node does alike, done once.
//!
//! ```text
//!   NodeRef ─ range, read-only, alignment ─ detect-zeroes ─ books, dirty maps ─┬─► io, for an extent
//!                                                                              └─► BlockNode
//! ```
//!
//! Read next: [`crate::node`] (the drivers' side, and what both promise each other).

mod recording;
mod upkeep;

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::account::{Account, Operation, Outcome, Totals};
use crate::bitmap::Bitmaps;
use crate::engine::transfer::fill_to_block;
use crate::engine::{Io, Window};
use crate::error::BlockError;
use crate::node::{
    BlockNode, Extent, Intent, Limits, MAX_LEN, Place, Status, WriteFlags, ZeroFlags, errno,
};
use crate::reopen::{LimitsCell, OptionsCell};
use crate::spec::{DetectZeroes, DiscardMode, NodeOptions};
use crate::threshold::Threshold;

struct Node {
    name: String,
    driver: &'static str,
    options: OptionsCell,
    limits: LimitsCell,
    account: Account,
    bitmaps: Arc<Bitmaps>,
    threshold: Threshold,
    body: Box<dyn BlockNode>,
}

/// A cheap handle to a node, of whatever driver. What cannot change was checked when it was made.
#[derive(Clone)]
pub struct NodeRef(Arc<Node>);

impl NodeRef {
    /// Wraps a driver's node. `options` are the final ones: `read_only` says what is so, after
    /// auto-read-only.
    ///
    /// # Errors
    /// The driver's limits or length make no sense.
    pub fn new(
        name: String,
        driver: &'static str,
        options: NodeOptions,
        body: Box<dyn BlockNode>,
    ) -> Result<Self, BlockError> {
        let limits = body.limits();
        if !limits.request_alignment.is_power_of_two() || body.length() > MAX_LEN {
            return Err(BlockError::BadLimits {
                node: name,
                alignment: limits.request_alignment,
                len: body.length(),
            });
        }
        Ok(Self(Arc::new(Node {
            name,
            driver,
            options: OptionsCell::new(options),
            limits: LimitsCell::new(limits),
            account: Account::new(),
            bitmaps: body.bitmaps(),
            threshold: Threshold::default(),
            body,
        })))
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The driver's name, as in QMP.
    pub fn driver(&self) -> &'static str {
        self.0.driver
    }

    /// The options every node has, as they are in force.
    pub fn options(&self) -> NodeOptions {
        self.0.options.load()
    }

    pub(crate) fn set_options(&self, options: NodeOptions) {
        self.0.options.store(options);
    }

    /// Whether it is to be read only; see [`is_writable`](Self::is_writable).
    pub fn is_read_only(&self) -> bool {
        self.options().read_only
    }

    /// Whether its storage is this process's. Of an inactive node, which another process may write
    /// to, reads may give anything, and nothing is written.
    pub fn is_active(&self) -> bool {
        self.0.options.is_active()
    }

    /// Whether writes are let through: the node is active and not read-only.
    pub fn is_writable(&self) -> bool {
        self.0.options.is_writable()
    }

    pub(crate) fn set_active(&self, active: bool) {
        self.0.options.set_active(active);
    }

    /// Whether both are the same node.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The node's length in bytes, now.
    pub fn len(&self) -> u64 {
        self.0.body.length().min(MAX_LEN)
    }

    /// Whether the node has no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the node can do and wants.
    pub fn limits(&self) -> Limits {
        self.0.limits.load()
    }

    /// Asks the driver once more what it can do and wants: something below it has changed. Its users
    /// are parked.
    pub(crate) fn refresh_limits(&self) {
        self.0.limits.store(self.0.body.limits());
    }

    /// What was asked of the node until now; it keeps no times.
    pub fn totals(&self) -> Totals {
        self.0.account.totals()
    }

    fn enter(&self, operation: Operation, offset: u64, len: u64, result: &io::Result<()>) {
        let outcome = match result {
            Ok(()) => Outcome::Done,
            Err(_) => Outcome::Failed,
        };
        self.0.account.enter(operation, len, outcome);
        if matches!(operation, Operation::Write | Operation::Unmap) {
            // Also after a failure: some of it may have been written.
            self.0.bitmaps.mark(offset, len);
        }
        if operation == Operation::Write {
            self.0.threshold.reach(offset.saturating_add(len));
        }
        if operation == Operation::Write && result.is_ok() {
            self.0.account.reach(offset.saturating_add(len));
        }
    }

    /// Enters in the books of the nodes below what went through an extent of theirs.
    fn enter_below(&self, operation: Operation, offset: u64, len: u64) {
        let mut offset = offset;
        let mut below = self.0.body.below();
        while let Some((node, start)) = below {
            offset = offset.saturating_add(start);
            node.enter(operation, offset, len, &Ok(()));
            below = node.0.body.below();
        }
    }

    /// Whether the node can be a disk with logical blocks of `block` bytes.
    ///
    /// # Errors
    /// It is too short, ends within a block, or its storage cannot move single blocks.
    pub fn check_disk(&self, block: u32) -> Result<(), BlockError> {
        let (len, wide) = (self.len(), u64::from(block.max(1)));
        if !len.is_multiple_of(wide) {
            let grown = len.next_multiple_of(wide);
            let fix = format!("grow the image to {grown} bytes");
            return Err(BlockError::NotADisk {
                node: self.name().to_owned(),
                len,
                block,
                fix,
            });
        }
        let alignment = self.limits().request_alignment;
        if alignment > block {
            return Err(BlockError::BlockTooSmall {
                node: self.name().to_owned(),
                alignment,
            });
        }
        Ok(())
    }

    /// Where the bytes at `offset` are, for a node above. The range must lie inside the node.
    /// Writes that somebody wants to know of must come through [`write`](Self::write).
    pub fn extent(&self, offset: u64, len: u64, intent: Intent) -> Extent {
        if intent == Intent::Write && self.is_watched() {
            return Extent::Slow { len };
        }
        self.0.body.extent(offset, len, intent)
    }

    fn is_watched(&self) -> bool {
        self.0.bitmaps.trackers().any() || self.0.threshold.load() != 0
    }

    fn check(&self, offset: u64, len: u64, aligned: bool) -> io::Result<()> {
        let end = offset.checked_add(len).ok_or_else(|| errno(libc::EINVAL))?;
        let alignment = u64::from(self.limits().request_alignment);
        if end > self.len() {
            return Err(errno(libc::EIO));
        }
        if aligned && !(offset | len).is_multiple_of(alignment) {
            return Err(errno(libc::EINVAL));
        }
        Ok(())
    }

    fn check_change(&self, offset: u64, len: u64, aligned: bool) -> io::Result<()> {
        if !self.is_writable() {
            return Err(errno(libc::EPERM));
        }
        self.check(offset, len, aligned)
    }

    /// Fills `into` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `EIO` outside the node, `EINVAL` off its alignment, or what the storage said.
    pub async fn read(&self, io: &Io, offset: u64, into: Window<'_>) -> io::Result<()> {
        let result = self.read_all(io, offset, into).await;
        self.enter(Operation::Read, offset, into.len(), &result);
        result
    }

    async fn read_all(&self, io: &Io, offset: u64, into: Window<'_>) -> io::Result<()> {
        self.check(offset, into.len(), true)?;
        let mut done = 0;
        while done < into.len() {
            let at = offset + done;
            let rest = into.part(done, u64::MAX);
            let moved = match self.0.body.extent(at, rest.len(), Intent::Read) {
                Extent::At {
                    file,
                    offset,
                    len,
                    memory_alignment,
                    guard,
                } => {
                    let part = rest.part(0, len);
                    if part.is_aligned(memory_alignment) {
                        let got = io.read(&file, offset, part).await?;
                        // An image may be longer than its storage.
                        let block = u64::from(self.limits().request_alignment);
                        let moved = fill_to_block(&part, got, block);
                        drop(guard);
                        self.enter_below(Operation::Read, at, moved);
                        moved
                    } else {
                        drop(guard);
                        self.0.body.read(io, at, part).await?;
                        part.len()
                    }
                }
                Extent::Zero { len } => {
                    let part = rest.part(0, len);
                    part.fill_zero();
                    self.enter_below(Operation::Read, at, part.len());
                    part.len()
                }
                Extent::Slow { len } => {
                    let part = rest.part(0, len);
                    self.0.body.read(io, at, part).await?;
                    part.len()
                }
            };
            done += progress(moved)?;
        }
        Ok(())
    }

    /// Writes the bytes of `from` at `offset`.
    ///
    /// # Errors
    /// `EPERM` on a node that is read-only or inactive, `EIO` outside it, `EINVAL` off its alignment, or what the
    /// storage said.
    pub async fn write(
        &self,
        io: &Io,
        offset: u64,
        from: Window<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let result = self.write_all(io, offset, from, flags).await;
        self.enter(Operation::Write, offset, from.len(), &result);
        result
    }

    async fn write_all(
        &self,
        io: &Io,
        offset: u64,
        from: Window<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.check_change(offset, from.len(), true)?;
        if let Some(unmap) = self.zeroes_instead(&from) {
            let flags = ZeroFlags {
                unmap,
                durable: flags.durable,
            };
            return self.zero_all(io, offset, from.len(), flags).await;
        }
        let mut done = 0;
        while done < from.len() {
            let at = offset + done;
            let rest = from.part(done, u64::MAX);
            let extent = if flags.compress {
                // Where it is now, it is not compressed.
                Extent::Slow { len: rest.len() }
            } else {
                self.0.body.extent(at, rest.len(), Intent::Write)
            };
            let moved = match extent {
                Extent::At {
                    file,
                    offset,
                    len,
                    memory_alignment,
                    guard,
                } => {
                    let part = rest.part(0, len);
                    if part.is_aligned(memory_alignment) {
                        let put = io.write(&file, offset, part, flags.durable).await?;
                        drop(guard);
                        if put == 0 {
                            return Err(errno(libc::ENOSPC));
                        }
                        self.enter_below(Operation::Write, at, u64::from(put));
                        u64::from(put)
                    } else {
                        drop(guard);
                        self.0.body.write(io, at, part, flags).await?;
                        part.len()
                    }
                }
                Extent::Zero { len } | Extent::Slow { len } => {
                    let part = rest.part(0, len);
                    self.0.body.write(io, at, part, flags).await?;
                    part.len()
                }
            };
            done += progress(moved)?;
        }
        Ok(())
    }

    /// `Some(unmap)` if detect-zeroes turns this write into a write of zeros.
    fn zeroes_instead(&self, from: &Window<'_>) -> Option<bool> {
        let unmap = match self.options().detect_zeroes {
            DetectZeroes::Off => return None,
            DetectZeroes::On => false,
            DetectZeroes::Unmap => true,
        };
        from.is_zero().then_some(unmap)
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_zeroes(
        &self,
        io: &Io,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        let result = self.zero_all(io, offset, len, flags).await;
        self.enter(Operation::Write, offset, len, &result);
        result
    }

    async fn zero_all(&self, io: &Io, offset: u64, len: u64, flags: ZeroFlags) -> io::Result<()> {
        self.check_change(offset, len, true)?;
        if len == 0 {
            return Ok(());
        }
        let unmap = flags.unmap && self.options().discard == DiscardMode::Unmap;
        self.0
            .body
            .write_zeroes(io, offset, len, ZeroFlags { unmap, ..flags })
            .await
    }

    /// Tells that the contents of a range are of no more use. Does nothing where discards are
    /// ignored; what the range reads as afterwards is not defined.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn discard(&self, io: &Io, offset: u64, len: u64) -> io::Result<()> {
        let result = self.discard_all(io, offset, len).await;
        self.enter(Operation::Unmap, offset, len, &result);
        result
    }

    async fn discard_all(&self, io: &Io, offset: u64, len: u64) -> io::Result<()> {
        self.check_change(offset, len, false)?;
        if len == 0 || self.options().discard == DiscardMode::Ignore {
            return Ok(());
        }
        self.0.body.discard(io, offset, len).await
    }

    /// Makes every completed write durable, all the way down.
    ///
    /// # Errors
    /// What the storage said.
    pub async fn flush(&self, io: &Io) -> io::Result<()> {
        let result = if self.is_writable() {
            self.0.body.flush(io).await
        } else {
            Ok(())
        };
        self.enter(Operation::Flush, 0, 0, &result);
        result
    }

    /// What the first bytes of a range are, seen from this node alone.
    ///
    /// # Errors
    /// `EIO` outside the node, or what the storage said.
    pub async fn status(&self, io: &Io, offset: u64, len: u64) -> io::Result<Status> {
        self.check(offset, len, false)?;
        let place = Place::Zero;
        if len == 0 {
            return Ok(Status { len, place });
        }
        let status = self.0.body.status(io, offset, len).await?;
        let len = progress(status.len)?.min(len);
        Ok(Status { len, ..status })
    }

    /// Copies into this node what shows through from below; see [`BlockNode::populate`].
    ///
    /// # Errors
    /// `EPERM` on a node that is read-only or inactive, `EIO` outside it, `ENOTSUP` where nothing shows through, or
    /// what the storage said.
    pub async fn populate(&self, io: &Io, offset: u64, len: u64) -> io::Result<()> {
        self.check_change(offset, len, false)?;
        self.0.body.populate(io, offset, len).await
    }

    /// Whether compressed writes are stored so; see [`BlockNode::compresses`].
    pub(crate) fn compresses(&self) -> bool {
        self.0.body.compresses()
    }
}

impl fmt::Debug for NodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeRef")
            .field("name", &self.0.name)
            .field("driver", &self.0.driver)
            .finish_non_exhaustive()
    }
}

/// A driver that covers nothing breaks its promise; without this the transfer would never end.
fn progress(moved: u64) -> io::Result<u64> {
    if moved == 0 {
        Err(errno(libc::EIO))
    } else {
        Ok(moved)
    }
}
