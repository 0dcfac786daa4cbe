//! Another length of the disk, and places for all of it before they are written.
//!
//! ```text
//!   longer:  a longer L1 table ─ sync ─► header: table and size ─ sync ─► the old table let go
//!   shorter: clusters and tables behind the end let go ─ sync ─► header: size
//! ```

use std::io;
use std::sync::atomic::Ordering;

use super::bytes::from_words;
use super::create::Preallocation;
use super::geometry::{Geometry, Standard};
use super::header::MAX_L1;
use super::image::{Image, Meta};
use crate::engine::{Io, Segments};
use crate::node::{MAX_LEN, ResizeError, WriteFlags, ZeroFlags};

/// The most bytes of zeros written at once.
const CHUNK: u64 = 1 << 20;

impl Image {
    /// Changes the disk's length; what is added reads as zeros.
    pub(super) async fn resize(&self, io: &Io, len: u64) -> Result<(), ResizeError> {
        let storage = ResizeError::Storage;
        if !len.is_multiple_of(512) {
            return Err(ResizeError::Unable("an image ends where a sector does"));
        }
        let old = self.size.load(Ordering::Relaxed);
        {
            let mut meta = self.meta.take().await;
            self.begin_writing(io, &mut meta).await.map_err(storage)?;
            self.may_resize(&meta, old, len)?;
            self.write_back(io, &mut meta).await.map_err(storage)?;
            self.lengthen_l1(io, &mut meta, len)
                .await
                .map_err(storage)?;
        }
        self.size.store(len, Ordering::Relaxed);
        if len >= old {
            self.clear(io, old, len).await.map_err(storage)?;
        } else {
            self.cut(io, old, len).await.map_err(storage)?;
        }
        let mut meta = self.meta.take().await;
        self.write_back(io, &mut meta).await.map_err(storage)?;
        meta.header.size = len;
        self.save_header(io, &mut meta).await.map_err(storage)?;
        self.write_back(io, &mut meta).await.map_err(storage)
    }

    fn may_resize(&self, meta: &Meta, old: u64, len: u64) -> Result<(), ResizeError> {
        let geometry = self.geometry;
        if len > MAX_LEN || !l1_fits(geometry, len) {
            return Err(ResizeError::Unable(
                "the image would need more than 32 MiB of L1 table: use larger clusters",
            ));
        }
        let snapshots = !meta.snapshots.0.is_empty();
        if snapshots && (len < old || meta.header.version < 3) {
            return Err(ResizeError::Unable(
                "Can't resize an image which has snapshots",
            ));
        }
        Ok(())
    }

    /// Makes sure that the L1 table has an entry for every byte of the new length.
    async fn lengthen_l1(&self, io: &Io, meta: &mut Meta, len: u64) -> io::Result<()> {
        let needed = self.geometry.l1_entries_for(len);
        let mut entries = self.map.l1_entries();
        if needed <= entries.len() as u64 {
            return Ok(());
        }
        entries.resize(usize::try_from(needed).map_err(io::Error::other)?, 0);
        let old = (self.map.l1_place(), u64::from(meta.header.l1_entries) * 8);
        self.move_l1(io, meta, entries).await?;
        meta.let_go(
            old.0 >> self.geometry.cluster_bits,
            self.geometry.clusters(old.1),
            false,
        );
        Ok(())
    }

    /// Makes another L1 table the active one: written to a new place, then named by the header.
    pub(super) async fn move_l1(
        &self,
        io: &Io,
        meta: &mut Meta,
        entries: Vec<u64>,
    ) -> io::Result<()> {
        let clusters = self.geometry.clusters(entries.len() as u64 * 8).max(1);
        let offset = self.allocate_tables(io, meta, clusters).await?;
        let mut bytes = from_words(&entries);
        let size = usize::try_from(clusters << self.geometry.cluster_bits);
        bytes.resize(size.map_err(io::Error::other)?, 0);
        let written = self.file().write(io, offset, &bytes).await;
        if let Err(error) = written {
            self.take_back(io, meta, offset, clusters).await?;
            return Err(error);
        }
        self.write_back(io, meta).await?;
        let before = meta.header.clone();
        meta.header.l1_offset = offset;
        meta.header.l1_entries = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let saved = match self.save_header(io, meta).await {
            Ok(_) => self.file().flush(io).await,
            Err(error) => Err(error),
        };
        if let Err(error) = saved {
            meta.header = before;
            return Err(error);
        }
        self.map.replace_l1(offset, entries);
        self.note_fixed(meta);
        Ok(())
    }

    /// Makes what was added zeros, where it would show something else: the rest of the last
    /// cluster, and what is below.
    async fn clear(&self, io: &Io, old: u64, len: u64) -> io::Result<()> {
        if let Some(data) = self.data.as_ref().filter(|_| self.raw_data) {
            let data = super::storage::Storage::new(data.load());
            data.reach(io, len).await?;
        }
        let below = self.below().map_or(0, |below| below.len());
        let end = self.geometry.ceil(old).max(below).min(len);
        if end <= old {
            return Ok(());
        }
        let flags = ZeroFlags::default();
        self.write_zeroes(io, old, end - old, flags).await
    }

