//! Bitmaps between the file and memory.
//!
//! ```text
//!   open ─► load: directory ─► tables ─► bits                  marked in use, if it may be written
//!   settle ─► store, so that a crash leaves leaks at worst:
//!      1  bits, tables, directory, to places that nothing refers to; refcounts    ─ sync ─┐
//!      2  header: where the directory is                                          ─ sync ─┤
//!      3  old directory, tables and bits are let go of                     next rounds ◄──┘
//! ```
//!
//! A bitmap that is inconsistent has no bits in memory: its entry and what it refers to stay as
//! they are, until somebody removes it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::bitmaps::{self, Bitmap as Entry, data_clusters};
use super::bytes::{from_words, words};
use super::error::ImageError;
use super::features::AutoClear;
use super::geometry::{Geometry, MAX_HOST};
use super::header::{BitmapsExtension, Header};
use super::image::{Image, Meta};
use super::storage::Storage;
use crate::bitmap::{Bitmap, GRANULARITIES};
use crate::dirty::DirtyMap;
use crate::engine::Io;

/// The most bytes of bits that one image's bitmaps may have in memory.
const MAX_BITS: u64 = 256 << 20;
/// The most bytes of bits of one bitmap, as QEMU has it.
const MAX_BITMAP: u64 = 512 << 20;
/// The most bitmaps of an image.
const MAX_COUNT: usize = 65535;
/// The least and the greatest directory entry's fixed part and alignment, for a guess upwards.
const ENTRY_ROOM: u64 = 32;
/// The longest directory that is made, in bytes.
const MAX_DIRECTORY: u64 = 16 << 20;
/// An entry of a table whose bits are all set.
const ALL_ONES: u64 = 1;

/// How many bytes of bits a disk of this length needs.
fn bytes_of_bits(len: u64, granularity: u64) -> u64 {
    len.div_ceil(granularity).div_ceil(8)
}

/// Reads the bitmaps of an image that is being opened.
pub(super) async fn load(
    io: &Io,
    file: &Storage,
    header: &Header,
) -> Result<Vec<Bitmap>, ImageError> {
    let geometry = header.geometry();
    let consistent = header.autoclear.contains(AutoClear::BITMAPS);
    let Some(extension) = header.bitmaps.filter(|_| consistent) else {
        return Ok(Vec::new());
    };
    let (_, entries) = bitmaps::read(io, file, extension, geometry).await?;
    let mut room = MAX_BITS;
    let mut list = Vec::with_capacity(entries.len());
    for entry in entries {
        let granularity = 1 << entry.granularity_bits;
        let map = if entry.is_in_use() {
            None
        } else {
            let needed = bytes_of_bits(header.size, granularity);
            room = room.checked_sub(needed).ok_or_else(|| {
                let why = format!("their bits need more than {MAX_BITS} bytes of memory");
                broken(why)
            })?;
            Some(Arc::new(
                load_map(io, file, geometry, header.size, &entry).await?,
            ))
        };
        list.push(Bitmap {
            enabled: entry.is_auto() && map.is_some(),
            name: entry.name,
            granularity,
            persistent: true,
            from_image: true,
            map,
        });
    }
    Ok(list)
}

fn broken(why: String) -> ImageError {
    ImageError::Extension {
        name: "bitmaps",
        why,
    }
}

async fn load_map(
    io: &Io,
    file: &Storage,
    geometry: Geometry,
    len: u64,
    entry: &Entry,
) -> Result<DirtyMap, ImageError> {
    let granularity = 1 << entry.granularity_bits;
    let size = geometry.cluster_size();
    let wrong = || {
        let name = &entry.name;
        broken(format!("the table of bitmap '{name}' is impossible"))
    };
    let wanted = geometry.clusters(bytes_of_bits(len, granularity));
    if u64::from(entry.table_entries) != wanted {
        return Err(wrong());
    }
    let table = file.read(io, entry.table_offset, wanted * 8).await;
    let table = words(&table.map_err(ImageError::storage("read the table of a bitmap"))?);
    let mut bits = Vec::new();
    for place in table {
        match place {
            0 => bits.resize(bits.len() + words_in(size), 0),
            ALL_ONES => bits.resize(bits.len() + words_in(size), u64::MAX),
            place if geometry.is_aligned(place) && place < MAX_HOST => {
                let bytes = file.read(io, place, size).await;
                let bytes = bytes.map_err(ImageError::storage("read the bits of a bitmap"))?;
                let (chunks, _) = bytes.as_chunks::<8>();
                bits.extend(chunks.iter().map(|chunk| u64::from_le_bytes(*chunk)));
            }
            _ => return Err(wrong()),
        }
    }
    Ok(DirtyMap::from_words(len, granularity, bits))
}

