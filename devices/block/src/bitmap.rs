//! Named bitmaps of a node: what was written since somebody asked.
//!
//! ```text
//!   write ends ──► Bitmaps::mark ─┬─► map of bitmap 'a'   recording
//!                                 ├─► map of a job
//!                                 └   map of bitmap 'b'   disabled: stays as it was
//!   add, remove, clear, enable, disable, merge ──► another list, put in place at once
//! ```
//!
//! Changes are made on the main loop while the node is drained. None writes into bits that are
//! there: each makes new ones, so that what was kept ([`Bitmaps::list`]) can be put back
//! ([`Bitmaps::exchange`]) whatever came between: that is how a transaction takes them back.
//!
//! Persistent bitmaps come from an image and go there again when it is settled; how is the format's
//! business ([`crate::format::qcow2`]). This room never reads or writes storage.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::dirty::{DirtyMap, Trackers};

/// The longest name, in bytes.
const MAX_NAME: usize = 1023;
/// The least and greatest granularity of a persistent bitmap, in bytes.
pub(crate) const GRANULARITIES: std::ops::RangeInclusive<u64> = 1 << 9..=1 << 31;

/// One bitmap.
#[derive(Clone, Debug)]
pub struct Bitmap {
    /// Its name, unique in its node.
    pub name: String,
    /// The bytes that one bit stands for: a power of two.
    pub granularity: u64,
    /// Whether writes are recorded.
    pub enabled: bool,
    /// Whether it is stored in the image.
    pub persistent: bool,
    /// Whether it was there when the image was opened.
    pub from_image: bool,
    /// The bits; `None` if it is inconsistent: somebody wrote and could not store them.
    pub map: Option<Arc<DirtyMap>>,
}

impl Bitmap {
    /// What it marks.
    ///
    /// # Errors
    /// It says nothing any more.
    pub(crate) fn marks(&self) -> Result<Arc<DirtyMap>, BitmapError> {
        consistent(self)
    }
}

/// Why a bitmap is not there or cannot be changed. The texts are QEMU's.
#[derive(Debug, thiserror::Error)]
pub enum BitmapError {
    /// No bitmap of this name.
    #[error("Dirty bitmap '{0}' not found")]
    NotFound(String),
    /// There is one of this name.
    #[error("Bitmap already exists: {0}")]
    Exists(String),
    /// A bitmap must have a name.
    #[error("Bitmap name cannot be empty")]
    NoName,
    /// The name is longer than 1023 bytes.
    #[error("Bitmap name too long: {0}")]
    LongName(String),
    /// Not a power of two, or less than a sector.
    #[error("Granularity must be power of 2 and at least 512")]
    Granularity,
    /// The map would need more memory than there is for it.
    #[error(
        "Bitmap '{0}' would have more than 2^32 bits: use larger granularity (the default fits \
         most disks)"
    )]
    TooFine(String),
    /// Its node is read-only and it is stored there.
    #[error("Bitmap '{0}' is readonly and cannot be modified")]
    ReadOnly(String),
    /// It says nothing any more.
    #[error("Bitmap '{0}' is inconsistent and cannot be used")]
    Inconsistent(String),
    /// What is merged has another length.
    #[error(
        "Bitmaps are of different sizes (destination size is {into}, source size is {from}) and \
         can't be merged"
    )]
    Sizes {
        /// The length of the node with the target, in bytes.
        into: u64,
        /// The length of the node with the source.
        from: u64,
    },
    /// The image or its format keeps no bitmap, or not this one.
    #[error("{0}")]
    NotStorable(String),
}

/// What one change does. Names are of bitmaps of the node.
#[derive(Clone, Debug)]
pub enum BitmapChange {
    /// One more bitmap.
    Add {
        /// Its name.
        name: String,
        /// Bytes for a bit; `None`: as the image suggests.
        granularity: Option<u64>,
        /// Whether it is stored in the image.
        persistent: bool,
        /// Whether it records from the start.
        enabled: bool,
    },
    /// One less, in the image too.
    Remove(String),
    /// Forgets what it recorded.
    Clear(String),
    /// Records from now on.
    Enable(String),
    /// Records no more.
    Disable(String),
    /// Marks in it what others mark.
    Merge {
        /// Into which.
        target: String,
        /// What is merged, in any order.
        sources: Vec<Bitmap>,
    },
}

