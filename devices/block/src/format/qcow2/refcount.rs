//! Which clusters of the file are in use, and how often: the refcount table and its blocks.
//!
//! ```text
//!   cluster number ─► table entry ─► block (one cluster) ─► a number of 1 to 64 bits
//!                        0: no block, so all its clusters are free
//! ```
//!
//! Changes are made in memory and written by [`write_back`](super::flush), which knows what must be
//! in the file before what.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;

use super::bytes::{from_words, words};
use super::geometry::{Geometry, MAX_HOST};
use super::header::MAX_REFTABLE;
use super::storage::Storage;
use crate::engine::Io;
use crate::node::errno;

/// Bytes of blocks that are kept, dirty ones aside.
const CACHE: u64 = 4 << 20;

struct Block {
    bytes: Vec<u8>,
    dirty: bool,
    used: u64,
}

/// The refcounts of an image.
pub(super) struct Refcounts {
    geometry: Geometry,
    /// Offsets of the blocks.
    table: Vec<u64>,
    /// Entries of the table that the file does not have yet.
    table_dirty: bool,
    /// Where the table is in the file, and its length in clusters.
    place: (u64, u32),
    /// Where a longer table will be.
    next_place: Option<(u64, u32)>,
    blocks: HashMap<usize, Block>,
    clock: u64,
    /// No cluster below this one is free.
    first_free: u64,
    /// From this cluster on none was ever taken, not even for a block of counts.
    untouched: u64,
    /// Where bytes are free behind the last compressed cluster, inside a cluster that is used.
    tail: Option<u64>,
    /// Clusters with tables in them: never given away, whatever their counts say.
    pub(super) fixed: HashSet<u64>,
    /// One of these that was counted free and about to become a block.
    pub(super) overrun: Option<u64>,
}

impl Refcounts {
    /// Over a table that was read from the file.
    pub(super) fn new(geometry: Geometry, table: Vec<u64>, place: (u64, u32)) -> Self {
        Self {
            geometry,
            table,
            table_dirty: false,
            place,
            next_place: None,
            blocks: HashMap::new(),
            clock: 0,
            first_free: 0,
            untouched: u64::MAX,
            tail: None,
            fixed: HashSet::new(),
            overrun: None,
        }
    }

    fn place_of(&self, cluster: u64) -> (usize, u64) {
        let per_block = self.geometry.refcounts_per_block();
        let index = usize::try_from(cluster / per_block).unwrap_or(usize::MAX);
        (index, cluster % per_block)
    }

    /// Offsets of the blocks that there are, each the start of a cluster below [`MAX_HOST`].
    pub(super) fn block_offsets(&self) -> impl Iterator<Item = u64> {
        let possible = |offset: &u64| *offset != 0 && self.is_place(*offset);
        self.table.iter().copied().filter(possible)
    }

    fn is_place(&self, offset: u64) -> bool {
        self.geometry.is_aligned(offset) && offset < MAX_HOST
    }

    /// The first entry of the table, by number, that names no place for a block in a file of `len`
    /// bytes.
    pub(super) fn misplaced(&self, len: u64) -> Option<(usize, u64)> {
        let entries = self.table.iter().copied().enumerate();
        entries
            .filter(|(_, offset)| *offset != 0)
            .find(|(_, offset)| !self.is_place(*offset) || *offset >= len)
    }

    /// Where a cluster is, unless that is farther than entries can say.
    fn offset_of(&self, cluster: u64) -> io::Result<u64> {
        let offset = cluster.checked_mul(self.geometry.cluster_size());
        let offset = offset.filter(|offset| *offset < MAX_HOST);
        offset.ok_or_else(|| errno(libc::EFBIG))
    }

    /// Where the table is in the file, and its length in clusters.
    pub(super) fn table_place(&self) -> (u64, u32) {
        self.next_place.unwrap_or(self.place)
    }

