//! Writing where there is no place yet, or not one of the guest's own.
//!
//! ```text
//!   guest    |  lead  |=== data ===| trail |      whole clusters (or subclusters)
//!            └ what was there before ──────┘      backing node, zeros, shared or compressed
//!   file     |=============================|      written first, then the map refers to it
//! ```

use std::io;
use std::sync::atomic::Ordering;

use super::allocate::Fresh;
use super::geometry::{Cluster, Standard};
use super::image::{Image, Meta};
use super::map::Kind;
use crate::engine::{Io, Segments, Window};
use crate::node::{WriteFlags, errno};

/// The most bytes written in one piece.
const MAX_PIECE: u64 = 8 << 20;
/// The most bytes copied up from below in one piece.
const MAX_COPY: u64 = 1 << 20;
/// Up to so many bytes the data and what surrounds them are put together in memory.
const MAX_BOUNCE: u64 = 256 << 10;

/// Where a piece of a write goes.
struct Plan {
    /// Where the first byte of the data goes.
    host: u64,
    /// Bytes of the data.
    len: u64,
    /// Bytes before and behind the data that must be filled with what was there.
    lead: u64,
    trail: u64,
    /// What was allocated for it.
    fresh: Option<Fresh>,
}

impl Image {
    /// Writes a range.
    pub(super) async fn write(
        &self,
        io: &Io,
        guest: u64,
        from: Window<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < from.len() {
            let rest = from.part(done, MAX_PIECE);
            done += if flags.compress {
                self.write_compressed(io, guest + done, rest).await?
            } else {
                self.write_piece(io, guest + done, rest).await?
            };
        }
        if flags.durable {
            self.flush(io).await?;
        }
        Ok(())
    }

    /// Writes the first part of a range; returns how much.
    pub(super) async fn write_piece(
        &self,
        io: &Io,
        guest: u64,
        from: Window<'_>,
    ) -> io::Result<u64> {
        let geometry = self.geometry;
        let from = from.part(0, self.slice_end(guest) - guest);
        let all = geometry.floor(guest)..geometry.ceil(guest + from.len());
        let _range = self.ranges.take(all).await;
        self.write_held(io, guest, from).await
    }

    /// Where the slice of tables ends that has this guest offset.
    fn slice_end(&self, guest: u64) -> u64 {
        (self.map.slice_of(guest) + 1).saturating_mul(self.map.slice_span())
    }

    /// Writes the first part of a range that is taken, within one slice; returns how much.
    async fn write_held(&self, io: &Io, guest: u64, from: Window<'_>) -> io::Result<u64> {
        let plan = {
            let mut meta = self.meta.take().await;
            self.begin_writing(io, &mut meta).await?;
            self.relieve(io, &mut meta).await?;
            self.own_table(io, &mut meta, guest).await?;
            self.plan(io, &mut meta, guest, from.len()).await?
        };
        let from = from.part(0, plan.len);
        let written = self.write_planned(io, guest, from, &plan).await;
        let mut meta = self.meta.take().await;
        if let Err(error) = written {
            if let Some(fresh) = plan.fresh {
                self.give_back(io, &mut meta, fresh).await?;
            }
            return Err(error);
        }
        self.own_table(io, &mut meta, guest).await?;
        self.link(io, &mut meta, guest, &plan).await?;
        Ok(plan.len)
    }

    /// Copies what shows through from below in a range to where nothing is stored yet. A write of
    /// the same range waits, or was first and wins.
    pub(super) async fn populate(&self, io: &Io, guest: u64, len: u64) -> io::Result<()> {
        let end = guest.saturating_add(len);
        let buffer = io.buffer(MAX_COPY.min(len))?;
        let mut at = guest;
        while at < end {
            let most = end.min(self.slice_end(at)) - at;
            let piece = most.min(MAX_COPY);
            let all = self.geometry.floor(at)..self.geometry.ceil(at + piece);
            let _range = self.ranges.take(all).await;
            let (kind, run) = {
                let run = self.find(io, at, piece).await?;
                (run.kind, run.len)
            };
            if !matches!(kind, Kind::Below) {
                at += run;
                continue;
            }
            let part = buffer.part(run);
            self.read(io, at, part).await?;
            at += self.write_held(io, at, part).await?;
        }
        Ok(())
    }

