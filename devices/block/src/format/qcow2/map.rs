//! Where the guest's clusters are: the active L1 table, and the parts of L2 tables that were
//! looked at lately.
//!
//! ```text
//!   guest offset ─► slice number ─► shard ─► slice: some entries of one L2 table
//!                        │ not there
//!                        └─► L1 entry ─► where the slice is in the file (or: no table at all)
//! ```
//!
//! Lookups come from several io-threads and take one shard's lock for reading, for as long as it
//! takes to look at a few entries. Changes are made by whoever has the image's turn.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::geometry::{BadEntry, Cluster, Entry, Geometry, Standard};
use super::holders::Holders;
use crate::node::ExtentGuard;

/// Into how many parts the cache is split.
const SHARDS: u64 = 16;

/// The first bytes of a guest range, and what they all are.
#[derive(Debug)]
pub(super) struct Run {
    /// Bytes, at least one.
    pub(super) len: u64,
    /// What they are.
    pub(super) kind: Kind,
    /// Keeps the place while the bytes are moved.
    pub(super) guard: ExtentGuard,
}

/// What some guest bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// At this offset; `copied` if nobody else uses the place.
    Data { host: u64, copied: bool },
    /// Zeros.
    Zero,
    /// What the backing node has.
    Below,
    /// In a compressed cluster; `inside` is where in it the run begins.
    Compressed { at: u64, len: u64, inside: u64 },
}

/// What a lookup found.
#[derive(Debug)]
pub(super) enum Look {
    /// The mapping.
    Found(Run),
    /// The slice must be read first.
    Missing,
    /// The entry is not one the format allows.
    Bad(BadEntry),
}

struct Slice {
    words: Box<[u64]>,
    dirty: bool,
    /// When it was last looked at, in lookups.
    used: AtomicU64,
}

type Shard = HashMap<u64, Slice>;

struct L1 {
    /// Where the table is in the file.
    offset: u64,
    entries: Vec<u64>,
    dirty: BTreeSet<usize>,
}

/// The mapping of the active state.
pub(super) struct Map {
    geometry: Geometry,
    /// Entries of one slice.
    per_slice: AtomicU64,
    l1: RwLock<L1>,
    shards: Box<[RwLock<Shard>]>,
    /// Slices that a shard keeps, dirty ones aside.
    room: AtomicUsize,
    clock: AtomicU64,
    dirty: AtomicUsize,
}

impl Map {
    /// A map over the active L1 table, its offset and entries. `cache` is how many bytes of L2 tables are kept, `slice` how
    /// many are read at once: a power of two, at most a cluster.
    pub(super) fn new(geometry: Geometry, l1: (u64, Vec<u64>), cache: u64, slice: u64) -> Self {
        let map = Self {
            geometry,
            per_slice: AtomicU64::new(1),
            l1: RwLock::new(L1 {
                offset: l1.0,
                entries: l1.1,
                dirty: BTreeSet::new(),
            }),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            room: AtomicUsize::new(0),
            clock: AtomicU64::new(0),
            dirty: AtomicUsize::new(0),
        };
        map.tune(cache, slice);
        map
    }

    /// Keeps so many bytes of L2 tables from now on, and reads so many at once. Nobody looks
    /// meanwhile, and nothing differs from the file.
    pub(super) fn tune(&self, cache: u64, slice: u64) {
        self.forget();
        let slice = slice.clamp(512, self.geometry.cluster_size());
        let room = (cache / slice / SHARDS).max(2);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let per_slice = slice / self.geometry.entry_size();
        self.per_slice.store(per_slice, Ordering::Relaxed);
        self.room.store(room, Ordering::Relaxed);
    }

    fn per_slice(&self) -> u64 {
        self.per_slice.load(Ordering::Relaxed)
    }

    fn room(&self) -> usize {
        self.room.load(Ordering::Relaxed)
    }

