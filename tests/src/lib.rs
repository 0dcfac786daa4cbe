//! The harness of every guest test, and the lab the guests run in.
//!
//! ```text
//!   a test ── Vm::builder() ──► vm.rs ── spawns ──► sesame (or QEMU, the peer)
//!     │                          │  passes files as fds (fds.rs)
//!     │                          ├─ QMP over a socket pair ──► qmp.rs
//!     └─ vm.guest() ─────────────┴─ agent over a socket pair ► guest.rs ──► guest-init
//!
//!   cargo xtask ── Lab::boot ──► lab.rs ── QEMU (TCG) ──► lab-init ──► a test program
//!                                 ▲ artifacts.rs (kernels), initramfs.rs (images)
//! ```
//!
//! A guest test is a few lines (see `tests/boot.rs`). Guest tests are marked `#[ignore]`, so that
//! `cargo test` alone runs what needs no machine; `cargo xtask test` runs all of them where KVM
//! works. This room knows the product only by its command line and its QMP: none of its crates.
//!
//! Read next: [`vm`], then `tests/boot.rs`.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they open the files that they hand in"
)]

pub mod artifacts;
pub mod backends;
pub mod cable;
pub mod clients;
pub mod ctl;
pub mod debian;
pub mod esp;
pub mod fds;
pub mod gpt;
pub mod guest;
pub mod handed;
pub mod hook;
pub mod host_cpu;
pub mod host_kvm;
pub mod initramfs;
pub mod inspect;
pub mod job_server;
pub mod kernels;
pub mod lab;
pub mod lines;
pub mod network;
pub mod qmp;
pub mod sealed;
pub mod stock;
pub mod stray;
pub mod table;
pub mod tap;
mod tcg;
pub mod terminal;
pub mod tls;
pub mod uki;
pub mod vm;

pub use vm::Vm;