/// A node's bitmaps, and whatever else wants to know of its writes.
#[derive(Debug, Default)]
pub struct Bitmaps {
    trackers: Trackers,
    list: Mutex<Vec<Bitmap>>,
}

impl Bitmaps {
    /// Bitmaps that an image brings.
    pub(crate) fn loaded(list: Vec<Bitmap>) -> Self {
        let bitmaps = Self::default();
        bitmaps.exchange(list);
        bitmaps
    }

    /// Marks a range where it is recorded.
    pub(crate) fn mark(&self, offset: u64, len: u64) {
        self.trackers.mark(offset, len);
    }

    pub(crate) fn trackers(&self) -> &Trackers {
        &self.trackers
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Bitmap>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, in the order they came.
    #[must_use]
    pub fn list(&self) -> Vec<Bitmap> {
        self.locked().clone()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.locked().is_empty()
    }

    /// The bitmap of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, name: &str) -> Result<Bitmap, BitmapError> {
        let list = self.locked();
        let found = list.iter().find(|bitmap| bitmap.name == name);
        found
            .cloned()
            .ok_or_else(|| BitmapError::NotFound(name.to_owned()))
    }

    /// Puts others in place of all. The node is drained, or nobody writes to it yet.
    pub fn exchange(&self, list: Vec<Bitmap>) {
        let old = std::mem::replace(&mut *self.locked(), list.clone());
        self.trackers.exchange(&recording(&old), &recording(&list));
    }

    /// The node has another length now. It is drained.
    pub(crate) fn resize(&self, len: u64) {
        self.renew(|map| map.resized(len));
    }

    /// The node has another content now, of this length. It is drained.
    pub(crate) fn mark_all(&self, len: u64) {
        self.renew(|map| map.resized(len));
        for map in recording(&self.list()) {
            map.mark(0, len);
        }
    }

    /// As [`mark_all`](Self::mark_all), for those that no image keeps: somebody else wrote.
    pub(crate) fn mark_unkept(&self, len: u64) {
        let mut list = self.list();
        for bitmap in list.iter_mut().filter(|bitmap| !bitmap.persistent) {
            let resized = bitmap.map.as_deref().map(|map| Arc::new(map.resized(len)));
            if let Some(map) = resized.as_ref().filter(|_| bitmap.enabled) {
                map.mark(0, len);
            }
            bitmap.map = resized;
        }
        self.exchange(list);
    }

    /// Puts what an image keeps by now in place of what it kept. The node is drained.
    pub(crate) fn reload(&self, kept: Vec<Bitmap>) {
        let others = self.list().into_iter();
        let named = |name: &str| kept.iter().any(|bitmap| bitmap.name == name);
        let others = others.filter(|bitmap| !bitmap.persistent && !named(&bitmap.name));
        let list = others.collect::<Vec<_>>();
        self.exchange(kept.into_iter().chain(list).collect());
    }

    fn renew(&self, new: impl Fn(&DirtyMap) -> DirtyMap) {
        let mut list = self.list();
        for bitmap in &mut list {
            bitmap.map = bitmap.map.as_deref().map(|map| Arc::new(new(map)));
        }
        self.exchange(list);
    }

    /// Makes one change of a node of `len` bytes; `suggested` is the granularity where none is
    /// wanted. The node is drained.
    ///
    /// # Errors
    /// It cannot be made; nothing has changed then.
    pub(crate) fn change(
        &self,
        change: BitmapChange,
        len: u64,
        suggested: u64,
        read_only: bool,
    ) -> Result<(), BitmapError> {
        let mut list = self.list();
        match change {
            BitmapChange::Add {
                name,
                granularity,
                persistent,
                enabled,
            } => {
                let granularity = granularity.unwrap_or(suggested);
                check_new(&list, &name, granularity, len)?;
                list.push(Bitmap {
                    map: Some(Arc::new(DirtyMap::new(len, granularity))),
                    name,
                    granularity,
                    enabled,
                    persistent,
                    from_image: false,
                });
            }
            BitmapChange::Remove(name) => {
                let at = position(&list, &name)?;
                writable(&list[at], read_only)?;
                list.remove(at);
            }
            BitmapChange::Clear(name) => {
                let at = position(&list, &name)?;
                let map = usable(&list[at], read_only)?;
                list[at].map = Some(Arc::new(DirtyMap::new(map.len(), map.granularity())));
            }
            BitmapChange::Enable(name) => {
                let at = position(&list, &name)?;
                consistent(&list[at])?;
                list[at].enabled = true;
            }
            BitmapChange::Disable(name) => {
                let at = position(&list, &name)?;
                consistent(&list[at])?;
                list[at].enabled = false;
            }
            BitmapChange::Merge { target, sources } => {
                let at = position(&list, &target)?;
                let map = usable(&list[at], read_only)?;
                list[at].map = Some(Arc::new(merged(&map, &sources)?));
            }
        }
        self.exchange(list);
        Ok(())
    }
}

