//! A packet where the guest has put it: a list of pieces, copied or handed to the kernel.
#![expect(
    unsafe_code,
    reason = "hands addresses of guest memory to the kernel and copies from there"
)]
// UNSAFETY: guest memory is reached by address, because writev takes addresses. Every address comes
// from a checked slice of a view that the packet borrows. Guest memory may change under a copy:
// only bytes are copied, and no reference to it is ever made.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::LONGEST;
use crate::memory::GuestMemView;

/// The most pieces of a packet: what one call of the kernel takes.
const MOST: usize = 1024;

/// Room for the list of one packet's pieces, used again for the next.
#[derive(Debug, Default)]
pub struct Pieces(Vec<libc::iovec>);

// SAFETY: the addresses are only used through a `Packet`, which borrows what they lead to; between
// packets they are numbers without meaning.
unsafe impl Send for Pieces {}

/// A buffer of the guest's is not in its memory, or a packet has more pieces than any driver makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside;

impl Pieces {
    /// The packet in `buffers` of `view`: addresses and lengths, in order. Of one that is longer than
    /// [`LONGEST`] only the beginning is there, which is too long as well.
    ///
    /// # Errors
    /// A buffer is not in guest memory, or there are too many.
    pub fn gather<'a>(
        &'a mut self,
        view: &'a GuestMemView,
        buffers: impl Iterator<Item = Result<(GuestAddress, usize), Outside>>,
    ) -> Result<Packet<'a>, Outside> {
        self.0.clear();
        let mut len = 0_usize;
        for buffer in buffers {
            let (address, size) = buffer?;
            // Nearly always there is one region behind it: to look for several takes longer.
            match view.get_slice(address, size) {
                Ok(slice) => self.push(&slice)?,
                Err(_) => {
                    for slice in view.get_slices(address, size) {
                        self.push(&slice.map_err(|_| Outside)?)?;
                    }
                }
            }
            len = len.saturating_add(size);
            if len > LONGEST {
                // It will be dropped, however long it is.
                break;
            }
        }
        Ok(Packet {
            pieces: &self.0,
            len,
            memory: PhantomData,
        })
    }

    fn push<B: BitmapSlice>(&mut self, slice: &VolatileSlice<'_, B>) -> Result<(), Outside> {
        if self.0.len() == MOST {
            return Err(Outside);
        }
        self.0.push(libc::iovec {
            iov_base: slice.ptr_guard().as_ptr().cast_mut().cast(),
            iov_len: slice.len(),
        });
        Ok(())
    }

    /// A packet of our own.
    pub fn of<'a>(&'a mut self, bytes: &'a [u8]) -> Packet<'a> {
        self.0.clear();
        self.0.push(libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        });
        Packet {
            pieces: &self.0,
            len: bytes.len(),
            memory: PhantomData,
        }
    }
}

/// A packet of our own in one piece, which needs no list.
#[derive(Debug)]
pub struct Whole<'a> {
    piece: [libc::iovec; 1],
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Whole<'a> {
    /// The packet with its header in `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            piece: [libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            }],
            memory: PhantomData,
        }
    }

    /// As everybody takes it.
    #[must_use]
    pub fn packet(&self) -> Packet<'_> {
        Packet {
            pieces: &self.piece,
            len: self.piece.iter().map(|piece| piece.iov_len).sum(),
            memory: PhantomData,
        }
    }
}

/// A packet with its header, in memory that it borrows.
#[derive(Debug)]
pub struct Packet<'a> {
    pieces: &'a [libc::iovec],
    len: usize,
    memory: PhantomData<&'a [u8]>,
}

impl Packet<'_> {
    /// Its length in bytes, with its header.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies what comes after its first `skip` bytes into `into`, as far as there is room; returns
    /// how many bytes that were.
    pub fn copy(&self, skip: usize, into: &mut [u8]) -> usize {
        let (mut skip, mut copied) = (skip, 0);
        for piece in self.pieces {
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            let rest = into.get_mut(copied..).unwrap_or_default();
            let count = rest.len().min(piece.iov_len - skip);
            // SAFETY: the piece has `iov_len` bytes in memory that this packet borrows, and `skip +
            // count` are not more; `rest` has room for `count`, and guest memory is no Rust object
            // that could overlap it.
            unsafe {
                ptr::copy_nonoverlapping(
                    piece.iov_base.cast::<u8>().add(skip),
                    rest.as_mut_ptr(),
                    count,
                );
            }
            copied += count;
            skip = 0;
        }
        copied
    }

    /// Writes it, header and all, with one call.
    ///
    /// # Errors
    /// Those of `writev(2)`.
    pub fn write_to(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let count = libc::c_int::try_from(self.pieces.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `fd` is open for the length of the call; each piece lies in memory that this packet
        // borrows, and the kernel only reads there.
        let written = unsafe { libc::writev(fd.as_raw_fd(), self.pieces.as_ptr(), count) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd;

    use vm_memory::{Bytes, GuestMemoryMmap};

    use super::*;

    fn memory() -> GuestMemView {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        memory
            .write_slice(b"abcdefgh", GuestAddress(0xffc))
            .unwrap();
        memory
    }

    #[test]
    fn a_packet_across_buffers_and_regions_is_copied_and_written_whole() {
        let memory = memory();
        let buffers = [(GuestAddress(0xffc), 6), (GuestAddress(0x1002), 2)];
        let mut pieces = Pieces::default();
        let packet = pieces.gather(&memory, buffers.into_iter().map(Ok)).unwrap();
        assert_eq!(packet.len(), 8);
        let mut bytes = [0; 16];
        assert_eq!(packet.copy(0, &mut bytes), 8);
        assert_eq!(&bytes[..8], b"abcdefgh");
        let mut few = [0; 3];
        assert_eq!(packet.copy(5, &mut few), 3);
        assert_eq!(&few, b"fgh");
        let (mut reader, writer) = io::pipe().unwrap();
        assert_eq!(packet.write_to(writer.as_fd()).unwrap(), 8);
        reader.read_exact(&mut bytes[..8]).unwrap();
        assert_eq!(&bytes[..8], b"abcdefgh");
    }

    #[test]
    fn what_is_not_in_guest_memory_is_no_packet() {
        let memory = memory();
        for (address, len) in [(0x1ffe, 4), (0x2000, 1), (u64::MAX, 2)] {
            let buffers = [Ok((GuestAddress(address), len))];
            let mut pieces = Pieces::default();
            assert!(pieces.gather(&memory, buffers.into_iter()).is_err());
        }
    }

    #[test]
    fn the_end_of_a_packet_that_is_too_long_is_not_looked_at() {
        let memory = memory();
        let long = (0..=LONGEST / 0x1000).map(|_| Ok((GuestAddress(0), 0x1000)));
        let mut pieces = Pieces::default();
        let packet = pieces.gather(&memory, long.chain([Err(Outside)])).unwrap();
        assert!(packet.len() > LONGEST);
    }

    #[test]
    fn more_pieces_than_the_kernel_takes_are_refused() {
        let memory = memory();
        let buffers = std::iter::repeat_n(Ok((GuestAddress(0), 1)), MOST + 1);
        assert!(Pieces::default().gather(&memory, buffers).is_err());
    }
}
