//! The virtual machine: KVM, memory, the machine, and the commands that drive it.

pub mod process;
pub mod run_state;
pub mod sandbox;