/// The bits of a target with those of all sources.
fn merged(target: &DirtyMap, sources: &[Bitmap]) -> Result<DirtyMap, BitmapError> {
    let map = target.resized(target.len());
    for source in sources {
        let from = consistent(source)?;
        if from.len() != map.len() {
            return Err(BitmapError::Sizes {
                into: map.len(),
                from: from.len(),
            });
        }
        map.merge(&from);
    }
    Ok(map)
}

fn check_new(list: &[Bitmap], name: &str, granularity: u64, len: u64) -> Result<(), BitmapError> {
    if name.is_empty() {
        return Err(BitmapError::NoName);
    }
    if granularity < 512 || !granularity.is_power_of_two() {
        return Err(BitmapError::Granularity);
    }
    if list.iter().any(|bitmap| bitmap.name == name) {
        return Err(BitmapError::Exists(name.to_owned()));
    }
    if name.len() > MAX_NAME {
        return Err(BitmapError::LongName(name.to_owned()));
    }
    if len / granularity >= 1 << 32 {
        return Err(BitmapError::TooFine(name.to_owned()));
    }
    Ok(())
}

fn position(list: &[Bitmap], name: &str) -> Result<usize, BitmapError> {
    let found = list.iter().position(|bitmap| bitmap.name == name);
    found.ok_or_else(|| BitmapError::NotFound(name.to_owned()))
}

fn writable(bitmap: &Bitmap, read_only: bool) -> Result<(), BitmapError> {
    if read_only && bitmap.persistent {
        return Err(BitmapError::ReadOnly(bitmap.name.clone()));
    }
    Ok(())
}

fn consistent(bitmap: &Bitmap) -> Result<Arc<DirtyMap>, BitmapError> {
    let map = bitmap.map.clone();
    map.ok_or_else(|| BitmapError::Inconsistent(bitmap.name.clone()))
}

fn usable(bitmap: &Bitmap, read_only: bool) -> Result<Arc<DirtyMap>, BitmapError> {
    writable(bitmap, read_only)?;
    consistent(bitmap)
}

