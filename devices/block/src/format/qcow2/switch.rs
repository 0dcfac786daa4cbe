//! From one active state to another, with all its snapshots, in one write: internal snapshots are
//! made, gone back to and deleted here.
//!
//! ```text
//!   now in the file        new places, nothing refers to them      one sector
//!   L1, L2 tables     ──►  L1, L2 tables                    ──┐
//!   refcounts         ──►  refcounts for what will be true  ──┼─ sync ─► header ─ sync ─► old ones
//!   snapshot table    ──►  snapshot table                   ──┘                           let go
//! ```
//!
//! Changing them in place would leave, after a crash, entries that say "nobody else's" of clusters
//! that a snapshot has. So all that changes is written anew, and the header's first sector says
//! which of both is true. The image is drained meanwhile.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::Ordering;

use super::bytes::{from_words, words};
use super::error::ImageError;
use super::geometry::{COPIED, Cluster, Entry, Geometry};
use super::image::{Image, Meta};
use super::refcount::Refcounts;
use super::snapshots::{Snapshot, SnapshotChange};
use crate::engine::Io;

/// An L1 table in the file.
#[derive(Clone, Debug)]
struct Table {
    offset: u64,
    entries: Vec<u64>,
}

/// What is to be.
struct Goal {
    /// The state that becomes the active one.
    source: Table,
    /// States that go.
    gone: Vec<Table>,
    /// The snapshots that there will be.
    snapshots: Vec<Snapshot>,
    /// The disk's length in bytes.
    size: u64,
}

/// New places, before anything refers to them.
struct Places {
    l1: u64,
    l2: Vec<Option<u64>>,
    snapshots: Option<u64>,
    /// Where, and how many clusters.
    reftable: (u64, u64),
    blocks: Vec<u64>,
    /// All of them: first cluster and how many.
    taken: Vec<(u64, u64)>,
}

/// The most bytes of refcounts that are written anew; those of 32 TiB at 64 KiB.
const MAX_MOVED: u64 = 1 << 30;

/// Adds or takes one user.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    More,
    Less,
}

impl Image {
    /// Changes the states that the image keeps, or goes back to one.
    pub(super) async fn change_snapshots(
        &self,
        io: &Io,
        change: SnapshotChange,
    ) -> Result<(), ImageError> {
        match change {
            SnapshotChange::Create(snapshot) => self.create_snapshot(io, snapshot).await,
            SnapshotChange::Apply(id) => self.apply_snapshot(io, &id).await,
            SnapshotChange::Delete(id) => self.delete_snapshot(io, &id).await,
        }
    }

    /// Keeps the present state as a snapshot.
    async fn create_snapshot(&self, io: &Io, mut snapshot: Snapshot) -> Result<(), ImageError> {
        let mut meta = self.ready(io).await?;
        let list = meta.snapshots.0.clone();
        let taken = |other: &&Snapshot| other.id == snapshot.id;
        if list.iter().find(taken).is_some() {
            let id = &snapshot.id;
            return Err(ImageError::Cannot(format!(
                "there is a snapshot with id '{id}'"
            )));
        }
        let active = self.active(&meta);
        snapshot.l1_offset = active.offset;
        snapshot.l1_entries = meta.header.l1_entries;
        snapshot.size = meta.header.size;
        let goal = Goal {
            size: meta.header.size,
            source: active,
            gone: Vec::new(),
            snapshots: list.into_iter().chain([snapshot]).collect(),
        };
        self.switch(io, &mut meta, goal).await
    }

    /// Makes a snapshot's state the active one; the snapshot stays.
    async fn apply_snapshot(&self, io: &Io, id: &str) -> Result<(), ImageError> {
        let mut meta = self.ready(io).await?;
        let list = meta.snapshots.0.clone();
        let at = find(&list, id)?;
        let goal = Goal {
            size: list[at].size,
            source: self.table_of(io, &list[at]).await?,
            gone: vec![self.active(&meta)],
            snapshots: list,
        };
        self.switch(io, &mut meta, goal).await
    }

    /// Forgets a snapshot.
    async fn delete_snapshot(&self, io: &Io, id: &str) -> Result<(), ImageError> {
        let mut meta = self.ready(io).await?;
        let mut list = meta.snapshots.0.clone();
        let gone = list.remove(find(&list, id)?);
        let active = self.active(&meta);
        let goal = Goal {
            size: meta.header.size,
            source: active.clone(),
            gone: vec![active, self.table_of(io, &gone).await?],
            snapshots: list,
        };
        self.switch(io, &mut meta, goal).await
    }

