//! What is written when: the order that makes every crash harmless.
//!
//! ```text
//!   1  refcount blocks (more users, or fewer of what rests), then their table     ─ sync ─┐
//!   2  L2 tables: refer only to what 1 counted and what was written before it     ─ sync ─┤
//!   3  L1 table: refers only to tables that 2 wrote                               ─ sync ─┘
//!   4  loose places rest; those that rested and that nobody uses any more are free again
//! ```
//!
//! A crash between two steps leaves clusters counted that nobody refers to: leaks, never the
//! reverse. Nothing is synced that was not written.

use std::io;
use std::sync::atomic::Ordering;

use super::bytes::from_words;
use super::image::{Image, Loose, Meta};
use crate::engine::Io;

/// So many loose places are worth a round of their own.
const MANY_LOOSE: usize = 4096;

impl Image {
    /// Makes every completed write durable.
    pub(super) async fn flush(&self, io: &Io) -> io::Result<()> {
        if self.unsaved.load(Ordering::SeqCst) {
            let mut meta = self.meta.take().await;
            return self.write_back(io, &mut meta).await;
        }
        self.sync(io).await
    }

    async fn sync(&self, io: &Io) -> io::Result<()> {
        if let Some(data) = &self.data {
            data.load().flush(io).await?;
        }
        self.file().flush(io).await
    }

    /// Writes the tables that wait if they are many.
    pub(super) async fn relieve(&self, io: &Io, meta: &mut Meta) -> io::Result<()> {
        let many = meta.loose.len() >= MANY_LOOSE;
        if meta.is_lazy() && meta.refcounts.is_crowded() {
            self.save_refcounts(io, meta).await?;
        }
        if many || self.map.is_crowded() || meta.refcounts.is_crowded() {
            self.write_back(io, meta).await?;
        }
        Ok(())
    }

    /// One round of the module's drawing. Afterwards all that was done before is durable.
    pub(super) async fn write_back(&self, io: &Io, meta: &mut Meta) -> io::Result<()> {
        if self.corrupt.load(Ordering::SeqCst) {
            return self.sync(io).await;
        }
        self.write_refcounts(io, meta).await?;
        self.sync(io).await?;
        self.write_tables(io).await?;
        self.rest(io, meta).await?;
        let nothing_waits = meta.loose.is_empty()
            && meta.resting.is_none()
            && self.map.is_clean()
            && meta.refcounts.is_clean();
        self.unsaved.store(!nothing_waits, Ordering::SeqCst);
        Ok(())
    }

    /// Step 1, without the sync at its end. With lazy refcounts only at the very end: the dirty
    /// bit says so.
    async fn write_refcounts(&self, io: &Io, meta: &mut Meta) -> io::Result<()> {
        if meta.is_lazy() {
            return Ok(());
        }
        self.save_refcounts(io, meta).await
    }

    /// Writes all refcounts, in the order that they need among themselves.
    pub(super) async fn save_refcounts(&self, io: &Io, meta: &mut Meta) -> io::Result<()> {
        // Finding a place may lengthen the table once more.
        while let Some(clusters) = meta.refcounts.wants_place() {
            let offset = self.allocate_tables(io, meta, clusters).await?;
            if let Some((unused, clusters)) = meta.refcounts.give_place(offset, clusters) {
                self.take_back(io, meta, unused, u64::from(clusters))
                    .await?;
            }
        }
        meta.refcounts.write_blocks(io, &self.file()).await?;
        if !meta.refcounts.table_is_dirty() {
            return Ok(());
        }
        self.file().flush(io).await?;
        let left = meta.refcounts.write_table(io, &self.file()).await?;
        if let Some((offset, clusters)) = left {
            // The table has moved: what is at the old place is used until the header says so.
            self.file().flush(io).await?;
            let (place, length) = meta.refcounts.table_place();
            meta.header.reftable_offset = place;
            meta.header.reftable_clusters = length;
            self.save_header(io, meta).await?;
            self.file().flush(io).await?;
            let bits = self.geometry.cluster_bits;
            meta.let_go(offset >> bits, u64::from(clusters), false);
            self.note_fixed(meta);
        }
        Ok(())
    }

