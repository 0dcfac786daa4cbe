//! The driver's side of one split queue (virtio 1.2, 2.7), as Linux drives it: it asks for the next
//! interrupt only before it sleeps, and rings the doorbell only where the device wants it.
//!
//! ```text
//!   0x1000 descriptors   0x3000 available   0x4000 used   0x8000 headers   0xa000 status bytes
//!   0x100000 data: one MiB for each slot; slot N has the descriptors 3N to 3N+2
//! ```

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use devices::memory::GuestMemView;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// Descriptors of the queue.
pub(crate) const SIZE: u16 = 256;
pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const AVAILABLE: u64 = 0x3000;
pub(crate) const USED: u64 = 0x4000;
const HEADERS: u64 = 0x8000;
const STATUSES: u64 = 0xa000;
pub(crate) const DATA: u64 = 0x10_0000;
/// Bytes of data that a slot has.
pub(crate) const SLOT: u64 = 1 << 20;
/// Requests that can be on their way at once.
pub(crate) const SLOTS: u16 = 64;
/// Bytes of memory that the two sides share.
pub(crate) const MEMORY: usize = (DATA + SLOTS as u64 * SLOT) as usize;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// What a status byte holds before the device writes it.
const UNTOUCHED: u8 = 0xee;

/// What a request asks (virtio 1.2, 5.2.6).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
}

pub(crate) struct Driver {
    memory: Arc<GuestMemView>,
    kick: EventFd,
    call: EventFd,
    available: u16,
    /// Up to where the device was told of the available ring.
    told: u16,
    used: u16,
}

impl Driver {
    pub(crate) fn new(memory: Arc<GuestMemView>, kick: EventFd, call: EventFd) -> Self {
        // The pages are there before the first measurement, and not all zeros.
        for slot in 0..u64::from(SLOTS) {
            let bytes = vec![u8::try_from(slot + 1).expect("few"); SLOT as usize];
            memory
                .write_slice(&bytes, GuestAddress(DATA + slot * SLOT))
                .expect("inside");
        }
        Self {
            memory,
            kick,
            call,
            available: 0,
            told: 0,
            used: 0,
        }
    }

    /// Puts the request of a slot into the ring; [`publish`](Self::publish) tells the device.
    pub(crate) fn submit(&mut self, slot: u16, kind: Kind, offset: u64, len: u32) {
        let number = u64::from(slot);
        let (header, status) = (HEADERS + 16 * number, STATUSES + number);
        let kind_number: u32 = if kind == Kind::Read { 0 } else { 1 };
        self.put(header, u64::from(kind_number));
        self.put(header + 8, offset / 512);
        self.put(status, UNTOUCHED);
        let first = slot * 3;
        let direction = if kind == Kind::Read { WRITE } else { 0 };
        self.describe(first, header, 16, NEXT);
        self.describe(first + 1, DATA + number * SLOT, len, NEXT | direction);
        self.describe(first + 2, status, 1, WRITE);
        let place = AVAILABLE + 4 + 2 * u64::from(self.available % SIZE);
        self.put(place, first);
        self.available = self.available.wrapping_add(1);
    }

    fn describe(&self, index: u16, address: u64, len: u32, flags: u16) {
        let place = DESCRIPTORS + 16 * u64::from(index);
        self.put(place, address);
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(index + 1) << 48;
        self.put(place + 8, rest);
    }

    /// Shows what was submitted to the device, and rings if it sleeps.
    pub(crate) fn publish(&mut self) {
        self.store(AVAILABLE + 2, self.available);
        fence(Ordering::SeqCst);
        let wanted = self.load(USED + 4 + 8 * u64::from(SIZE));
        if crossed(wanted, self.told, self.available) {
            self.kick.write(1).expect("a doorbell");
        }
        self.told = self.available;
    }

    /// The slot of a request that is done.
    pub(crate) fn reap(&mut self) -> Option<u16> {
        if self.load(USED + 2) == self.used {
            return None;
        }
        let place = USED + 4 + 8 * u64::from(self.used % SIZE);
        let head: u32 = self.memory.read_obj(GuestAddress(place)).expect("inside");
        self.used = self.used.wrapping_add(1);
        let slot = u16::try_from(head / 3).expect("a head of ours");
        let status: u8 = self
            .memory
            .read_obj(GuestAddress(STATUSES + u64::from(slot)))
            .expect("inside");
        assert_eq!(status, 0, "the disk fails");
        Some(slot)
    }

    /// Sleeps until a request is done that was not reaped.
    pub(crate) fn wait(&mut self) {
        // `used_event`: interrupt me when this one is used.
        self.store(AVAILABLE + 4 + 2 * u64::from(SIZE), self.used);
        fence(Ordering::SeqCst);
        while self.load(USED + 2) == self.used {
            self.call.read().expect("an interrupt");
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, place: u64, value: T) {
        self.memory
            .write_obj(value, GuestAddress(place))
            .expect("inside");
    }

    fn store(&self, place: u64, value: u16) {
        self.memory
            .store(value, GuestAddress(place), Ordering::Release)
            .expect("inside");
    }

    fn load(&self, place: u64) -> u16 {
        self.memory
            .load(GuestAddress(place), Ordering::Acquire)
            .expect("inside")
    }
}

/// Whether going from `old` to `new` passes the index that the other side waits for (virtio 1.2,
/// 2.7.10).
fn crossed(wanted: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(wanted).wrapping_sub(1) < new.wrapping_sub(old)
}
