//! What an operation reads into or writes from: lists of memory pieces that stay alive.
//!
//! ```text
//!   Segments   [ piece | piece | piece ]      in guest memory (kept by its Arc), or owned
//!   Window          [ ── from, len ── ]       the part one operation moves
//! ```
#![expect(
    unsafe_code,
    reason = "hands addresses of guest memory to the kernel and copies there"
)]
// UNSAFETY: guest memory is reached by address, because the kernel's readv/writev take addresses.
// Every address here comes from a checked slice of a view (or from an allocation) that the same
// value keeps alive. Guest memory may change under a copy: only bytes are copied, and no reference
// to it is ever made.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::mem;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::Arc;

use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// One consistent view of guest memory.
pub type GuestView = GuestMemoryMmap<AtomicBitmap>;

/// A guest buffer does not lie in guest memory, wholly.
#[derive(Debug, thiserror::Error)]
#[error("guest buffer of {len} bytes at {address:#x} is not inside guest memory")]
pub struct OutsideMemory {
    /// The guest physical address of the buffer.
    pub address: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// Host memory of its own, zeroed and aligned: bounce buffers, zeros, metadata.
#[derive(Debug)]
pub struct AlignedBuf {
    start: NonNull<u8>,
    layout: Layout,
}

impl AlignedBuf {
    /// Zeroed memory of `len` bytes at an address that is a multiple of `alignment`.
    ///
    /// # Errors
    /// `alignment` is not a power of two, or the size is absurd.
    pub fn zeroed(len: usize, alignment: usize) -> std::io::Result<Self> {
        let layout = Layout::from_size_align(len.max(1), alignment)
            .map_err(|_| std::io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        match NonNull::new(start) {
            Some(start) => Ok(Self { start, layout }),
            None => handle_alloc_error(layout),
        }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `zeroed`, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// What keeps the memory of some segments alive.
#[derive(Clone, Debug)]
pub(super) enum Keep {
    Nothing,
    Guest { _view: Arc<GuestView> },
    Owned { _buffer: Rc<AlignedBuf> },
}

/// A list of memory pieces, read or written as if they were one.
///
/// The list keeps its memory alive, and so does every operation that was started on it. Reuse one
/// list for many requests ([`reset`](Self::reset)): it allocates only while it grows.
#[derive(Debug)]
pub struct Segments {
    pieces: Vec<libc::iovec>,
    /// Where each piece lies in the guest, for the dirty bitmap. Empty for owned memory.
    addresses: Vec<GuestAddress>,
    len: u64,
    view: Option<Arc<GuestView>>,
    owned: Option<Rc<AlignedBuf>>,
}

impl Segments {
    /// An empty list with room for `pieces` pieces.
    pub fn with_capacity(pieces: usize) -> Self {
        Self {
            pieces: Vec::with_capacity(pieces),
            addresses: Vec::with_capacity(pieces),
            len: 0,
            view: None,
            owned: None,
        }
    }

    /// One piece of zeroed host memory, aligned to `alignment` bytes.
    ///
    /// # Errors
    /// As [`AlignedBuf::zeroed`].
    pub fn owned(len: usize, alignment: usize) -> std::io::Result<Self> {
        let buffer = AlignedBuf::zeroed(len, alignment)?;
        let piece = libc::iovec {
            iov_base: buffer.start.as_ptr().cast(),
            iov_len: len,
        };
        Ok(Self {
            pieces: vec![piece],
            addresses: Vec::new(),
            len: len as u64,
            view: None,
            owned: Some(Rc::new(buffer)),
        })
    }

    /// Empties the list; pieces pushed from now on lie in `view`.
    pub fn reset(&mut self, view: Arc<GuestView>) {
        self.clear();
        self.view = Some(view);
    }

    /// Empties the list and lets go of the memory.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.addresses.clear();
        self.len = 0;
        self.view = None;
        self.owned = None;
    }

    /// Adds a buffer of the guest. One that crosses regions of memory becomes several pieces.
    ///
    /// # Errors
    /// The buffer is not wholly inside the view given to [`reset`](Self::reset).
    pub fn push_guest(&mut self, address: u64, len: u32) -> Result<(), OutsideMemory> {
        let outside = || OutsideMemory {
            address,
            len: u64::from(len),
        };
        let view = self.view.as_ref().ok_or_else(outside)?;
        let mut next = address;
        for slice in view.get_slices(GuestAddress(address), len as usize) {
            let slice = slice.map_err(|_| outside())?;
            let start = slice.ptr_guard_mut().as_ptr();
            self.pieces.push(libc::iovec {
                iov_base: start.cast(),
                iov_len: slice.len(),
            });
            self.addresses.push(GuestAddress(next));
            next = next.checked_add(slice.len() as u64).ok_or_else(outside)?;
        }
        self.len = self.len.checked_add(u64::from(len)).ok_or_else(outside)?;
        Ok(())
    }

    /// Where the pieces lie in the guest, and how long each is.
    pub fn guest_pieces(&self) -> impl Iterator<Item = (u64, u32)> {
        let pieces = self.addresses.iter().zip(&self.pieces);
        pieces.filter_map(|(address, piece)| Some((address.0, u32::try_from(piece.iov_len).ok()?)))
    }

    /// Bytes in all pieces together.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many pieces there are.
    #[cfg(test)]
    fn piece_count(&self) -> usize {
        self.pieces.len()
    }

    /// All of it.
    pub fn all(&self) -> Window<'_> {
        Window {
            segments: self,
            from: 0,
            len: self.len,
        }
    }

    /// Marks the first `len` bytes dirty in the guest memory's bitmap: KVM's own log does not see
    /// what the kernel writes on behalf of the ring.
    pub fn mark_dirty(&self, len: u64) {
        let Some(view) = self.view.as_ref() else {
            return;
        };
        let mut left = len;
        for (piece, address) in self.pieces.iter().zip(&self.addresses) {
            if left == 0 {
                return;
            }
            let part = left.min(piece.iov_len as u64);
            if let Some((region, offset)) = view.to_region_addr(*address)
                && let (Ok(offset), Ok(part)) = (usize::try_from(offset.0), usize::try_from(part))
            {
                vm_memory::GuestMemoryRegion::bitmap(region).mark_dirty(offset, part);
            }
            left -= part;
        }
    }

    /// Whether no operation has a share of its own memory any more.
    fn is_alone(&self) -> bool {
        self.owned
            .as_ref()
            .is_some_and(|buffer| Rc::strong_count(buffer) == 1)
    }

    pub(super) fn keep(&self) -> Keep {
        match (&self.view, &self.owned) {
            (Some(view), _) => Keep::Guest {
                _view: Arc::clone(view),
            },
            (None, Some(buffer)) => Keep::Owned {
                _buffer: Rc::clone(buffer),
            },
            (None, None) => Keep::Nothing,
        }
    }
}

/// Memory that was used and may be used again, for work that needs much of it again and again. To
/// get it anew is to have the kernel fill it with zeros, page by page.
#[derive(Debug, Default)]
pub(super) struct Stock {
    free: RefCell<Vec<Segments>>,
}

impl Stock {
    /// How many buffers it keeps.
    const MOST: usize = 16;

