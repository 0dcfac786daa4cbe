//! Pages of the guest's memory, given back to the host.
#![expect(unsafe_code, reason = "madvise on mappings")]
// UNSAFETY: no safe wrapper takes pages out of a guest's mapping.

use std::io;

use devices::memory::{GuestMem, GuestMemView, Populate, Reclaim};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

type Region = GuestRegionMmap<AtomicBitmap>;

/// Gives back pages of one machine's RAM.
pub struct RamReclaim {
    memory: GuestMem,
    /// The size of the host's pages behind it, in bytes.
    page: u64,
}

impl RamReclaim {
    /// For `memory`, with pages of `page` bytes behind it.
    #[must_use]
    pub fn new(memory: GuestMem, page: u64) -> Self {
        Self { memory, page }
    }
}

/// The whole pages of `page` bytes in the `len` bytes from `start`: where they begin, their length.
fn whole_pages(start: u64, len: u64, page: u64) -> Option<(u64, u64)> {
    let end = start.checked_add(len)?;
    let first = start.checked_next_multiple_of(page)?;
    let last = end - end % page;
    Some((first, last.saturating_sub(first)))
}

fn no_ram() -> io::Error {
    io::Error::from_raw_os_error(libc::EFAULT)
}

/// The region that a range is in from end to end, and how far into it it begins.
fn find(view: &GuestMemView, start: u64, len: u64) -> io::Result<(&Region, u64)> {
    let region = view.find_region(GuestAddress(start)).ok_or_else(no_ram)?;
    let offset = start - region.start_addr().0;
    if len > region.len() - offset {
        return Err(no_ram());
    }
    Ok((region, offset))
}

impl Populate for RamReclaim {
    fn populate(&self, start: u64, len: u64) -> io::Result<()> {
        let view = self.memory.memory();
        let (region, offset) = find(&view, start, len)?;
        let address = region
            .get_host_address(MemoryRegionAddress(offset))
            .map_err(io::Error::other)?;
        let size = usize::try_from(len).map_err(io::Error::other)?;
        // SAFETY: the range lies in one mapping of guest memory, which `view` keeps, and what it
        // holds does not change.
        let outcome = unsafe { libc::madvise(address.cast(), size, libc::MADV_POPULATE_WRITE) };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Reclaim for RamReclaim {
    fn reclaim(&self, start: u64, len: u64) -> io::Result<()> {
        let view = self.memory.memory();
        let (region, offset) = find(&view, start, len)?;
        let (offset, len) = whole_pages(offset, len, self.page).ok_or_else(no_ram)?;
        if len == 0 {
            return Ok(());
        }
        let address = region
            .get_host_address(MemoryRegionAddress(offset))
            .map_err(io::Error::other)?;
        let size = usize::try_from(len).map_err(io::Error::other)?;
        // Of a shared mapping the pages are the file's, and a hole is punched there.
        let advice = if region.flags() & libc::MAP_SHARED == 0 {
            libc::MADV_DONTNEED
        } else {
            libc::MADV_REMOVE
        };
        // SAFETY: the range lies in one mapping of guest memory, which `view` keeps; whoever reads
        // it finds other bytes there, as with any memory that a guest writes.
        let outcome = unsafe { libc::madvise(address.cast(), size, advice) };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        region.bitmap().mark_dirty(at, size);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use fdset::{Door, FdRegistry, Scope};
    use std::sync::Arc;
    use vm_memory::Bytes;

    use super::*;
    use crate::memory::{HostMemory, Layout, RamBackend, RamBackendSpec};

    const MIB: u64 = 1 << 20;

    fn memory(host: HostMemory, share: bool) -> GuestMem {
        let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
        let mut spec = RamBackendSpec::anonymous("ram", 8 * MIB);
        (spec.host, spec.share) = (host, share);
        let backend = RamBackend::open(&door, spec).unwrap();
        backend.map(&Layout::new(8 * MIB, 40).unwrap()).unwrap()
    }

    #[test]
    fn what_is_given_back_reads_as_zeroes_and_the_rest_stays() {
        let memfd = HostMemory::Memfd {
            sealed: true,
            huge: None,
        };
        for (host, share) in [
            (HostMemory::Anonymous, false),
            (HostMemory::Anonymous, true),
            (memfd.clone(), true),
            (memfd, false),
        ] {
            let memory = memory(host, share);
            let view = memory.memory();
            for page in 0..4_u64 {
                view.write_obj(7_u8, GuestAddress(MIB + page * 4096))
                    .unwrap();
            }
            let reclaim = RamReclaim::new(memory.clone(), 4096);
            reclaim.reclaim(MIB + 4096, 2 * 4096).unwrap();
            let read =
                |page: u64| -> u8 { view.read_obj(GuestAddress(MIB + page * 4096)).unwrap() };
            assert_eq!([read(0), read(1), read(2), read(3)], [7, 0, 0, 7]);
        }
    }

    #[test]
    fn what_is_taken_before_its_time_keeps_what_it_holds() {
        let memory = memory(HostMemory::Anonymous, false);
        let view = memory.memory();
        view.write_obj(7_u8, GuestAddress(MIB)).unwrap();
        let reclaim = RamReclaim::new(memory.clone(), 4096);
        reclaim.populate(MIB, 2 * MIB).unwrap();
        assert_eq!(view.read_obj::<u8>(GuestAddress(MIB)).unwrap(), 7);
        assert!(reclaim.populate(7 * MIB, 2 * MIB).is_err());
    }

    #[test]
    fn parts_of_large_pages_and_what_is_no_ram_stay() {
        let memory = memory(HostMemory::Anonymous, false);
        let view = memory.memory();
        view.write_obj(7_u8, GuestAddress(MIB)).unwrap();
        let reclaim = RamReclaim::new(memory.clone(), 2 * MIB);
        reclaim.reclaim(MIB, 4096).unwrap();
        assert_eq!(view.read_obj::<u8>(GuestAddress(MIB)).unwrap(), 7);
        for (start, len) in [
            (8 * MIB, 4096),
            (7 * MIB, 2 * MIB),
            (u64::MAX - 4095, 4096),
            (0, u64::MAX),
        ] {
            assert!(reclaim.reclaim(start, len).is_err(), "{start:#x}");
        }
    }
}
