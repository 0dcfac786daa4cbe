//! The virtual machine: KVM, memory, the machine, and the commands that drive it.
//!
//! The only crate that knows all the others, and the only one that names KVM. The binary
//! `sesame` is a few lines on top of it.
//!
//! ```text
//!   argv ─► cli ─► Config ─► launch ─► Vm ◄─ event_loop ◄─ signals, monitor, devices, vCPUs
//!                                      │
//!        qmp (one file per schema file)┤ resolve (wire types to specs)
//!                                      ├─ plug, device_tree, objects
//!                                      └─ machine ─ kvm, memory
//! ```
//!
//! Read next: [`launch`] (the order of building), [`vm`] (the owner of everything).

pub mod announcer;
pub mod base64;
pub mod boot_order;
pub mod cli;
pub mod device_tree;
pub mod drives;
pub mod event_loop;
pub mod hmp;
pub mod hook;
pub mod input;
mod inspect;
mod jobs;
pub mod kvm;
mod last_words;
pub mod launch;
pub mod letters;
pub mod machine;
pub mod memory;
pub mod messages;
mod nodes;
pub mod objects;
pub mod plan;
pub mod plug;
pub mod process;
pub mod qmp;
pub mod qom;
pub mod qtest;
pub mod resolve;
pub mod run_state;
pub mod sandbox;
pub mod secret;
mod start_code;
pub mod throttling;
pub mod tls_creds;
pub mod tpm;
mod transaction;
pub mod types;
pub mod uuid;
pub mod vm;
