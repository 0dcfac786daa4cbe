//! A disk with a stock Debian on it, made of the distribution's packages once and kept in the cache:
//! who boots it puts an overlay on top.
//!
//! ```text
//!   GPT ─┬─ EFI system partition   \EFI\BOOT: shim, GRUB, both signed · \EFI\debian: grub.cfg
//!        └─ root file system       kernel, initramfs, systemd; root without a password
//! ```
//!
//! mmdebstrap makes it, as root or in a user namespace; its last steps are in `tests/debian/finish`.
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::artifacts;
use crate::esp;
use crate::gpt::{self, Kind, SECTOR};

/// The release.
const RELEASE: &str = "bookworm";
/// What is in it besides what all Debian systems have.
const PACKAGES: &str = "systemd-sysv,udev,iproute2,linux-image-cloud-amd64,initramfs-tools,\
                        shim-signed,grub-efi-amd64-signed";
/// What nobody reads there.
const WITHOUT: [&str; 3] = ["doc", "man", "locale"];
/// The length of the root file system in MiB, about half of it free.
const ROOT_MIB: u32 = 600;
/// Where GRUB, as Debian signs it, looks for its configuration.
const GRUB_CFG: &[u8] = b"search.fs_label root root\n\
                          set prefix=($root)/boot/grub\n\
                          configfile $prefix/grub.cfg\n";

/// The disk, made on first use.
pub fn disk() -> Result<PathBuf> {
    let folder = artifacts::cache()?.join("images");
    let disk = folder.join("debian.raw");
    if !disk.exists() {
        fs::create_dir_all(&folder)?;
        let work = tempfile::tempdir_in(&folder)?;
        eprintln!("making a Debian system in {}", disk.display());
        bootstrap(work.path())?;
        let new = work.path().join("disk");
        assemble(work.path(), &new)?;
        fs::rename(new, &disk)?;
    }
    Ok(disk)
}

fn bootstrap(work: &Path) -> Result<()> {
    let finish = Path::new(env!("CARGO_MANIFEST_DIR")).join("debian/finish");
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--variant=minbase", "--format=null"])
        .arg(format!("--include={PACKAGES}"))
        .args(WITHOUT.map(|folder| format!("--dpkgopt=path-exclude=/usr/share/{folder}/*")))
        .arg(format!("--customize-hook={}", finish.display()))
        .args([RELEASE, "/dev/null"])
        .env("OUT", work)
        .env("SIZE", format!("{ROOT_MIB}M"));
    let output = command.output().context("run mmdebstrap")?;
    ensure!(
        output.status.success(),
        "mmdebstrap: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn assemble(work: &Path, place: &Path) -> Result<()> {
    let disk = File::create_new(place)?;
    let sectors = ROOT_MIB << 11;
    let starts = gpt::lay_out(&disk, &[(Kind::Efi, esp::SECTORS), (Kind::Linux, sectors)])?;
    let [shim, grub] = ["shim", "grub"].map(|name| fs::read(work.join(name)));
    esp::fill(
        &disk,
        &[
            ("EFI/BOOT/BOOTX64.EFI", &shim?),
            ("EFI/BOOT/GRUBX64.EFI", &grub?),
            ("EFI/DEBIAN/GRUB.CFG", GRUB_CFG),
        ],
    )?;
    let mut at = *starts.last().context("there are two")?;
    let mut root = File::open(work.join("root.ext4"))?;
    let mut chunk = vec![0; 128 * SECTOR];
    loop {
        let count = root.read(&mut chunk)?;
        let bytes = &chunk[..count];
        if count == 0 {
            return Ok(disk.sync_all()?);
        }
        // The file stays as sparse as it is.
        if bytes.iter().any(|&byte| byte != 0) {
            disk.write_all_at(bytes, at)?;
        }
        at += count as u64;
    }
}