    /// Whether the table has a block for this cluster; a checked offset.
    fn block_offset(&self, index: usize) -> io::Result<Option<u64>> {
        let offset = self.table.get(index).copied().unwrap_or(0);
        if offset == 0 {
            return Ok(None);
        }
        if !self.is_place(offset) {
            tracing::error!(
                offset,
                "qcow2: a refcount block does not begin where a cluster does"
            );
            return Err(errno(libc::EIO));
        }
        Ok(Some(offset))
    }

    /// Reads a block unless it is here. `false` if there is none.
    async fn load(&mut self, io: &Io, file: &Storage, index: usize) -> io::Result<bool> {
        self.clock += 1;
        if let Some(block) = self.blocks.get_mut(&index) {
            block.used = self.clock;
            return Ok(true);
        }
        let Some(offset) = self.block_offset(index)? else {
            return Ok(false);
        };
        let bytes = file.read(io, offset, self.geometry.cluster_size()).await?;
        self.make_room();
        let block = Block {
            bytes,
            dirty: false,
            used: self.clock,
        };
        self.blocks.insert(index, block);
        Ok(true)
    }

    fn make_room(&mut self) {
        let room = usize::try_from(CACHE >> self.geometry.cluster_bits).unwrap_or(8);
        if self.blocks.len() < room.max(8) {
            return;
        }
        let clean = self.blocks.iter().filter(|(_, block)| !block.dirty);
        let oldest = clean
            .min_by_key(|(_, block)| block.used)
            .map(|(index, _)| *index);
        if let Some(oldest) = oldest {
            self.blocks.remove(&oldest);
        }
    }

    /// How often a cluster is used.
    pub(super) async fn count(&mut self, io: &Io, file: &Storage, cluster: u64) -> io::Result<u64> {
        let (index, entry) = self.place_of(cluster);
        if !self.load(io, file, index).await? {
            return Ok(0);
        }
        Ok(self.get(index, entry))
    }

    fn get(&self, index: usize, entry: u64) -> u64 {
        let block = self.blocks.get(&index);
        block.map_or(0, |block| {
            read_count(&block.bytes, self.geometry.refcount_order, entry)
        })
    }

    fn put(&mut self, index: usize, entry: u64, count: u64) {
        let order = self.geometry.refcount_order;
        if let Some(block) = self.blocks.get_mut(&index) {
            write_count(&mut block.bytes, order, entry, count);
            block.dirty = true;
        }
    }

    /// The file has so many clusters: those behind them are untouched.
    pub(super) fn begin_behind(&mut self, clusters: u64) {
        self.untouched = clusters;
    }

    /// The first cluster of those that nobody ever took: zeros, if the file has them at all.
    pub(super) fn untouched(&self) -> u64 {
        self.untouched
    }

    /// From where free clusters are looked for. Those below are left alone.
    pub(super) fn search_from(&mut self, cluster: u64) {
        self.first_free = cluster;
    }

    /// The clusters that blocks count, block by block.
    pub(super) fn described(&self) -> Vec<Range<u64>> {
        let per_block = self.geometry.refcounts_per_block();
        let there = self.table.iter().enumerate();
        there
            .filter(|(_, offset)| **offset != 0)
            .map(|(index, _)| index as u64 * per_block..(index as u64 + 1) * per_block)
            .collect()
    }

    /// Sets how often a cluster is used; makes its block if there is none.
    pub(super) async fn set(
        &mut self,
        io: &Io,
        file: &Storage,
        cluster: u64,
        count: u64,
    ) -> io::Result<()> {
        let (index, entry) = self.place_of(cluster);
        self.ensure_block(io, file, index).await?;
        self.put(index, entry, count);
        if count > 0 {
            self.touch(cluster);
        } else {
            self.first_free = self.first_free.min(cluster);
            // Whoever takes it next has all of it.
            self.tail = self.tail.filter(|tail| self.place_in(*tail) != cluster);
        }
        Ok(())
    }

