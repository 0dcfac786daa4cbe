//! What is recorded of a node's writes: maps of jobs, bitmaps of clients, a threshold.

use std::io;
use std::sync::Arc;

use super::NodeRef;
use crate::bitmap::{BitmapChange, BitmapError, Bitmaps};
use crate::dirty::DirtyMap;
use crate::engine::Io;
use crate::threshold::Tell;

impl NodeRef {
    /// Has every write that ends from now on marked in `map`. The node is drained.
    pub fn track(&self, map: Arc<DirtyMap>) {
        self.0.bitmaps.trackers().add(map);
    }

    /// Marks no more in `map`.
    pub fn untrack(&self, map: &Arc<DirtyMap>) {
        self.0.bitmaps.trackers().remove(map);
    }

    /// Has `tell` called once when a write goes beyond `offset`; 0 takes that back.
    pub fn set_write_threshold(&self, offset: u64, tell: Tell) {
        self.0.threshold.set(offset, tell);
    }

    /// Where the threshold is that a write has not gone beyond yet; 0 for none.
    pub fn write_threshold(&self) -> u64 {
        self.0.threshold.load()
    }

    /// The node's bitmaps.
    pub fn bitmaps(&self) -> &Bitmaps {
        &self.0.bitmaps
    }

    /// Whether a bitmap can be changed so that the image will know it: where one is to be stored,
    /// the image is told that its bitmaps are out of date until it is settled.
    ///
    /// # Errors
    /// A bitmap that is to be stored cannot be, or the storage failed.
    pub async fn claim_bitmaps(&self, io: &Io, change: &BitmapChange) -> io::Result<()> {
        let refused = |error: BitmapError| io::Error::other(error);
        let persistent = match change {
            BitmapChange::Add {
                name,
                granularity,
                persistent: true,
                ..
            } => {
                let granularity = granularity.unwrap_or_else(|| self.suggested_granularity());
                self.check_storable(name, granularity).map_err(refused)?;
                true
            }
            BitmapChange::Add { .. } => false,
            BitmapChange::Remove(name)
            | BitmapChange::Clear(name)
            | BitmapChange::Enable(name)
            | BitmapChange::Disable(name)
            | BitmapChange::Merge { target: name, .. } => {
                let found = self.bitmaps().find(name);
                found.is_ok_and(|bitmap| bitmap.persistent)
            }
        };
        if persistent && self.is_writable() {
            self.0.body.claim_bitmaps(io).await?;
        }
        Ok(())
    }

    /// Has the image say that the bitmaps it keeps are out of date until it is settled.
    ///
    /// # Errors
    /// The storage failed.
    pub(crate) async fn take_up_bitmaps(&self, io: &Io) -> io::Result<()> {
        self.0.body.claim_bitmaps(io).await
    }

    fn check_storable(&self, name: &str, granularity: u64) -> Result<(), BitmapError> {
        let node = self.name();
        if self.is_read_only() {
            let why = format!("Can't store persistent bitmaps to {node}: the node is read-only");
            return Err(BitmapError::NotStorable(why));
        }
        if !self.is_active() {
            let why = format!("Can't store persistent bitmaps to {node}: the node is inactive");
            return Err(BitmapError::NotStorable(why));
        }
        let storable = self.0.body.check_storable(name, granularity);
        storable.map_err(|why| BitmapError::NotStorable(why.replace("{node}", node)))
    }

    fn suggested_granularity(&self) -> u64 {
        let cluster = self.details().map_or(65536, |details| details.cluster_size);
        cluster.clamp(4096, 65536)
    }

    /// Changes a bitmap; the node is drained, and the change was
    /// [announced](Self::claim_bitmaps).
    ///
    /// # Errors
    /// It cannot be made; nothing has changed then.
    pub fn change_bitmap(&self, change: BitmapChange) -> Result<(), BitmapError> {
        let suggested = self.suggested_granularity();
        self.bitmaps()
            .change(change, self.len(), suggested, !self.is_writable())
    }
}
