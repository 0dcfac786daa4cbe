//! Writing clusters compressed: several of them share a cluster of the file.
//!
//! ```text
//!   guest  |   cluster    |   cluster    |   cluster    |
//!              └───┐          └────┐          └─────────────┐
//!   file   |=== packed ===|= packed ==|= packed ...|... packed =|  tail  |
//!          |             cluster, 3 users          |  cluster, 1 user    |
//! ```
//!
//! Each begins with a block that the storage can write, so that no write touches what another one
//! wrote. The order of writes is that of all others: bytes, then refcounts, then the map.

use std::io;
use std::sync::atomic::Ordering;

use super::image::{Image, Meta};
use crate::engine::{Io, Window};
use crate::node::errno;

/// Bytes in which entries count the length of what is compressed.
const SECTOR: u64 = 512;

impl Image {
    /// Writes the first part of a range: a cluster compressed if the range has all of it and that
    /// saves space, else what lies in one cluster as it is. Returns how much.
    pub(super) async fn write_compressed(
        &self,
        io: &Io,
        guest: u64,
        from: Window<'_>,
    ) -> io::Result<u64> {
        let geometry = self.geometry;
        let start = geometry.floor(guest);
        let from = from.part(0, start + geometry.cluster_size() - guest);
        let disk_end = self.size.load(Ordering::Relaxed);
        let to_end = from.len() == geometry.cluster_size() || guest + from.len() == disk_end;
        let packed = if start == guest && to_end && !geometry.external {
            self.pack(&from)?
        } else {
            None
        };
        let Some(packed) = packed else {
            return self.write_piece(io, guest, from).await;
        };
        let all = start..start.saturating_add(geometry.cluster_size());
        let _range = self.ranges.take(all).await;
        self.write_packed(io, guest, &packed).await?;
        Ok(from.len())
    }

    /// The compressed bytes of a cluster, in whole blocks; `None` if they are no fewer. What is
    /// behind the disk's end is zeros.
    fn pack(&self, from: &Window<'_>) -> io::Result<Option<Vec<u8>>> {
        let size = usize::try_from(self.geometry.cluster_size()).map_err(io::Error::other)?;
        let mut cluster = vec![0; size];
        let inside = usize::try_from(from.len()).map_err(io::Error::other)?;
        from.copy_to(&mut cluster[..inside]);
        let alignment = self.file().node().limits().request_alignment;
        let block = usize::try_from(SECTOR.max(u64::from(alignment))).map_err(io::Error::other)?;
        let Some(room) = size.checked_sub(block) else {
            return Ok(None);
        };
        let packed = self.compression.compress(&cluster, room);
        Ok(packed.map(|mut packed| {
            packed.resize(packed.len().next_multiple_of(block), 0);
            packed
        }))
    }

    /// Gives a cluster that is taken its compressed bytes.
    async fn write_packed(&self, io: &Io, guest: u64, packed: &[u8]) -> io::Result<()> {
        let len = packed.len() as u64;
        let at = {
            let mut meta = self.meta.take().await;
            self.begin_writing(io, &mut meta).await?;
            self.relieve(io, &mut meta).await?;
            self.own_table(io, &mut meta, guest).await?;
            self.allocate_packed(io, &mut meta, len).await?
        };
        let entry = self.geometry.encode_compressed(at, len);
        let written = match entry {
            Some(entry) => self.file().write(io, at, packed).await.map(|()| entry),
            None => Err(errno(libc::EFBIG)),
        };
        let mut meta = self.meta.take().await;
        let entry = match written {
            Ok(entry) => entry,
            Err(error) => {
                let under = self.clusters_under(at, len);
                let (first, count) = (under.start, under.end - under.start);
                let offset = first << self.geometry.cluster_bits;
                self.take_back(io, &mut meta, offset, count).await?;
                return Err(error);
            }
        };
        self.own_table(io, &mut meta, guest).await?;
        let old = self.cluster(io, &mut meta, guest).await?;
        self.unsaved.store(true, Ordering::SeqCst);
        self.map.set_entry(guest, entry);
        self.let_go_of(&mut meta, old, false);
        Ok(())
    }

    /// Takes `len` bytes, fewer than a cluster: behind those taken last if they can share a cluster
    /// or go on into the next one.
    async fn allocate_packed(&self, io: &Io, meta: &mut Meta, len: u64) -> io::Result<u64> {
        let geometry = self.geometry;
        let bits = geometry.cluster_bits;
        let tail = self.shared_tail(io, meta).await?;
        if let Some(tail) = tail
            && geometry.inside(tail) + len <= geometry.cluster_size()
        {
            meta.refcounts
                .increment(io, &self.file(), tail >> bits)
                .await?;
            meta.refcounts.set_tail(tail + len);
            self.unsaved.store(true, Ordering::SeqCst);
            return Ok(tail);
        }
        let fresh = self.allocate(io, meta, 1, 1).await?;
        let at = match tail.filter(|tail| geometry.ceil(*tail) == fresh.offset) {
            Some(tail) => {
                let file = self.file();
                let shared = meta.refcounts.increment(io, &file, tail >> bits).await;
                if let Err(error) = shared {
                    self.give_back(io, meta, fresh).await?;
                    return Err(error);
                }
                tail
            }
            None => fresh.offset,
        };
        meta.refcounts.set_tail(at + len);
        Ok(at)
    }

    /// Where bytes are free behind the last compressed cluster, if its cluster may have one more
    /// user.
    async fn shared_tail(&self, io: &Io, meta: &mut Meta) -> io::Result<Option<u64>> {
        let Some(tail) = meta.refcounts.tail() else {
            return Ok(None);
        };
        let cluster = tail >> self.geometry.cluster_bits;
        let users = meta.refcounts.count(io, &self.file(), cluster).await?;
        Ok((1..self.geometry.max_refcount())
            .contains(&users)
            .then_some(tail))
    }
}