    fn touch(&mut self, cluster: u64) {
        self.untouched = self.untouched.max(cluster.saturating_add(1));
    }

    fn place_in(&self, offset: u64) -> u64 {
        offset >> self.geometry.cluster_bits
    }

    /// Where the next compressed cluster may begin, inside a cluster that has others; `None` if
    /// there is no such place.
    pub(super) fn tail(&self) -> Option<u64> {
        self.tail
    }

    /// From `offset` on, the last cluster of a compressed one has free bytes; none if that is its
    /// end.
    pub(super) fn set_tail(&mut self, offset: u64) {
        self.tail = (!self.geometry.is_aligned(offset)).then_some(offset);
    }

    /// One more user of a cluster.
    pub(super) async fn increment(
        &mut self,
        io: &Io,
        file: &Storage,
        cluster: u64,
    ) -> io::Result<u64> {
        let count = self.count(io, file, cluster).await?;
        if count >= self.geometry.max_refcount() {
            // As QEMU says it: an image with narrow refcounts cannot share.
            return Err(errno(libc::EINVAL));
        }
        self.set(io, file, cluster, count + 1).await?;
        Ok(count + 1)
    }

    /// One user less of a cluster. `None` if it had none: the image is corrupt.
    pub(super) async fn decrement(
        &mut self,
        io: &Io,
        file: &Storage,
        cluster: u64,
    ) -> io::Result<Option<u64>> {
        match self.count(io, file, cluster).await? {
            0 => Ok(None),
            count => {
                self.set(io, file, cluster, count - 1).await?;
                Ok(Some(count - 1))
            }
        }
    }

    /// Makes sure that a block is here.
    async fn ensure_block(&mut self, io: &Io, file: &Storage, index: usize) -> io::Result<()> {
        if index >= self.table.len() {
            self.lengthen(index)?;
        }
        while !self.load(io, file, index).await? {
            let cluster = self.next_free(io, file, self.first_free).await?;
            if self.fixed.contains(&cluster) {
                self.overrun = Some(cluster);
                return Err(errno(libc::EIO));
            }
            let (home, entry) = self.place_of(cluster);
            if home >= self.table.len() {
                self.lengthen(home)?;
            }
            // The new block counts itself where it lies in its own range; where it lies in the
            // range of another one that is missing, that one comes first.
            let described = self.load(io, file, home).await?;
            let new = if described { index } else { home };
            let offset = self.offset_of(cluster)?;
            let size = usize::try_from(self.geometry.cluster_size()).map_err(io::Error::other)?;
            self.make_room();
            let block = Block {
                bytes: vec![0; size],
                dirty: true,
                used: self.clock,
            };
            self.blocks.insert(new, block);
            self.fixed.insert(cluster);
            self.table[new] = offset;
            self.table_dirty = true;
            self.put(home, entry, 1);
            self.touch(cluster);
        }
        Ok(())
    }

    /// Gives the table room for entry `index`, in memory. A place in the file is found for it
    /// later ([`wants_place`](Self::wants_place)).
    fn lengthen(&mut self, index: usize) -> io::Result<()> {
        let per_cluster = usize::try_from(self.geometry.cluster_size() / 8).unwrap_or(64);
        let wanted = (index + 1).max(self.table.len() + self.table.len() / 2);
        let len = wanted.next_multiple_of(per_cluster);
        let most = usize::try_from(MAX_REFTABLE / 8).unwrap_or(usize::MAX);
        let len = if len > most { most } else { len };
        if index >= len {
            return Err(errno(libc::EFBIG));
        }
        self.table.resize(len, 0);
        Ok(())
    }

    /// If the table has outgrown its place: how many clusters it needs.
    pub(super) fn wants_place(&self) -> Option<u64> {
        let clusters = self.geometry.clusters(self.table.len() as u64 * 8);
        (clusters > u64::from(self.table_place().1)).then_some(clusters)
    }

