//! Kernels, good and bad, put into memory.

use std::fs::File;
use std::io::Write;

use vm_memory::GuestMemoryError;

use super::*;
use crate::memory::layout::HIGH_RAM;

const RAM: u64 = 64 << 20;

fn file_of(bytes: &[u8]) -> OpenFile {
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    OpenFile::new(file.into(), None)
}

fn layout() -> Layout {
    Layout::new(RAM, 40).unwrap()
}

fn memory() -> GuestMemView {
    GuestMemView::from_ranges(&[(GuestAddress(0), usize::try_from(RAM).unwrap())]).unwrap()
}

/// A bzImage whose protected-mode kernel is `kernel`.
pub(crate) fn bzimage(kernel: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x66]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x230..0x234].copy_from_slice(&0x20_0000u32.to_le_bytes());
    image[0x234] = 1;
    image[0x236] = 1;
    image[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x10_0000u32.to_le_bytes());
    image.extend_from_slice(kernel);
    image.resize(image.len().max(1024 + 0x1000), 0x90);
    image
}

/// An ELF file with one segment at 1 MiB, entered at its start.
pub(crate) fn pvh_elf(code: &[u8], note: bool) -> Vec<u8> {
    let mut elf = vec![0; 0x1000];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = 62;
    elf[32..40].copy_from_slice(&64u64.to_le_bytes());
    elf[54] = 56;
    elf[56] = 2;
    let mut header = |at: usize, kind: u32, offset: u64, address: u64, len: u64, memory: u64| {
        elf[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        for (field, value) in [(8, offset), (24, address), (32, len), (40, memory)] {
            elf[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
        }
    };
    let len = code.len() as u64;
    header(64, 1, 0x1000, HIGH_RAM, len, len + 0x2000);
    header(120, if note { 4 } else { 6 }, 0x800, 0, 20, 20);
    let note_at = 0x800;
    elf[note_at] = 4;
    elf[note_at + 4] = 4;
    elf[note_at + 8] = 18;
    elf[note_at + 12..note_at + 16].copy_from_slice(b"Xen\0");
    elf[note_at + 16..note_at + 20].copy_from_slice(&0x10_0000u32.to_le_bytes());
    elf.extend_from_slice(code);
    elf
}

fn read<T: vm_memory::ByteValued>(memory: &GuestMemView, at: u64) -> T {
    let value: Result<T, GuestMemoryError> = memory.read_obj(GuestAddress(at));
    value.unwrap()
}

#[test]
fn a_bzimage_is_loaded_where_it_likes_to_be() {
    let memory = memory();
    let source = BootSource::new(
        file_of(&bzimage(b"kernel code")),
        Some(file_of(&[7; 5000])),
        "console=ttyS0",
    )
    .unwrap();
    let entry = source.load(&memory, &layout(), 0xe_0000).unwrap();
    assert_eq!(
        entry,
        BootEntry::Linux64 {
            entry: 0x100_0200,
            boot_params: 0x7000
        }
    );
    assert_eq!(read::<[u8; 6]>(&memory, 0x100_0000), *b"kernel");
    assert_eq!(read::<[u8; 14]>(&memory, CMDLINE), *b"console=ttyS0\0");
    // The initrd ends with RAM, and boot_params tell of it.
    let initrd = RAM - 0x2000;
    assert_eq!(u64::from(read::<u32>(&memory, 0x7218)), initrd);
    assert_eq!(read::<u32>(&memory, 0x721c), 5000);
    assert_eq!(read::<u8>(&memory, initrd + 4999), 7);
    assert_eq!(read::<u64>(&memory, 0x7070), 0xe_0000);
    assert_eq!(read::<u8>(&memory, 0x7210), 0xff);
    assert_eq!(read::<[u8; 4]>(&memory, 0x7202), *b"HdrS");
    let map = layout().e820();
    assert_eq!(usize::from(read::<u8>(&memory, 0x71e8)), map.len());
    assert_eq!(read::<u64>(&memory, 0x72d0 + 8), map[0].len);
}

#[test]
fn a_bzimage_moves_down_when_there_is_little_memory() {
    let image = file_of(&bzimage(b"kernel"));
    let source = BootSource::new(image, None, "").unwrap();
    let small = Layout::new(8 << 20, 40).unwrap();
    let memory = memory();
    let entry = source.load(&memory, &small, 0).unwrap();
    let BootEntry::Linux64 { entry, .. } = entry else {
        panic!("{entry:?}");
    };
    assert_eq!(entry, 0x20_0200);
    let smaller = Layout::new(2 << 20, 40).unwrap();
    let error = source.load(&memory, &smaller, 0).unwrap_err();
    assert!(matches!(error, BootError::KernelTooLarge { .. }), "{error}");
}

#[test]
fn an_elf_kernel_is_loaded_and_its_bss_cleared() {
    let memory = memory();
    let bss = HIGH_RAM + 4;
    memory.write_obj(0xffff_ffffu32, GuestAddress(bss)).unwrap();
    let source = BootSource::new(
        file_of(&pvh_elf(b"code", true)),
        Some(file_of(b"initrd")),
        "quiet",
    )
    .unwrap();
    let entry = source.load(&memory, &layout(), 0xe_0000).unwrap();
    assert_eq!(
        entry,
        BootEntry::Pvh {
            entry: 0x10_0000,
            start_info: 0x6000
        }
    );
    assert_eq!(read::<[u8; 4]>(&memory, HIGH_RAM), *b"code");
    assert_eq!(read::<u32>(&memory, bss), 0);
    assert_eq!(read::<u32>(&memory, 0x6000), 0x336e_c578);
    assert_eq!(read::<u32>(&memory, 0x600c), 1);
    assert_eq!(read::<u64>(&memory, 0x6020), 0xe_0000);
    assert_eq!(read::<u64>(&memory, 0x6040), RAM - 0x1000);
    assert_eq!(read::<u64>(&memory, 0x6048), 6);
    assert_eq!(read::<u32>(&memory, 0x6080 + 16), 1);
}

#[test]
fn what_is_no_kernel_is_named() {
    let named = |bytes: &[u8]| {
        BootSource::new(file_of(bytes), None, "")
            .unwrap_err()
            .to_string()
    };
    assert!(named(b"").starts_with("the kernel is an empty file: wanted"));
    assert!(named(b"#!/bin/sh\n").contains("a script (it begins with 23 21 2f 62"));
    assert!(named(b"\x1f\x8b\x08").contains("gzip data (unpack it first)"));
    assert!(named(&pvh_elf(b"code", false)).contains("an ELF file, but not one"));
    let mut old = bzimage(b"kernel");
    old[0x236] = 0;
    assert!(named(&old).contains("a Linux kernel without a 64-bit entry"));
    assert!(named(&[0xde, 0xad]).contains("no kernel (it begins with de ad)"));
}

#[test]
fn a_damaged_kernel_is_refused_before_anything_is_loaded() {
    let refused = |bytes: &[u8]| BootSource::new(file_of(bytes), None, "").unwrap_err();
    let short = &bzimage(b"kernel")[..1024];
    assert!(matches!(refused(short), BootError::Damaged { .. }));
    let mut crooked = bzimage(b"kernel");
    crooked[0x230] = 3;
    assert!(matches!(refused(&crooked), BootError::Damaged { .. }));
    let mut beyond = pvh_elf(b"code", true);
    beyond[64 + 8..64 + 16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(refused(&beyond), BootError::Damaged { .. }));
    let mut many = pvh_elf(b"code", true);
    many[56..58].copy_from_slice(&[0xff, 0xff]);
    assert!(matches!(refused(&many), BootError::Damaged { .. }));
}

#[test]
fn an_initrd_that_does_not_fit_is_refused_with_both_sizes() {
    let initrd: File = tempfile::tempfile().unwrap();
    initrd.set_len(RAM).unwrap();
    let source = BootSource::new(
        file_of(&bzimage(b"kernel")),
        Some(OpenFile::new(initrd.into(), None)),
        "",
    )
    .unwrap();
    let error = source.load(&memory(), &layout(), 0).unwrap_err();
    let BootError::InitrdTooLarge { size, room, .. } = error else {
        panic!("{error}");
    };
    assert_eq!((size, room), (RAM, RAM - 0x110_0000));
}

#[test]
fn a_command_line_is_no_longer_than_the_kernel_takes() {
    let line = "x".repeat(2048);
    let error = BootSource::new(file_of(&bzimage(b"kernel")), None, &line).unwrap_err();
    assert!(matches!(
        error,
        BootError::CmdlineTooLong {
            len: 2048,
            max: 2047
        }
    ));
    let error = BootSource::new(file_of(&bzimage(b"kernel")), None, "a\0b").unwrap_err();
    assert!(matches!(error, BootError::CmdlineZero { at: 1 }));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_loader_panic(mut bytes in proptest::collection::vec(0u8.., 0..2048), elf: bool) {
        let mut image = if elf { pvh_elf(b"code", true) } else { bzimage(b"kernel") };
        // Damage the headers only here and there, so that many get past the first checks.
        for (at, byte) in bytes.drain(..).enumerate() {
            if byte % 61 == 0 {
                image[at] = byte;
            }
        }
        if let Ok(source) = BootSource::new(file_of(&image), None, "") {
            let _ = source.load(&memory(), &layout(), 0);
        }
    }
}

#[test]
fn a_pvh_entry_outside_all_segments_is_refused() {
    let mut elf = pvh_elf(b"code", true);
    elf[0x810..0x814].copy_from_slice(&0x4000_0000u32.to_le_bytes());
    let error = BootSource::new(file_of(&elf), None, "").expect_err("entered nowhere");
    assert_eq!(
        error.to_string(),
        "the kernel's ELF header is damaged: the PVH entry 0x40000000 lies in none of its segments"
    );
}
