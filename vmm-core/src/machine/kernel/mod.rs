//! Kernels: what can be booted directly, and how it is put into guest memory.
//!
//! ```text
//!   OpenFile ─► KernelImage::inspect ─┬─ bzImage  ─► 64-bit entry, boot_params
//!                                     └─ ELF+note ─► PVH entry, hvm_start_info
//!   BootSource { image, initrd, cmdline } ── load ─► BootEntry     (again at each reset)
//! ```
//!
//! Files come opened, and stay open: a reset reads them again by offset, so nothing is opened
//! twice and a passed fd's own position does not matter.
//!
//! Read next: [`bzimage`], [`elf`].

mod by_firmware;
pub mod bzimage;
pub mod elf;

use std::io;
use std::os::fd::AsFd;

use devices::memory::GuestMemView;
use fdset::OpenFile;
use vm_memory::{Bytes, GuestAddress};

use crate::kvm::BootEntry;
use crate::memory::{Layout, load};

use self::bzimage::BzImage;
use self::elf::PvhElf;

/// Where the command line goes, and how much of it there is room for, with its closing zero.
const CMDLINE: u64 = 0x2_0000;
const CMDLINE_ROOM: usize = 0x1_0000;
/// Enough of a file to tell what it is and to read a boot header.
const HEAD: usize = 4096;
const PAGE: u64 = 4096;

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file is not a kernel of a kind we boot.
    #[error(
        "the kernel is {found}: wanted an x86-64 bzImage (boot protocol 2.12 or later) or an \
         x86-64 ELF file with a PVH entry note"
    )]
    NotAKernel {
        /// What it seems to be, with its first bytes.
        found: String,
    },
    /// It claims to be one, but its headers contradict it.
    #[error("the kernel's {part} is damaged: {problem}")]
    Damaged {
        /// Which part.
        part: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The kernel does not fit.
    #[error(
        "the kernel needs memory up to {end:#x}, the guest has {ram:#x} bytes below 4 GiB: \
         give it more with -m"
    )]
    KernelTooLarge {
        /// The first address behind it.
        end: u64,
        /// RAM below 4 GiB.
        ram: u64,
    },
    /// The initial RAM disk does not fit.
    #[error(
        "the initrd has {size} bytes, there is room for {room} between the kernel and {limit:#x}: \
         give the guest more memory with -m"
    )]
    InitrdTooLarge {
        /// Its size.
        size: u64,
        /// The room for it.
        room: u64,
        /// Where the room ends.
        limit: u64,
    },
    /// The command line is too long.
    #[error("the kernel command line has {len} bytes, this kernel takes {max}: shorten -append")]
    CmdlineTooLong {
        /// Its length.
        len: usize,
        /// The longest there can be.
        max: usize,
    },
    /// The command line holds a zero byte.
    #[error("the kernel command line holds a zero byte at offset {at}")]
    CmdlineZero {
        /// Where.
        at: usize,
    },
    /// A file is longer than firmware can be told.
    #[error("the {what} has {len} bytes, firmware reads less than 4 GiB")]
    TooLongForFirmware {
        /// Which file.
        what: &'static str,
        /// Its length.
        len: u64,
    },
    /// Reading a file failed.
    #[error("the {what} cannot be read")]
    Read {
        /// Which file.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The tables for the kernel do not fit into guest memory.
    #[error("the guest's memory is too small to boot from")]
    Memory(#[source] vm_memory::GuestMemoryError),
}

/// What is to be booted.
#[derive(Debug)]
pub struct BootSource {
    kernel: OpenFile,
    image: KernelImage,
    initrd: Option<(OpenFile, u64)>,
    cmdline: Vec<u8>,
}

/// A kernel's headers, checked.
#[derive(Debug, PartialEq, Eq)]
pub enum KernelImage {
    /// A Linux bzImage.
    BzImage(BzImage),
    /// An ELF file with a PVH entry.
    Pvh(PvhElf),
}

/// What both kinds of kernel are told.
struct Handover<'a> {
    memory: &'a GuestMemView,
    layout: &'a Layout,
    rsdp: u64,
    cmdline_len: u32,
    /// Address and size; nothing if there is none.
    initrd: Option<(u64, u64)>,
}

impl BootSource {
    /// Checks what was opened, before a machine is built around it.
    ///
    /// # Errors
    /// The kernel is none, a file cannot be read by offset, or the command line is too long.
    pub fn new(
        kernel: OpenFile,
        initrd: Option<OpenFile>,
        cmdline: &str,
    ) -> Result<Self, BootError> {
        let image = KernelImage::inspect(&kernel)?;
        let initrd = initrd
            .map(|file| match file.size() {
                Ok(size) => Ok((file, size)),
                Err(source) => Err(BootError::Read {
                    what: "initrd",
                    source,
                }),
            })
            .transpose()?
            .filter(|&(_, size)| size > 0);
        let max = image.cmdline_max().min(CMDLINE_ROOM - 1);
        if cmdline.len() > max {
            let len = cmdline.len();
            return Err(BootError::CmdlineTooLong { len, max });
        }
        if let Some(at) = cmdline.bytes().position(|byte| byte == 0) {
            return Err(BootError::CmdlineZero { at });
        }
        Ok(Self {
            kernel,
            image,
            initrd,
            cmdline: cmdline.as_bytes().to_vec(),
        })
    }

