//! Zeros and discards: changes of the map alone, where whole subclusters are meant.
//!
//! ```text
//!   |  edge: zeros are written  |== whole (sub)clusters: the map says zero ==|  edge  |
//! ```
//!
//! A discard touches whole clusters only and leaves the edges as they are. What it frees must not
//! show what is below, so in a cluster that says nothing more the map says zero.

use std::io;
use std::sync::atomic::Ordering;

use super::geometry::{Cluster, Standard};
use super::image::{Image, Meta};
use crate::engine::{Io, Segments};
use crate::node::{WriteFlags, ZeroFlags};

/// The most bytes of zeros written at once where the map cannot say zero.
const CHUNK: u64 = 1 << 20;

impl Image {
    /// Makes a range read as zeros.
    pub(super) async fn write_zeroes(
        &self,
        io: &Io,
        guest: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        let end = guest + len;
        let mut at = guest;
        while at < end {
            at += self.zero_piece(io, at, end - at, flags.unmap).await?;
        }
        if flags.durable {
            self.flush(io).await?;
        }
        Ok(())
    }

    /// Zeros the first bytes of a range: an edge, or as much as the map says at once.
    async fn zero_piece(&self, io: &Io, guest: u64, len: u64, unmap: bool) -> io::Result<u64> {
        let geometry = self.geometry;
        let unit = geometry.subcluster_size();
        let disk_end = self.size.load(Ordering::Relaxed);
        // What is behind the disk's end counts as meant.
        let end = if guest + len == disk_end {
            geometry.ceil(disk_end)
        } else {
            guest + len
        };
        let in_map = geometry.zero_flag || self.below().is_none();
        if !guest.is_multiple_of(unit) || end - guest < unit || !in_map {
            let edge = if in_map {
                (unit - guest % unit).min(len)
            } else {
                len.min(CHUNK)
            };
            if !self.is_zero(io, guest, edge).await? {
                self.send_zeroes(io, guest, edge).await?;
            }
            return Ok(edge);
        }
        let slice_end = (self.map.slice_of(guest) + 1).saturating_mul(self.map.slice_span());
        let end = (end - end % unit).min(slice_end);
        let _range = self
            .ranges
            .take(geometry.floor(guest)..geometry.ceil(end))
            .await;
        if self.raw_data {
            let stop = end.min(disk_end);
            let flags = ZeroFlags {
                unmap,
                durable: false,
            };
            let data = self.clusters();
            data.reach(io, stop).await?;
            data.node()
                .write_zeroes(io, guest, stop - guest, flags)
                .await?;
        }
        let mut meta = self.meta.take().await;
        self.begin_writing(io, &mut meta).await?;
        self.relieve(io, &mut meta).await?;
        if self.is_below_zero(guest) {
            self.load_slice(io, &mut meta, guest).await?;
            if self
                .map
                .table(geometry.l1_index(guest))
                .is_ok_and(|t| t.is_none())
            {
                // No table, and nothing shows through.
                return Ok(end.min(guest + len) - guest);
            }
        }
        self.own_table(io, &mut meta, guest).await?;
        let mut at = guest;
        while at < end {
            let start = geometry.floor(at);
            let stop = end.min(start + geometry.cluster_size());
            self.zero_cluster(io, &mut meta, start, (at - start, stop - start), unmap)
                .await?;
            at = stop;
        }
        Ok(end.min(guest + len) - guest)
    }

    /// Whether nothing shows through from below, from here on.
    fn is_below_zero(&self, guest: u64) -> bool {
        self.below().is_none_or(|below| below.len() <= guest)
    }

    async fn zero_cluster(
        &self,
        io: &Io,
        meta: &mut Meta,
        start: u64,
        part: (u64, u64),
        unmap: bool,
    ) -> io::Result<()> {
        let geometry = self.geometry;
        let covered = geometry.covered(part.0, part.1);
        let old = self.cluster(io, meta, start).await?;
        let whole = covered == u32::MAX;
        let new = match old {
            // Part of a compressed cluster has no bitmap to be zero in.
            Cluster::Compressed { .. } if !whole => {
                return self.zero_compressed(io, meta, start, part).await;
            }
            Cluster::Compressed { .. } => Standard {
                zero: u32::MAX,
                ..Standard::default()
            },
            Cluster::Standard(old) => {
                let zero = old.zero | covered;
                let allocated = old.allocated & !covered;
                // A place of its own is kept for the next write, unless it shall be given back.
                let keeps = allocated != 0 || (!unmap && old.copied) || geometry.external;
                Standard {
                    host: old.host.filter(|_| keeps),
                    copied: old.copied && keeps,
                    allocated,
                    zero,
                }
            }
        };
        let new = self.plain(start, new);
        self.replace(meta, start, old, new, unmap);
        Ok(())
    }