    /// What the entry of a guest offset says; its slice is here.
    pub(super) async fn cluster(
        &self,
        io: &Io,
        meta: &mut Meta,
        guest: u64,
    ) -> io::Result<Cluster> {
        match self.map.cluster(guest) {
            Some(Ok(cluster)) => Ok(cluster),
            Some(Err(bad)) => Err(self.bad_entry(io, meta, guest, bad).await),
            None => Err(errno(libc::EIO)),
        }
    }

    /// Where the cluster may be written in place, if it may.
    fn own_place(&self, cluster: Cluster) -> Option<Standard> {
        match cluster {
            Cluster::Standard(standard) if standard.copied && standard.host.is_some() => {
                Some(standard)
            }
            _ => None,
        }
    }

    /// Decides where the first bytes of a range go: as many as are alike.
    async fn plan(&self, io: &Io, meta: &mut Meta, guest: u64, len: u64) -> io::Result<Plan> {
        let geometry = self.geometry;
        let size = geometry.cluster_size();
        let start = geometry.floor(guest);
        let first = self.cluster(io, meta, start).await?;
        let place = self.own_place(first).and_then(|own| own.host);
        let most = geometry.clusters(guest + len - start);
        let (mut last, mut count) = (first, 1);
        while count < most {
            let next = self.cluster(io, meta, start + count * size).await?;
            let goes_on = match (place, self.own_place(next)) {
                (Some(host), Some(own)) => own.host == Some(host + count * size),
                (None, None) => true,
                _ => false,
            };
            if !goes_on {
                break;
            }
            (last, count) = (next, count + 1);
        }
        let fresh = match place {
            Some(_) => None,
            None if geometry.external => {
                let end = (start + count * size).min(self.size.load(Ordering::Relaxed));
                self.clusters().reach(io, end).await?;
                None
            }
            None => Some(self.allocate(io, meta, 1, count).await?),
        };
        if let Some(fresh) = fresh
            && fresh.clusters < count
        {
            count = fresh.clusters;
            last = self.cluster(io, meta, start + (count - 1) * size).await?;
        }
        let host = place.or(fresh.map(|fresh| fresh.offset)).unwrap_or(start);
        let inside = guest - start;
        let end = (inside + len).min(count * size);
        let tail = end - (count - 1) * size;
        let (lead, _) = self.fill(first, inside, if count == 1 { tail } else { size });
        let (_, trail) = self.fill(last, if count == 1 { inside } else { 0 }, tail);
        Ok(Plan {
            host: host + inside,
            len: end - inside,
            lead,
            trail,
            fresh,
        })
    }

    /// How many bytes before `from` and behind `to`, bytes of a cluster that are written, must be
    /// filled in.
    fn fill(&self, cluster: Cluster, from: u64, to: u64) -> (u64, u64) {
        let size = self.geometry.subcluster_size();
        let touched = self.geometry.touched(from, to);
        let wanted = match cluster {
            Cluster::Compressed { .. } => u32::MAX,
            Cluster::Standard(own) if own.copied && own.host.is_some() => touched & !own.allocated,
            Cluster::Standard(shared) => touched | shared.allocated,
        };
        if wanted == 0 {
            return (0, 0);
        }
        if !self.geometry.extended {
            return (from, size - to);
        }
        let start = u64::from(wanted.trailing_zeros()) * size;
        let end = u64::from(32 - wanted.leading_zeros()) * size;
        (from.saturating_sub(start), end.saturating_sub(to))
    }