    /// Where the table will be written. Returns the place meant for it before, which it never used.
    pub(super) fn give_place(&mut self, offset: u64, clusters: u64) -> Option<(u64, u32)> {
        let clusters = u32::try_from(clusters).unwrap_or(u32::MAX);
        self.table_dirty = true;
        self.next_place.replace((offset, clusters))
    }

    /// The first free cluster from `from` on. There is always one: behind the end of the file.
    async fn next_free(&mut self, io: &Io, file: &Storage, from: u64) -> io::Result<u64> {
        let mut cluster = from;
        loop {
            let (index, mut entry) = self.place_of(cluster);
            if !self.load(io, file, index).await? {
                return Ok(cluster);
            }
            let per_block = self.geometry.refcounts_per_block();
            while entry < per_block {
                if self.get(index, entry) == 0 {
                    return Ok(cluster);
                }
                entry += 1;
                cluster += 1;
            }
        }
    }

    /// Takes free clusters that follow each other: at least `least`, at most `most`. Returns the
    /// number of the first, and how many.
    pub(super) async fn allocate(
        &mut self,
        io: &Io,
        file: &Storage,
        least: u64,
        most: u64,
    ) -> io::Result<(u64, u64)> {
        let (start, len) = loop {
            let found = self.find(io, file, least, most).await?;
            // Making blocks takes free clusters, perhaps one of those found.
            let (first, _) = self.place_of(found.0);
            let (last, _) = self.place_of(found.0 + found.1 - 1);
            let mut made = false;
            for index in first..=last {
                if !self.load(io, file, index).await? {
                    self.ensure_block(io, file, index).await?;
                    made = true;
                }
            }
            if !made {
                break found;
            }
        };
        self.offset_of(start + len)?;
        for cluster in start..start + len {
            self.set(io, file, cluster, 1).await?;
        }
        if start <= self.first_free {
            self.first_free = start + len;
        }
        Ok((start, len))
    }

    async fn find(
        &mut self,
        io: &Io,
        file: &Storage,
        least: u64,
        most: u64,
    ) -> io::Result<(u64, u64)> {
        let mut start = self.next_free(io, file, self.first_free).await?;
        self.first_free = start;
        loop {
            let mut len = 1;
            while len < most && self.count(io, file, start + len).await? == 0 {
                len += 1;
            }
            if len >= least {
                return Ok((start, len));
            }
            start = self.next_free(io, file, start + len).await?;
        }
    }

    /// Entries of the table.
    pub(super) fn table_len(&self) -> u64 {
        self.table.len() as u64
    }

    /// The same counts at other places, all of them in memory and none in the file.
    pub(super) async fn moved(
        &mut self,
        io: &Io,
        file: &Storage,
        blocks: &[u64],
        place: (u64, u32),
    ) -> io::Result<Self> {
        let mut next = Self::new(self.geometry, self.table.clone(), place);
        let mut places = blocks.iter();
        for index in 0..self.table.len() {
            let Some(offset) = self.block_offset(index)? else {
                continue;
            };
            let size = self.geometry.cluster_size();
            let bytes = match self.blocks.get(&index) {
                Some(block) => block.bytes.clone(),
                None => file.read(io, offset, size).await?,
            };
            let block = Block {
                bytes,
                dirty: true,
                used: 0,
            };
            next.blocks.insert(index, block);
            next.table[index] = *places.next().ok_or_else(|| errno(libc::EIO))?;
        }
        next.table_dirty = true;
        next.untouched = self.untouched;
        Ok(next)
    }

    /// Whether nothing here differs from the file.
    pub(super) fn is_clean(&self) -> bool {
        !self.table_dirty && self.blocks.values().all(|block| !block.dirty)
    }

    /// Whether so many blocks wait to be written that it is time to.
    pub(super) fn is_crowded(&self) -> bool {
        let room = usize::try_from(CACHE >> self.geometry.cluster_bits).unwrap_or(8);
        self.blocks.len() > 2 * room.max(8)
    }

