//! Memory that comes and goes while the machine is there: memory devices.
//!
//! ```text
//!   plug_memory ── place ─► map ─► KVM's slot ─► GuestMem ─► all devices told ─► the guest may use it
//!   unplug_memory ── GuestMem ─► all devices told ─► KVM's slot ─► unmapped by whoever lets go last
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use devices::lifecycle::Lifecycle;
use devices::memory::{GuestMem, GuestMemView};
use vm_memory::{GuestAddress, GuestAddressSpace};

use super::Q35;
use crate::machine::MachineError;
use crate::machine::numa::NumaSpec;
use crate::memory::{Layout, MemoryError, PlaceWish, Places, RamBackend, forget_mapping};

/// Room that each place for a module adds, so that all of them can be aligned to the largest pages.
const SLACK: u64 = 1 << 30;

/// What memory devices a machine takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryRoom {
    /// How many bytes they may have together; 0 for none.
    pub capacity: u64,
    /// How many modules there can be.
    pub slots: u32,
}

impl MemoryRoom {
    /// How many guest addresses are kept for them.
    pub(super) fn addresses(self) -> u64 {
        match self.capacity {
            0 => 0,
            capacity => capacity.saturating_add(SLACK.saturating_mul(self.slots.into())),
        }
    }

    pub(super) fn places(self, layout: &Layout) -> Places {
        Places::new(layout.devices.clone(), self.capacity)
    }
}

/// The memory devices of a machine.
#[derive(Default)]
pub(super) struct Pluggable {
    places: Places,
    plugged: BTreeMap<String, Plugged>,
}

impl Pluggable {
    pub(super) fn new(places: Places) -> Self {
        Self {
            places,
            plugged: BTreeMap::new(),
        }
    }

    /// The machine begins anew.
    pub(super) fn reset(&self) {
        let lives = self.plugged.values().filter_map(|one| one.life.as_ref());
        lives.for_each(|life| life.reset());
    }
}

/// The memory of one of them.
struct Plugged {
    start: u64,
    size: u64,
    /// KVM's number for it.
    slot: u32,
    /// What becomes of it at a reset.
    life: Option<Arc<dyn Lifecycle>>,
}

impl Q35 {
    /// Its NUMA nodes, if it has some.
    #[must_use]
    pub fn numa(&self) -> Option<&NumaSpec> {
        self.identity.numa.as_ref()
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMem {
        &self.memory
    }

    /// What is behind guest memory, one piece after the other.
    #[must_use]
    pub fn backends(&self) -> &[RamBackend] {
        &self.backends
    }

    /// Its RAM in bytes.
    #[must_use]
    pub fn ram_size(&self) -> u64 {
        self.layout.low.saturating_add(self.layout.high)
    }

    /// Where RAM and the PCI windows lie.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes all of `backend` guest memory, for the device `owner`; returns its address. Whoever
    /// works with guest memory knows it then; the guest is not told.
    ///
    /// # Errors
    /// There is no place for it, the host cannot map it, or a device cannot work with it; then
    /// nothing has changed.
    pub fn plug_memory(
        &mut self,
        owner: &str,
        backend: &RamBackend,
        wish: PlaceWish,
    ) -> Result<u64, MachineError> {
        let start = self.pluggable.places.take(owner, wish)?;
        match self.map_memory(backend, start) {
            Ok(slot) => {
                let plugged = Plugged {
                    start,
                    size: backend.spec().size,
                    slot,
                    life: None,
                };
                self.pluggable.plugged.insert(owner.to_owned(), plugged);
                Ok(start)
            }
            Err(error) => {
                self.pluggable.places.give_back(owner);
                Err(error)
            }
        }
    }

    /// Has the device behind `owner` told of resets of the machine.
    pub fn follow_resets(&mut self, owner: &str, life: Arc<dyn Lifecycle>) {
        if let Some(plugged) = self.pluggable.plugged.get_mut(owner) {
            plugged.life = Some(life);
        }
    }

    /// Takes the memory of the device `owner` away from the guest and from all devices. It is
    /// unmapped when the last request that is under way there has ended.
    pub fn unplug_memory(&mut self, owner: &str) {
        self.pluggable.places.give_back(owner);
        let Some(plugged) = self.pluggable.plugged.remove(owner) else {
            return;
        };
        let view = self.memory.memory();
        let base = GuestAddress(plugged.start);
        match view.remove_region(base, plugged.size) {
            Ok((smaller, region)) => {
                drop(view);
                self.set_memory(smaller);
                if let Err(error) = self.pci.memory_changed() {
                    // What it goes on with is kept for it.
                    tracing::warn!(owner, %error, "a device goes on with memory that has gone");
                }
                forget_mapping(&region);
            }
            Err(error) => tracing::error!(owner, %error, "memory that is not there has gone"),
        }
        if let Err(error) = self.slots.remove(plugged.slot) {
            tracing::error!(owner, %error, "memory stays the guest's");
        }
    }

    fn map_memory(&self, backend: &RamBackend, start: u64) -> Result<u32, MachineError> {
        let region = Arc::new(backend.map_at(start)?);
        let before = self.memory.memory();
        let with_it = before.insert_region(Arc::clone(&region));
        let with_it = with_it.map_err(|source| MemoryError::Regions {
            id: backend.spec().id.clone(),
            source,
        })?;
        let slot = match backend.spec().read_only {
            true => self.slots.add_read_only(start, region.get_mmap())?,
            false => self.slots.add(start, region.get_mmap())?,
        };
        self.set_memory(with_it);
        if let Err(error) = self.pci.memory_changed() {
            self.set_memory(GuestMemView::clone(&before));
            // Those that took it work without it again.
            if let Err(error) = self.pci.memory_changed() {
                tracing::debug!(%error, "a device goes on with the memory before");
            }
            self.slots.remove(slot)?;
            forget_mapping(&region);
            return Err(MachineError::Unwanted(error));
        }
        Ok(slot)
    }

    fn set_memory(&self, view: GuestMemView) {
        let guard = self.memory.lock();
        guard.unwrap_or_else(PoisonError::into_inner).replace(view);
    }
}
