//! A chip's memory: pages of ours that the guest reads without an exit, in a slot that it cannot
//! write. Every write of it comes to the chip, and so does every read while the slot is away.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use devices::legacy::pflash::BLOCK;
use devices::legacy::{FlashArray, FlashStore};
use devices::repeats::Repeats;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegion;
use vm_memory::{VolatileMemory, VolatileSlice};

use super::super::MachineError;
use crate::kvm::slots::Slots;

type Mapping = MmapRegion<AtomicBitmap>;

/// Pages with the bytes of a chip, or of a ROM.
pub struct RomPages {
    slots: Arc<Slots>,
    mapping: Arc<Mapping>,
    guest: u64,
    /// The slot, while the guest reads the pages. Held over its change, which calls the kernel
    /// only.
    slot: Mutex<Option<u32>>,
    refusals: Repeats,
}

impl RomPages {
    /// Pages with `bytes`, for the guest's physical address `guest`, where they do not show yet.
    ///
    /// # Errors
    /// The host has no memory for them.
    pub fn new(slots: &Arc<Slots>, guest: u64, bytes: &[u8]) -> Result<Self, MachineError> {
        let mapping = Mapping::new(bytes.len()).map_err(MachineError::Rom)?;
        let pages = Self {
            slots: Arc::clone(slots),
            mapping: Arc::new(mapping),
            guest,
            slot: Mutex::default(),
            refusals: Repeats::default(),
        };
        pages.write(0, bytes);
        Ok(pages)
    }

    fn len(&self) -> u64 {
        self.mapping.size() as u64
    }

    /// The part of `offset..offset + len` that is there.
    fn slice(
        &self,
        offset: u64,
        len: usize,
    ) -> Option<VolatileSlice<'_, impl vm_memory::bitmap::BitmapSlice>> {
        let start = usize::try_from(offset).ok()?;
        let room = self.mapping.size().checked_sub(start)?;
        self.mapping.get_slice(start, len.min(room)).ok()
    }

    /// Fills the beginning of `data` with what is there.
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(slice) = self.slice(offset, data.len()) {
            slice.copy_to(data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(slice) = self.slice(offset, data.len()) {
            slice.copy_from(data);
        }
    }

    /// The last bytes, at most `most`.
    pub fn tail(&self, most: usize) -> Vec<u8> {
        let len = self.mapping.size().min(most);
        let mut bytes = vec![0; len];
        self.read(self.len() - len as u64, &mut bytes);
        bytes
    }

    /// Has the guest read the pages as memory, or not see them.
    pub fn show(&self, shown: bool) {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = match (*slot, shown) {
            (None, true) => {
                let added = self
                    .slots
                    .add_read_only(self.guest, Arc::clone(&self.mapping));
                added.map(|number| *slot = Some(number))
            }
            (Some(number), false) => self.slots.remove(number).map(|()| *slot = None),
            _ => return,
        };
        // Accesses then stay what they were: slow, or without an exit.
        if let Err(error) = changed
            && let Some(times) = self.refusals.note()
        {
            tracing::error!(%error, times, shown, "the guest's view of a flash chip");
        }
    }
}

/// The memory of a flash chip, with its storage unless nothing is ever stored.
pub struct FlashPages {
    /// Its bytes.
    pub pages: RomPages,
    /// Where they outlive the machine; a chip without is read-only.
    pub store: Option<FlashStore>,
}

impl FlashArray for FlashPages {
    fn len(&self) -> u64 {
        self.pages.len()
    }

    fn is_writable(&self) -> bool {
        self.store.is_some()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        self.pages.read(offset, data);
    }

    fn program(&self, offset: u64, data: &[u8]) {
        self.pages.write(offset, data);
    }

    fn store(&self, range: Range<u64>) {
        let Some(store) = &self.store else { return };
        let end = range.end.min(self.len());
        let mut start = range.start - range.start % BLOCK;
        while start < end {
            let mut block = vec![0; usize::try_from(BLOCK).unwrap_or(0)];
            self.read(start, &mut block);
            store.write(start, block);
            start += BLOCK;
        }
    }

    fn take_failure(&self) -> bool {
        self.store.as_ref().is_some_and(FlashStore::take_failure)
    }

    fn settle(&self) {
        if let Some(store) = &self.store {
            store.settle();
        }
    }

    fn show(&self, as_memory: bool) {
        self.pages.show(as_memory);
    }
}