    pub(super) fn lend(self: &Rc<Self>, len: usize) -> std::io::Result<Lent> {
        let mut free = self.free.borrow_mut();
        let long = free.iter().rposition(|buffer| buffer.len >= len as u64);
        let memory = match long {
            Some(index) => free.swap_remove(index),
            None => {
                // One that is too short makes room for one that is not.
                drop(free.pop());
                Segments::owned(len, Lent::ALIGNMENT)?
            }
        };
        Ok(Lent {
            memory,
            stock: Some(Rc::clone(self)),
        })
    }
}

/// Memory with anything in it, and at least as much as was asked for. It goes back to its stock, if
/// it has one.
#[derive(Debug)]
pub(crate) struct Lent {
    memory: Segments,
    stock: Option<Rc<Stock>>,
}

impl Lent {
    const ALIGNMENT: usize = 4096;

    /// Memory of no stock.
    pub(super) fn new(len: usize) -> std::io::Result<Self> {
        Ok(Self {
            memory: Segments::owned(len, Self::ALIGNMENT)?,
            stock: None,
        })
    }

    /// The first `len` bytes.
    pub(crate) fn part(&self, len: u64) -> Window<'_> {
        self.memory.all().part(0, len)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // An operation that nobody waits for any more may still be reading into it.
        if let Some(stock) = &self.stock
            && self.memory.is_alone()
        {
            let mut free = stock.free.borrow_mut();
            if free.len() < Stock::MOST {
                free.push(mem::replace(&mut self.memory, Segments::with_capacity(0)));
            }
        }
    }
}

/// A part of a list of segments: what one operation moves.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    segments: &'a Segments,
    from: u64,
    len: u64,
}

