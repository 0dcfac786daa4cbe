//! Initramfs images, written in the kernel's "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst),
//! uncompressed: both images are small, and the guest's boot time is measured.
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use ::guest::boot;
use anyhow::{Context, Result};

use crate::artifacts::{Kernel, Module};

/// What test guests load: what Debian's cloud kernel does not have built in.
pub const GUEST_MODULES: &[&str] = &[
    "virtio_blk",
    "virtio-rng",
    "virtio_net",
    "virtio_scsi",
    "virtio_balloon",
    "virtio_mem",
    "sd_mod",
    "sr_mod",
    "vmw_vsock_virtio_transport",
    "evdev",
    "button",
    "pvpanic-mmio",
    "pvpanic-pci",
    "virtio_input",
    "i6300esb",
];

/// What test guests load when a test wants it: each boot would pay for it.
const LATER_MODULES: &[&str] = &["virtio_pmem", "nd_pmem"];

/// What modules are told: a watchdog that runs out while a test waits for it.
const OPTIONS: &[(&str, &str)] = &[("i6300esb.ko", "heartbeat=2")];

/// What the lab loads on a stock kernel: its root, and everything a VMM may ask a host for.
pub const LAB_MODULES: &[&str] = &[
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm-amd",
    "kvm-intel",
    "tun",
    "bridge",
    "vhost_net",
    "vhost_vsock",
    "loop",
];

/// The guest's image: its init and its modules.
pub fn guest_image(kernel: &Kernel, init: &Path) -> Result<Vec<u8>> {
    let at_once = kernel.modules(GUEST_MODULES)?;
    let mut later = kernel.modules(LATER_MODULES)?;
    later.retain(|module| at_once.iter().all(|other| other.name != module.name));
    image(init, [&at_once, &later], &[])
}

/// The lab's image; `shares` are `TAG=FOLDER` lines for its init.
pub fn lab_image(kernel: &Kernel, init: &Path, shares: &str) -> Result<Vec<u8>> {
    let shares = ("shares", shares.as_bytes());
    image(init, [&kernel.modules(LAB_MODULES)?, &[]], &[shares])
}

/// An image with modules for its beginning, and some for later.
fn image(init: &Path, modules: [&[Module]; 2], extra: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let program =
        fs::read(init).with_context(|| format!("read the init program {}", init.display()))?;
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "modules"] {
        archive.entry(folder, 0o040_755, (0, 0), b"");
    }
    archive.entry("dev/console", 0o020_600, (5, 1), b"");
    archive.entry("init", 0o100_755, (0, 0), &program);
    for (list, modules) in [boot::AT_ONCE, boot::LATER].into_iter().zip(modules) {
        let mut order = String::new();
        for module in modules {
            let options = OPTIONS.iter().find(|(name, _)| *name == module.name);
            let options = options.map_or("", |(_, options)| options);
            writeln!(order, "{} {options}", module.name)?;
            let path = format!("modules/{}", module.name);
            archive.entry(&path, 0o100_644, (0, 0), &module.bytes);
        }
        let path = format!("modules/{list}");
        archive.entry(&path, 0o100_644, (0, 0), order.as_bytes());
    }
    for (path, bytes) in extra {
        archive.entry(path, 0o100_644, (0, 0), bytes);
    }
    Ok(archive.finish())
}

/// A newc archive being written.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len()).unwrap_or(u32::MAX),
            0,
            0,
            device.0,
            device.1,
            u32::try_from(path.len() + 1).unwrap_or(u32::MAX),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_the_kernel_reads() {
        let mut archive = Archive::default();
        archive.entry("init", 0o100_755, (0, 0), b"abc");
        let bytes = archive.finish();
        assert!(bytes.starts_with(b"07070100000001000081ED"));
        assert_eq!(bytes.len() % 4, 0);
        let name_at = 110;
        assert_eq!(&bytes[name_at..name_at + 5], b"init\0");
    }
}