fn words_in(cluster: u64) -> usize {
    usize::try_from(cluster / 8).unwrap_or(usize::MAX)
}

/// Places that were taken for what is not referred to yet: offset and clusters.
type Taken = Vec<(u64, u64)>;

impl Image {
    /// Whether one more bitmap could be stored.
    ///
    /// # Errors
    /// Why not, in QEMU's words.
    pub(super) fn check_storable(&self, name: &str, granularity: u64) -> Result<(), String> {
        let refused = |why: &str| {
            let what = format!("Can't make bitmap '{name}' persistent in '{{node}}'");
            Err(format!("{what}: {why}"))
        };
        if !self.geometry.zero_flag {
            return refused("Cannot store dirty bitmaps in qcow2 v2 files");
        }
        if !GRANULARITIES.contains(&granularity) {
            return refused("Granularity is not between 512 bytes and 2 GiB");
        }
        let stored = self.bitmaps.list().into_iter().filter(|one| one.persistent);
        let stored: Vec<Bitmap> = stored.collect();
        if stored.iter().any(|bitmap| bitmap.name == name) {
            return refused(&format!("Bitmap already exists: {name}"));
        }
        let needed = |granularity| bytes_of_bits(self.size.load(Ordering::Relaxed), granularity);
        let all: u64 = stored.iter().map(|one| needed(one.granularity)).sum();
        let own = needed(granularity);
        if own > MAX_BITMAP || all.saturating_add(own) > MAX_BITS {
            return refused(
                "Too much space will be occupied by the bitmap. Use larger granularity",
            );
        }
        if stored.len() >= MAX_COUNT {
            return refused("Maximum number of persistent bitmaps is already reached");
        }
        let names = stored.iter().map(|one| one.name.as_str()).chain([name]);
        let directory: u64 = names.map(|name| name.len() as u64 + ENTRY_ROOM).sum();
        if directory > MAX_DIRECTORY {
            return refused("Not enough space in the bitmap directory");
        }
        Ok(())
    }

    /// Has the file say that its bitmaps are out of date.
    pub(super) async fn claim_bitmaps(&self, io: &Io) -> io::Result<()> {
        let mut meta = self.meta.take().await;
        self.begin_writing(io, &mut meta).await
    }

    /// Stores what is in memory, if it is not what the file has.
    pub(super) async fn store_bitmaps(&self, io: &Io, meta: &mut Meta) -> io::Result<()> {
        let (bytes, old) = self.bitmaps(io, meta).await?.unwrap_or_default();
        // Behind those that came with the image the newest first: the order that QEMU leaves.
        let all = self.bitmaps.list().into_iter();
        let all = all.filter(|bitmap| bitmap.persistent);
        let (mut new, added): (Vec<Bitmap>, Vec<Bitmap>) = all.partition(|one| one.from_image);
        new.extend(added.into_iter().rev());
        let unchanged = new.iter().all(|bitmap| bitmap.map.is_none()) && new.len() == old.len();
        if unchanged {
            return Ok(());
        }
        let mut taken = Taken::new();
        let written = self.write_bitmaps(io, meta, &new, (&bytes, &old), &mut taken);
        let extension = match written.await {
            Ok(extension) => extension,
            Err(error) => {
                for (offset, clusters) in taken {
                    self.take_back(io, meta, offset, clusters).await?;
                }
                return Err(error);
            }
        };
        self.write_back(io, meta).await?;
        let gone = self.replaced(io, meta, &old, &new).await?;
        self.name_directory(io, meta, extension).await?;
        for (offset, len) in gone {
            let bits = self.geometry.cluster_bits;
            meta.let_go(offset >> bits, self.geometry.clusters(len), false);
        }
        meta.bitmaps_marked = false;
        self.unsaved.store(true, Ordering::SeqCst);
        self.note_fixed(meta);
        Ok(())
    }