    fn l1(&self) -> RwLockReadGuard<'_, L1> {
        self.l1.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn l1_mut(&self) -> RwLockWriteGuard<'_, L1> {
        self.l1.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, slice: u64) -> &RwLock<Shard> {
        // The remainder is below SHARDS, which is how many there are.
        &self.shards[usize::try_from(slice % SHARDS).unwrap_or(0)]
    }

    fn shard_mut(&self, slice: u64) -> RwLockWriteGuard<'_, Shard> {
        let shard = self.shard(slice).write();
        shard.unwrap_or_else(PoisonError::into_inner)
    }

    /// Guest bytes that one slice maps.
    pub(super) fn slice_span(&self) -> u64 {
        self.per_slice() << self.geometry.cluster_bits
    }

    /// Bytes of a slice in the file.
    pub(super) fn slice_size(&self) -> u64 {
        self.per_slice() * self.geometry.entry_size()
    }

    /// The number of the slice that maps a guest offset.
    pub(super) fn slice_of(&self, guest: u64) -> u64 {
        guest / self.slice_span()
    }

    /// Where a slice lies inside its L2 table, and which L1 entry is that table's.
    pub(super) fn slice_place(&self, slice: u64) -> (u64, u64) {
        let per_table = self.geometry.l2_entries() / self.per_slice();
        (slice / per_table, slice % per_table * self.slice_size())
    }

    /// What the first bytes of a range are. `len` is not zero.
    pub(super) fn look(&self, holders: &Holders, guest: u64, len: u64) -> Look {
        let slice_number = self.slice_of(guest);
        let end = (slice_number + 1).saturating_mul(self.slice_span());
        let len = len.min(end - guest);
        let shard = self.shard(slice_number).read();
        let shard = shard.unwrap_or_else(PoisonError::into_inner);
        let Some(slice) = shard.get(&slice_number) else {
            drop(shard);
            return self.look_without_slice(guest, len);
        };
        let now = self.clock.load(Ordering::Relaxed);
        if slice.used.load(Ordering::Relaxed) != now {
            slice.used.store(now, Ordering::Relaxed);
        }
        // Counted in while the mapping cannot change: see `Holders`.
        let guard = holders.enter(slice_number);
        let start = guest - slice_number * self.slice_span();
        match self.run(&slice.words, slice_number, start, len) {
            Ok((kind, len)) => Look::Found(Run { len, kind, guard }),
            Err(bad) => Look::Bad(bad),
        }
    }

    fn look_without_slice(&self, guest: u64, len: u64) -> Look {
        match self.table(self.geometry.l1_index(guest)) {
            Ok(None) => Look::Found(Run {
                len,
                kind: Kind::Below,
                guard: ExtentGuard::unmoving(),
            }),
            Ok(Some(_)) => Look::Missing,
            Err(bad) => Look::Bad(bad),
        }
    }

    /// The kind of the byte `start` of a slice, and how many bytes from there on continue it.
    fn run(
        &self,
        words: &[u64],
        slice: u64,
        start: u64,
        len: u64,
    ) -> Result<(Kind, u64), BadEntry> {
        let (kind, mut run) = self.piece(words, slice, start)?;
        while run < len {
            let next = match self.piece(words, slice, start + run) {
                Ok((next, more)) if continues(kind, run, next) => more,
                // What is bad is said when it is reached.
                _ => break,
            };
            run += next;
        }
        Ok((kind, run.min(len)))
    }

    /// As [`run`](Self::run), up to the end of the cluster at most.
    fn piece(&self, words: &[u64], slice: u64, start: u64) -> Result<(Kind, u64), BadEntry> {
        let geometry = self.geometry;
        let index = start >> geometry.cluster_bits;
        let inside = geometry.inside(start);
        let guest = slice * self.slice_span() + geometry.floor(start);
        let cluster = match geometry.decode(entry_at(words, index, geometry), guest)? {
            Cluster::Compressed { at, len } => {
                let kind = Kind::Compressed { at, len, inside };
                return Ok((kind, geometry.cluster_size() - inside));
            }
            Cluster::Standard(cluster) => cluster,
        };
        let number = geometry.subcluster(inside);
        let bit = 1_u32 << number;
        let (kind, same) = if cluster.zero & bit != 0 {
            (Kind::Zero, cluster.zero)
        } else if let Some(host) = cluster.host.filter(|_| cluster.allocated & bit != 0) {
            let copied = cluster.copied;
            let host = host + inside;
            (Kind::Data { host, copied }, cluster.allocated)
        } else {
            (Kind::Below, !(cluster.zero | cluster.allocated))
        };
        Ok((kind, geometry.run_end(number, same) - inside))
    }

    /// The entry for a guest offset, if its slice is here.
    pub(super) fn entry(&self, guest: u64) -> Option<Entry> {
        let slice_number = self.slice_of(guest);
        let shard = self.shard(slice_number).read();
        let shard = shard.unwrap_or_else(PoisonError::into_inner);
        let slice = shard.get(&slice_number)?;
        let index = (guest % self.slice_span()) >> self.geometry.cluster_bits;
        Some(entry_at(&slice.words, index, self.geometry))
    }

    /// What the entry for a guest offset says; `None` if its slice is not here.
    pub(super) fn cluster(&self, guest: u64) -> Option<Result<Cluster, BadEntry>> {
        let guest = self.geometry.floor(guest);
        let entry = self.entry(guest)?;
        Some(self.geometry.decode(entry, guest))
    }

    /// Changes the entry for a guest offset, whose slice is here.
    pub(super) fn set(&self, guest: u64, cluster: Standard) {
        self.set_entry(guest, self.geometry.encode(cluster));
    }

    /// As [`set`](Self::set), with the entry as it will lie in the file.
    pub(super) fn set_entry(&self, guest: u64, entry: Entry) {
        let number = self.slice_of(guest);
        let index = (guest % self.slice_span()) >> self.geometry.cluster_bits;
        let Ok(index) = usize::try_from(index) else {
            return;
        };
        let mut shard = self.shard_mut(number);
        let Some(slice) = shard.get_mut(&number) else {
            return;
        };
        let width = if self.geometry.extended { 2 } else { 1 };
        let words = slice.words.get_mut(index * width..(index + 1) * width);
        match words {
            Some([word]) => *word = entry.word,
            Some([word, bitmap]) => (*word, *bitmap) = (entry.word, entry.bitmap),
            _ => return,
        }
        if !std::mem::replace(&mut slice.dirty, true) {
            self.dirty.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether a slice is here.
    pub(super) fn has_slice(&self, slice: u64) -> bool {
        let shard = self.shard(slice).read();
        let shard = shard.unwrap_or_else(PoisonError::into_inner);
        shard.contains_key(&slice)
    }

    /// Puts in a slice as it lies in the file. What was looked at longest ago makes room.
    pub(super) fn insert(&self, number: u64, words: Vec<u64>) {
        let now = self.clock.fetch_add(1, Ordering::Relaxed) + 1;
        let mut shard = self.shard_mut(number);
        if shard.contains_key(&number) {
            return;
        }
        if shard.len() >= self.room() {
            let clean = shard.iter().filter(|(_, slice)| !slice.dirty);
            let oldest = clean
                .min_by_key(|(_, slice)| slice.used.load(Ordering::Relaxed))
                .map(|(number, _)| *number);
            if let Some(oldest) = oldest {
                shard.remove(&oldest);
            }
        }
        let slice = Slice {
            words: words.into_boxed_slice(),
            dirty: false,
            used: AtomicU64::new(now),
        };
        shard.insert(number, slice);
    }

    /// Whether so many slices wait to be written that it is time to.
    pub(super) fn is_crowded(&self) -> bool {
        self.dirty.load(Ordering::Relaxed)
            >= (self.room().saturating_mul(self.shards.len()) / 2).max(1)
    }

    /// The numbers of the slices that differ from the file.
    pub(super) fn dirty_slices(&self) -> Vec<u64> {
        let mut numbers = Vec::new();
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            let dirty = shard.iter().filter(|(_, slice)| slice.dirty);
            numbers.extend(dirty.map(|(number, _)| *number));
        }
        numbers.sort_unstable();
        numbers
    }

    /// A slice's entries.
    pub(super) fn words(&self, slice: u64) -> Option<Vec<u64>> {
        let shard = self.shard(slice).read();
        let shard = shard.unwrap_or_else(PoisonError::into_inner);
        Some(shard.get(&slice)?.words.to_vec())
    }

    /// A slice is in the file as it is here.
    pub(super) fn mark_clean(&self, slice: u64) {
        let mut shard = self.shard_mut(slice);
        if let Some(slice) = shard.get_mut(&slice)
            && std::mem::take(&mut slice.dirty)
        {
            self.dirty.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Forgets all slices, dirty or not: another state becomes the active one.
    pub(super) fn forget(&self) {
        for shard in &self.shards {
            shard
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .clear();
        }
        self.dirty.store(0, Ordering::Relaxed);
    }

    /// Where the L2 table of an L1 entry is, if there is one.
    pub(super) fn table(&self, index: u64) -> Result<Option<u64>, BadEntry> {
        self.geometry.l2_table(self.l1_entry(index))
    }

    /// An entry of the L1 table; 0 beyond its end.
    pub(super) fn l1_entry(&self, index: u64) -> u64 {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.l1().entries.get(index).copied().unwrap_or(0)
    }

    /// The whole L1 table.
    pub(super) fn l1_entries(&self) -> Vec<u64> {
        self.l1().entries.clone()
    }

    /// Changes an entry of the L1 table.
    pub(super) fn set_l1_entry(&self, index: u64, entry: u64) {
        let mut l1 = self.l1_mut();
        let Ok(index) = usize::try_from(index) else {
            return;
        };
        if let Some(place) = l1.entries.get_mut(index) {
            *place = entry;
            l1.dirty.insert(index);
        }
    }

    /// The L1 table is another one, which lies in the file as it is here.
    pub(super) fn replace_l1(&self, offset: u64, entries: Vec<u64>) {
        let mut l1 = self.l1_mut();
        l1.offset = offset;
        l1.entries = entries;
        l1.dirty.clear();
    }

    /// Where the L1 table is in the file.
    pub(super) fn l1_place(&self) -> u64 {
        self.l1().offset
    }

    /// Which L1 entries differ from the file.
    pub(super) fn dirty_l1(&self) -> Vec<usize> {
        self.l1().dirty.iter().copied().collect()
    }

    /// An L1 entry is in the file as it is here.
    pub(super) fn mark_l1_clean(&self, index: usize) {
        self.l1_mut().dirty.remove(&index);
    }

    /// Whether nothing here differs from the file.
    pub(super) fn is_clean(&self) -> bool {
        self.dirty.load(Ordering::Relaxed) == 0 && self.l1().dirty.is_empty()
    }
}

/// Whether a piece that begins `run` bytes later goes on with the same.
fn continues(kind: Kind, run: u64, next: Kind) -> bool {
    match (kind, next) {
        (
            Kind::Data { host, copied },
            Kind::Data {
                host: at,
                copied: same,
            },
        ) => at == host + run && copied == same,
        (Kind::Zero, Kind::Zero) | (Kind::Below, Kind::Below) => true,
        _ => false,
    }
}

fn entry_at(words: &[u64], index: u64, geometry: Geometry) -> Entry {
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    let word = |at: usize| words.get(at).copied().unwrap_or(0);
    if geometry.extended {
        let at = index.saturating_mul(2);
        Entry {
            word: word(at),
            bitmap: word(at.saturating_add(1)),
        }
    } else {
        Entry {
            word: word(index),
            bitmap: 0,
        }
    }
}
