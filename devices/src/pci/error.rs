//! Why a function could not be plugged or unplugged. The texts reach the QMP client.

use super::address::SlotAddress;
use crate::irq::IrqError;

/// Why the tree refused.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// No bridge has a bus of this name.
    #[error("Bus '{bus}' not found")]
    NoSuchBus {
        /// The name asked for.
        bus: String,
    },
    /// The bus cannot take a device while the machine runs.
    #[error("Bus '{bus}' does not support hotplugging")]
    NotHotpluggable {
        /// The bus.
        bus: String,
    },
    /// The slot is taken.
    #[error(
        "PCI: slot {device} function {function} of bus '{bus}' already in use by '{by}', \
         cannot plug '{id}'",
        device = address.device(),
        function = address.function()
    )]
    SlotTaken {
        /// The bus.
        bus: String,
        /// The address asked for.
        address: SlotAddress,
        /// Who holds it.
        by: String,
        /// Who wanted it.
        id: String,
    },
    /// No slot is free.
    #[error("PCI: no slot free on bus '{bus}' for '{id}'; add a pcie-root-port")]
    BusFull {
        /// The bus.
        bus: String,
        /// Who wanted a slot.
        id: String,
    },
    /// A PCI Express port has one slot.
    #[error(
        "PCI: slot {device} is not valid for '{id}': bus '{bus}' of a PCI Express port has only \
         slot 0",
        device = address.device()
    )]
    OneSlotOnly {
        /// The bus.
        bus: String,
        /// The address asked for.
        address: SlotAddress,
        /// Who wanted it.
        id: String,
    },
    /// Only what conventional PCI has goes onto a conventional bus.
    #[error(
        "PCI: '{id}' is PCI Express and bus '{bus}' conventional PCI: plug it into 'pcie.0' or a \
         pcie-root-port"
    )]
    NeedsExpress {
        /// The bus.
        bus: String,
        /// Who wanted a slot.
        id: String,
    },
    /// A function other than 0 needs a multifunction function 0.
    #[error(
        "PCI: slot {device} of bus '{bus}' is not multifunction: function {function} for '{id}' \
         needs multifunction=on at function 0",
        device = address.device(),
        function = address.function()
    )]
    NotMultifunction {
        /// The bus.
        bus: String,
        /// The address asked for.
        address: SlotAddress,
        /// Who wanted it.
        id: String,
    },
    /// No function with this id is plugged anywhere.
    #[error("Device '{id}' not found")]
    NoSuchDevice {
        /// The id.
        id: String,
    },
    /// The guest has been asked and has not answered yet.
    #[error("Device {id} is already in the process of unplug")]
    UnplugPending {
        /// The id.
        id: String,
    },
    /// The capabilities do not fit into the 256 bytes of configuration space.
    #[error("PCI: no room for the capabilities of '{id}'")]
    NoRoom {
        /// The id.
        id: String,
    },
    /// A function cannot work with new guest memory.
    #[error("Device '{id}' cannot work with this memory")]
    Memory {
        /// The id.
        id: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An interrupt could not be had.
    #[error("PCI: no interrupt for '{id}'")]
    Interrupt {
        /// The id.
        id: String,
        /// Why.
        #[source]
        source: IrqError,
    },
}
