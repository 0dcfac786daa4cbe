//! A driver reads through both doors, and a hostile one through neither more than there is.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use vm_memory::GuestMemoryAtomic;

use super::*;

const RAM: u64 = 1 << 20;
/// Where tests describe transfers.
const DESCRIPTION: u32 = 0x1000;
const DATA: u64 = 0x2000;

fn device() -> FwCfg {
    let memory = GuestMemView::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let spec = FwCfgSpec {
        uuid: [7; 16],
        ram: RAM,
        cpus: 3,
        max_cpus: 8,
        files: vec![FwCfgFile {
            name: "opt/test".into(),
            bytes: b"hello".to_vec(),
        }],
        ..FwCfgSpec::default()
    };
    FwCfg::new(spec, GuestMemoryAtomic::new(memory)).unwrap()
}

fn read<const N: usize>(device: &FwCfg, key: u16) -> [u8; N] {
    device.write(SELECTOR, &key.to_le_bytes());
    std::array::from_fn(|_| {
        let mut byte = [0xee];
        device.read(LAST_OF_DATA, &mut byte);
        byte[0]
    })
}

/// Carries a transfer out and gives its control word afterwards.
fn transfer(device: &FwCfg, control: u32, length: u32, to: u64) -> u32 {
    let memory = device.memory.memory();
    let mut raw = control.to_be_bytes().to_vec();
    raw.extend(length.to_be_bytes());
    raw.extend(to.to_be_bytes());
    memory
        .write_slice(&raw, GuestAddress(DESCRIPTION.into()))
        .unwrap();
    device.write(DMA_HIGH, &[0; 4]);
    device.write(DMA_LOW, &DESCRIPTION.to_be_bytes());
    let mut after = [0; 4];
    memory
        .read_slice(&mut after, GuestAddress(DESCRIPTION.into()))
        .unwrap();
    u32::from_be_bytes(after)
}

