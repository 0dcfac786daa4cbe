//! What is done to a node besides its requests: it is resized, settled, opened otherwise, told what
//! backs it, and asked what it says of itself.

use std::io;
use std::sync::Arc;

use fdset::{Door, Identity, Wish};

use super::NodeRef;
use crate::engine::Io;
use crate::error::BlockError;
use crate::format::blkdebug::breakpoints::Breakpoints;
use crate::format::cbw::Snapshot;
use crate::format::qcow2::{Details, ImageError, SnapshotChange};
use crate::node::{Claim, MAX_LEN, ResizeError, errno};
use crate::reopen::{OtherImage, Prepared, Reopening};
use crate::spec::{DriverSpec, NodeOptions};

impl NodeRef {
    /// Changes the node's length; what is added reads as zeros. The caller sees to it that nobody
    /// uses what is cut off; users are told by the caller, too.
    ///
    /// # Errors
    /// The node is read-only or inactive, its driver cannot do that, or the storage did not.
    pub async fn resize(&self, io: &Io, len: u64) -> Result<(), BlockError> {
        let node = || self.name().to_owned();
        let refused = |why: &str| BlockError::NotResizable {
            node: node(),
            len,
            why: why.to_owned(),
        };
        self.check_writable()?;
        if len > MAX_LEN {
            return Err(refused("no node is that long"));
        }
        if !len.is_multiple_of(u64::from(self.limits().request_alignment)) {
            return Err(refused("O_DIRECT could not reach its last bytes"));
        }
        let resized = self.0.body.resize(io, len).await;
        if resized.is_ok() {
            self.0.bitmaps.resize(len);
        }
        resized.map_err(|error| match error {
            ResizeError::Unable(why) => refused(why),
            ResizeError::Storage(source) => BlockError::Resize {
                node: node(),
                len,
                source,
            },
            ResizeError::Below(error) => error,
        })
    }

    /// Writes down what the driver keeps in memory; see [`BlockNode::settle`].
    ///
    /// # Errors
    /// What the storage said.
    pub async fn settle(&self, io: &Io) -> io::Result<()> {
        if !self.is_writable() {
            return Ok(());
        }
        self.0.body.settle(io).await
    }

    /// Reads anew what is kept in memory of the storage, which another process had; see
    /// [`BlockNode::renew`]. What it wrote nobody recorded: bitmaps that no image keeps mark all.
    ///
    /// # Errors
    /// What the storage said, or what is there now is not what the node was made of.
    pub(crate) async fn renew(&self, io: &Io) -> io::Result<()> {
        self.0.body.renew(io, self.is_read_only()).await?;
        self.refresh_limits();
        self.0.bitmaps.mark_unkept(self.len());
        Ok(())
    }

    /// Opens the image in `file` in place of the one that the node has; see
    /// [`BlockNode::prepare_image`].
    ///
    /// # Errors
    /// There is none that the node could have.
    pub(crate) async fn prepare_image(
        &self,
        io: &Io,
        file: Self,
        read_only: bool,
    ) -> Result<OtherImage, ImageError> {
        self.0.body.prepare_image(io, file, read_only).await
    }

    /// Has the image that was prepared. What is in it nobody recorded: bitmaps that no image keeps
    /// mark all. The node is drained.
    pub(crate) fn take_image(&self, other: OtherImage) {
        other.image.commit();
        self.0.bitmaps.mark_unkept(self.len());
    }

    fn check_writable(&self) -> Result<(), BlockError> {
        let node = self.name().to_owned();
        match (self.is_read_only(), self.is_active()) {
            (true, _) => Err(BlockError::ReadOnly { node }),
            (false, false) => Err(BlockError::Inactive { node }),
            (false, true) => Ok(()),
        }
    }

    /// What [`prepare_reopen`](Self::prepare_reopen) will open.
    pub fn reopening_opens(&self, to: &NodeOptions) -> Option<Wish> {
        self.0.body.reopening_opens(to)
    }

    /// Prepares the node for other options; nothing has changed yet. Its users are parked if it
    /// changes whether the host's page cache is bypassed.
    ///
    /// # Errors
    /// The storage cannot be opened that way, or is another file.
    pub fn prepare_reopen(&self, door: &Door, to: NodeOptions) -> Result<Reopening, BlockError> {
        let body = self.0.body.prepare_reopen(door, &to)?;
        Ok(Reopening::new(self.clone(), to, body))
    }

    /// Prepares what only the node's driver has; see [`BlockNode::prepare_driver`].
    pub(crate) fn prepare_driver(
        &self,
        to: &DriverSpec,
        over: Option<&Self>,
    ) -> Result<Box<dyn Prepared>, BlockError> {
        self.0.body.prepare_driver(self.name(), to, over)
    }

    /// Records in the image what backs it; see [`BlockNode::change_backing`].
    ///
    /// # Errors
    /// `EPERM` on a node that is read-only or inactive, `ENOTSUP` where the driver records none, or what the storage
    /// said.
    pub async fn change_backing(
        &self,
        io: &Io,
        file: Option<&str>,
        format: Option<&str>,
    ) -> io::Result<()> {
        if !self.is_writable() {
            return Err(errno(libc::EPERM));
        }
        self.0.body.change_backing(io, file, format).await
    }

    /// Changes the states that an image keeps inside, or goes back to one; the node is drained.
    ///
    /// # Errors
    /// The node is read-only or inactive, its driver keeps none, there is no such one, or the storage failed.
    pub async fn change_snapshots(
        &self,
        io: &Io,
        change: SnapshotChange,
    ) -> Result<(), BlockError> {
        self.check_writable()?;
        let applied = matches!(change, SnapshotChange::Apply(_));
        let changed = self.0.body.change_snapshots(io, change).await;
        if applied {
            // Another disk: nothing that was recorded says how it differs.
            self.0.bitmaps.mark_all(self.len());
        }
        changed.map_err(|source| BlockError::Snapshots {
            node: self.name().to_owned(),
            source,
        })
    }

    /// The bytes that the node's own storage takes on the host, if that is known.
    pub fn stored(&self) -> Option<u64> {
        self.0.body.stored()
    }

    /// The file whose users are told of each other; see [`BlockNode::shared_file`].
    pub(crate) fn shared_file(&self) -> Option<Identity> {
        self.0.body.shared_file()
    }

    /// Tells other processes what the node's users do; see [`BlockNode::claim`].
    pub(crate) fn claim(&self, claim: Claim) -> Result<(), BlockError> {
        self.0.body.claim(claim)
    }

    /// The disk under it as it was, if it keeps that; see [`BlockNode::snapshot`].
    pub(crate) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.0.body.snapshot()
    }

    /// Where a tester can have requests of this node held, if its driver has that.
    pub fn breakpoints(&self) -> Option<&Breakpoints> {
        self.0.body.breakpoints()
    }

    /// What an image says of itself.
    pub fn details(&self) -> Option<Details> {
        self.0.body.details()
    }

    /// What the image's header says backs it: file and format.
    pub fn backing_name(&self) -> Option<(String, Option<String>)> {
        self.0.body.backing_name()
    }
}
