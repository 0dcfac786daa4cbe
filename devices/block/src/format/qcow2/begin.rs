//! From reading to writing and back: what the header must say before the first change, and what it
//! may say again when all is written.
//!
//! ```text
//!   open ── reads only ──► begin_writing ── writes ──► settle ── reads only ──► …
//!                            │ repair, if dirty          │ everything written
//!                            │ unknown autoclear off     │
//!                            │ bitmaps marked in use     │ bitmaps stored
//!                            └ dirty bit on, if lazy     └ dirty bit off
//! ```

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

use super::error::ImageError;
use super::features::{AutoClear, Incompatible};
use super::image::{Image, Meta};
use crate::engine::Io;
use crate::node::errno;

impl Meta {
    /// Whether refcounts may be written late, because the dirty bit is set for that.
    pub(super) fn is_lazy(&self) -> bool {
        self.header.incompatible.contains(Incompatible::DIRTY) && self.lazy
    }
}

impl Image {
    /// Makes the image ready for changes, once.
    pub(super) async fn begin_writing(&self, io: &Io, meta: &mut Meta) -> io::Result<()> {
        if self.corrupt.load(Ordering::SeqCst) {
            return Err(errno(libc::EIO));
        }
        if self.writing.load(Ordering::SeqCst) {
            return Ok(());
        }
        if meta.header.incompatible.contains(Incompatible::CORRUPT) {
            return Err(errno(libc::EIO));
        }
        // What was read before was not checked for overlaps.
        self.map.forget();
        self.collect_fixed(io, meta).await?;
        let clusters = self.geometry.clusters(self.file().len());
        meta.refcounts.begin_behind(clusters);
        if meta.header.incompatible.contains(Incompatible::DIRTY) {
            self.repair(io, meta).await?;
            meta.header.incompatible.remove(Incompatible::DIRTY);
        }
        if self.mark_bitmaps(io, meta).await? {
            self.file().flush(io).await?;
        }
        meta.header.autoclear &= AutoClear::all();
        if meta.header.bitmaps.is_none() {
            meta.header.autoclear.remove(AutoClear::BITMAPS);
        }
        meta.header.incompatible.set(Incompatible::DIRTY, meta.lazy);
        if self.save_header(io, meta).await? {
            self.file().flush(io).await?;
        }
        self.writing.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Writes everything that waits; afterwards the file is as if the image were closed.
    pub(super) async fn settle(&self, io: &Io) -> io::Result<()> {
        let mut meta = self.meta.take().await;
        if self.corrupt.load(Ordering::SeqCst) {
            return Ok(());
        }
        if !self.writing.load(Ordering::SeqCst) {
            if !meta.bitmaps_marked {
                return Ok(());
            }
            // It failed on the way: what the file says of its bitmaps need not stay so.
            self.begin_writing(io, &mut meta).await?;
        }
        // The second round frees what the first one let go of.
        self.write_back(io, &mut meta).await?;
        self.write_back(io, &mut meta).await?;
        let stored = self.store_bitmaps(io, &mut meta).await;
        self.write_back(io, &mut meta).await?;
        self.write_back(io, &mut meta).await?;
        if meta.is_lazy() {
            self.save_refcounts(io, &mut meta).await?;
            self.file().flush(io).await?;
            meta.header.incompatible.remove(Incompatible::DIRTY);
            self.save_header(io, &mut meta).await?;
        }
        self.cut_ahead(io, &mut meta).await;
        self.file().flush(io).await?;
        self.writing.store(false, Ordering::SeqCst);
        if let Err(error) = &stored {
            tracing::error!(node = self.name, %error, "qcow2: the bitmaps are lost");
        }
        stored
    }

    /// Records what backs the image.
    pub(super) async fn change_backing(
        &self,
        io: &Io,
        file: Option<&str>,
        format: Option<&str>,
    ) -> io::Result<()> {
        let long = |text: &str| text.len() > super::header::MAX_BACKING_NAME;
        if file.is_some_and(long) || (file.is_some() && self.raw_data) {
            return Err(errno(libc::EINVAL));
        }
        let mut meta = self.meta.take().await;
        self.begin_writing(io, &mut meta).await?;
        // What was copied from below is in the file before the file says that it needs it no more.
        self.write_back(io, &mut meta).await?;
        let old = meta.header.clone();
        meta.header.backing_file = file.map(str::to_owned);
        meta.header.backing_format = format.map(str::to_owned);
        if let Err(error) = self.save_header(io, &mut meta).await {
            meta.header = old;
            return Err(error);
        }
        self.file().flush(io).await
    }

    /// Writes what changed of the header; says whether that was anything. In whole sectors of 512
    /// bytes: a change of numbers only is one sector, which storage writes whole or not at all.
    pub(super) async fn save_header(&self, io: &Io, meta: &mut Meta) -> io::Result<bool> {
        let bytes = meta.header.encode().map_err(io::Error::from)?;
        let sectors = bytes.chunks(512).zip(meta.header_bytes.chunks(512));
        let changed: Vec<usize> = sectors
            .enumerate()
            .filter(|(_, (new, old))| new != old)
            .map(|(index, _)| index * 512)
            .collect();
        let (Some(first), Some(last)) = (changed.first(), changed.last()) else {
            return Ok(false);
        };
        let end = (last + 512).min(bytes.len());
        self.file()
            .write(io, *first as u64, &bytes[*first..end])
            .await?;
        meta.header_bytes = bytes;
        self.show(meta);
        Ok(true)
    }

    /// Says in the file that it is corrupt.
    pub(super) async fn write_corrupt_bit(&self, io: &Io, meta: &mut Meta) -> io::Result<()> {
        if meta.header.version >= 3 {
            meta.header.incompatible.insert(Incompatible::CORRUPT);
            self.save_header(io, meta).await?;
            self.file().flush(io).await?;
        }
        Ok(())
    }

    /// Finds out where the tables are; refuses an image whose tables overlap each other, or whose
    /// refcounts are nowhere.
    async fn collect_fixed(&self, io: &Io, meta: &mut Meta) -> io::Result<()> {
        if let Some((number, at)) = meta.refcounts.misplaced(self.file().len()) {
            let why = format!(
                "entry {number} of the refcount table names offset {at:#x}, where no block can be"
            );
            return Err(self.mark_corrupt(io, meta, &why).await);
        }
        meta.refcounts.fixed.clear();
        for (offset, len) in self.tables(meta) {
            for cluster in self.clusters_under(offset, len) {
                if !meta.refcounts.fixed.insert(cluster) {
                    let at = cluster << self.geometry.cluster_bits;
                    let why = format!("two tables lie at offset {at:#x}");
                    return Err(self.mark_corrupt(io, meta, &why).await);
                }
            }
        }
        Ok(())
    }

    /// As [`collect_fixed`](Self::collect_fixed), after one of the tables has moved.
    pub(super) fn note_fixed(&self, meta: &mut Meta) {
        meta.refcounts.fixed = self
            .tables(meta)
            .into_iter()
            .flat_map(|(offset, len)| self.clusters_under(offset, len))
            .collect();
    }

    /// The clusters that some bytes lie in. A hostile table may say that others lie at the end of
    /// all numbers.
    pub(super) fn clusters_under(&self, offset: u64, len: u64) -> Range<u64> {
        if len == 0 {
            return 0..0;
        }
        let bits = self.geometry.cluster_bits;
        offset >> bits..offset.saturating_add(len).div_ceil(1 << bits)
    }

    /// Offset and length of the header and every table of the active state, and of the tables of
    /// snapshots and bitmaps.
    fn tables(&self, meta: &Meta) -> Vec<(u64, u64)> {
        let size = self.geometry.cluster_size();
        let mut tables = self.tables_but_l2(meta);
        let l1 = self.map.l1_entries();
        let l2 = l1
            .iter()
            .filter_map(|entry| self.geometry.l2_table(*entry).ok()?);
        tables.extend(l2.map(|offset| (offset, size)));
        let snapshots = &meta.snapshots.0;
        // As far as the file goes: there may be many, and long ones.
        let end = self.file().len();
        tables.extend(snapshots.iter().map(|kept| {
            let len = u64::from(kept.l1_entries) * 8;
            let inside = end.saturating_sub(kept.l1_offset);
            (kept.l1_offset, len.min(inside))
        }));
        tables
    }

    /// What kind of table lies in a cluster of the file, in QEMU's words.
    pub(super) fn table_at(&self, meta: &Meta, cluster: u64) -> &'static str {
        let header = &meta.header;
        let size = self.geometry.cluster_size();
        let (reftable, clusters) = meta.refcounts.table_place();
        let bitmaps = header.bitmaps.as_ref();
        let bitmaps = bitmaps.map_or((0, 0), |one| (one.directory_offset, one.directory_size));
        let l1 = self.map.l1_entries();
        let kinds = [
            ("qcow2_header", (0, size)),
            (
                "refcount table",
                (reftable, u64::from(clusters).saturating_mul(size)),
            ),
            ("active L1 table", (header.l1_offset, l1.len() as u64 * 8)),
            (
                "snapshot table",
                (header.snapshots_offset, meta.snapshots.1),
            ),
            ("bitmap directory", bitmaps),
        ];
        let is_in = |(offset, len)| self.clusters_under(offset, len).contains(&cluster);
        let found = kinds.into_iter().find(|(_, place)| is_in(*place));
        let at = cluster << self.geometry.cluster_bits;
        let mut blocks = meta.refcounts.block_offsets();
        let mut l2 = l1
            .iter()
            .filter_map(|entry| self.geometry.l2_table(*entry).ok()?);
        match found {
            Some((kind, _)) => kind,
            None if blocks.any(|offset| offset == at) => "refcount block",
            None if l2.any(|offset| offset == at) => "active L2 table",
            None => "inactive L1 table",
        }
    }

    /// As [`tables`](Self::tables), without L2 tables and what snapshots have.
    pub(super) fn tables_but_l2(&self, meta: &Meta) -> Vec<(u64, u64)> {
        let size = self.geometry.cluster_size();
        let header = &meta.header;
        let (reftable, clusters) = meta.refcounts.table_place();
        let mut tables = vec![
            (0, size),
            (header.l1_offset, self.map.l1_entries().len() as u64 * 8),
            (reftable, u64::from(clusters) * size),
            (header.snapshots_offset, meta.snapshots.1),
        ];
        tables.extend(meta.refcounts.block_offsets().map(|offset| (offset, size)));
        if let Some(bitmaps) = header.bitmaps {
            tables.push((bitmaps.directory_offset, bitmaps.directory_size));
        }
        tables
    }

    /// Why writing is refused from the start, if it is.
    pub(super) fn refuse_writing(header: &super::header::Header) -> Result<(), ImageError> {
        if header.incompatible.contains(Incompatible::CORRUPT) {
            return Err(ImageError::Corrupt);
        }
        Ok(())
    }
}
