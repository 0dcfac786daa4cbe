//! Repairing refcounts: what a dirty image needs before it is written.
//!
//! ```text
//!   every table that refers to clusters ─► how often each is used ─► compared ─► corrected
//! ```
//!
//! L1 and L2 tables are always right, whatever happened: with lazy refcounts only the counts were
//! left behind. So they are counted anew from the tables.

use std::collections::{BTreeMap, HashMap};
use std::io;

use super::bitmaps::{Bitmap, data_clusters};
use super::bytes::words;
use super::geometry::{Cluster, Entry};
use super::image::{Image, Meta};
use crate::engine::Io;
use crate::node::errno;

/// The most clusters that are counted: 2^28 refer to 16 TiB at 64 KiB.
const MAX_COUNTED: usize = 1 << 28;

/// So many bytes at the end of the file a crash may have lost, and as many as the file still has.
const LOST: u64 = 1 << 30;

/// How often each cluster is used, by number.
#[derive(Default)]
struct Counts(BTreeMap<u64, u64>);

impl Counts {
    /// Counts more users of a cluster; says how many it has now.
    fn add(&mut self, cluster: u64, times: u64) -> io::Result<u64> {
        if self.0.len() >= MAX_COUNTED {
            return Err(errno(libc::EFBIG));
        }
        let count = self.0.entry(cluster).or_default();
        *count = count.saturating_add(times);
        Ok(*count)
    }
}

impl Image {
    /// Makes the refcounts what the tables say.
    pub(super) async fn repair(&self, io: &Io, meta: &mut Meta) -> io::Result<()> {
        tracing::info!(
            node = self.name,
            "qcow2: not closed cleanly; refcounts are counted anew"
        );
        let counts = self.count_all(io, meta).await?;
        let bits = self.geometry.cluster_bits;
        let file = self.file();
        let end = file.len().div_ceil(1 << bits);
        let last = counts.0.last_key_value().map_or(0, |(last, _)| last + 1);
        // A crash may have lost the file's end, but not the most of it.
        if last > end.saturating_mul(2).saturating_add(LOST >> bits) {
            let at = (last - 1) << bits;
            let why = format!("the tables refer to offset {at:#x}, far behind the file's end");
            return Err(self.mark_corrupt(io, meta, &why).await);
        }
        // Blocks made now lie behind everything: what is counted free may well be in use.
        meta.refcounts.search_from(end.max(last));
        for (cluster, wanted) in &counts.0 {
            let now = meta.refcounts.count(io, &file, *cluster).await?;
            if *wanted > self.geometry.max_refcount() {
                let why = format!("cluster {cluster} is used {wanted} times");
                return Err(self.mark_corrupt(io, meta, &why).await);
            }
            if now < *wanted {
                meta.refcounts.set(io, &file, *cluster, *wanted).await?;
            }
        }
        for clusters in meta.refcounts.described() {
            for cluster in clusters.start..clusters.end.min(end.max(last)) {
                let wanted = counts.0.get(&cluster).copied().unwrap_or(0);
                if meta.refcounts.count(io, &file, cluster).await? > wanted {
                    meta.refcounts.set(io, &file, cluster, wanted).await?;
                }
            }
        }
        meta.refcounts.search_from(0);
        self.save_refcounts(io, meta).await?;
        self.file().flush(io).await
    }

    async fn count_all(&self, io: &Io, meta: &mut Meta) -> io::Result<Counts> {
        let size = self.geometry.cluster_size();
        let bits = self.geometry.cluster_bits;
        let file = self.file();
        let mut counts = Counts::default();
        let mut tables = HashMap::new();
        let active = self.map.l1_entries();
        self.add_tables(&active, &mut tables);
        let bitmaps = self.bitmaps(io, meta).await?.unwrap_or_default().1;
        self.count_ranges(io, meta, &bitmaps, &mut counts).await?;
        for snapshot in &meta.snapshots.0 {
            let len = u64::from(snapshot.l1_entries) * 8;
            let bytes = file.read(io, snapshot.l1_offset, len).await?;
            self.add_tables(&words(&bytes), &mut tables);
        }
        for bitmap in &bitmaps {
            let len = u64::from(bitmap.table_entries) * 8;
            let table = file.read(io, bitmap.table_offset, len).await?;
            for offset in data_clusters(&words(&table)) {
                counts.add(offset >> bits, 1)?;
            }
        }
        for (table, times) in tables {
            counts.add(table >> bits, times)?;
            if table >= file.len() {
                // Nothing but zeros, and there may be many.
                continue;
            }
            let bytes = file.read(io, table, size).await?;
            self.count_table(io, meta, &words(&bytes), times, &mut counts)
                .await?;
        }
        Ok(counts)
    }

    /// Counts the clusters of all tables but L2 tables. Two at one place, or one behind the file's
    /// end, would be read again and again: the image is corrupt.
    async fn count_ranges(
        &self,
        io: &Io,
        meta: &mut Meta,
        bitmaps: &[Bitmap],
        counts: &mut Counts,
    ) -> io::Result<()> {
        let mut ranges = self.tables_but_l2(meta);
        let kept = meta.snapshots.0.iter();
        let kept = kept.map(|one| (one.l1_offset, u64::from(one.l1_entries) * 8));
        let bits = bitmaps.iter();
        let bits = bits.map(|one| (one.table_offset, u64::from(one.table_entries) * 8));
        let end = self.file().len();
        for (offset, len) in kept.chain(bits).filter(|(_, len)| *len > 0) {
            if offset.saturating_add(len) > end {
                let why = format!("a table at offset {offset:#x} goes on behind the file's end");
                return Err(self.mark_corrupt(io, meta, &why).await);
            }
            ranges.push((offset, len));
        }
        for (offset, len) in ranges {
            for cluster in self.clusters_under(offset, len) {
                if counts.add(cluster, 1)? > 1 {
                    let at = cluster << self.geometry.cluster_bits;
                    let why = format!("two tables lie at offset {at:#x}");
                    return Err(self.mark_corrupt(io, meta, &why).await);
                }
            }
        }
        Ok(())
    }

    /// How often each L2 table is used by an L1 table, on top of others.
    fn add_tables(&self, l1: &[u64], tables: &mut HashMap<u64, u64>) {
        let offsets = l1
            .iter()
            .filter_map(|entry| self.geometry.l2_table(*entry).ok()?);
        for offset in offsets {
            *tables.entry(offset).or_default() += 1;
        }
    }

    async fn count_table(
        &self,
        io: &Io,
        meta: &mut Meta,
        table: &[u64],
        times: u64,
        counts: &mut Counts,
    ) -> io::Result<()> {
        let bits = self.geometry.cluster_bits;
        let step = if self.geometry.extended { 2 } else { 1 };
        for entry in table.chunks(step) {
            let entry = Entry {
                word: entry.first().copied().unwrap_or(0),
                bitmap: entry.get(1).copied().unwrap_or(0),
            };
            match self
                .geometry
                .decode(entry, entry.word & 0x00ff_ffff_ffff_fe00)
            {
                Ok(Cluster::Compressed { at, len }) => {
                    for cluster in at >> bits..=(at + len - 1) >> bits {
                        counts.add(cluster, times)?;
                    }
                }
                Ok(Cluster::Standard(cluster)) if !self.geometry.external => {
                    if let Some(host) = cluster.host {
                        counts.add(host >> bits, times)?;
                    }
                }
                Ok(Cluster::Standard(_)) => {}
                Err(bad) => {
                    let why = format!("an L2 entry is broken: {bad}");
                    return Err(self.mark_corrupt(io, meta, &why).await);
                }
            }
        }
        Ok(())
    }
}
