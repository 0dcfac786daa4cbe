//! An open image: what is held in memory, and who may change it.
//!
//! The map is looked up by everyone. Everything else that changes is the [`Meta`], which one task
//! at a time has (the image's *turn*).

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::compress::Compression;
use super::details::Details;
use super::geometry::{BadEntry, Geometry};
use super::header::Header;
use super::holders::{Holders, Old};
use super::map::{Look, Map, Run};
use super::refcount::Refcounts;
use super::snapshots::Snapshot;
use super::storage::Storage;
use super::turn::{Ranges, Turn};
use crate::bitmap::Bitmaps;
use crate::corruption::{Corruption, CorruptionSink};
use crate::engine::Io;
use crate::node::errno;
use crate::slot::{BackingSlot, ChildSlot};

/// An open image.
pub(super) struct Image {
    /// The node's name, for the log.
    pub(super) name: String,
    pub(super) geometry: Geometry,
    pub(super) compression: Compression,
    /// The place of the file with the tables, and with the guest's clusters unless `data` has them.
    pub(super) file: ChildSlot,
    /// The place of the external data file.
    pub(super) data: Option<ChildSlot>,
    /// Whether the data file alone is the disk.
    pub(super) raw_data: bool,
    pub(super) backing: BackingSlot,
    /// The virtual disk's length in bytes.
    pub(super) size: AtomicU64,
    pub(super) map: Map,
    pub(super) holders: Holders,
    pub(super) ranges: Ranges,
    pub(super) meta: Turn<Meta>,
    /// Whether the image was made ready for writing: see [`begin`](super::begin).
    pub(super) writing: AtomicBool,
    /// Whether tables in memory may differ from the file.
    pub(super) unsaved: AtomicBool,
    /// Whether the image was found to be corrupt: nothing is written any more.
    pub(super) corrupt: AtomicBool,
    /// Who is told of that.
    pub(super) sink: OnceLock<CorruptionSink>,
    /// Whether discarded clusters are discarded in the file, too.
    pub(super) pass_discard: AtomicBool,
    /// The disk's bitmaps, with those that the image keeps.
    pub(super) bitmaps: Arc<Bitmaps>,
    /// What lists show, as of the last change.
    pub(super) details: RwLock<Details>,
}

/// What only the task with the turn sees.
pub(super) struct Meta {
    pub(super) header: Header,
    /// Whether refcounts are written late: as the header has it, unless the node says otherwise.
    pub(super) lazy: bool,
    /// What the node says of that.
    pub(super) lazy_wanted: Option<bool>,
    /// The states that the image keeps, and the length of their table in bytes.
    pub(super) snapshots: (Vec<Snapshot>, u64),
    /// The first cluster as it is in the file.
    pub(super) header_bytes: Vec<u8>,
    pub(super) refcounts: Refcounts,
    /// Places that are no longer referred to; the file may still say otherwise.
    pub(super) loose: Vec<Loose>,
    /// Places that the file does not refer to either; used again once everyone who saw them
    /// mapped is gone.
    pub(super) resting: Option<(Old, Vec<Loose>)>,
    /// Whether the file may say that bitmaps are out of date which memory knows.
    pub(super) bitmaps_marked: bool,
    /// Whether the file was made longer than what is used of it.
    pub(super) is_ahead: bool,
}

/// Clusters with one user less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loose {
    /// The number of the first.
    pub(super) cluster: u64,
    /// How many.
    pub(super) count: u64,
    /// Whether a guest's discard freed them.
    pub(super) discarded: bool,
}

impl Meta {
    /// Remembers that clusters of the file have one user less.
    pub(super) fn let_go(&mut self, cluster: u64, count: u64, discarded: bool) {
        if let Some(last) = self.loose.last_mut()
            && last.cluster + last.count == cluster
            && last.discarded == discarded
        {
            last.count += count;
            return;
        }
        self.loose.push(Loose {
            cluster,
            count,
            discarded,
        });
    }
}

impl Image {
    /// The file with the guest's clusters.
    pub(super) fn clusters(&self) -> Storage {
        Storage::new(self.data.as_ref().unwrap_or(&self.file).load())
    }

    /// Has lists show what the header says now.
    pub(super) fn show(&self, meta: &Meta) {
        let new = Details::new(&meta.header, meta.snapshots.0.clone());
        *self.details.write().unwrap_or_else(PoisonError::into_inner) = new;
    }

    /// The file with the tables.
    pub(super) fn file(&self) -> Storage {
        Storage::new(self.file.load())
    }

    /// The disk below.
    pub(super) fn below(&self) -> Option<Storage> {
        self.backing.load().map(Storage::new)
    }

