//! Building the project's programs and images, each where cargo keeps its output.
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tests::artifacts::{self, Flavour};
use tests::initramfs;

use crate::root;
use crate::shell::{output, run, step};

/// The only target there is; named so that build scripts and macros stay dynamic.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The static programs of `tests/guest`.
pub(crate) struct Inits {
    pub(crate) guest: PathBuf,
    pub(crate) lab: PathBuf,
}

/// What a guest boots.
pub(crate) struct GuestFiles {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

/// Cargo as it called us, so that the toolchain stays the same.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Cargo's target folder.
pub(crate) fn target() -> Result<PathBuf> {
    let text = output(cargo().args(["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    let folder = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target folder")?;
    Ok(folder.into())
}

/// Builds `sesame` in `profile`.
pub(crate) fn sesame(profile: &str) -> Result<PathBuf> {
    step(&format!("building sesame ({profile})"));
    run(cargo()
        .args(["build", "-q", "-p", "vmm-core", "--bin", "sesame"])
        .args(["--profile", profile]))?;
    // The one profile whose folder has another name.
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(target()?.join(folder).join("sesame"))
}

/// Builds a program of `tools`, such as the reference server of the open hook.
pub(crate) fn tool(name: &str) -> Result<PathBuf> {
    step(&format!("building {name}"));
    run(cargo().args(["build", "-q", "-p", name]))?;
    Ok(target()?.join("debug").join(name))
}

/// Builds the static programs that run as process 1.
pub(crate) fn inits() -> Result<Inits> {
    step("building the guest's and the lab's init");
    // A folder of its own: other flags in the same one would rebuild everything each time.
    let folder = target()?.join("static");
    run(cargo()
        .args(["build", "-q", "-p", "guest", "--bins", "--profile", "lab"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&folder)
        .env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let out = folder.join(TARGET).join("lab");
    Ok(Inits {
        guest: out.join("guest-init"),
        lab: out.join("lab-init"),
    })
}

/// Debian's cloud kernel, this one or the newest, and the guest's initramfs for it.
pub(crate) fn guest_files(inits: &Inits, flavour: Flavour) -> Result<GuestFiles> {
    let kernel = artifacts::kernel(flavour)?;
    let name = match flavour {
        Flavour::Newest => "guests/initrd-newest",
        Flavour::Cloud | Flavour::Generic => "guests/initrd",
    };
    let initrd = target()?.join(name);
    write(&initrd, &initramfs::guest_image(&kernel, &inits.guest)?)?;
    Ok(GuestFiles {
        kernel: kernel.image,
        initrd,
    })
}

/// Writes a file and the folders above it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}
