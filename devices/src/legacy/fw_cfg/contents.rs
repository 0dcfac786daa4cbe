//! What a guest finds behind each key: the fixed items, and the files with their directory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// "QEMU": what drivers look for.
const SIGNATURE: u16 = 0x00;
const FEATURES: u16 = 0x01;
const UUID: u16 = 0x02;
const RAM_SIZE: u16 = 0x03;
const NO_GRAPHIC: u16 = 0x04;
const CPUS: u16 = 0x05;
const MAX_CPUS: u16 = 0x0f;
const KERNEL_SIZE: u16 = 0x08;
const INITRD_SIZE: u16 = 0x0b;
const KERNEL: u16 = 0x11;
const INITRD: u16 = 0x12;
const CMDLINE_SIZE: u16 = 0x14;
const CMDLINE: u16 = 0x15;
const SETUP_SIZE: u16 = 0x17;
const SETUP: u16 = 0x18;
const DIRECTORY: u16 = 0x19;
const FIRST_FILE: u16 = 0x20;
/// The first key that is no file's any more: bit 14 has another meaning.
const END_OF_FILES: u16 = 0x4000;
/// Keys differ only in these bits: bit 14 once told writes from reads.
const KEY_BITS: u16 = !0x4000;

/// Features: the ports are there, and so is DMA.
const PORTS_AND_DMA: u32 = 1 << 0 | 1 << 1;
/// A name's place in the directory, with the NUL at its end.
const NAME_ROOM: usize = 56;
/// The longest name of a file, in bytes.
pub const LONGEST_NAME: usize = NAME_ROOM - 1;

/// Bytes that are not at hand from the start, or change.
///
/// Calls come from vCPUs, several at once. Lengths are those of the directory, which a guest reads
/// once: they never change.
pub trait FwCfgLive: Send + Sync {
    /// How many bytes there are.
    fn len(&self) -> u32;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The guest begins to read or write: bytes that depend on the machine's state are made now.
    fn select(&self) {}

    /// Fills `data` from `offset`; what cannot be had is zero.
    fn read(&self, offset: u32, data: &mut [u8]);

    /// The guest writes; `false` if it may not.
    fn write(&self, offset: u32, data: &[u8]) -> bool {
        let _ = (offset, data);
        false
    }
}

/// What is behind a key.
#[derive(Clone)]
pub(super) enum Item {
    Bytes(Vec<u8>),
    Live(Arc<dyn FwCfgLive>),
}

impl Item {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Live(live) => usize::try_from(live.len()).unwrap_or(usize::MAX),
        }
    }

    pub(super) fn select(&self) {
        if let Self::Live(live) = self {
            live.select();
        }
    }

    /// Fills `data` from `offset`, with zeroes behind the end.
    pub(super) fn read(&self, offset: u32, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let room = self.len().saturating_sub(start).min(data.len());
        let (within, beyond) = data.split_at_mut(room);
        beyond.fill(0);
        match self {
            Self::Bytes(bytes) => {
                let from = bytes.get(start..).unwrap_or_default();
                for (to, from) in within.iter_mut().zip(from) {
                    *to = *from;
                }
            }
            Self::Live(live) if room > 0 => live.read(offset, within),
            Self::Live(_) => {}
        }
    }

    pub(super) fn write(&self, offset: u32, data: &[u8]) -> bool {
        let end = usize::try_from(offset)
            .ok()
            .and_then(|start| start.checked_add(data.len()));
        match self {
            Self::Live(live) if end.is_some_and(|end| end <= self.len()) => {
                live.write(offset, data)
            }
            _ => false,
        }
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

/// A kernel that firmware is to boot.
#[derive(Clone)]
pub struct FwCfgKernel {
    /// Its boot sector and setup code.
    pub setup: Vec<u8>,
    /// The rest of its file.
    pub kernel: Arc<dyn FwCfgLive>,
    /// Its initial RAM disk.
    pub initrd: Option<Arc<dyn FwCfgLive>>,
    /// Its command line.
    pub cmdline: String,
}

impl FwCfgKernel {
    fn items(self) -> Vec<(u16, Item)> {
        let size = |len: usize| {
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            Item::Bytes(len.to_le_bytes().to_vec())
        };
        let mut cmdline = self.cmdline.into_bytes();
        cmdline.push(0);
        let parts = [
            (SETUP_SIZE, SETUP, Some(Item::Bytes(self.setup))),
            (KERNEL_SIZE, KERNEL, Some(Item::Live(self.kernel))),
            (INITRD_SIZE, INITRD, self.initrd.map(Item::Live)),
            (CMDLINE_SIZE, CMDLINE, Some(Item::Bytes(cmdline))),
        ];
        let parts = parts.into_iter();
        parts
            .filter_map(|(size, data, item)| Some((size, data, item?)))
            .flat_map(|(key, data, item)| [(key, size(item.len())), (data, item)])
            .collect()
    }
}

impl fmt::Debug for FwCfgKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a kernel with {:?}", self.cmdline)
    }
}