    /// Where a guest byte is, with a guard while it is used; reads the table if need be.
    pub(super) async fn find(&self, io: &Io, guest: u64, len: u64) -> io::Result<Run> {
        let mut look = self.map.look(&self.holders, guest, len);
        loop {
            match look {
                Look::Found(run) => return Ok(run),
                Look::Bad(bad) => {
                    let mut meta = self.meta.take().await;
                    return Err(self.bad_entry(io, &mut meta, guest, bad).await);
                }
                Look::Missing => {
                    let mut meta = self.meta.take().await;
                    self.load_slice(io, &mut meta, guest).await?;
                    // Before the turn goes on, so that nobody displaces the slice.
                    look = self.map.look(&self.holders, guest, len);
                }
            }
        }
    }

    /// Reads the slice of a guest offset, unless it is here or there is no table.
    pub(super) async fn load_slice(&self, io: &Io, meta: &mut Meta, guest: u64) -> io::Result<()> {
        let slice = self.map.slice_of(guest);
        if self.map.has_slice(slice) {
            return Ok(());
        }
        let (index, inside) = self.map.slice_place(slice);
        let table = match self.map.table(index) {
            Ok(Some(table)) => table,
            Ok(None) => return Ok(()),
            Err(bad) => return Err(self.bad_entry(io, meta, guest, bad).await),
        };
        let size = self.map.slice_size();
        let bytes = self.file().read(io, table + inside, size).await?;
        let words = super::bytes::words(&bytes);
        self.check_overlap(io, meta, &words).await?;
        self.map.insert(slice, words);
        Ok(())
    }

    /// Refuses tables that map the guest's data over tables: a write would destroy them.
    async fn check_overlap(&self, io: &Io, meta: &mut Meta, words: &[u64]) -> io::Result<()> {
        if self.geometry.external || meta.refcounts.fixed.is_empty() {
            return Ok(());
        }
        let step = if self.geometry.extended { 2 } else { 1 };
        for word in words.iter().step_by(step) {
            if let Some(host) = Geometry::standard_host(*word)
                && meta
                    .refcounts
                    .fixed
                    .contains(&(host >> self.geometry.cluster_bits))
            {
                return Err(self.mark_overlap(io, meta, host).await);
            }
        }
        Ok(())
    }

    /// The error for an entry that the format does not allow.
    pub(super) async fn bad_entry(
        &self,
        io: &Io,
        meta: &mut Meta,
        guest: u64,
        bad: BadEntry,
    ) -> io::Error {
        let (index, _) = self.map.slice_place(self.map.slice_of(guest));
        let why = match self.map.table(index) {
            Err(BadEntry::Unaligned(table)) => {
                let (table, index) = (plain_hex(table), plain_hex(index));
                format!("L2 table offset {table} unaligned (L1 index: {index})")
            }
            _ => format!("the mapping of guest offset {guest:#x} is broken: {bad}"),
        };
        self.mark_corrupt(io, meta, &why).await
    }

    /// Notes that the image is corrupt, in the image too if it is being written; from now on
    /// nothing else is. Returns the error to answer with.
    pub(super) async fn mark_corrupt(&self, io: &Io, meta: &mut Meta, why: &str) -> io::Error {
        self.mark(io, meta, why, None).await
    }

    /// As [`mark_corrupt`](Self::mark_corrupt): what was about to be written at a place in the file
    /// would go over a table.
    pub(super) async fn mark_overlap(&self, io: &Io, meta: &mut Meta, host: u64) -> io::Error {
        let host = match host {
            // Where the header is counted free, so is what follows. Nobody is ever given the first
            // cluster: what is prevented, as in QEMU, is the write over the next table.
            0 => {
                let next = meta.refcounts.fixed.iter().filter(|cluster| **cluster > 0);
                next.min()
                    .map_or(0, |next| next << self.geometry.cluster_bits)
            }
            host => host,
        };
        let table = self.table_at(meta, host >> self.geometry.cluster_bits);
        let why = format!("Preventing invalid write on metadata (overlaps with {table})");
        let place = (host, self.geometry.cluster_size());
        self.mark(io, meta, &why, Some(place)).await
    }

    async fn mark(
        &self,
        io: &Io,
        meta: &mut Meta,
        why: &str,
        place: Option<(u64, u64)>,
    ) -> io::Error {
        if self.corrupt.swap(true, Ordering::SeqCst) {
            return errno(libc::EIO);
        }
        let fatal = self.writing.load(Ordering::SeqCst);
        if fatal && let Err(error) = self.write_corrupt_bit(io, meta).await {
            tracing::error!(node = self.name, %error, "qcow2: cannot mark a corrupt image as such");
        }
        let sink = self.sink.get().cloned().unwrap_or_default();
        sink.send(Corruption {
            node: self.name.clone(),
            driver: "qcow2",
            message: why.to_owned(),
            place,
            fatal,
        });
        errno(libc::EIO)
    }
}

/// As C prints it with `%#x`.
fn plain_hex(number: impl Into<u64>) -> String {
    match number.into() {
        0 => "0".to_owned(),
        number => format!("{number:#x}"),
    }
}
