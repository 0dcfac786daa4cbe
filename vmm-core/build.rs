//! How the binary is linked. Thousands of constants hold addresses; said as one entry each, their
//! relocations are a twentieth of the program, and the loader reads them all at each start. Packed
//! they are next to nothing. The loader of glibc 2.36 and later knows them.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
