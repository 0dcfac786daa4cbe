//! New places in the file: for the guest's clusters and for tables.

use std::io;
use std::sync::atomic::Ordering;

use super::geometry::Geometry;
use super::image::{Image, Meta};
use crate::engine::Io;

/// The file grows by an eighth, at most by so many bytes: a change of its length waits for every
/// write to it, and those behind it wait for the change.
const LONGEST_STEP: u64 = 64 << 20;

/// Clusters that nothing refers to yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fresh {
    /// Where the first one is.
    pub(super) offset: u64,
    /// How many.
    pub(super) clusters: u64,
    /// Whether they are zeros in the file.
    pub(super) zero: bool,
}

impl Image {
    /// Takes one to `most` clusters that follow each other, inside the file.
    pub(super) async fn allocate(
        &self,
        io: &Io,
        meta: &mut Meta,
        least: u64,
        most: u64,
    ) -> io::Result<Fresh> {
        self.unsaved.store(true, Ordering::SeqCst);
        let untouched = meta.refcounts.untouched();
        let refcounts = &mut meta.refcounts;
        let taken = refcounts.allocate(io, &self.file(), least, most).await;
        if let Some(cluster) = meta.refcounts.overrun.take() {
            let host = cluster << self.geometry.cluster_bits;
            return Err(self.mark_overlap(io, meta, host).await);
        }
        let taken = taken?;
        let (cluster, clusters) = taken;
        let bits = self.geometry.cluster_bits;
        let over =
            (cluster..cluster + clusters).find(|cluster| meta.refcounts.fixed.contains(cluster));
        if let Some(over) = over {
            return Err(self.mark_overlap(io, meta, over << bits).await);
        }
        let fresh = Fresh {
            offset: cluster << bits,
            clusters,
            zero: cluster >= untouched,
        };
        let end = (cluster + clusters) << bits;
        if let Err(error) = self.reach(io, meta, end).await {
            self.give_back(io, meta, fresh).await?;
            return Err(error);
        }
        Ok(fresh)
    }

    /// Makes the file at least so long, and longer where that can be.
    async fn reach(&self, io: &Io, meta: &mut Meta, end: u64) -> io::Result<()> {
        let file = self.file();
        if end <= file.len() {
            return Ok(());
        }
        let step = (end / 8).min(LONGEST_STEP) & !(self.geometry.cluster_size() - 1);
        match file.resize(io, end.saturating_add(step)).await {
            // So far it may not grow, but perhaps as far as it must.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EFBIG | libc::ENOSPC)) => {
                file.reach(io, end).await
            }
            Err(error) => Err(error),
            Ok(()) => {
                meta.is_ahead |= step > 0;
                Ok(())
            }
        }
    }

    /// Cuts off what the file grew by and nobody took. Where that fails, the file stays longer.
    pub(super) async fn cut_ahead(&self, io: &Io, meta: &mut Meta) {
        let file = self.file();
        let untouched = meta.refcounts.untouched();
        let end = untouched.saturating_mul(self.geometry.cluster_size());
        if std::mem::take(&mut meta.is_ahead)
            && end < file.len()
            && let Err(error) = file.resize(io, end).await
        {
            tracing::debug!(node = self.name, %error, "qcow2: the file stays longer");
        }
    }

    /// Takes exactly so many clusters for tables that are written whole at once.
    pub(super) async fn allocate_tables(
        &self,
        io: &Io,
        meta: &mut Meta,
        clusters: u64,
    ) -> io::Result<u64> {
        let fresh = self.allocate(io, meta, clusters, clusters).await?;
        Ok(fresh.offset)
    }

    /// Gives back what nothing ever referred to.
    pub(super) async fn give_back(&self, io: &Io, meta: &mut Meta, fresh: Fresh) -> io::Result<()> {
        self.take_back(io, meta, fresh.offset, fresh.clusters).await
    }

    /// As [`give_back`](Self::give_back), by place.
    pub(super) async fn take_back(
        &self,
        io: &Io,
        meta: &mut Meta,
        offset: u64,
        clusters: u64,
    ) -> io::Result<()> {
        let first = offset >> self.geometry.cluster_bits;
        for cluster in first..first + clusters {
            meta.refcounts
                .decrement(io, &self.file(), cluster)
                .await
                .map(drop)?;
        }
        Ok(())
    }

    /// Makes sure that the L2 table of a guest offset is there and nobody else's, and that the
    /// slice is in the map. What hangs on the table may then be changed.
    pub(super) async fn own_table(&self, io: &Io, meta: &mut Meta, guest: u64) -> io::Result<()> {
        let index = self.geometry.l1_index(guest);
        let table = match self.map.table(index) {
            Ok(table) => table,
            Err(bad) => return Err(self.bad_entry(io, meta, guest, bad).await),
        };
        let owned = self.map.l1_entry(index) & super::geometry::COPIED != 0;
        if table.is_none() || !owned {
            let fresh = self.allocate(io, meta, 1, 1).await?;
            if let Err(error) = self.fill_table(io, fresh, table).await {
                self.give_back(io, meta, fresh).await?;
                return Err(error);
            }
            self.map
                .set_l1_entry(index, Geometry::l1_entry(fresh.offset));
            let bits = self.geometry.cluster_bits;
            meta.refcounts.fixed.insert(fresh.offset >> bits);
            if let Some(shared) = table {
                meta.refcounts.fixed.remove(&(shared >> bits));
                meta.let_go(shared >> bits, 1, false);
            }
        }
        self.load_slice(io, meta, guest).await
    }

    /// Writes a new L2 table: empty, or as the one that others have too.
    async fn fill_table(&self, io: &Io, fresh: Fresh, from: Option<u64>) -> io::Result<()> {
        let size = self.geometry.cluster_size();
        match from {
            Some(shared) => {
                let bytes = self.file().read(io, shared, size).await?;
                self.file().write(io, fresh.offset, &bytes).await
            }
            None if fresh.zero => Ok(()),
            None => self.file().write_zeroes(io, fresh.offset, size).await,
        }
    }
}
