//! `-machine none`: no CPU, no memory, no devices. A monitor that manages block nodes and fds.
//!
//! It exists so that management software can ask what this program can do without making a
//! machine, and so that tests of everything else need no KVM.

use super::{MachineKind, MachineType};

/// The empty machine.
pub static TYPE: MachineType = MachineType {
    name: "none",
    alias: None,
    qom_type: "none-machine",
    description: "no CPU, no RAM, no bus: for asking questions",
    kind: MachineKind::None,
    max_vcpus: 0,
};
