//! Options that change while a node is in use: read-only to read-write and back.
//!
//! ```text
//!   NodeRef::prepare_reopen ──► Reopening ── commit ──► the new options are in force
//!     opens and checks,            │
//!     changes nothing              └─ drop ──► what was opened is closed, nothing has changed
//! ```
//!
//! Preparing asks for everything that can fail: the file with the other access mode above all,
//! which must be the very same file. Committing cannot fail, and happens while the node is
//! drained.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::node::{Limits, NodeRef};
use crate::spec::{CacheSpec, DetectZeroes, DiscardMode, NodeOptions};

/// A driver's half of a reopening that was prepared. Dropping it gives it up.
pub trait Prepared: Send {
    /// Takes over. Cannot fail.
    fn commit(self: Box<Self>);

    /// What requests must be aligned to from then on, in bytes, where that changes.
    fn alignment(&self) -> Option<u32> {
        None
    }
}

/// An image that was opened in place of the one that a node has. Dropping it gives it up.
pub struct OtherImage {
    /// To be the node's.
    pub image: Box<dyn Prepared>,
    /// The length of its disk in bytes.
    pub len: u64,
    /// Whether its header says that something is behind it.
    pub is_backed: bool,
}

/// For a driver whose body knows none of the options.
pub(crate) struct Untouched;

impl Prepared for Untouched {
    fn commit(self: Box<Self>) {}
}

/// A node about to have other options. Dropping it leaves the node as it is.
#[must_use = "a reopening that is dropped has not happened"]
pub struct Reopening {
    node: NodeRef,
    options: NodeOptions,
    body: Box<dyn Prepared>,
}

impl Reopening {
    pub(crate) fn new(node: NodeRef, options: NodeOptions, body: Box<dyn Prepared>) -> Self {
        Self {
            node,
            options,
            body,
        }
    }

    /// The node that will change.
    #[must_use]
    pub fn node(&self) -> &NodeRef {
        &self.node
    }

    /// The options it will have.
    #[must_use]
    pub fn options(&self) -> NodeOptions {
        self.options
    }

    /// What its requests must be aligned to, in bytes, where that changes.
    pub(crate) fn alignment(&self) -> Option<u32> {
        self.body.alignment()
    }

    /// Makes it so. The node is drained; before it becomes read-only it was settled.
    pub fn commit(self) {
        self.body.commit();
        self.node.set_options(self.options);
    }
}

impl fmt::Debug for Reopening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reopening")
            .field("node", &self.node)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// The options of a node and whether it is active in one byte, read for every request and changed
/// by none.
#[derive(Debug)]
pub(crate) struct OptionsCell(AtomicU8);

const READ_ONLY: u8 = 1;
const AUTO_READ_ONLY: u8 = 1 << 1;
const UNMAP: u8 = 1 << 2;
const DIRECT: u8 = 1 << 3;
const NO_FLUSH: u8 = 1 << 4;
const DETECT: u8 = 1 << 5;
const DETECT_UNMAP: u8 = 1 << 6;
/// Not an option: another process may have the storage.
const INACTIVE: u8 = 1 << 7;

impl OptionsCell {
    pub(crate) fn new(options: NodeOptions) -> Self {
        Self(AtomicU8::new(pack(options)))
    }

    pub(crate) fn load(&self) -> NodeOptions {
        unpack(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn store(&self, options: NodeOptions) {
        let kept = self.0.load(Ordering::Acquire) & INACTIVE;
        self.0.store(pack(options) | kept, Ordering::Release);
    }

    pub(crate) fn is_active(&self) -> bool {
        self.0.load(Ordering::Acquire) & INACTIVE == 0
    }

    /// Whether writes are let through.
    pub(crate) fn is_writable(&self) -> bool {
        self.0.load(Ordering::Acquire) & (READ_ONLY | INACTIVE) == 0
    }

    pub(crate) fn set_active(&self, active: bool) {
        match active {
            true => self.0.fetch_and(!INACTIVE, Ordering::AcqRel),
            false => self.0.fetch_or(INACTIVE, Ordering::AcqRel),
        };
    }
}

fn pack(options: NodeOptions) -> u8 {
    let bits = [
        (options.read_only, READ_ONLY),
        (options.auto_read_only, AUTO_READ_ONLY),
        (options.discard == DiscardMode::Unmap, UNMAP),
        (options.cache.direct, DIRECT),
        (options.cache.no_flush, NO_FLUSH),
        (options.detect_zeroes == DetectZeroes::On, DETECT),
        (options.detect_zeroes == DetectZeroes::Unmap, DETECT_UNMAP),
    ];
    let set = bits.into_iter().filter(|(is_set, _)| *is_set);
    set.fold(0, |sum, (_, bit)| sum | bit)
}

fn unpack(bits: u8) -> NodeOptions {
    let has = |bit| bits & bit != 0;
    NodeOptions {
        read_only: has(READ_ONLY),
        auto_read_only: has(AUTO_READ_ONLY),
        discard: if has(UNMAP) {
            DiscardMode::Unmap
        } else {
            DiscardMode::Ignore
        },
        detect_zeroes: match (has(DETECT), has(DETECT_UNMAP)) {
            (_, true) => DetectZeroes::Unmap,
            (true, false) => DetectZeroes::On,
            (false, false) => DetectZeroes::Off,
        },
        cache: CacheSpec {
            direct: has(DIRECT),
            no_flush: has(NO_FLUSH),
        },
    }
}

/// The limits of a node in one word, read for every request.
#[derive(Debug)]
pub(crate) struct LimitsCell(AtomicU64);

const DISCARD: u64 = 1 << 32;
const WRITE_ZEROES: u64 = 1 << 33;

impl LimitsCell {
    pub(crate) fn new(limits: Limits) -> Self {
        let cell = Self(AtomicU64::new(0));
        cell.store(limits);
        cell
    }

    pub(crate) fn load(&self) -> Limits {
        let word = self.0.load(Ordering::Acquire);
        Limits {
            request_alignment: u32::try_from(word & u64::from(u32::MAX)).unwrap_or(u32::MAX),
            discard: word & DISCARD != 0,
            write_zeroes: word & WRITE_ZEROES != 0,
        }
    }

    pub(crate) fn store(&self, limits: Limits) {
        let mut word = u64::from(limits.request_alignment);
        word |= if limits.discard { DISCARD } else { 0 };
        word |= if limits.write_zeroes { WRITE_ZEROES } else { 0 };
        self.0.store(word, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_come_out_of_their_word_as_they_went_in() {
        for (request_alignment, discard, write_zeroes) in
            [(1, true, false), (4096, false, true), (1 << 31, true, true)]
        {
            let limits = Limits {
                request_alignment,
                discard,
                write_zeroes,
            };
            assert_eq!(LimitsCell::new(limits).load(), limits);
        }
    }

    #[test]
    fn every_combination_of_options_comes_out_as_it_went_in() {
        for bits in 0..=u8::MAX >> 1 {
            if bits & DETECT != 0 && bits & DETECT_UNMAP != 0 {
                continue;
            }
            let options = unpack(bits);
            assert_eq!(pack(options), bits);
            let cell = OptionsCell::new(unpack(0));
            cell.set_active(false);
            cell.store(options);
            assert_eq!((cell.load(), cell.is_active()), (options, false));
            assert!(!cell.is_writable());
            cell.set_active(true);
            assert_eq!((cell.load(), cell.is_active()), (options, true));
            assert_eq!(cell.is_writable(), !options.read_only);
        }
    }
}