    /// Writes the data and what surrounds them. Nothing refers to the place yet, or only to other
    /// parts of it.
    async fn write_planned(
        &self,
        io: &Io,
        guest: u64,
        from: Window<'_>,
        plan: &Plan,
    ) -> io::Result<()> {
        let flags = WriteFlags::default();
        let clusters = self.clusters();
        let node = clusters.node();
        let (start, end) = (guest - plan.lead, guest + plan.len);
        // The last cluster may reach beyond the disk's end.
        let inside = self.size.load(Ordering::Relaxed).saturating_sub(end);
        let shown = plan.trail.min(inside);
        let is_zero = plan.fresh.is_some_and(|fresh| fresh.zero);
        let bare = plan.lead + plan.trail == 0
            || (is_zero
                && self.is_zero(io, start, plan.lead).await?
                && self.is_zero(io, end, shown).await?);
        if bare {
            return node.write(io, plan.host, from, flags).await;
        }
        let trail = if self.geometry.external {
            shown
        } else {
            plan.trail
        };
        let whole = plan.lead + plan.len + trail;
        if whole <= MAX_BOUNCE {
            let buffer = self.buffer(whole)?;
            let all = buffer.all();
            self.read(io, start, all.part(0, plan.lead)).await?;
            self.read(io, end, all.part(plan.lead + plan.len, shown))
                .await?;
            all.part(plan.lead, plan.len).copy_from_window(&from);
            return node.write(io, plan.host - plan.lead, all, flags).await;
        }
        if plan.lead > 0 {
            let buffer = self.buffer(plan.lead)?;
            self.read(io, start, buffer.all()).await?;
            let at = plan.host - plan.lead;
            node.write(io, at, buffer.all(), flags).await?;
        }
        node.write(io, plan.host, from, flags).await?;
        if trail > 0 {
            let buffer = self.buffer(trail)?;
            self.read(io, end, buffer.all().part(0, shown)).await?;
            let at = plan.host + plan.len;
            node.write(io, at, buffer.all(), flags).await?;
        }
        Ok(())
    }

    /// Zeroed memory that suits the storage.
    fn buffer(&self, len: u64) -> io::Result<Segments> {
        Segments::owned(usize::try_from(len).map_err(io::Error::other)?, 4096)
    }

    /// Makes the map refer to what was written.
    async fn link(&self, io: &Io, meta: &mut Meta, guest: u64, plan: &Plan) -> io::Result<()> {
        let geometry = self.geometry;
        let size = geometry.cluster_size();
        let start = geometry.floor(guest);
        let end = guest + plan.len;
        let mut at = start;
        while at < end {
            let old = self.cluster(io, meta, at).await?;
            let from = guest.max(at) - at;
            let to = (end - at).min(size);
            let touched = geometry.touched(from, to);
            let host = plan.host - (guest - start) + (at - start);
            let new = match self.own_place(old) {
                Some(own) => Standard {
                    allocated: own.allocated | touched,
                    zero: own.zero & !touched,
                    ..own
                },
                None => moved(old, host, touched),
            };
            if old != Cluster::Standard(new) {
                self.unsaved.store(true, Ordering::SeqCst);
                self.map.set(at, new);
                if self.own_place(old).is_none() {
                    self.let_go_of(meta, old, false);
                }
            }
            at += size;
        }
        Ok(())
    }

    /// Remembers that the places of a cluster have one user less.
    pub(super) fn let_go_of(&self, meta: &mut Meta, cluster: Cluster, discarded: bool) {
        let bits = self.geometry.cluster_bits;
        match cluster {
            Cluster::Compressed { at, len } => {
                let (first, last) = (at >> bits, (at + len - 1) >> bits);
                meta.let_go(first, last - first + 1, discarded);
            }
            Cluster::Standard(Standard {
                host: Some(host), ..
            }) if !self.geometry.external => {
                meta.let_go(host >> bits, 1, discarded);
            }
            Cluster::Standard(_) => {}
        }
    }
}

/// A cluster at a new place, where `touched` subclusters were written and the others copied.
fn moved(old: Cluster, host: u64, touched: u32) -> Standard {
    let (allocated, zero) = match old {
        Cluster::Compressed { .. } => (u32::MAX, 0),
        Cluster::Standard(old) => (old.allocated | touched, old.zero & !touched),
    };
    Standard {
        host: Some(host),
        copied: true,
        allocated,
        zero,
    }
}
