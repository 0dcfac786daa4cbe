//! The virtual machine: KVM, memory, the machine, and the commands that drive it.

pub mod cli;
pub mod event_loop;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod objects;
pub mod process;
pub mod qom;
pub mod resolve;
pub mod run_state;
pub mod sandbox;
