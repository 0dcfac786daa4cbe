//! Memory slots: which host pages are the guest's at which address, and which it has written.
#![expect(unsafe_code, reason = "KVM maps host addresses into the guest")]
// UNSAFETY: KVM_SET_USER_MEMORY_REGION takes a host address on trust.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::memory::GuestMemView;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::Cap;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegion;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::{KvmError, KvmVm};

/// One slot. It holds its mapping, so that the pages outlive KVM's use of them.
struct Slot {
    guest: u64,
    mapping: Arc<MmapRegion<AtomicBitmap>>,
    logged: bool,
    /// Whether writes of the guest become exits.
    read_only: bool,
}

impl Slot {
    fn region(&self, slot: u32) -> kvm_userspace_memory_region {
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        kvm_userspace_memory_region {
            slot,
            flags: flag(self.logged && !self.read_only, KVM_MEM_LOG_DIRTY_PAGES)
                | flag(self.read_only, KVM_MEM_READONLY),
            guest_phys_addr: self.guest,
            memory_size: self.mapping.size() as u64,
            userspace_addr: self.mapping.as_ptr() as u64,
        }
    }
}

/// All slots of one VM.
pub struct Slots {
    vm: Arc<KvmVm>,
    /// How many KVM has.
    max: usize,
    /// Whether it has some that the guest cannot write.
    has_read_only: bool,
    /// Leaf lock: only the kernel is called with it.
    slots: Mutex<BTreeMap<u32, Slot>>,
}

impl Slots {
    /// No slots yet. What KVM can do is asked here: a sealed vCPU may change slots, and ask nothing.
    #[must_use]
    pub fn new(vm: Arc<KvmVm>) -> Self {
        Self {
            max: vm.system().get_nr_memslots(),
            has_read_only: vm.has(Cap::ReadonlyMem),
            vm,
            slots: Mutex::default(),
        }
    }

    /// Gives all regions of `memory` to the guest.
    ///
    /// # Errors
    /// See [`add`](Self::add).
    pub fn add_all(&self, memory: &GuestMemView) -> Result<(), KvmError> {
        for region in memory.iter() {
            self.add(region.start_addr().raw_value(), region.get_mmap())?;
        }
        Ok(())
    }

    /// Gives `mapping` to the guest at the physical address `guest`; returns the slot's number.
    ///
    /// # Errors
    /// No slot is left, or the kernel refuses the range (an overlap).
    pub fn add(&self, guest: u64, mapping: Arc<MmapRegion<AtomicBitmap>>) -> Result<u32, KvmError> {
        self.put(Slot {
            guest,
            mapping,
            logged: false,
            read_only: false,
        })
    }

    /// The same, where each write of the guest is an exit: [`Buses`](super::Buses) take it.
    ///
    /// # Errors
    /// As [`add`](Self::add), or this host cannot do that.
    pub fn add_read_only(
        &self,
        guest: u64,
        mapping: Arc<MmapRegion<AtomicBitmap>>,
    ) -> Result<u32, KvmError> {
        if !self.has_read_only {
            return Err(KvmError::MissingCapability {
                capability: "KVM_CAP_READONLY_MEM",
                needed_for: "memory that a guest cannot write",
            });
        }
        self.put(Slot {
            guest,
            mapping,
            logged: false,
            read_only: true,
        })
    }

    fn put(&self, slot: Slot) -> Result<u32, KvmError> {
        let max = self.max;
        let mut slots = self.lock();
        let number = (0u32..)
            .take(max)
            .find(|number| !slots.contains_key(number))
            .ok_or(KvmError::NoSlotLeft { max })?;
        self.set(slot.region(number), "a memory slot")?;
        slots.insert(number, slot);
        Ok(number)
    }

    /// Takes a slot away from the guest.
    ///
    /// # Errors
    /// There is no such slot, or the kernel refuses.
    pub fn remove(&self, number: u32) -> Result<(), KvmError> {
        let mut slots = self.lock();
        let slot = slots
            .get(&number)
            .ok_or(KvmError::NoSuchSlot { slot: number })?;
        let mut region = slot.region(number);
        region.memory_size = 0;
        self.set(region, "the removal of a memory slot")?;
        let removed = slots.remove(&number);
        drop(slots);
        // The mapping may go away here, outside the lock.
        drop(removed);
        Ok(())
    }

    /// Starts or stops the logging of written pages, in all slots.
    ///
    /// # Errors
    /// The kernel refuses; slots before the failing one have changed.
    pub fn log_dirty(&self, logged: bool) -> Result<(), KvmError> {
        for (&number, slot) in self.lock().iter_mut() {
            slot.logged = logged;
            self.set(slot.region(number), "dirty page logging")?;
        }
        Ok(())
    }

    /// The pages written since the last call, one bit each, lowest address first.
    ///
    /// # Errors
    /// There is no such slot, or it is not logged.
    pub fn take_dirty(&self, number: u32) -> Result<Vec<u64>, KvmError> {
        let size = self
            .lock()
            .get(&number)
            .ok_or(KvmError::NoSuchSlot { slot: number })?
            .mapping
            .size();
        self.vm
            .fd()
            .get_dirty_log(number, size)
            .map_err(KvmError::ioctl("the dirty page log"))
    }

    fn set(&self, region: kvm_userspace_memory_region, what: &'static str) -> Result<(), KvmError> {
        // SAFETY: the range is a live mapping (or of size 0) that its `Slot` keeps alive until
        // after KVM has forgotten it; guest memory is only ever accessed through volatile slices.
        unsafe { self.vm.fd().set_user_memory_region(region) }.map_err(KvmError::ioctl(what))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // The VM's handle may outlive the slots (an fd held by a vCPU thread that is ending): no
        // mapping may go away while KVM still knows it.
        let numbers: Vec<u32> = self.lock().keys().copied().collect();
        for number in numbers {
            if let Err(error) = self.remove(number) {
                tracing::error!(number, %error, "memory slot not removed");
                std::mem::forget(self.lock().remove(&number));
            }
        }
    }
}
