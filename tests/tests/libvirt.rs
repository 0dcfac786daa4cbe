//! The distribution's own libvirt, unmodified, with sesame as the emulator of a domain.
//!
//! `tests/interop/libvirt/run` does it all, as root, in mounts and processes of its own;
//! `SESAME_LIBVIRT` is where `cargo xtask test` put the packages.
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/interop/libvirt");

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn the_distributions_libvirt_manages_a_guest() -> Result<()> {
    let output = Command::new(Path::new(FOLDER).join("run")).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}");
    ensure!(
        output.status.success() && said.ends_with("done\n"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn the_guide_shows_the_domain_that_is_tested() {
    let domain = include_str!("../interop/libvirt/domain.xml");
    let guide = include_str!("../../docs/libvirt.md");
    assert!(
        guide.contains(&format!("```xml\n{domain}```")),
        "docs/libvirt.md: copy tests/interop/libvirt/domain.xml into it"
    );
}
