//! The driver's side of a split queue (virtio 1.2, 2.7). Each descriptor is a buffer of its own with
//! room for a packet behind its header, and is used in turn.
//!
//! ```text
//!   queue N at 0x100000 * (N + 1):   0x0 descriptors   0x2000 available   0x3000 used   0x10000 buffers
//! ```

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use devices::memory::GuestMemView;
use vm_memory::{ByteValued, Bytes, GuestAddress};

/// Descriptors of a queue: as many as a card has when nobody says otherwise.
pub(crate) const SIZE: u16 = 256;
/// Bytes before a packet (virtio 1.2, 5.1.6).
pub(crate) const HEADER: usize = 12;

const ROOM: u64 = 1 << 20;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x1_0000;
/// Bytes of a buffer.
const BUFFER: u64 = 2048;
const WRITE: u16 = 2;

/// Which way packets go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    In,
    Out,
}

pub(crate) struct Queue {
    memory: Arc<GuestMemView>,
    start: u64,
    direction: Direction,
    available: u16,
    /// Up to where the device was told of the available ring.
    told: u16,
    used: u16,
}

impl Queue {
    pub(crate) fn new(memory: &Arc<GuestMemView>, number: u64, direction: Direction) -> Self {
        let queue = Self {
            memory: Arc::clone(memory),
            start: ROOM * (number + 1),
            direction,
            available: 0,
            told: 0,
            used: 0,
        };
        // The pages are there before the first measurement.
        let zeros = vec![0; (ROOM - 1) as usize];
        let start = GuestAddress(queue.start);
        memory.write_slice(&zeros, start).expect("inside");
        queue
    }

    /// Where its three parts are.
    pub(crate) fn rings(&self) -> [u64; 3] {
        [0, AVAILABLE, USED].map(|part| self.start + part)
    }

    /// How many packets are with the device.
    pub(crate) fn flying(&self) -> u16 {
        self.available.wrapping_sub(self.used)
    }

    /// Puts what a packet is, behind a header that says nothing, into every buffer.
    pub(crate) fn fill(&mut self, packet: &[u8]) {
        let whole = [&[0; HEADER], packet].concat();
        for number in 0..u64::from(SIZE) {
            let buffer = self.start + BUFFERS + BUFFER * number;
            self.memory
                .write_slice(&whole, GuestAddress(buffer))
                .expect("inside");
        }
    }

    /// Puts the next buffer into the ring with `len` bytes, or with all its room.
    pub(crate) fn submit(&mut self, len: Option<u32>) {
        let index = self.available % SIZE;
        let number = u64::from(index);
        let flags = if self.direction == Direction::In {
            WRITE
        } else {
            0
        };
        let len = len.unwrap_or(BUFFER as u32);
        self.put(16 * number, self.start + BUFFERS + BUFFER * number);
        self.put(16 * number + 8, u64::from(len) | u64::from(flags) << 32);
        self.put(AVAILABLE + 4 + 2 * number, index);
        self.available = self.available.wrapping_add(1);
    }

    /// Shows what was submitted; whether the device wants a doorbell (virtio 1.2, 2.7.10).
    pub(crate) fn publish(&mut self) -> bool {
        // `used_event`: no interrupt for a long time.
        let never = self.used.wrapping_sub(1);
        self.store(AVAILABLE + 4 + 2 * u64::from(SIZE), never);
        self.store(AVAILABLE + 2, self.available);
        fence(Ordering::SeqCst);
        let wanted = self.load(USED + 4 + 8 * u64::from(SIZE));
        let told = std::mem::replace(&mut self.told, self.available);
        let passed = self.available.wrapping_sub(wanted).wrapping_sub(1);
        passed < self.available.wrapping_sub(told)
    }

    /// How many packets are done since the last call. All are as long as they should be, which is
    /// looked at once in a while.
    pub(crate) fn reap(&mut self, len: usize) -> u16 {
        let now = self.load(USED + 2);
        let done = now.wrapping_sub(self.used);
        if done > 0 {
            let place = USED + 4 + 8 * u64::from(self.used % SIZE) + 4;
            let place = GuestAddress(self.start + place);
            let came: u32 = self.memory.read_obj(place).expect("inside");
            let wanted = if self.direction == Direction::In {
                len + HEADER
            } else {
                0
            };
            assert_eq!(came as usize, wanted, "a packet's length");
        }
        self.used = now;
        done
    }

    fn put<T: ByteValued>(&self, place: u64, value: T) {
        let place = GuestAddress(self.start + place);
        self.memory.write_obj(value, place).expect("inside");
    }

    fn store(&self, place: u64, value: u16) {
        let place = GuestAddress(self.start + place);
        self.memory
            .store(value, place, Ordering::Release)
            .expect("inside");
    }

    fn load(&self, place: u64) -> u16 {
        let place = GuestAddress(self.start + place);
        self.memory.load(place, Ordering::Acquire).expect("inside")
    }
}
