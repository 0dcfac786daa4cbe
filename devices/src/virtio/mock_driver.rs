//! The driver's half of a queue, for tests: gives buffers, kicks, and waits for used ones.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{ActiveQueue, DriverNotifier, VirtioDevice};
use crate::irq::Interrupt;
use crate::memory::GuestMem;

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Flags of a descriptor: another one follows; the device writes.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;

const SIZE: u16 = 16;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const BUFFERS: u64 = 0x1000;
const BUFFER: u64 = 0x1000;
const STRIDE: u64 = 0x20000;

/// Guest memory for as many queues as any test needs.
pub(crate) fn guest_memory() -> GuestMem {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
    GuestMem::new(memory)
}

/// Passes each call on.
pub(crate) struct Bell {
    rung: Mutex<Sender<()>>,
}

impl Interrupt for Bell {
    fn trigger(&self) {
        self.rung.lock().unwrap().send(()).ok();
    }

    fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// An interrupt that nobody hears.
pub(crate) fn silent() -> Arc<dyn Interrupt> {
    let (rung, _) = mpsc::channel();
    Arc::new(Bell {
        rung: Mutex::new(rung),
    })
}

/// Counts how often the device gave up.
#[derive(Default)]
pub(crate) struct Notified {
    pub(crate) resets: AtomicUsize,
}

impl DriverNotifier for Notified {
    fn config_changed(&self) {}

    fn needs_reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

/// One queue as its driver sees it. Buffer `n` of the ring lies `n` pages into its own memory.
pub(crate) struct DriverQueue {
    memory: GuestMem,
    base: u64,
    next: u16,
    /// How many descriptors have been used, each once round the table.
    descriptors: u16,
    seen: u16,
    kick: EventFd,
    bell: Arc<Bell>,
    rung: Receiver<()>,
}

impl DriverQueue {
    /// A queue that has the `place`th part of `memory` to itself.
    pub(crate) fn new(memory: &GuestMem, place: u64) -> Self {
        let (rung, heard) = mpsc::channel();
        Self {
            memory: memory.clone(),
            base: 0x1000 + place * STRIDE,
            next: 0,
            descriptors: 0,
            seen: 0,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            bell: Arc::new(Bell {
                rung: Mutex::new(rung),
            }),
            rung: heard,
        }
    }

    /// Gives the queue to `device` as its queue `index`.
    pub(crate) fn start(&self, device: &dyn VirtioDevice, index: usize) {
        let state = QueueState {
            max_size: SIZE,
            size: SIZE,
            ready: true,
            desc_table: self.base,
            avail_ring: self.base + AVAILABLE,
            used_ring: self.base + USED,
            ..QueueState::default()
        };
        self.resume(device, index, state);
    }

    /// Gives the queue to `device` where it stood before.
    pub(crate) fn resume(&self, device: &dyn VirtioDevice, index: usize, state: QueueState) {
        let queue = Queue::try_from(state).unwrap();
        assert!(queue.is_valid(&*self.memory.memory()));
        let active = ActiveQueue {
            queue,
            memory: self.memory.clone(),
            kick: self.kick.try_clone().unwrap(),
            interrupt: Arc::clone(&self.bell) as _,
        };
        device.start_queue(index, active).unwrap();
        self.kick();
    }

    pub(crate) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Makes `bytes` available for the device to read.
    pub(crate) fn give(&mut self, bytes: &[u8]) {
        let address = self.buffer(self.descriptors % SIZE);
        self.write(address, bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        self.offer(&[(address, len, 0)]);
    }

    /// Makes room for `len` bytes available for the device to write.
    pub(crate) fn give_room(&mut self, len: u32) {
        let address = self.buffer(self.descriptors % SIZE);
        self.offer(&[(address, len, WRITE)]);
    }

    /// Makes a chain available whose first descriptor is the next one; each is its address,
    /// length and flags. A chain that says so leads back to its own beginning.
    pub(crate) fn offer(&mut self, chain: &[(u64, u32, u16)]) {
        let head = self.descriptors % SIZE;
        let count = u16::try_from(chain.len()).unwrap();
        self.descriptors = self.descriptors.wrapping_add(count);
        for (index, &(address, len, flags)) in (0..).zip(chain) {
            let follower = if usize::from(index) + 1 < chain.len() {
                (head + index + 1) % SIZE
            } else {
                head
            };
            let at = self.base + u64::from((head + index) % SIZE) * 16;
            self.write(at, &address.to_le_bytes());
            self.write(at + 8, &len.to_le_bytes());
            self.write(at + 12, &flags.to_le_bytes());
            self.write(at + 14, &follower.to_le_bytes());
        }
        let place = self.base + AVAILABLE + 4 + u64::from(self.next % SIZE) * 2;
        self.write(place, &head.to_le_bytes());
        self.next = self.next.wrapping_add(1);
        self.write(self.base + AVAILABLE + 2, &self.next.to_le_bytes());
        self.kick();
    }

    /// Waits for the next used buffer: what the device wrote into it.
    pub(crate) fn used(&mut self) -> Vec<u8> {
        loop {
            if let Some(bytes) = self.used_already() {
                return bytes;
            }
            self.rung.recv_timeout(PATIENCE).expect("no used buffer");
        }
    }

    /// The next used buffer, if there is one.
    pub(crate) fn used_already(&mut self) -> Option<Vec<u8>> {
        let mut index = [0; 2];
        self.read(self.base + USED + 2, &mut index);
        if u16::from_le_bytes(index) == self.seen {
            return None;
        }
        let mut element = [0; 8];
        let place = self.base + USED + 4 + u64::from(self.seen % SIZE) * 8;
        self.read(place, &mut element);
        self.seen = self.seen.wrapping_add(1);
        let [a, b, _, _, len @ ..] = element;
        let mut bytes = vec![0; usize::try_from(u32::from_le_bytes(len)).unwrap()];
        self.read(self.buffer(u16::from_le_bytes([a, b])), &mut bytes);
        Some(bytes)
    }

    /// Waits for the next used chain: how many bytes were written into it.
    pub(crate) fn used_length(&mut self) -> usize {
        loop {
            let mut index = [0; 2];
            self.read(self.base + USED + 2, &mut index);
            if u16::from_le_bytes(index) != self.seen {
                let mut len = [0; 4];
                let place = self.base + USED + 4 + u64::from(self.seen % SIZE) * 8;
                self.read(place + 4, &mut len);
                self.seen = self.seen.wrapping_add(1);
                return usize::try_from(u32::from_le_bytes(len)).unwrap();
            }
            self.rung.recv_timeout(PATIENCE).expect("no used buffer");
        }
    }

    /// Writes into memory.
    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.write(address, bytes);
    }

    /// Reads memory.
    pub(crate) fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(address, &mut bytes);
        bytes
    }

    /// Where the buffer of a descriptor lies.
    pub(crate) fn buffer(&self, descriptor: u16) -> u64 {
        self.base + BUFFERS + u64::from(descriptor) * BUFFER
    }

    fn read(&self, address: u64, bytes: &mut [u8]) {
        let memory = self.memory.memory();
        memory.read_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let memory = self.memory.memory();
        memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }
}