    /// Puts kernel, initrd and command line into guest memory, with what the kernel must be told.
    ///
    /// # Errors
    /// Something does not fit, or reading fails.
    pub fn load(
        &self,
        memory: &GuestMemView,
        layout: &Layout,
        rsdp: u64,
    ) -> Result<BootEntry, BootError> {
        let end = match &self.image {
            KernelImage::BzImage(image) => image.load(&self.kernel, memory, layout)?,
            KernelImage::Pvh(image) => image.load(&self.kernel, memory, layout)?,
        };
        let mut line = self.cmdline.clone();
        line.push(0);
        memory
            .write_slice(&line, GuestAddress(CMDLINE))
            .map_err(BootError::Memory)?;
        let handover = Handover {
            memory,
            layout,
            rsdp,
            cmdline_len: u32::try_from(self.cmdline.len()).unwrap_or(u32::MAX),
            initrd: self.load_initrd(memory, layout, end)?,
        };
        let entry = match &self.image {
            KernelImage::BzImage(image) => image.hand_over(&self.kernel, layout, &handover)?,
            KernelImage::Pvh(image) => image.hand_over(&handover)?,
        };
        entry.write_tables(memory).map_err(BootError::Memory)?;
        Ok(entry)
    }

    /// The initrd goes as high as the kernel can reach, out of the way of its decompression.
    fn load_initrd(
        &self,
        memory: &GuestMemView,
        layout: &Layout,
        kernel_end: u64,
    ) -> Result<Option<(u64, u64)>, BootError> {
        let Some((file, size)) = &self.initrd else {
            return Ok(None);
        };
        let limit = layout.low.min(self.image.initrd_limit()) & !(PAGE - 1);
        let room = limit.saturating_sub(kernel_end.next_multiple_of(PAGE));
        if size.next_multiple_of(PAGE) > room {
            return Err(BootError::InitrdTooLarge {
                size: *size,
                room,
                limit,
            });
        }
        let start = limit - size.next_multiple_of(PAGE);
        load::pread(memory, start, file.as_fd(), 0, *size).map_err(|source| BootError::Read {
            what: "initrd",
            source,
        })?;
        Ok(Some((start, *size)))
    }
}

impl KernelImage {
    /// Finds out what `file` is.
    ///
    /// # Errors
    /// It is no kernel that we boot, or cannot be read by offset.
    pub fn inspect(file: &OpenFile) -> Result<Self, BootError> {
        let size = file.size().map_err(unreadable)?;
        let mut head = vec![0; HEAD];
        let len = read_at(file, &mut head, 0)?;
        head.truncate(len);
        if let Some(image) = BzImage::parse(&head, size)? {
            return Ok(Self::BzImage(image));
        }
        if let Some(image) = PvhElf::parse(file, &head, size)? {
            return Ok(Self::Pvh(image));
        }
        Err(BootError::NotAKernel {
            found: describe(&head),
        })
    }

    fn cmdline_max(&self) -> usize {
        match self {
            Self::BzImage(image) => image.cmdline_max(),
            Self::Pvh(_) => CMDLINE_ROOM - 1,
        }
    }

    fn initrd_limit(&self) -> u64 {
        match self {
            Self::BzImage(image) => image.initrd_limit(),
            Self::Pvh(_) => u64::from(u32::MAX),
        }
    }
}

fn unreadable(source: io::Error) -> BootError {
    BootError::Read {
        what: "kernel",
        source,
    }
}

/// Reads as much of `buffer` as the file has from `offset` on.
fn read_at(file: &OpenFile, buffer: &mut [u8], offset: u64) -> Result<usize, BootError> {
    let mut done = 0;
    while done < buffer.len() {
        let at = i64::try_from(offset.saturating_add(done as u64))
            .map_err(|_| unreadable(io::ErrorKind::InvalidInput.into()))?;
        match nix::sys::uio::pread(file.as_fd(), &mut buffer[done..], at) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(unreadable(error.into())),
        }
    }
    Ok(done)
}

/// What a file that is no kernel seems to be.
fn describe(head: &[u8]) -> String {
    if head.is_empty() {
        return "an empty file".into();
    }
    const KNOWN: &[(usize, &[u8], &str)] = &[
        (0, b"\x1f\x8b", "gzip data (unpack it first)"),
        (0, b"\xfd7zXZ\0", "xz data (unpack it first)"),
        (0, b"\x28\xb5\x2f\xfd", "zstd data (unpack it first)"),
        (0, b"QFI\xfb", "a qcow2 image"),
        (0, b"070701", "a cpio archive (an initrd?)"),
        (0, b"#!", "a script"),
        (4, b"zimg", "an EFI zboot image"),
        (
            0,
            b"\x7fELF",
            "an ELF file, but not one for x86-64 with a PVH entry note",
        ),
        (0x202, b"HdrS", "a Linux kernel without a 64-bit entry"),
        (0, b"MZ", "an EFI or DOS program"),
    ];
    let kind = KNOWN
        .iter()
        .find(|(at, magic, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
        .map_or("no kernel", |&(_, _, kind)| kind);
    let bytes: Vec<String> = head
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{kind} (it begins with {})", bytes.join(" "))
}

/// A little-endian number at an offset of a header; zero beyond its end.
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut wide = [0; 8];
    if let (Some(field), Some(low)) = (bytes.get(at..at + N), wide.get_mut(..N)) {
        low.copy_from_slice(field);
    }
    u64::from_le_bytes(wide)
}

#[cfg(test)]
pub(crate) mod tests;
