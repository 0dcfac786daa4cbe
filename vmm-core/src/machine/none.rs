//! `-machine none`: no CPU, no memory, no devices. A monitor that manages block nodes and fds.
//!
//! It exists so that management software can ask what this program can do without making a
//! machine, and so that tests of everything else need no KVM.

/// The empty machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoMachine;

impl NoMachine {
    /// How many vCPUs it has.
    pub const VCPUS: u32 = 0;
    /// Bytes of memory it has.
    pub const MEMORY: u64 = 0;
}
