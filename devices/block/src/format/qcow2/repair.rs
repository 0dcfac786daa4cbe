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

use super::bitmaps::data_clusters;
use super::bytes::words;
use super::geometry::{Cluster, Entry};
use super::image::{Image, Meta};
use crate::engine::Io;
use crate::node::errno;

/// The most clusters that are counted: 2^28 refer to 16 TiB at 64 KiB.
const MAX_COUNTED: usize = 1 << 28;

/// How often each cluster is used, by number.
#[derive(Default)]
struct Counts(BTreeMap<u64, u64>);

impl Counts {
    fn add(&mut self, cluster: u64, times: u64) -> io::Result<()> {
        if self.0.len() >= MAX_COUNTED {
            return Err(errno(libc::EFBIG));
        }
        *self.0.entry(cluster).or_default() += times;
        Ok(())
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
        let mut cluster = 0;
        while cluster < end.max(last) {
            if !meta.refcounts.has_block(cluster) {
                cluster = (cluster + 1).next_multiple_of(self.geometry.refcounts_per_block());
                continue;
            }
            let wanted = counts.0.get(&cluster).copied().unwrap_or(0);
            if meta.refcounts.count(io, &file, cluster).await? > wanted {
                meta.refcounts.set(io, &file, cluster, wanted).await?;
            }
            cluster += 1;
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
        let mut ranges = vec![(0, size)];
        let (reftable, clusters) = meta.refcounts.table_place();
        ranges.push((reftable, u64::from(clusters) * size));
        ranges.extend(meta.refcounts.block_offsets().map(|offset| (offset, size)));
        let mut tables = HashMap::new();
        let active = self.map.l1_entries();
        ranges.push((meta.header.l1_offset, active.len() as u64 * 8));
        self.add_tables(&active, &mut tables);
        let (list, len) = &meta.snapshots;
        if *len > 0 {
            ranges.push((meta.header.snapshots_offset, *len));
        }
        for snapshot in list {
            let len = u64::from(snapshot.l1_entries) * 8;
            ranges.push((snapshot.l1_offset, len));
            let bytes = file.read(io, snapshot.l1_offset, len).await?;
            self.add_tables(&words(&bytes), &mut tables);
        }
        if let Some(extension) = meta.header.bitmaps
            && let Some((_, list)) = self.bitmaps(io, meta).await?
        {
            ranges.push((extension.directory_offset, extension.directory_size));
            for bitmap in list {
                let len = u64::from(bitmap.table_entries) * 8;
                ranges.push((bitmap.table_offset, len));
                let table = file.read(io, bitmap.table_offset, len).await?;
                ranges.extend(data_clusters(&words(&table)).map(|offset| (offset, size)));
            }
        }
        for (offset, len) in ranges {
            for cluster in offset >> bits..offset.saturating_add(len).div_ceil(size) {
                counts.add(cluster, 1)?;
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