    /// Lets go of everything behind the new end.
    async fn cut(&self, io: &Io, old: u64, len: u64) -> io::Result<()> {
        let geometry = self.geometry;
        let mut at = geometry.ceil(len);
        let end = geometry.ceil(old);
        let mut meta = self.meta.take().await;
        while at < end {
            let index = geometry.l1_index(at);
            if !matches!(self.map.table(index), Ok(Some(_))) {
                // Nothing of a whole table, and a disk may say that it has very many.
                at = (index + 1).saturating_mul(geometry.l2_span());
                continue;
            }
            let stop = ((self.map.slice_of(at) + 1) * self.map.slice_span()).min(end);
            self.relieve(io, &mut meta).await?;
            self.own_table(io, &mut meta, at).await?;
            while at < stop {
                let cluster = self.cluster(io, &mut meta, at).await?;
                self.unsaved.store(true, Ordering::SeqCst);
                self.map.set(at, Standard::default());
                self.let_go_of(&mut meta, cluster, true);
                at += geometry.cluster_size();
            }
        }
        // Their entries are gone from the file before the tables are.
        self.write_back(io, &mut meta).await?;
        let entries = self.map.l1_entries().len() as u64;
        for index in geometry.l1_entries_for(len)..entries {
            if let Ok(Some(table)) = self.map.table(index) {
                self.unsaved.store(true, Ordering::SeqCst);
                self.map.set_l1_entry(index, 0);
                meta.let_go(table >> geometry.cluster_bits, 1, false);
                meta.refcounts
                    .fixed
                    .remove(&(table >> geometry.cluster_bits));
            }
        }
        self.write_back(io, &mut meta).await
    }

    /// Gives every cluster its place.
    ///
    /// With `backed`, what is below still shows through them (subclusters only).
    pub(super) async fn preallocate(
        &self,
        io: &Io,
        mode: Preallocation,
        backed: bool,
    ) -> io::Result<()> {
        let geometry = self.geometry;
        let size = geometry.cluster_size();
        let end = geometry.ceil(self.size.load(Ordering::Relaxed));
        let mut at = 0;
        while at < end {
            let mut meta = self.meta.take().await;
            self.begin_writing(io, &mut meta).await?;
            self.relieve(io, &mut meta).await?;
            self.own_table(io, &mut meta, at).await?;
            let stop = ((self.map.slice_of(at) + 1) * self.map.slice_span()).min(end);
            let wanted = (stop - at) / size;
            let (host, count) = if geometry.external {
                self.clusters()
                    .reach(io, stop.min(self.size.load(Ordering::Relaxed)))
                    .await?;
                (at, wanted)
            } else {
                let fresh = self.allocate(io, &mut meta, 1, wanted).await?;
                let len = fresh.clusters * size;
                self.lay_out(io, fresh.offset, len, mode, fresh.zero)
                    .await?;
                (fresh.offset, fresh.clusters)
            };
            for cluster in 0..count {
                let place = Standard {
                    host: Some(host + cluster * size),
                    copied: true,
                    allocated: if backed { 0 } else { u32::MAX },
                    zero: 0,
                };
                self.map.set(at + cluster * size, place);
            }
            self.unsaved.store(true, Ordering::SeqCst);
            at += count * size;
        }
        if let Some(data) = &self.data {
            let len = self.size.load(Ordering::Relaxed);
            let data = super::storage::Storage::new(data.load());
            let stored = data.len();
            if stored > 0 && mode != Preallocation::Metadata {
                send(io, data.node(), 0, len.min(stored), mode).await?;
            }
        }
        Ok(())
    }

    /// Has the host give space to new places.
    async fn lay_out(
        &self,
        io: &Io,
        offset: u64,
        len: u64,
        mode: Preallocation,
        is_zero: bool,
    ) -> io::Result<()> {
        match mode {
            Preallocation::Off | Preallocation::Metadata if is_zero => Ok(()),
            _ => send(io, self.file().node(), offset, len, mode).await,
        }
    }
}

/// Makes bytes of a file zeros that have their space.
async fn send(
    io: &Io,
    node: &crate::node::NodeRef,
    offset: u64,
    len: u64,
    mode: Preallocation,
) -> io::Result<()> {
    if mode != Preallocation::Full {
        return node
            .write_zeroes(io, offset, len, ZeroFlags::default())
            .await;
    }
    let zeros = Segments::owned(
        usize::try_from(len.min(CHUNK)).map_err(io::Error::other)?,
        4096,
    )?;
    let mut done = 0;
    while done < len {
        let part = zeros.all().part(0, len - done);
        node.write(io, offset + done, part, WriteFlags::default())
            .await?;
        done += part.len();
    }
    Ok(())
}

/// Whether the L1 table of a disk is not too long.
pub(super) fn l1_fits(geometry: Geometry, size: u64) -> bool {
    geometry.l1_entries_for(size) <= MAX_L1 / 8
}