    /// Where zero flags do not exist and nothing is below, a cluster is zero by not being there.
    fn plain(&self, start: u64, new: Standard) -> Standard {
        let nothing = self.is_below_zero(start);
        if !self.geometry.zero_flag || (nothing && new.host.is_none() && new.zero == u32::MAX) {
            return Standard::default();
        }
        new
    }

    fn replace(&self, meta: &mut Meta, start: u64, old: Cluster, new: Standard, discarded: bool) {
        if old == Cluster::Standard(new) {
            return;
        }
        self.unsaved.store(true, Ordering::SeqCst);
        self.map.set(start, new);
        if new.host.is_none() {
            self.let_go_of(meta, old, discarded);
        }
    }

    /// Zeros a part of a compressed cluster: all of it gets a place of its own.
    async fn zero_compressed(
        &self,
        io: &Io,
        meta: &mut Meta,
        start: u64,
        part: (u64, u64),
    ) -> io::Result<()> {
        let size = self.geometry.cluster_size();
        let Some(Ok(old @ Cluster::Compressed { at, len })) = self.map.cluster(start) else {
            return Ok(());
        };
        let mut bytes = self.unpack(io, at, len).await?;
        let range = usize::try_from(part.0).map_err(io::Error::other)?
            ..usize::try_from(part.1).map_err(io::Error::other)?;
        if let Some(range) = bytes.get_mut(range) {
            range.fill(0);
        }
        let fresh = self.allocate(io, meta, 1, 1).await?;
        let buffer = Segments::owned(bytes.len(), 4096)?;
        buffer.all().copy_from(&bytes);
        let clusters = self.clusters();
        let written = clusters
            .node()
            .write(
                io,
                fresh.offset,
                buffer.all().part(0, size),
                WriteFlags::default(),
            )
            .await;
        if let Err(error) = written {
            self.give_back(io, meta, fresh).await?;
            return Err(error);
        }
        self.map.set(
            start,
            Standard {
                host: Some(fresh.offset),
                copied: true,
                allocated: u32::MAX,
                zero: 0,
            },
        );
        self.let_go_of(meta, old, false);
        Ok(())
    }

    /// Writes zeros as data.
    async fn send_zeroes(&self, io: &Io, guest: u64, len: u64) -> io::Result<()> {
        let size = usize::try_from(len.min(CHUNK)).map_err(io::Error::other)?;
        let zeros = Segments::owned(size, 4096)?;
        let mut done = 0;
        while done < len {
            let part = zeros.all().part(0, len - done);
            self.write(io, guest + done, part, WriteFlags::default())
                .await?;
            done += part.len();
        }
        Ok(())
    }

    /// Lets go of the whole clusters in a range, which read as zeros from then on.
    pub(super) async fn discard(&self, io: &Io, guest: u64, len: u64) -> io::Result<()> {
        let geometry = self.geometry;
        // Without zero flags, what is below would show through.
        if !geometry.zero_flag && self.below().is_some() {
            return Ok(());
        }
        let disk_end = self.size.load(Ordering::Relaxed);
        let end = if guest + len == disk_end {
            geometry.ceil(disk_end)
        } else {
            geometry.floor(guest + len)
        };
        let mut at = geometry.ceil(guest);
        while at < end {
            let slice_end = (self.map.slice_of(at) + 1).saturating_mul(self.map.slice_span());
            let stop = end.min(slice_end);
            self.discard_part(io, at, stop).await?;
            at = stop;
        }
        Ok(())
    }

    async fn discard_part(&self, io: &Io, from: u64, to: u64) -> io::Result<()> {
        let geometry = self.geometry;
        let _range = self.ranges.take(from..to).await;
        let mut meta = self.meta.take().await;
        self.begin_writing(io, &mut meta).await?;
        self.relieve(io, &mut meta).await?;
        if self.is_below_zero(from)
            && self
                .map
                .table(geometry.l1_index(from))
                .is_ok_and(|t| t.is_none())
        {
            return Ok(());
        }
        self.own_table(io, &mut meta, from).await?;
        let mut at = from;
        while at < to {
            let old = self.cluster(io, &mut meta, at).await?;
            let zero = Standard {
                zero: u32::MAX,
                ..Standard::default()
            };
            let new = match old {
                // What the data file has keeps its place.
                Cluster::Standard(own) if geometry.external => Standard {
                    host: own.host,
                    copied: own.copied,
                    ..zero
                },
                // What was never there needs no entry.
                Cluster::Standard(Standard {
                    host: None,
                    zero: 0,
                    ..
                }) if self.is_below_zero(at) => Standard::default(),
                _ => zero,
            };
            let new = self.plain(at, new);
            self.replace(&mut meta, at, old, new, true);
            at += geometry.cluster_size();
        }
        if self.data.is_some() && self.pass_discard.load(Ordering::Relaxed) {
            let stop = to.min(self.size.load(Ordering::Relaxed));
            let data = self.clusters();
            let inside = stop.min(data.len()).saturating_sub(from);
            if inside > 0 {
                data.node().discard(io, from, inside).await?;
            }
        }
        Ok(())
    }
}