    /// Step 1: all that is new.
    async fn write_bitmaps(
        &self,
        io: &Io,
        meta: &mut Meta,
        list: &[Bitmap],
        (bytes, old): (&[u8], &[Entry]),
        taken: &mut Taken,
    ) -> io::Result<Option<BitmapsExtension>> {
        let mut directory = Vec::new();
        let mut count = 0;
        for bitmap in list {
            if let Some(map) = &bitmap.map {
                let table = self.write_map(io, meta, map, taken).await?;
                let (enabled, granularity) = (bitmap.enabled, bitmap.granularity);
                directory.extend(bitmaps::encode(&bitmap.name, enabled, granularity, table));
            } else if let Some(entry) = old.iter().find(|entry| entry.name == bitmap.name) {
                let kept = bytes.get(entry.at..entry.at + entry.len);
                directory.extend(kept.unwrap_or_default());
            } else {
                continue;
            }
            count += 1;
        }
        if count == 0 {
            return Ok(None);
        }
        let directory_offset = self.place_bytes(io, meta, &directory, taken).await?;
        Ok(Some(BitmapsExtension {
            count,
            directory_size: directory.len() as u64,
            directory_offset,
        }))
    }

    /// Writes the bits of one bitmap, and the table of their places; where that is.
    async fn write_map(
        &self,
        io: &Io,
        meta: &mut Meta,
        map: &DirtyMap,
        taken: &mut Taken,
    ) -> io::Result<(u64, u32)> {
        let size = self.geometry.cluster_size();
        let entries = self
            .geometry
            .clusters(bytes_of_bits(map.len(), map.granularity()));
        let mut bits = map.words();
        let mut table = Vec::new();
        for _ in 0..entries {
            let words: Vec<u64> = bits.by_ref().take(words_in(size)).collect();
            if words.iter().all(|word| *word == 0) {
                table.push(0);
                continue;
            }
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.resize(words_in(size) * 8, 0);
            table.push(self.place_bytes(io, meta, &bytes, taken).await?);
        }
        if table.is_empty() {
            // A disk without a byte: a table must be somewhere all the same.
            return Ok((self.place_bytes(io, meta, &[0; 8], taken).await?, 0));
        }
        let place = self
            .place_bytes(io, meta, &from_words(&table), taken)
            .await?;
        Ok((place, u32::try_from(entries).map_err(io::Error::other)?))
    }

    /// Writes bytes to a new place, with zeros to the end of their last cluster.
    async fn place_bytes(
        &self,
        io: &Io,
        meta: &mut Meta,
        bytes: &[u8],
        taken: &mut Taken,
    ) -> io::Result<u64> {
        let clusters = self.geometry.clusters(bytes.len() as u64);
        let place = self.allocate_tables(io, meta, clusters).await?;
        taken.push((place, clusters));
        let mut whole = bytes.to_vec();
        let size = usize::try_from(clusters << self.geometry.cluster_bits);
        whole.resize(size.map_err(io::Error::other)?, 0);
        self.file().write(io, place, &whole).await?;
        Ok(place)
    }

    /// What the file will not refer to any more: offsets and lengths in bytes.
    async fn replaced(
        &self,
        io: &Io,
        meta: &Meta,
        old: &[Entry],
        new: &[Bitmap],
    ) -> io::Result<Vec<(u64, u64)>> {
        let mut gone = Vec::new();
        if let Some(extension) = meta.header.bitmaps.filter(|_| !old.is_empty()) {
            gone.push((extension.directory_offset, extension.directory_size));
        }
        for entry in old {
            let stays = |bitmap: &Bitmap| bitmap.name == entry.name && bitmap.map.is_none();
            if new.iter().any(stays) {
                continue;
            }
            let len = u64::from(entry.table_entries) * 8;
            let table = self.file().read(io, entry.table_offset, len).await?;
            let size = self.geometry.cluster_size();
            gone.extend(data_clusters(&words(&table)).map(|offset| (offset, size)));
            gone.push((entry.table_offset, len));
        }
        Ok(gone)
    }

    /// Step 2.
    async fn name_directory(
        &self,
        io: &Io,
        meta: &mut Meta,
        extension: Option<BitmapsExtension>,
    ) -> io::Result<()> {
        let before = meta.header.clone();
        meta.header.bitmaps = extension;
        meta.header
            .autoclear
            .set(AutoClear::BITMAPS, extension.is_some());
        let saved = match self.save_header(io, meta).await {
            Ok(_) => self.file().flush(io).await,
            Err(error) => Err(error),
        };
        if saved.is_err() {
            // It may name the new directory, or the old one, until it is written again: whole, and
            // before anything else is.
            meta.header = before;
            meta.header_bytes.iter_mut().for_each(|byte| *byte = !*byte);
            self.writing.store(false, Ordering::SeqCst);
        }
        saved
    }
}