/// What the fixed items say, and the files.
#[derive(Clone, Debug, Default)]
pub struct FwCfgSpec {
    /// The machine's UUID, most significant byte first; all zero if it has none.
    pub uuid: [u8; 16],
    /// RAM in bytes.
    pub ram: u64,
    /// Whether the machine was told to do without a screen.
    pub no_graphic: bool,
    /// How many vCPUs there are at the start.
    pub cpus: u16,
    /// How many vCPUs there is room for.
    pub max_cpus: u16,
    /// What firmware is to boot.
    pub kernel: Option<FwCfgKernel>,
    /// The files, each name once.
    pub files: Vec<FwCfgFile>,
}

/// A file of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FwCfgFile {
    /// Its name: 1 to [`LONGEST_NAME`] bytes without a NUL, `opt/..` for a user's own.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// Why a file cannot be in the directory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FwCfgError {
    /// Its name has no place.
    #[error("fw_cfg file '{name}': a name is 1 to {LONGEST_NAME} bytes long and has no NUL in it")]
    Name {
        /// The name.
        name: String,
    },
    /// There is such a file.
    #[error("fw_cfg file '{name}' is there already")]
    Taken {
        /// The name.
        name: String,
    },
    /// Its length has no place.
    #[error("fw_cfg file '{name}': {len} bytes are more than the 4 GiB of its length's place")]
    TooLong {
        /// The name.
        name: String,
        /// Its length in bytes.
        len: usize,
    },
    /// No key is left.
    #[error("fw_cfg file '{name}': there is no room for more files")]
    Full {
        /// The name.
        name: String,
    },
}

/// Every item by its key.
#[derive(Debug)]
pub(super) struct Contents {
    fixed: BTreeMap<u16, Item>,
    /// The files in the directory's order, which is that of their names.
    files: Vec<(String, Item)>,
}

impl Contents {
    pub(super) fn new(spec: FwCfgSpec) -> Result<Self, FwCfgError> {
        let fixed = [
            (SIGNATURE, b"QEMU".to_vec()),
            (FEATURES, PORTS_AND_DMA.to_le_bytes().to_vec()),
            (UUID, spec.uuid.to_vec()),
            (RAM_SIZE, spec.ram.to_le_bytes().to_vec()),
            (
                NO_GRAPHIC,
                u16::from(spec.no_graphic).to_le_bytes().to_vec(),
            ),
            (CPUS, spec.cpus.to_le_bytes().to_vec()),
            (MAX_CPUS, spec.max_cpus.to_le_bytes().to_vec()),
        ];
        let fixed = fixed.map(|(key, bytes)| (key, Item::Bytes(bytes)));
        let mut contents = Self {
            fixed: BTreeMap::from(fixed),
            files: Vec::new(),
        };
        let kernel = spec.kernel.map(FwCfgKernel::items);
        contents.fixed.extend(kernel.unwrap_or_default());
        for file in spec.files {
            contents.files.push((file.name, Item::Bytes(file.bytes)));
        }
        contents.list()?;
        Ok(contents)
    }

    /// Adds a file; the keys of those behind it change. Nothing does if it cannot be there.
    pub(super) fn add(&mut self, name: &str, live: Arc<dyn FwCfgLive>) -> Result<(), FwCfgError> {
        let before = self.files.clone();
        self.files.push((name.to_owned(), Item::Live(live)));
        self.list().inspect_err(|_| self.files = before)
    }

    /// Adds a file of these bytes, or has it be of them from now on.
    pub(super) fn set(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), FwCfgError> {
        let before = self.files.clone();
        self.files.retain(|(other, _)| other != name);
        self.files.push((name.to_owned(), Item::Bytes(bytes)));
        self.list().inspect_err(|_| self.files = before)
    }

    /// Tells of so many vCPUs.
    pub(super) fn set_cpus(&mut self, cpus: u16) {
        let bytes = cpus.to_le_bytes().to_vec();
        self.fixed.insert(CPUS, Item::Bytes(bytes));
    }

    /// Drivers show the directory as it is; QEMU's is in the order of names.
    fn list(&mut self) -> Result<(), FwCfgError> {
        self.files.sort_by(|(a, _), (b, _)| a.cmp(b));
        let directory = Item::Bytes(directory(&self.files)?);
        self.fixed.insert(DIRECTORY, directory);
        Ok(())
    }

    /// What is behind `key`; nothing is, behind most.
    pub(super) fn item(&self, key: u16) -> Option<&Item> {
        let key = key & KEY_BITS;
        match key.checked_sub(FIRST_FILE) {
            Some(index) => self.files.get(usize::from(index)).map(|(_, item)| item),
            None => self.fixed.get(&key),
        }
    }
}

