use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::state::trial;

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

/// An array whose storage is a second copy.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    stored: Mutex<Vec<u8>>,
    stores: Mutex<usize>,
    shown: AtomicBool,
    writable: bool,
    breaks: bool,
    failed: AtomicBool,
    settled: AtomicBool,
}

impl Memory {
    fn new(writable: bool) -> Self {
        let bytes = vec![0x5a; 4 * BLOCK_LEN];
        Self {
            stored: Mutex::new(bytes.clone()),
            bytes: Mutex::new(bytes),
            stores: Mutex::new(0),
            shown: AtomicBool::new(false),
            writable,
            breaks: false,
            failed: AtomicBool::new(false),
            settled: AtomicBool::new(false),
        }
    }
}

impl FlashArray for Memory {
    fn len(&self) -> u64 {
        4 * BLOCK
    }
    fn is_writable(&self) -> bool {
        self.writable
    }
    fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.bytes.lock().unwrap();
        for (at, byte) in (offset..).zip(data) {
            *byte = bytes.get(index(at)).copied().unwrap_or(ERASED);
        }
    }
    fn program(&self, offset: u64, data: &[u8]) {
        let mut bytes = self.bytes.lock().unwrap();
        for (at, byte) in (offset..).zip(data) {
            if let Some(place) = bytes.get_mut(index(at)) {
                *place = *byte;
            }
        }
    }
    fn store(&self, range: Range<u64>) {
        if self.breaks {
            self.failed.store(true, Ordering::SeqCst);
            return;
        }
        let bytes = self.bytes.lock().unwrap();
        let end = index(range.end).min(bytes.len());
        let range = index(range.start).min(end)..end;
        self.stored.lock().unwrap()[range.clone()].copy_from_slice(&bytes[range]);
        *self.stores.lock().unwrap() += 1;
    }
    fn take_failure(&self) -> bool {
        self.failed.swap(false, Ordering::SeqCst)
    }
    fn settle(&self) {
        self.settled.store(true, Ordering::SeqCst);
    }
    fn show(&self, as_memory: bool) {
        self.shown.store(as_memory, Ordering::SeqCst);
    }
}

fn read(chip: &Pflash<Memory>, offset: u64) -> u8 {
    let mut byte = [0];
    chip.read(offset, &mut byte);
    byte[0]
}

#[test]
fn a_row_of_programmed_bytes_is_stored_once_and_before_the_array_is_seen() {
    let chip = Pflash::new(Memory::new(true));
    for (at, byte) in (0x100..).zip(b"variable") {
        chip.write(at, &[0x40]);
        chip.write(at, &[*byte]);
    }
    assert!(!chip.array.shown.load(Ordering::SeqCst));
    assert_eq!(*chip.array.stores.lock().unwrap(), 0);
    chip.write(0, &[0xff]);
    assert!(chip.array.shown.load(Ordering::SeqCst));
    assert_eq!(*chip.array.stores.lock().unwrap(), 1);
    assert_eq!(
        &chip.array.stored.lock().unwrap()[0x100..0x108],
        b"variable"
    );
}

#[test]
fn a_block_is_erased_as_a_whole_after_its_confirmation_only() {
    let chip = Pflash::new(Memory::new(true));
    chip.write(BLOCK + 7, &[0x20]);
    chip.write(BLOCK + 7, &[0x00]);
    assert_eq!(read(&chip, BLOCK), 0x5a);
    chip.write(BLOCK + 7, &[0x20]);
    chip.write(BLOCK + 7, &[0xd0]);
    assert_eq!(read(&chip, 0), READY);
    chip.write(0, &[0xff]);
    let stored = chip.array.stored.lock().unwrap();
    assert_eq!(stored[BLOCK_LEN - 1], 0x5a);
    assert!(
        stored[BLOCK_LEN..2 * BLOCK_LEN]
            .iter()
            .all(|&byte| byte == ERASED)
    );
    assert_eq!(stored[2 * BLOCK_LEN], 0x5a);
}

#[test]
fn firmware_finds_that_it_is_flash_and_not_memory() {
    let chip = Pflash::new(Memory::new(true));
    chip.write(0, &[0x50]);
    assert_eq!(read(&chip, 0), 0x5a, "memory would hold the command");
    chip.write(0, &[0x70]);
    assert_eq!(read(&chip, 0), 0, "ROM would hold the byte");
    chip.write(0, &[0x98]);
    assert_eq!([0x10, 0x11, 0x12].map(|at| read(&chip, at)), *b"QRY");
    chip.write(0, &[0x90]);
    assert_eq!([0, 1].map(|at| read(&chip, at)), [0x89, 0x18]);
}

#[test]
fn what_cannot_be_stored_shows_in_the_status() {
    let chip = Pflash::new(Memory {
        breaks: true,
        ..Memory::new(true)
    });
    chip.write(7, &[0x10]);
    chip.write(7, &[1]);
    assert_eq!(read(&chip, 7), READY | PROGRAM_FAILED);
    chip.write(7, &[0x50]);
    assert_eq!(read(&chip, 7), 1, "the guest has it until it restarts");
}

#[test]
fn a_pause_waits_for_what_was_programmed() {
    let chip = Pflash::new(Memory::new(true));
    chip.write(7, &[0x10]);
    chip.write(7, &[1]);
    chip.pause();
    assert_eq!(chip.array.stored.lock().unwrap()[7], 1);
    assert!(chip.array.settled.load(Ordering::SeqCst));
}

#[test]
fn a_read_only_chip_refuses_and_says_so() {
    let chip = Pflash::new(Memory::new(false));
    chip.write(3, &[0x10]);
    chip.write(3, &[0]);
    assert_eq!(read(&chip, 3), READY | PROGRAM_FAILED);
    chip.write(3, &[0x20]);
    chip.write(3, &[0xd0]);
    assert_eq!(read(&chip, 3), READY | PROGRAM_FAILED | ERASE_FAILED);
    chip.write(3, &[0x50]);
    assert_eq!(read(&chip, 3), 0x5a);
}

proptest! {
    /// Whatever a guest does: nothing breaks, and after a reset the storage is the array.
    #[test]
    fn storage_follows_the_array(
        accesses in prop::collection::vec(
            (0u64..5 * BLOCK, prop::collection::vec(any::<u8>(), 1..9), any::<bool>()), 0..60),
    ) {
        let chip = Pflash::new(Memory::new(true));
        for (offset, mut data, write) in accesses {
            if write { chip.write(offset, &data) } else { chip.read(offset, &mut data) }
        }
        chip.reset();
        prop_assert_eq!(&*chip.array.bytes.lock().unwrap(), &*chip.array.stored.lock().unwrap());
        prop_assert!(chip.array.shown.load(Ordering::SeqCst));
    }
}

#[test]
fn a_chip_goes_on_where_a_snapshot_was_taken_and_no_state_breaks_it() {
    let (from, to) = (
        Pflash::new(Memory::new(true)),
        Pflash::new(Memory::new(true)),
    );
    from.write(0x100, &[0x40]);
    from.write(0x100, &[7]);
    let tree = trial::carry(&from, &to);
    assert_eq!(tree.state["mode"], "Status");
    assert!(!to.array.shown.load(Ordering::SeqCst));
    let alive = || {
        for byte in [0xe8, 1, 2, 0xff] {
            to.write(4 * BLOCK - 1, &[byte]);
            let _ = read(&to, 4 * BLOCK - 1);
        }
    };
    assert!(trial::offend(&to, &tree, alive) > 10);
}
