//! How the binary is linked. Thousands of constants hold addresses; said as one entry each, their
//! relocations are a twentieth of the program, and the loader reads them all at each start. Packed
//! they are next to nothing.
//!
//! Not in the dev profile: `cargo xtask check` follows the calls of that binary through its
//! relocations.

use std::env;
use std::process::Command;

/// The first glibc whose loader knows packed relocations.
const FIRST: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("PROFILE").as_deref() == Ok("release") && libc().is_some_and(|it| it >= FIRST) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this machine's glibc. What is linked with it runs with none that is older.
fn libc() -> Option<(u32, u32)> {
    let told = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let told = String::from_utf8(told.ok()?.stdout).ok()?;
    let (major, minor) = told.trim().strip_prefix("glibc ")?.split_once('.')?;
    let minor = minor.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