fn recording(list: &[Bitmap]) -> Vec<Arc<DirtyMap>> {
    let enabled = list.iter().filter(|bitmap| bitmap.enabled);
    enabled.filter_map(|bitmap| bitmap.map.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = 1 << 20;

    fn make(bitmaps: &Bitmaps, change: BitmapChange) -> Result<(), String> {
        let made = bitmaps.change(change, LEN, 65536, false);
        made.map_err(|error| error.to_string())
    }

    fn add(name: &str, granularity: Option<u64>) -> BitmapChange {
        BitmapChange::Add {
            name: name.to_owned(),
            granularity,
            persistent: false,
            enabled: true,
        }
    }

    fn count(bitmaps: &Bitmaps, name: &str) -> u64 {
        let found = bitmaps.find(name).expect("there");
        found.map.expect("consistent").count()
    }

    #[test]
    fn only_enabled_bitmaps_record() {
        let bitmaps = Bitmaps::default();
        make(&bitmaps, add("a", None)).expect("added");
        make(&bitmaps, add("b", Some(512))).expect("added");
        bitmaps.mark(0, 1);
        make(&bitmaps, BitmapChange::Disable("a".to_owned())).expect("disabled");
        bitmaps.mark(512 << 10, 4096);
        assert_eq!(
            (count(&bitmaps, "a"), count(&bitmaps, "b")),
            (65536, 512 + 4096)
        );
        make(&bitmaps, BitmapChange::Enable("a".to_owned())).expect("enabled");
        bitmaps.mark(512 << 10, 4096);
        assert_eq!(count(&bitmaps, "a"), 2 * 65536);
    }

    #[test]
    fn list_that_was_kept_comes_back_with_its_bits() {
        let bitmaps = Bitmaps::default();
        make(&bitmaps, add("a", None)).expect("added");
        make(&bitmaps, add("b", None)).expect("added");
        bitmaps.mark(0, LEN);
        let before = bitmaps.list();
        make(&bitmaps, BitmapChange::Clear("a".to_owned())).expect("cleared");
        make(&bitmaps, BitmapChange::Remove("b".to_owned())).expect("removed");
        assert_eq!(count(&bitmaps, "a"), 0);
        bitmaps.exchange(before);
        assert_eq!((count(&bitmaps, "a"), count(&bitmaps, "b")), (LEN, LEN));
        make(&bitmaps, BitmapChange::Clear("b".to_owned())).expect("cleared");
        bitmaps.mark(0, 1);
        assert_eq!(count(&bitmaps, "b"), 65536);
    }

    #[test]
    fn merge_takes_all_sources_or_none() {
        let bitmaps = Bitmaps::default();
        for name in ["a", "b"] {
            make(&bitmaps, add(name, None)).expect("added");
        }
        make(&bitmaps, BitmapChange::Disable("a".to_owned())).expect("disabled");
        bitmaps.mark(0, 1);
        let marked = bitmaps.find("b").expect("there");
        let short = Bitmap {
            map: Some(Arc::new(DirtyMap::new(LEN / 2, 65536))),
            ..marked.clone()
        };
        let merge = |sources| BitmapChange::Merge {
            target: "a".to_owned(),
            sources,
        };
        let refused = make(&bitmaps, merge(vec![marked.clone(), short])).expect_err("sizes");
        assert!(refused.contains("destination size is 1048576, source size is 524288"));
        assert_eq!(count(&bitmaps, "a"), 0);
        make(&bitmaps, merge(vec![marked])).expect("merged");
        assert_eq!(count(&bitmaps, "a"), 65536);
    }

    #[test]
    fn wrong_changes_are_refused_with_the_texts_that_clients_know() {
        let bitmaps = Bitmaps::default();
        make(&bitmaps, add("a", None)).expect("added");
        let refused = |change| make(&bitmaps, change).expect_err("refused");
        assert_eq!(refused(add("a", None)), "Bitmap already exists: a");
        assert_eq!(refused(add("", None)), "Bitmap name cannot be empty");
        for granularity in [0, 511, 513] {
            let told = refused(add("b", Some(granularity)));
            assert_eq!(told, "Granularity must be power of 2 and at least 512");
        }
        let told = refused(BitmapChange::Clear("b".to_owned()));
        assert_eq!(told, "Dirty bitmap 'b' not found");
        let mut list = bitmaps.list();
        list[0].map = None;
        list[0].persistent = true;
        bitmaps.exchange(list);
        let told = refused(BitmapChange::Enable("a".to_owned()));
        assert_eq!(told, "Bitmap 'a' is inconsistent and cannot be used");
        let kept = bitmaps.change(BitmapChange::Remove("a".to_owned()), LEN, 65536, true);
        let told = kept.expect_err("read-only").to_string();
        assert_eq!(told, "Bitmap 'a' is readonly and cannot be modified");
        make(&bitmaps, BitmapChange::Remove("a".to_owned())).expect("removed");
    }

    #[test]
    fn bitmaps_follow_the_length_of_their_node() {
        let bitmaps = Bitmaps::default();
        make(&bitmaps, add("a", None)).expect("added");
        bitmaps.mark(0, LEN);
        bitmaps.resize(LEN / 2);
        assert_eq!(count(&bitmaps, "a"), LEN / 2);
        bitmaps.resize(2 * LEN);
        assert_eq!(count(&bitmaps, "a"), LEN / 2);
        bitmaps.mark(2 * LEN - 1, 1);
        assert_eq!(count(&bitmaps, "a"), LEN / 2 + 65536);
    }
}
