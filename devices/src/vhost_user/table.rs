//! Guest memory as a back end maps it: regions and their files.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::message::words;
use crate::memory::GuestMemView;

/// The most regions that each back end takes.
const MOST_REGIONS: usize = 8;

/// Why guest memory cannot be given to a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Another process would not see the guest's memory.
    #[error(
        "guest memory is not shared, so a vhost-user back end cannot reach it: make it \
         shared with -object memory-backend-memfd,id=mem,size=SIZE,share=on \
         -machine memory-backend=mem"
    )]
    NotShared,
    /// More than the protocol has room for.
    #[error("guest memory has {0} regions, a vhost-user back end takes 8")]
    TooMany(usize),
}

/// One region of guest memory.
#[derive(Debug)]
struct Region {
    guest: u64,
    len: u64,
    /// Where it is in this process: how the places of rings are told.
    user: u64,
    file: Arc<File>,
    offset: u64,
}

/// All of guest memory.
#[derive(Debug)]
pub struct Table {
    view: GuestMemView,
    regions: Vec<Region>,
}

impl Table {
    /// The table of `view`.
    ///
    /// # Errors
    /// A part of it is not shared, or there are too many.
    pub fn new(view: &GuestMemView) -> Result<Self, TableError> {
        let regions: Option<Vec<Region>> = view.iter().map(region).collect();
        let regions = regions.ok_or(TableError::NotShared)?;
        if regions.len() > MOST_REGIONS {
            return Err(TableError::TooMany(regions.len()));
        }
        Ok(Self {
            view: view.clone(),
            regions,
        })
    }

    /// The payload of the message about it.
    #[must_use]
    pub fn payload(&self) -> Vec<u8> {
        let count = u64::try_from(self.regions.len()).unwrap_or(0);
        let numbers = self
            .regions
            .iter()
            .flat_map(|one| [one.guest, one.len, one.user, one.offset]);
        words(&[count].into_iter().chain(numbers).collect::<Vec<_>>())
    }

    /// The files, in the order of the regions.
    #[must_use]
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.regions.iter().map(|one| one.file.as_fd()).collect()
    }

    /// How many chains were used in all, modulo 65536, of the queue whose used ring is at `user`
    /// in this process.
    #[must_use]
    pub fn used_index(&self, user: u64) -> Option<u16> {
        let place = user.checked_add(2)?;
        let guest = self.regions.iter().find_map(|one| {
            let within = place.checked_sub(one.user)?;
            (within < one.len).then(|| one.guest.checked_add(within))?
        })?;
        let index: u16 = self.view.read_obj(GuestAddress(guest)).ok()?;
        Some(u16::from_le(index))
    }
}

fn region(region: &<GuestMemView as GuestMemoryBackend>::R) -> Option<Region> {
    let place = region.file_offset()?;
    if region.flags() & libc::MAP_SHARED == 0 {
        return None;
    }
    Some(Region {
        guest: region.start_addr().raw_value(),
        len: region.len(),
        user: region.as_ptr() as u64,
        file: Arc::clone(place.arc()),
        offset: place.start(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use vm_memory::FileOffset;

    use super::*;

    const SIZE: usize = 4 << 20;

    /// Shared memory of two regions in one file.
    pub(crate) fn shared() -> GuestMemView {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(SIZE as u64 * 2).expect("room");
        let file = Arc::new(file);
        let at = |offset| Some(FileOffset::from_arc(Arc::clone(&file), offset));
        GuestMemView::from_ranges_with_files([
            (GuestAddress(0), SIZE, at(0)),
            (GuestAddress(1 << 32), SIZE, at(SIZE as u64)),
        ])
        .expect("memory")
    }

    #[test]
    fn memory_without_a_file_is_refused_with_the_way_out() {
        let ranges = [(GuestAddress(0), 0x10000)];
        let view = GuestMemView::from_ranges(&ranges).expect("memory");
        let error = Table::new(&view).expect_err("not shared");
        assert!(error.to_string().contains("memory-backend-memfd"));
    }

    #[test]
    fn each_region_has_its_file_and_its_place_in_it() {
        let view = shared();
        let table = Table::new(&view).expect("shared");
        assert_eq!(table.fds().len(), 2);
        let numbers: Vec<u64> = table
            .payload()
            .as_chunks()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word))
            .collect();
        let (first, second) = (numbers[3], numbers[7]);
        let size = SIZE as u64;
        let wanted = [2, 0, size, first, 0, 1 << 32, size, second, size];
        assert_eq!(numbers, wanted);
    }

    #[test]
    fn the_index_of_used_chains_is_read_where_the_ring_is() {
        let view = shared();
        let table = Table::new(&view).expect("shared");
        let ring = GuestAddress((1 << 32) + 0x100);
        view.write_obj(0x1234u16, GuestAddress(ring.0 + 2))
            .expect("memory");
        let user = table.regions[1].user + 0x100;
        assert_eq!(table.used_index(user), Some(0x1234));
        assert_eq!(table.used_index(0x1000), None);
    }
}