impl<'a> Window<'a> {
    /// Bytes in the window.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the window has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part of at most `len` bytes that starts `from` bytes into this window.
    pub fn part(&self, from: u64, len: u64) -> Window<'a> {
        let from = from.min(self.len);
        Window {
            segments: self.segments,
            from: self.from + from,
            len: len.min(self.len - from),
        }
    }

    pub(super) fn segments(&self) -> &'a Segments {
        self.segments
    }

    /// The pieces of the window, cut at its ends.
    pub(super) fn pieces(&self) -> impl Iterator<Item = libc::iovec> + use<'a> {
        let (mut skip, mut left) = (self.from, self.len);
        self.segments.pieces.iter().filter_map(move |piece| {
            let whole = piece.iov_len as u64;
            if skip >= whole {
                skip -= whole;
                return None;
            }
            let start = mem::take(&mut skip);
            let len = (whole - start).min(left);
            left -= len;
            // Both are bounded by the piece's own length, a usize.
            let (start, len) = (usize::try_from(start).ok()?, usize::try_from(len).ok()?);
            let base = piece.iov_base.cast::<u8>().wrapping_add(start);
            (len > 0).then_some(libc::iovec {
                iov_base: base.cast(),
                iov_len: len,
            })
        })
    }

    /// Whether every piece starts and ends at a multiple of `alignment` in host memory, as
    /// O_DIRECT wants it.
    pub fn is_aligned(&self, alignment: u32) -> bool {
        let alignment = alignment as usize;
        alignment <= 1
            || self.pieces().all(|piece| {
                (piece.iov_base as usize).is_multiple_of(alignment)
                    && piece.iov_len.is_multiple_of(alignment)
            })
    }

    /// Whether every byte is zero. The guest may change its memory meanwhile; the answer then
    /// holds for bytes it had no right to rely on.
    pub fn is_zero(&self) -> bool {
        self.pieces().all(|piece| {
            let start = piece.iov_base.cast::<u8>().cast_const();
            // SAFETY: the piece lies in memory that `segments` keeps alive.
            (0..piece.iov_len).all(|i| unsafe { ptr::read_volatile(start.add(i)) } == 0)
        })
    }

    /// Sets every byte to zero.
    pub fn fill_zero(&self) {
        for piece in self.pieces() {
            // SAFETY: the piece lies in memory that `segments` keeps alive and that may change
            // under anyone who looks at it (see the module's UNSAFETY note).
            unsafe { ptr::write_bytes(piece.iov_base.cast::<u8>(), 0, piece.iov_len) }
        }
    }

    /// Copies `source` into the window; whichever is shorter ends the copy.
    pub fn copy_from(&self, source: &[u8]) {
        let mut rest = source;
        for piece in self.pieces() {
            let (part, after) = rest.split_at(rest.len().min(piece.iov_len));
            // SAFETY: `part` is no longer than the piece, which `segments` keeps alive; a slice
            // of ours never overlaps guest memory or a buffer that only `segments` owns.
            unsafe {
                ptr::copy_nonoverlapping(part.as_ptr(), piece.iov_base.cast::<u8>(), part.len());
            }
            rest = after;
        }
    }

    /// Copies the window into `target`; whichever is shorter ends the copy.
    pub fn copy_to(&self, target: &mut [u8]) {
        let mut rest = target;
        for piece in self.pieces() {
            let (part, after) = rest.split_at_mut(rest.len().min(piece.iov_len));
            // SAFETY: as in `copy_from`, in the other direction.
            unsafe {
                ptr::copy_nonoverlapping(
                    piece.iov_base.cast::<u8>().cast_const(),
                    part.as_mut_ptr(),
                    part.len(),
                );
            }
            rest = after;
        }
    }

    /// Copies the bytes of `source` to the start of this window; whichever is shorter ends it.
    pub fn copy_from_window(&self, source: &Window<'_>) {
        let mut done = 0;
        for piece in source.pieces() {
            let mut taken = 0;
            for target in self.part(done, piece.iov_len as u64).pieces() {
                // SAFETY: both pieces are alive and as long as said; `copy` allows overlap.
                unsafe {
                    ptr::copy(
                        piece.iov_base.cast::<u8>().cast_const().add(taken),
                        target.iov_base.cast::<u8>(),
                        target.iov_len,
                    );
                }
                taken += target.iov_len;
            }
            done += taken as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    fn two_regions() -> Arc<GuestView> {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
        Arc::new(GuestView::from_ranges(&ranges).expect("guest memory"))
    }

    #[test]
    fn memory_goes_back_to_its_stock_unless_an_operation_still_has_it() {
        let stock = Rc::new(Stock::default());
        let first = stock.lend(8192).expect("memory");
        let start = |lent: &Lent| lent.memory.pieces[0].iov_base;
        let place = start(&first);
        drop(first);
        let again = stock.lend(4096).expect("memory");
        assert_eq!(start(&again), place);
        assert_eq!(again.part(4096).len(), 4096);
        let held = again.memory.keep();
        drop(again);
        assert!(stock.free.borrow().is_empty());
        drop(held);
    }

    #[test]
    fn buffer_across_regions_becomes_two_pieces_with_the_same_bytes() {
        let view = two_regions();
        let mut segments = Segments::with_capacity(4);
        segments.reset(Arc::clone(&view));
        segments.push_guest(0xff0, 0x20).expect("inside");
        assert_eq!(segments.piece_count(), 2);
        let bytes: Vec<u8> = (0..0x20).collect();
        segments.all().copy_from(&bytes);
        let mut seen = [0u8; 0x20];
        view.read_slice(&mut seen, GuestAddress(0xff0))
            .expect("read back");
        assert_eq!(&seen[..], &bytes[..]);
        let mut part = [0u8; 4];
        segments.all().part(0xe, 4).copy_to(&mut part);
        assert_eq!(part, [0xe, 0xf, 0x10, 0x11]);
    }

    #[test]
    fn buffer_outside_memory_is_refused_with_its_address() {
        let mut segments = Segments::with_capacity(4);
        segments.reset(two_regions());
        let error = segments
            .push_guest(0x1ff0, 0x20)
            .expect_err("beyond the end");
        assert!(error.to_string().contains("0x1ff0"), "{error}");
        assert!(segments.push_guest(u64::MAX - 3, 8).is_err());
    }

    #[test]
    fn only_the_bytes_read_are_marked_dirty() {
        let view = two_regions();
        let mut segments = Segments::with_capacity(4);
        segments.reset(Arc::clone(&view));
        segments.push_guest(0x800, 0x1000).expect("inside");
        segments.mark_dirty(0x400);
        let dirty = |address: u64| {
            let (region, offset) = view.to_region_addr(GuestAddress(address)).expect("inside");
            vm_memory::GuestMemoryRegion::bitmap(region)
                .dirty_at(usize::try_from(offset.0).expect("small"))
        };
        assert!(dirty(0x800));
        assert!(!dirty(0x1000));
    }

    #[test]
    fn copy_between_windows_of_different_cuts_keeps_the_order() {
        let mut target = Segments::with_capacity(4);
        target.reset(two_regions());
        target.push_guest(0x10, 3).expect("inside");
        target.push_guest(0x100, 7).expect("inside");
        let source = Segments::owned(10, 16).expect("memory");
        source.all().copy_from(b"0123456789");
        target.all().copy_from_window(&source.all());
        let mut seen = [0u8; 10];
        target.all().copy_to(&mut seen);
        assert_eq!(&seen, b"0123456789");
        assert!(!target.all().is_zero());
        target.all().fill_zero();
        assert!(target.all().is_zero());
    }
}
