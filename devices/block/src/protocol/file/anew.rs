//! A file node about to have other options: another access mode, the page cache bypassed or not.
//!
//! ```text
//!   other_access ─► the same file, opened once more ─┐
//!   other_cache ──► O_DIRECT switched on or off ─────┴─ Anew ── commit ─► in use
//!                                                        └──── drop ───► as it was
//! ```
//!
//! O_DIRECT belongs to the open file, of which whoever handed it in may have a copy; requests in
//! flight would fail, so users are parked before it is switched.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fdset::{Door, OpenFile};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{Alignment, FileNode, Shape, is_read_only, probe};
use crate::error::BlockError;
use crate::protocol::lock::ImageLock;
use crate::reopen::Prepared;
use crate::slot::Slot;
use crate::spec::NodeOptions;

impl FileNode {
    /// What this node has to do to be as `to` says.
    pub(super) fn anew(&self, door: &Door, to: &NodeOptions) -> Result<Anew, BlockError> {
        let access = self.other_access(door, to)?;
        Ok(Anew {
            cache: self.other_cache(access.as_ref(), to.cache.direct)?,
            access,
            shape: Arc::clone(&self.shape),
            no_flush: to.cache.no_flush,
        })
    }

    /// The file that will be in use, with or without the page cache, where that is to change.
    fn other_cache(
        &self,
        access: Option<&OtherAccess>,
        direct: bool,
    ) -> Result<Option<OtherCache>, BlockError> {
        if self.shape.direct.load(Ordering::Relaxed) == direct {
            return Ok(None);
        }
        let storage = |what| {
            move |source: io::Error| BlockError::Storage {
                node: self.name.clone(),
                filename: self.spec.filename.clone(),
                what,
                source,
            }
        };
        let file = access.map_or_else(|| self.file.load(), |access| Arc::clone(&access.file));
        let switched = Switched::begin(file, direct);
        let switched = switched.map_err(storage("switch O_DIRECT"))?;
        let alignment = probe(switched.file.as_fd()).map_err(storage("read the alignment"))?;
        let len = switched.file.size().map_err(storage("read the size"))?;
        Ok(Some(OtherCache {
            switched,
            direct,
            alignment,
            len,
            resting: self.resting.clone(),
        }))
    }

    /// The file with the other access mode, where `to` takes one.
    fn other_access(
        &self,
        door: &Door,
        to: &NodeOptions,
    ) -> Result<Option<OtherAccess>, BlockError> {
        if is_read_only(&self.file.load()) == to.read_only {
            return Ok(None);
        }
        let file = if to.read_only {
            match self.resting.load() {
                Some(file) => file,
                // Without a read-only fd to go back to, the node keeps the one it has.
                None => match self.open_again(door, to) {
                    Ok(file) => Arc::new(file),
                    Err(_) => return Ok(None),
                },
            }
        } else {
            Arc::new(self.open_again(door, to)?)
        };
        Ok(Some(OtherAccess {
            resting: (self.resting.clone(), !to.read_only),
            slot: self.file.clone(),
            lock: Arc::clone(&self.lock),
            file,
        }))
    }
}

/// A file node about to have other options.
pub(super) struct Anew {
    access: Option<OtherAccess>,
    cache: Option<OtherCache>,
    shape: Arc<Shape>,
    no_flush: bool,
}

impl Prepared for Anew {
    fn commit(self: Box<Self>) {
        self.shape.no_flush.store(self.no_flush, Ordering::Relaxed);
        if let Some(cache) = self.cache {
            self.shape.direct.store(cache.direct, Ordering::Relaxed);
            self.shape.measure(cache.len, cache.alignment);
            cache.switched.keep();
            if let Some(resting) = cache.resting.load() {
                // What it is a file of has just taken this.
                let _took = Switched::begin(resting, cache.direct).map(Switched::keep);
            }
        }
        if let Some(access) = self.access {
            access.commit();
        }
    }

    fn alignment(&self) -> Option<u32> {
        self.cache.as_ref().map(|cache| cache.alignment.request)
    }
}

/// The page cache about to be bypassed, or used again; what the file is like then.
struct OtherCache {
    switched: Switched,
    direct: bool,
    alignment: Alignment,
    len: u64,
    /// The file that is kept for later goes along.
    resting: Slot<Option<Arc<OpenFile>>>,
}

/// A file whose O_DIRECT was switched, and is switched back unless it is kept. Nobody uses the file
/// meanwhile.
struct Switched {
    file: Arc<OpenFile>,
    was: Option<OFlag>,
}

impl Switched {
    fn begin(file: Arc<OpenFile>, direct: bool) -> io::Result<Self> {
        let was = OFlag::from_bits_retain(fcntl(&*file, FcntlArg::F_GETFL)?);
        let mut flags = was;
        flags.set(OFlag::O_DIRECT, direct);
        fcntl(&*file, FcntlArg::F_SETFL(flags))?;
        let was = Some(was);
        Ok(Self { file, was })
    }

    fn keep(mut self) {
        self.was = None;
    }
}

impl Drop for Switched {
    fn drop(&mut self) {
        if let Some(was) = self.was {
            // It had these flags before.
            let _had = fcntl(&*self.file, FcntlArg::F_SETFL(was));
        }
    }
}

/// The file with the other access mode, about to be used.
struct OtherAccess {
    slot: Slot<Arc<OpenFile>>,
    lock: Arc<ImageLock>,
    file: Arc<OpenFile>,
    /// Where a read-only file rests, and whether the one in use now goes there.
    resting: (Slot<Option<Arc<OpenFile>>>, bool),
}

impl OtherAccess {
    fn commit(self) {
        self.lock.move_over(&self.slot.load(), &self.file);
        let old = self.slot.replace(self.file);
        let (resting, keep) = self.resting;
        drop(resting.replace(keep.then_some(old)));
    }
}