/// A count, and for each file its length, its key and its name; all numbers big-endian.
fn directory(files: &[(String, Item)]) -> Result<Vec<u8>, FwCfgError> {
    let mut bytes = u32::try_from(files.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes()
        .to_vec();
    let mut before = None;
    for (key, (file, item)) in (FIRST_FILE..).zip(files) {
        let name = || file.clone();
        if before.replace(file) == Some(file) {
            return Err(FwCfgError::Taken { name: name() });
        }
        if key >= END_OF_FILES {
            return Err(FwCfgError::Full { name: name() });
        }
        let fits = (1..=LONGEST_NAME).contains(&file.len());
        if !fits || file.contains('\0') {
            return Err(FwCfgError::Name { name: name() });
        }
        let len = item.len();
        let length = u32::try_from(len).map_err(|_| FwCfgError::TooLong { name: name(), len })?;
        bytes.extend(length.to_be_bytes());
        bytes.extend(key.to_be_bytes());
        bytes.extend([0; 2]);
        let end = bytes.len() + NAME_ROOM;
        bytes.extend(file.as_bytes());
        bytes.resize(end, 0);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: &[u8]) -> FwCfgFile {
        FwCfgFile {
            name: name.to_owned(),
            bytes: bytes.to_vec(),
        }
    }

    fn contents(files: Vec<FwCfgFile>) -> Result<Contents, FwCfgError> {
        Contents::new(FwCfgSpec {
            files,
            ..FwCfgSpec::default()
        })
    }

    fn bytes(contents: &Contents, key: u16) -> Vec<u8> {
        let item = contents.item(key).unwrap();
        let mut bytes = vec![0; item.len()];
        item.read(0, &mut bytes);
        bytes
    }

    #[test]
    fn the_directory_leads_to_each_file_in_the_order_of_names() {
        let contents = contents(vec![file("opt/b", b"second"), file("etc/a", b"one")]).unwrap();
        let directory = bytes(&contents, DIRECTORY);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        assert_eq!(directory.len(), 4 + 2 * 64);
        assert_eq!(directory[4..12], [0, 0, 0, 3, 0, 0x20, 0, 0]);
        assert_eq!(&directory[12..18], b"etc/a\0");
        assert_eq!(directory[68..76], [0, 0, 0, 6, 0, 0x21, 0, 0]);
        assert_eq!(bytes(&contents, 0x20), b"one");
        assert_eq!(bytes(&contents, 0x21), b"second");
        assert_eq!(bytes(&contents, 0x21 | 0x4000), b"second");
    }

    struct Counting(u32);
    impl FwCfgLive for Counting {
        fn len(&self) -> u32 {
            self.0
        }
        fn read(&self, offset: u32, data: &mut [u8]) {
            for (at, byte) in (offset..).zip(data) {
                *byte = at.to_le_bytes()[0];
            }
        }
    }

    #[test]
    fn a_kernel_comes_in_its_parts_each_with_its_size() {
        let kernel = FwCfgKernel {
            setup: vec![7; 1024],
            kernel: Arc::new(Counting(300)),
            initrd: Some(Arc::new(Counting(5))),
            cmdline: "quiet".to_owned(),
        };
        let contents = Contents::new(FwCfgSpec {
            kernel: Some(kernel),
            ..FwCfgSpec::default()
        })
        .unwrap();
        let size = |key| u32::from_le_bytes(bytes(&contents, key).try_into().unwrap());
        assert_eq!([0x17, 0x08, 0x0b, 0x14].map(size), [1024, 300, 5, 6]);
        assert_eq!(bytes(&contents, 0x18), vec![7; 1024]);
        assert_eq!(bytes(&contents, 0x11)[256..260], [0, 1, 2, 3]);
        assert_eq!(bytes(&contents, 0x12), [0, 1, 2, 3, 4]);
        assert_eq!(bytes(&contents, 0x15), b"quiet\0");
    }

    #[test]
    fn a_name_is_there_once_and_fits_its_place() {
        let taken = contents(vec![file("a", b""), file("b", b""), file("a", b"")]);
        assert_eq!(taken.err(), Some(FwCfgError::Taken { name: "a".into() }));
        let longest = "n".repeat(LONGEST_NAME);
        assert!(contents(vec![file(&longest, b"")]).is_ok());
        for name in [String::new(), longest + "n", "a\0b".to_owned()] {
            let wrong = contents(vec![file(&name, b"")]);
            assert_eq!(wrong.err(), Some(FwCfgError::Name { name }));
        }
    }

    #[test]
    fn a_file_without_a_key_left_is_refused() {
        let files = |count: usize| (0..count).map(|n| file(&format!("{n:05}"), b"")).collect();
        let room = usize::from(END_OF_FILES - FIRST_FILE);
        assert!(contents(files(room)).is_ok());
        let full = contents(files(room + 1));
        let name = format!("{room:05}");
        assert_eq!(full.err(), Some(FwCfgError::Full { name }));
    }
}
