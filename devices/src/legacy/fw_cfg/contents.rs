//! What a guest finds behind each key: the fixed items, and the files with their directory.

use std::collections::BTreeMap;

/// "QEMU": what drivers look for.
const SIGNATURE: u16 = 0x00;
const FEATURES: u16 = 0x01;
const UUID: u16 = 0x02;
const RAM_SIZE: u16 = 0x03;
const NO_GRAPHIC: u16 = 0x04;
const CPUS: u16 = 0x05;
const MAX_CPUS: u16 = 0x0f;
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

/// What the fixed items say, and the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
pub(super) struct Contents(BTreeMap<u16, Vec<u8>>);

impl Contents {
    pub(super) fn new(spec: FwCfgSpec) -> Result<Self, FwCfgError> {
        let mut items = BTreeMap::from([
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
        ]);
        let mut files = spec.files;
        // Drivers show the directory as it is; QEMU's is in this order.
        files.sort_by(|a, b| a.name.cmp(&b.name));
        items.insert(DIRECTORY, directory(&files)?);
        items.extend((FIRST_FILE..).zip(files.into_iter().map(|file| file.bytes)));
        Ok(Self(items))
    }

    /// What is behind `key`; nothing is, behind most.
    pub(super) fn item(&self, key: u16) -> &[u8] {
        self.0
            .get(&(key & KEY_BITS))
            .map(Vec::as_slice)
            .unwrap_or_default()
    }
}

/// A count, and for each file its length, its key and its name; all numbers big-endian.
fn directory(files: &[FwCfgFile]) -> Result<Vec<u8>, FwCfgError> {
    let mut bytes = u32::try_from(files.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes()
        .to_vec();
    let mut before = None;
    for (key, file) in (FIRST_FILE..).zip(files) {
        let name = || file.name.clone();
        if before.replace(&file.name) == Some(&file.name) {
            return Err(FwCfgError::Taken { name: name() });
        }
        if key >= END_OF_FILES {
            return Err(FwCfgError::Full { name: name() });
        }
        let fits = (1..=LONGEST_NAME).contains(&file.name.len());
        if !fits || file.name.contains('\0') {
            return Err(FwCfgError::Name { name: name() });
        }
        let len = file.bytes.len();
        let length = u32::try_from(len).map_err(|_| FwCfgError::TooLong { name: name(), len })?;
        bytes.extend(length.to_be_bytes());
        bytes.extend(key.to_be_bytes());
        bytes.extend([0; 2]);
        let end = bytes.len() + NAME_ROOM;
        bytes.extend(file.name.as_bytes());
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

    #[test]
    fn the_directory_leads_to_each_file_in_the_order_of_names() {
        let contents = contents(vec![file("opt/b", b"second"), file("etc/a", b"one")]).unwrap();
        let directory = contents.item(DIRECTORY);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        assert_eq!(directory.len(), 4 + 2 * 64);
        assert_eq!(directory[4..12], [0, 0, 0, 3, 0, 0x20, 0, 0]);
        assert_eq!(&directory[12..18], b"etc/a\0");
        assert_eq!(directory[68..76], [0, 0, 0, 6, 0, 0x21, 0, 0]);
        assert_eq!(contents.item(0x20), b"one");
        assert_eq!(contents.item(0x21), b"second");
        assert_eq!(contents.item(0x21 | 0x4000), b"second");
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