    /// Steps 2 and 3.
    async fn write_tables(&self, io: &Io) -> io::Result<()> {
        let dirty = self.map.dirty_slices();
        let tables = !dirty.is_empty();
        for slice in dirty {
            let (index, inside) = self.map.slice_place(slice);
            let (Ok(Some(table)), Some(words)) = (self.map.table(index), self.map.words(slice))
            else {
                // Its table has gone, and all it mapped with it.
                self.map.mark_clean(slice);
                continue;
            };
            let bytes = from_words(&words);
            self.file().write(io, table + inside, &bytes).await?;
            self.map.mark_clean(slice);
        }
        let dirty = self.map.dirty_l1();
        if tables || !dirty.is_empty() {
            self.file().flush(io).await?;
        }
        if dirty.is_empty() {
            return Ok(());
        }
        self.write_l1(io, &dirty).await?;
        self.file().flush(io).await
    }

    async fn write_l1(&self, io: &Io, dirty: &[usize]) -> io::Result<()> {
        let place = self.map.l1_place();
        for index in dirty {
            let entry = self.map.l1_entry(*index as u64);
            let at = place + *index as u64 * 8;
            self.file().write(io, at, &entry.to_be_bytes()).await?;
            self.map.mark_l1_clean(*index);
        }
        Ok(())
    }

    /// Step 4.
    async fn rest(&self, io: &Io, meta: &mut Meta) -> io::Result<()> {
        self.free_rested(io, meta).await?;
        if meta.resting.is_none() && !meta.loose.is_empty() {
            let loose = std::mem::take(&mut meta.loose);
            meta.resting = Some((self.holders.turn(), loose));
            self.free_rested(io, meta).await?;
        }
        Ok(())
    }

    /// Frees what rested, if nobody uses it any more.
    async fn free_rested(&self, io: &Io, meta: &mut Meta) -> io::Result<()> {
        let quiet = |(old, _): &mut (_, _)| self.holders.is_quiet(*old);
        let Some((_, rested)) = meta.resting.take_if(quiet) else {
            return Ok(());
        };
        for place in rested {
            self.free(io, meta, place).await?;
        }
        Ok(())
    }

    /// Takes one user from each of these clusters.
    async fn free(&self, io: &Io, meta: &mut Meta, place: Loose) -> io::Result<()> {
        let bits = self.geometry.cluster_bits;
        let mut freed = 0..0;
        for cluster in place.cluster..place.cluster + place.count {
            if meta.refcounts.fixed.contains(&cluster) {
                let at = cluster << bits;
                let why = format!("the table at offset {at:#x} was mapped as data, too");
                return Err(self.mark_corrupt(io, meta, &why).await);
            }
            let left = meta.refcounts.decrement(io, &self.file(), cluster).await?;
            match left {
                Some(0) if freed.end == cluster => freed.end += 1,
                Some(0) => {
                    self.discard_freed(io, place, freed).await;
                    freed = cluster..cluster + 1;
                }
                Some(_) => {}
                None => {
                    let at = cluster << bits;
                    let why = format!("the cluster at offset {at:#x} is in use, but counted free");
                    return Err(self.mark_corrupt(io, meta, &why).await);
                }
            }
        }
        self.discard_freed(io, place, freed).await;
        Ok(())
    }

    /// Gives space back to the host. Advice: a failure changes nothing.
    async fn discard_freed(&self, io: &Io, place: Loose, freed: std::ops::Range<u64>) {
        let bits = self.geometry.cluster_bits;
        if !(self.pass_discard.load(Ordering::Relaxed) && place.discarded) || freed.is_empty() {
            return;
        }
        let file = self.file();
        let node = file.node();
        let start = freed.start << bits;
        let end = (freed.end << bits).min(node.len());
        if start < end
            && let Err(error) = node.discard(io, start, end - start).await
        {
            tracing::debug!(node = self.name, %error, "qcow2: the file keeps discarded space");
        }
    }
}