    /// Everything is in the file, and the image may be written.
    async fn ready(&self, io: &Io) -> Result<super::turn::Taken<'_, Meta>, ImageError> {
        if self.geometry.external {
            let why = "an image with a data file has no internal snapshots".to_owned();
            return Err(ImageError::Cannot(why));
        }
        let failed = || ImageError::storage("write the tables");
        let mut meta = self.meta.take().await;
        self.begin_writing(io, &mut meta).await.map_err(failed())?;
        self.write_back(io, &mut meta).await.map_err(failed())?;
        self.write_back(io, &mut meta).await.map_err(failed())?;
        self.save_refcounts(io, &mut meta).await.map_err(failed())?;
        Ok(meta)
    }

    fn active(&self, meta: &Meta) -> Table {
        Table {
            offset: meta.header.l1_offset,
            entries: self.map.l1_entries(),
        }
    }

    async fn table_of(&self, io: &Io, snapshot: &Snapshot) -> Result<Table, ImageError> {
        let len = u64::from(snapshot.l1_entries) * 8;
        if snapshot.l1_offset.saturating_add(len) > self.file().len() {
            let id = &snapshot.id;
            return Err(ImageError::Inconsistent(format!(
                "the L1 table of snapshot '{id}' goes on behind the file's end"
            )));
        }
        let bytes = self.file().read(io, snapshot.l1_offset, len).await;
        let bytes = bytes.map_err(ImageError::storage("read a snapshot's L1 table"))?;
        Ok(Table {
            offset: snapshot.l1_offset,
            entries: words(&bytes),
        })
    }

    /// Whether a state is one that was written by somebody: each L2 table there once, in the file.
    fn check_state(&self, state: &Table) -> Result<(), ImageError> {
        let end = self.file().len();
        let mut seen = HashSet::new();
        for entry in &state.entries {
            let table = self.geometry.l2_table(*entry);
            let table = table.map_err(|bad| ImageError::Inconsistent(bad.to_string()))?;
            if let Some(at) = table.filter(|at| *at >= end || !seen.insert(*at)) {
                return Err(ImageError::Inconsistent(format!(
                    "the L2 table at offset {at:#x} is there twice or behind the file's end"
                )));
            }
        }
        Ok(())
    }

    async fn switch(&self, io: &Io, meta: &mut Meta, goal: Goal) -> Result<(), ImageError> {
        for state in goal.gone.iter().chain([&goal.source]) {
            self.check_state(state)?;
        }
        let blocks = meta.refcounts.block_offsets().count() as u64;
        if blocks.saturating_mul(self.geometry.cluster_size()) > MAX_MOVED {
            let why = "it has more than 1 GiB of refcounts: use larger clusters".to_owned();
            return Err(ImageError::Cannot(why));
        }
        let needed = self.geometry.l1_entries_for(goal.size);
        if (goal.source.entries.len() as u64) < needed {
            let why = "a snapshot's L1 table is too small for its disk".to_owned();
            return Err(ImageError::Inconsistent(why));
        }
        let mut places = Places {
            l1: 0,
            l2: Vec::new(),
            snapshots: None,
            reftable: (0, 0),
            blocks: Vec::new(),
            taken: Vec::new(),
        };
        let prepared = self.prepare(io, meta, &goal, &mut places).await;
        let prepared = match prepared {
            Ok(next) => Ok(next),
            Err(error) => {
                for (offset, clusters) in places.taken.clone() {
                    self.take_back(io, meta, offset, clusters)
                        .await
                        .map_err(ImageError::storage("give places back"))?;
                }
                Err(error)
            }
        };
        let next = prepared.map_err(|source| ImageError::Storage {
            what: "write the new tables (refcounts of few bits count few snapshots)",
            source,
        })?;
        let done = self.turn_over(io, meta, goal, places, next).await;
        done.map_err(ImageError::storage("write the header"))
    }

    /// Writes all that is new, to places that nothing refers to.
    async fn prepare(
        &self,
        io: &Io,
        meta: &mut Meta,
        goal: &Goal,
        places: &mut Places,
    ) -> io::Result<Refcounts> {
        let file = self.file();
        let size = self.geometry.cluster_size();
        let entries = goal.source.entries.len() as u64;
        let l1_clusters = self.geometry.clusters(entries * 8).max(1);
        places.l1 = self.place(io, meta, places, l1_clusters).await?;
        for entry in &goal.source.entries {
            let table = self.l2_of(*entry)?;
            let place = match table {
                Some(_) => Some(self.place(io, meta, places, 1).await?),
                None => None,
            };
            places.l2.push(place);
        }
        let table: Vec<u8> = goal.snapshots.iter().flat_map(Snapshot::encode).collect();
        if !table.is_empty() {
            let clusters = self.geometry.clusters(table.len() as u64);
            let place = self.place(io, meta, places, clusters).await?;
            file.write(io, place, &table).await?;
            places.snapshots = Some(place);
        }
        self.place_refcounts(io, meta, places).await?;
        self.save_refcounts(io, meta).await?;
        file.flush(io).await?;
        let (offset, clusters) = places.reftable;
        let place = (offset, u32::try_from(clusters).unwrap_or(u32::MAX));
        let moved = meta.refcounts.moved(io, &file, &places.blocks, place);
        let mut next = moved.await?;
        self.count_state(io, &mut next, &goal.source, Step::More, false)
            .await?;
        for table in &goal.gone {
            self.count_state(io, &mut next, table, Step::Less, true)
                .await?;
        }
        let mut l1 = Vec::new();
        for (entry, place) in goal.source.entries.iter().zip(&places.l2) {
            let (Some(table), Some(place)) = (self.l2_of(*entry)?, place) else {
                l1.push(0);
                continue;
            };
            let old = file.read(io, table, size).await?;
            let new = self.flagged(io, &mut next, &words(&old)).await?;
            file.write(io, *place, &from_words(&new)).await?;
            l1.push(Geometry::l1_entry(*place));
        }
        file.write(io, places.l1, &from_words(&l1)).await?;
        next.write_blocks(io, &file).await?;
        next.write_table(io, &file).await?;
        file.flush(io).await?;
        Ok(next)
    }

    /// Places for refcounts need refcounts, until no more are needed.
    async fn place_refcounts(
        &self,
        io: &Io,
        meta: &mut Meta,
        places: &mut Places,
    ) -> io::Result<()> {
        loop {
            if places.blocks.len() < meta.refcounts.block_offsets().count() {
                let place = self.place(io, meta, places, 1).await?;
                places.blocks.push(place);
                continue;
            }
            let clusters = self.geometry.clusters(meta.refcounts.table_len() * 8);
            let had = places.reftable;
            if had.1 == clusters {
                return Ok(());
            }
            if had.1 > 0 {
                // It has grown meanwhile.
                places.taken.retain(|taken| *taken != had);
                self.take_back(io, meta, had.0, had.1).await?;
            }
            let place = self.place(io, meta, places, clusters).await?;
            places.reftable = (place, clusters);
        }
    }

    async fn place(
        &self,
        io: &Io,
        meta: &mut Meta,
        places: &mut Places,
        clusters: u64,
    ) -> io::Result<u64> {
        let offset = self.allocate_tables(io, meta, clusters).await?;
        places.taken.push((offset, clusters));
        Ok(offset)
    }

    fn l2_of(&self, entry: u64) -> io::Result<Option<u64>> {
        self.geometry.l2_table(entry).map_err(io::Error::other)
    }

    /// Counts one user more or less of all that an L1 table refers to; with `tables` of the tables
    /// themselves, too.
    async fn count_state(
        &self,
        io: &Io,
        counts: &mut Refcounts,
        l1: &Table,
        step: Step,
        tables: bool,
    ) -> io::Result<()> {
        let (file, bits) = (self.file(), self.geometry.cluster_bits);
        if tables {
            let len = l1.entries.len() as u64 * 8;
            for cluster in l1.offset >> bits..l1.offset.saturating_add(len).div_ceil(1 << bits) {
                self.step(io, counts, cluster, step).await?;
            }
        }
        for entry in &l1.entries {
            let Some(table) = self.l2_of(*entry)? else {
                continue;
            };
            if tables {
                self.step(io, counts, table >> bits, step).await?;
            }
            if table >= file.len() {
                continue;
            }
            let bytes = file.read(io, table, self.geometry.cluster_size()).await?;
            for entry in self.entries(&words(&bytes)) {
                for cluster in self.clusters_of(entry)? {
                    self.step(io, counts, cluster, step).await?;
                }
            }
        }
        Ok(())
    }

    async fn step(
        &self,
        io: &Io,
        counts: &mut Refcounts,
        cluster: u64,
        step: Step,
    ) -> io::Result<()> {
        let file = self.file();
        match step {
            Step::More => counts.increment(io, &file, cluster).await.map(drop),
            Step::Less => counts.decrement(io, &file, cluster).await.map(drop),
        }
    }

    fn entries(&self, table: &[u64]) -> Vec<Entry> {
        let step = if self.geometry.extended { 2 } else { 1 };
        let entry = |words: &[u64]| Entry {
            word: words.first().copied().unwrap_or(0),
            bitmap: words.get(1).copied().unwrap_or(0),
        };
        table.chunks(step).map(entry).collect()
    }

    /// The clusters of the file that an L2 entry uses.
    fn clusters_of(&self, entry: Entry) -> io::Result<std::ops::Range<u64>> {
        let bits = self.geometry.cluster_bits;
        let cluster = self.geometry.decode(entry, 0).map_err(io::Error::other)?;
        Ok(match cluster {
            Cluster::Compressed { at, len } => at >> bits..((at + len - 1) >> bits) + 1,
            Cluster::Standard(cluster) => match cluster.host {
                Some(host) => host >> bits..(host >> bits) + 1,
                None => 0..0,
            },
        })
    }

    /// The entries of an L2 table, each saying truly whether its cluster is nobody else's.
    async fn flagged(
        &self,
        io: &Io,
        counts: &mut Refcounts,
        table: &[u64],
    ) -> io::Result<Vec<u64>> {
        let mut new = Vec::with_capacity(table.len());
        for entry in self.entries(table) {
            let mut word = entry.word & !COPIED;
            if let Some(host) = Geometry::standard_host(word) {
                let cluster = host >> self.geometry.cluster_bits;
                if counts.count(io, &self.file(), cluster).await? == 1 {
                    word |= COPIED;
                }
            }
            new.push(word);
            if self.geometry.extended {
                new.push(entry.bitmap);
            }
        }
        Ok(new)
    }

    /// Has the header say what is true now, and lets go of what was.
    async fn turn_over(
        &self,
        io: &Io,
        meta: &mut Meta,
        goal: Goal,
        places: Places,
        next: Refcounts,
    ) -> io::Result<()> {
        let before = meta.header.clone();
        let old_blocks: Vec<u64> = meta.refcounts.block_offsets().collect();
        let entries = goal.source.entries.len();
        meta.header.l1_offset = places.l1;
        meta.header.l1_entries = u32::try_from(entries).unwrap_or(u32::MAX);
        (meta.header.reftable_offset, meta.header.reftable_clusters) = next.table_place();
        meta.header.snapshots = u32::try_from(goal.snapshots.len()).unwrap_or(u32::MAX);
        meta.header.snapshots_offset = places.snapshots.unwrap_or(0);
        meta.header.size = goal.size;
        if let Err(error) = self.save_header(io, meta).await {
            meta.header = before;
            return Err(error);
        }
        let bits = self.geometry.cluster_bits;
        let old_table = (meta.snapshots.1, before.snapshots_offset >> bits);
        let len = goal.snapshots.iter().map(|one| one.encode().len() as u64);
        meta.snapshots = (goal.snapshots.clone(), len.sum());
        meta.refcounts = next;
        let l1 = places
            .l2
            .iter()
            .map(|place| place.map_or(0, Geometry::l1_entry));
        self.map.forget();
        self.map.replace_l1(places.l1, l1.collect());
        self.size.store(goal.size, Ordering::SeqCst);
        self.unsaved.store(true, Ordering::SeqCst);
        self.note_fixed(meta);
        self.show(meta);
        for block in old_blocks {
            meta.let_go(block >> bits, 1, false);
        }
        let reftable = before.reftable_offset >> bits;
        meta.let_go(reftable, u64::from(before.reftable_clusters), false);
        meta.let_go(old_table.1, self.geometry.clusters(old_table.0), false);
        self.file().flush(io).await?;
        self.write_back(io, meta).await
    }
}

fn find(list: &[Snapshot], id: &str) -> Result<usize, ImageError> {
    let by_id = list.iter().position(|one| one.id == id);
    by_id.ok_or_else(|| ImageError::NoSuchSnapshot(format!("id '{id}'")))
}
