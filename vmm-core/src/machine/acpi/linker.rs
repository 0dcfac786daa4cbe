//! The script by which firmware puts tables together: which files of fw_cfg it takes into memory,
//! and which numbers in them it makes addresses (QEMU's `table-loader`, `docs/specs` has none of
//! it: SeaBIOS' `romfile_loader.h` and OVMF's `QemuLoader.h` are what firmware knows).
//!
//! ```text
//!   ALLOCATE file           memory for the file, and its bytes into it
//!   ADD_POINTER in to       the number at a place in one file + where the other file is
//!   ADD_CHECKSUM            the byte that makes a range sum to zero
//!   WRITE_POINTER in to     the same as ADD_POINTER, written back to a file of the host's
//! ```

/// The length of one command.
const ENTRY: usize = 128;
/// The room for a file's name, with the NUL at its end.
const NAME_ROOM: usize = 56;

const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
const WRITE_POINTER: u32 = 4;

/// Where firmware puts a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// Anywhere.
    High = 1,
    /// Below 1 MiB, where the search for anchors finds it.
    Anchors = 2,
}

/// The commands, in the order in which firmware follows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Linker(Vec<u8>);

impl Linker {
    /// Firmware takes `file` into memory, at a multiple of `align`. Before all else about the file.
    pub fn allocate(&mut self, file: &str, align: u32, zone: Zone) {
        self.add(
            ALLOCATE,
            &[file],
            &[&align.to_le_bytes(), &[zone as u8][..]],
        );
    }

    /// The number of `size` bytes at `at` in `file`, a place in `to`, becomes its address.
    pub fn add_pointer(&mut self, file: &str, at: u32, size: u8, to: &str) {
        self.add(ADD_POINTER, &[file, to], &[&at.to_le_bytes(), &[size]]);
    }

    /// The byte at `at` in `file` makes `len` bytes from `start` on sum to zero. It is zero before.
    pub fn add_checksum(&mut self, file: &str, at: u32, start: u32, len: u32) {
        let numbers = [at, start, len].map(u32::to_le_bytes);
        let [at, start, len] = &numbers;
        self.add(ADD_CHECKSUM, &[file], &[at, start, len]);
    }

    /// Firmware writes the address of byte `of` in `to` into `file`, which it only writes: `size`
    /// bytes at `at`.
    pub fn write_pointer(&mut self, file: &str, at: u32, size: u8, to: &str, of: u32) {
        self.add(
            WRITE_POINTER,
            &[file, to],
            &[&at.to_le_bytes(), &of.to_le_bytes(), &[size]],
        );
    }

    /// The script.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn add(&mut self, command: u32, files: &[&str], numbers: &[&[u8]]) {
        let end = self.0.len() + ENTRY;
        self.0.extend(command.to_le_bytes());
        for file in files {
            debug_assert!(file.len() < NAME_ROOM, "{file}");
            let name_end = self.0.len() + NAME_ROOM;
            self.0.extend(file.bytes().take(NAME_ROOM - 1));
            self.0.resize(name_end, 0);
        }
        for number in numbers {
            self.0.extend_from_slice(number);
        }
        self.0.resize(end, 0);
    }
}