    /// Writes the blocks that changed.
    pub(super) async fn write_blocks(&mut self, io: &Io, file: &Storage) -> io::Result<()> {
        let dirty = self.blocks.iter().filter(|(_, block)| block.dirty);
        let mut dirty: Vec<usize> = dirty.map(|(index, _)| *index).collect();
        dirty.sort_unstable();
        for index in dirty {
            let Some(offset) = self.block_offset(index)? else {
                continue;
            };
            if let Some(block) = self.blocks.get_mut(&index) {
                file.write(io, offset, &block.bytes).await?;
                block.dirty = false;
            }
        }
        Ok(())
    }

    /// Whether the table has entries that the file does not have.
    pub(super) fn table_is_dirty(&self) -> bool {
        self.table_dirty
    }

    /// Writes the table. Returns the place that it leaves, if it moves: the header must be told.
    pub(super) async fn write_table(
        &mut self,
        io: &Io,
        file: &Storage,
    ) -> io::Result<Option<(u64, u32)>> {
        let (offset, clusters) = self.table_place();
        let mut bytes = from_words(&self.table);
        let size = usize::try_from(u64::from(clusters) << self.geometry.cluster_bits);
        bytes.resize(size.map_err(io::Error::other)?, 0);
        file.write(io, offset, &bytes).await?;
        self.table_dirty = false;
        let old = self.place;
        Ok(self.next_place.take().map(|place| {
            self.place = place;
            old
        }))
    }

    /// Forgets all that was not written, for another table: after a repair.
    pub(super) fn table_from(bytes: &[u8]) -> Vec<u64> {
        words(bytes).iter().map(|word| word & !0x1ff).collect()
    }
}

/// An entry of a refcount block. Below eight bits, the first one is in the lowest bits.
pub(super) fn read_count(block: &[u8], order: u32, entry: u64) -> u64 {
    let Ok(entry) = usize::try_from(entry) else {
        return 0;
    };
    if order < 3 {
        let per_byte = 8 >> order;
        let byte = block.get(entry / per_byte).copied().unwrap_or(0);
        let shift = (entry % per_byte) << order;
        return u64::from(byte >> shift) & ((1 << (1 << order)) - 1);
    }
    let width = 1 << (order - 3);
    let bytes = block.get(entry * width..(entry + 1) * width);
    let bytes = bytes.unwrap_or_default().iter();
    bytes.fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Changes an entry of a refcount block.
pub(super) fn write_count(block: &mut [u8], order: u32, entry: u64, count: u64) {
    let Ok(entry) = usize::try_from(entry) else {
        return;
    };
    let bytes = count.to_be_bytes();
    if order < 3 {
        let per_byte = 8 >> order;
        let shift = (entry % per_byte) << order;
        let mask = u8::MAX >> (8 - (1 << order));
        if let Some(byte) = block.get_mut(entry / per_byte) {
            *byte = *byte & !(mask << shift) | (bytes[7] & mask) << shift;
        }
        return;
    }
    let width = 1 << (order - 3);
    if let Some(place) = block.get_mut(entry * width..(entry + 1) * width) {
        place.copy_from_slice(&bytes[8 - width..]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn count_of_every_width_reads_as_written_and_changes_no_other(
            order in 0_u32..=6, entry in 0_u64..64, count: u64, fill: u8,
        ) {
            let mut block = vec![fill; 512];
            let most = if order == 6 { u64::MAX } else { (1 << (1 << order)) - 1 };
            let before: Vec<u64> = (0..64).map(|i| read_count(&block, order, i)).collect();
            write_count(&mut block, order, entry, count & most);
            for other in 0..64 {
                let wanted = if other == entry { count & most } else { before[usize::try_from(other).expect("small")] };
                prop_assert_eq!(read_count(&block, order, other), wanted);
            }
        }
    }
}
