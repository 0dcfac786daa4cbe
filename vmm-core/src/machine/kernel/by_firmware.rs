//! A kernel that firmware boots: nothing is put into memory; firmware reads the parts in fw_cfg,
//! split as the Linux boot protocol says (`Documentation/arch/x86/boot.rst`, "the real-mode code
//! and setup"), and enters what it likes of them: EDK II joins them and starts their EFI stub.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use devices::legacy::{FwCfgKernel, FwCfgLive};
use devices::repeats::Repeats;
use fdset::{Lease, OpenFile};

use super::{BootError, BootSource, KernelImage, read_at, unreadable};

/// A part of a file.
struct Part {
    file: Arc<(std::fs::File, Option<Lease>)>,
    what: &'static str,
    offset: u64,
    len: u32,
    failures: Repeats,
}

impl FwCfgLive for Part {
    fn len(&self) -> u32 {
        self.len
    }

    fn read(&self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        let at = self.offset.saturating_add(u64::from(offset));
        if let Err(error) = self.file.0.read_exact_at(data, at)
            && let Some(times) = self.failures.note()
        {
            tracing::error!(%error, times, what = self.what, "firmware reads zeroes");
        }
    }
}

impl BootSource {
    /// Its parts, for firmware.
    ///
    /// # Errors
    /// The kernel is no bzImage, a file is too long, or cannot be read.
    pub fn into_parts_for_firmware(self) -> Result<FwCfgKernel, BootError> {
        let KernelImage::BzImage(image) = &self.image else {
            return Err(BootError::NotAKernel {
                found: "an ELF file, which firmware does not boot".to_owned(),
            });
        };
        let (offset, len) = image.place();
        let mut setup = vec![0; usize::try_from(offset).unwrap_or(0)];
        if read_at(&self.kernel, &mut setup, 0)? < setup.len() {
            return Err(unreadable(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let cmdline = String::from_utf8_lossy(&self.cmdline).into_owned();
        let kernel = part("kernel", self.kernel, offset, len)?;
        let initrd = self
            .initrd
            .map(|(file, size)| part("initrd", file, 0, size))
            .transpose()?;
        Ok(FwCfgKernel {
            setup,
            kernel,
            initrd,
            cmdline,
        })
    }
}

fn part(
    what: &'static str,
    file: OpenFile,
    offset: u64,
    len: u64,
) -> Result<Arc<dyn FwCfgLive>, BootError> {
    let len = u32::try_from(len).map_err(|_| BootError::TooLongForFirmware { what, len })?;
    Ok(Arc::new(Part {
        file: Arc::new(file.into_file()),
        what,
        offset,
        len,
        failures: Repeats::default(),
    }))
}