fn ram<const N: usize>(device: &FwCfg, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    let memory = device.memory.memory();
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn the_ports_give_an_item_byte_by_byte_and_then_zeroes() {
    let device = device();
    assert_eq!(&read::<6>(&device, 0), b"QEMU\0\0");
    assert_eq!(read::<4>(&device, 1), [3, 0, 0, 0]);
    assert_eq!(read::<16>(&device, 2), [7; 16]);
    assert_eq!(read::<8>(&device, 3), RAM.to_le_bytes());
    assert_eq!(read::<2>(&device, 5), [3, 0]);
    assert_eq!(read::<2>(&device, 0xf), [8, 0]);
    assert_eq!(read::<4>(&device, 0x19), [0, 0, 0, 1]);
    assert_eq!(&read::<5>(&device, 0x20), b"hello");
    assert_eq!(read::<4>(&device, 0x7777), [0; 4]);
}

#[test]
fn the_dma_port_says_that_it_is_there() {
    let device = device();
    let mut signature = [0; 8];
    device.read(DMA_HIGH, &mut signature);
    assert_eq!(&signature, b"QEMU CFG");
    let mut half = [0; 4];
    device.read(DMA_LOW, &mut half);
    assert_eq!(&half, b" CFG");
}

#[test]
fn one_transfer_selects_and_reads_and_another_goes_on_behind_it() {
    let device = device();
    let select = 0x20 << 16 | SELECT;
    assert_eq!(transfer(&device, select | READ, 2, DATA), 0);
    assert_eq!(&ram::<2>(&device, DATA), b"he");
    assert_eq!(transfer(&device, SKIP, 1, 0), 0);
    let memory = device.memory.memory();
    memory.write_slice(&[0xff; 5], GuestAddress(DATA)).unwrap();
    assert_eq!(transfer(&device, READ, 4, DATA), 0);
    assert_eq!(&ram::<5>(&device, DATA), b"lo\0\0\xff");
}

#[test]
fn a_transfer_without_a_place_in_ram_is_an_error_and_writes_nothing() {
    let device = device();
    let read = 0x20 << 16 | SELECT | READ;
    for (length, to) in [(u32::MAX, 0), (16, RAM - 8), (1, u64::MAX), (2, 1 << 40)] {
        assert_eq!(transfer(&device, read, length, to), ERROR);
    }
    assert_eq!(ram::<8>(&device, RAM - 8), [0; 8]);
    // The description itself may lie nowhere.
    device.write(DMA_HIGH, &[0xff; 4]);
    device.write(DMA_LOW, &[0xff; 4]);
}

#[test]
fn nothing_of_the_hosts_can_be_written() {
    let device = device();
    let write = 0x20 << 16 | SELECT | WRITE;
    assert_eq!(transfer(&device, write, 5, DATA), ERROR);
    device.write(LAST_OF_DATA, b"x");
    assert_eq!(&read::<5>(&device, 0x20), b"hello");
}

#[test]
fn a_snapshot_keeps_how_far_a_guest_has_read_and_a_reset_does_not() {
    let (from, to) = (device(), device());
    assert_eq!(&read::<2>(&from, 0x20), b"he");
    to.load(from.save()).unwrap();
    let mut byte = [0];
    to.read(LAST_OF_DATA, &mut byte);
    assert_eq!(&byte, b"l");
    to.reset();
    assert_eq!(to.save(), FwCfgState::default());
}

proptest! {
    /// Whatever a guest writes, the device answers and only its own RAM changes.
    #[test]
    fn a_hostile_guest_gets_an_answer_to_everything(
        writes in prop::collection::vec(
            (0..LEN, prop::collection::vec(any::<u8>(), 1..=8), any::<bool>()), 0..64),
        description in prop::collection::vec(any::<u8>(), TRANSFER),
    ) {
        let device = device();
        let memory = device.memory.memory();
        memory.write_slice(&description, GuestAddress(DESCRIPTION.into())).unwrap();
        for (offset, bytes, describe) in writes {
            device.write(offset, &bytes);
            let mut data = bytes;
            device.read(offset, &mut data);
            if describe {
                device.write(DMA_LOW, &DESCRIPTION.to_be_bytes());
            }
        }
        prop_assert_eq!(&read::<5>(&device, 0x20), b"hello");
    }
}

/// Four bytes that the guest may change, and how often it began with them.
#[derive(Default)]
struct Note {
    bytes: Mutex<[u8; 4]>,
    selections: AtomicUsize,
}

impl FwCfgLive for Note {
    fn len(&self) -> u32 {
        4
    }

    fn select(&self) {
        self.selections.fetch_add(1, Ordering::SeqCst);
    }

    fn read(&self, offset: u32, data: &mut [u8]) {
        let bytes = self.bytes.lock().unwrap();
        data.copy_from_slice(&bytes[offset as usize..][..data.len()]);
    }

    fn write(&self, offset: u32, data: &[u8]) -> bool {
        self.bytes.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        true
    }
}

#[test]
fn a_live_file_is_asked_at_each_selection_and_takes_what_fits() {
    let device = device();
    let note = Arc::new(Note::default());
    device.add_file("etc/note", Arc::clone(&note) as _).unwrap();
    assert_eq!(read::<4>(&device, 0x19), [0, 0, 0, 2]);
    let again = device.add_file("etc/note", Arc::clone(&note) as _);
    assert!(again.is_err(), "the name is there once");
    let memory = device.memory.memory();
    memory.write_slice(b"abcde", GuestAddress(DATA)).unwrap();
    // In the order of names it is before the other.
    let select = 0x20 << 16 | SELECT;
    assert_eq!(transfer(&device, select | WRITE, 3, DATA), 0);
    assert_eq!(&read::<6>(&device, 0x20), b"abc\0\0\0");
    assert_eq!(transfer(&device, select | WRITE, 5, DATA), ERROR);
    assert_eq!(&read::<4>(&device, 0x20), b"abc\0");
    assert_eq!(note.selections.load(Ordering::SeqCst), 4);
    assert_eq!(&read::<5>(&device, 0x21), b"hello");
}
