//! The machines a VM can be: what is soldered on, where it lies, and how a kernel gets started.
//!
//! ```text
//!   Q35Spec ──► Q35 ─┬─ KvmVm, slots, interrupts, vCPUs   (kvm)
//!                    ├─ GuestMem by the layout            (memory)
//!                    ├─ buses, PCI tree, LPC, serials…    (devices)
//!                    └─ reset(): PCI setup, tables, kernel → entry; or firmware, for all that
//! ```
//!
//! This room must never know QMP, run states, or where a spec came from. A second machine model
//! is a file beside [`q35`] and a line in [`TYPES`].
//!
//! Read next: [`q35`], [`board`] (what is soldered on), [`kernel`] (what can be booted),
//! [`firmware`] (what runs instead), [`acpi`], [`smbios`], [`none`].

pub mod acpi;
pub mod board;
pub mod firmware;
mod fw_cfg;
mod identity;
pub mod kernel;
pub mod none;
pub mod numa;
mod pci_tree;
pub mod q35;
pub mod smbios;
pub mod wiring;

pub use kernel::{BootError, BootSource};
pub use q35::{MachineHost, Q35, Q35Spec};

use crate::kvm::KvmError;
use crate::memory::{MemoryError, PlaceError};

/// A machine model: what it is called, and what clients are told of it.
#[derive(Debug, PartialEq, Eq)]
pub struct MachineType {
    /// What `-machine` takes.
    pub name: &'static str,
    /// What it takes as well.
    pub alias: Option<&'static str>,
    /// The type of `/machine` in the object tree.
    pub qom_type: &'static str,
    /// One line for `-machine help`.
    pub description: &'static str,
    /// Which it is.
    pub kind: MachineKind,
    /// The most vCPUs it can have; 0 for a machine without.
    pub max_vcpus: u32,
}

impl MachineType {
    /// Whether it has a board: CPUs, memory, and buses to plug devices into.
    #[must_use]
    pub fn has_board(&self) -> bool {
        self.kind != MachineKind::None
    }
}

/// The models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineKind {
    /// [`none`].
    None,
    /// [`q35`].
    Q35,
}

/// All models, for `-machine`, `query-machines` and `qom-list-types`.
pub const TYPES: &[&MachineType] = &[DEFAULT, &none::TYPE];

/// What is meant when nothing is said.
pub const DEFAULT: &MachineType = &q35::TYPE;

/// The model of this name or alias.
#[must_use]
pub fn find(name: &str) -> Option<&'static MachineType> {
    TYPES
        .iter()
        .find(|model| model.name == name || model.alias == Some(name))
        .copied()
}

/// Why a machine could not be built, started or reset.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Too little memory for the firmware tables.
    #[error("{size} bytes of memory are too little: this machine needs at least {least}")]
    MemoryTooSmall {
        /// What was asked for.
        size: u64,
        /// The least there must be.
        least: u64,
    },
    /// More memory than the CPU can address.
    #[error("{size} bytes of memory are more than a CPU with {bits} address bits reaches")]
    MemoryTooLarge {
        /// What was asked for.
        size: u64,
        /// How far the CPU's addresses go.
        bits: u32,
    },
    /// The vCPUs do not fit their topology, or the machine.
    #[error(
        "{vcpus} vCPUs in {sockets} sockets × {dies} dies × {cores} cores × {threads} threads: \
         wanted between 1 and their product, and APIC ids below {limit}"
    )]
    Topology {
        /// vCPUs to be present.
        vcpus: u32,
        /// Sockets.
        sockets: u32,
        /// Dies in a socket.
        dies: u32,
        /// Cores in a die.
        cores: u32,
        /// Threads in a core.
        threads: u32,
        /// One more than the highest APIC id.
        limit: u32,
    },
    /// A vCPU cannot come or go.
    #[error(
        "vCPU {index}: it cannot be plugged in or out: the machine has no such place, the place is \
         not free, or -smp leaves none free (give it maxcpus=)"
    )]
    CpuPlace {
        /// The place asked for.
        index: u32,
    },
    /// A serial port that the machine does not have, or that exists already.
    #[error("serial port {index}: this machine has ports 0 to 3, each once")]
    Serial {
        /// The port asked for.
        index: usize,
    },
    /// The board's watchdog has no timer.
    #[error("the board's watchdog: no timer can be had")]
    Watchdog(#[source] std::io::Error),
    /// The firmware tables are too long for their place.
    #[error("the {tables} tables do not fit their place below 1 MiB")]
    Tables {
        /// ACPI or SMBIOS.
        tables: &'static str,
    },
    /// Firmware does not fit its place.
    #[error(
        "pflash{unit}: {size} bytes of firmware find no room: all of it together has 16 MiB below \
         4 GiB"
    )]
    FirmwareTooLarge {
        /// Which chip.
        unit: usize,
        /// Its length in bytes.
        size: u64,
    },
    /// A chip cannot be that long.
    #[error(
        "pflash{unit}: firmware of {size} bytes, wanted a multiple of {wanted} that is not zero"
    )]
    FirmwareSize {
        /// Which chip.
        unit: usize,
        /// Its length in bytes.
        size: u64,
        /// What it must be a multiple of.
        wanted: usize,
    },
    /// The host has no memory for a chip.
    #[error("memory for firmware")]
    Rom(#[source] vm_memory::mmap::MmapRegionError),
    /// A device of the board could not be placed: two claim the same address.
    #[error("a board device")]
    Overlap(#[from] devices::bus::Overlap),
    /// The PCI tree refused a board device.
    #[error("a board device on PCI")]
    Pci(#[from] devices::pci::PciError),
    /// A serial port's chardev is in use.
    #[error("serial port {index}")]
    Chardev {
        /// The port.
        index: usize,
        /// Why.
        #[source]
        source: devices::chardev::ChardevError,
    },
    /// A file cannot be put into fw_cfg.
    #[error(transparent)]
    FwCfg(#[from] devices::legacy::FwCfgError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A device cannot work with more memory.
    #[error(transparent)]
    Unwanted(devices::pci::PciError),
    /// A memory device has no place.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The firmware tables could not be written.
    #[error("writing the firmware tables")]
    Write(#[from] vm_memory::GuestMemoryError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_found_by_name_and_alias() {
        assert_eq!(find("q35"), find("pc-q35-sesame1"));
        assert_eq!(find("none").map(|m| m.kind), Some(MachineKind::None));
        assert_eq!(find("pc"), None);
    }
}
