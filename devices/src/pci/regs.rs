//! Names for the registers of configuration space (PCI Local Bus 3.0, chapter 6; PCI Express
//! Base 5.0, chapter 7). Offsets are in bytes.

use std::ops::Range;

/// What says which function this is: bytes that are the same in two functions with the same
/// registers, whatever their guests do.
pub const FIXED: [(Range<usize>, &str); 4] = [
    (0x00..0x04, "vendor and device"),
    (0x08..0x0c, "revision and class"),
    (0x0e..0x0f, "header type"),
    (0x34..0x35, "first capability"),
];

/// Vendor id, 16 bits.
pub const VENDOR: u16 = 0x00;
/// Device id, 16 bits.
pub const DEVICE: u16 = 0x02;
/// Command, 16 bits.
pub const COMMAND: u16 = 0x04;
/// Status, 16 bits.
pub const STATUS: u16 = 0x06;
/// Revision, 8 bits, followed by the 24-bit class code.
pub const REVISION: u16 = 0x08;
/// Header type, 8 bits.
pub const HEADER_TYPE: u16 = 0x0e;
/// The first BAR.
pub const BAR0: u16 = 0x10;
/// Subsystem vendor and device (header type 0).
pub const SUBSYSTEM: u16 = 0x2c;
/// Offset of the first capability, 8 bits.
pub const CAPABILITIES: u16 = 0x34;
/// Interrupt line, 8 bits.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt pin, 8 bits: 0 none, 1 INTA.
pub const INTERRUPT_PIN: u16 = 0x3d;

/// COMMAND: answers I/O accesses.
pub const COMMAND_IO: u16 = 1 << 0;
/// COMMAND: answers memory accesses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// COMMAND: may start transactions.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// COMMAND: drives no INTx.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// STATUS: there is a capability list.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Header type of a PCI-to-PCI bridge.
pub const HEADER_BRIDGE: u8 = 1;
/// Header type: more functions than function 0.
pub const HEADER_MULTIFUNCTION: u8 = 0x80;

/// Bridge: primary, secondary and subordinate bus numbers, 8 bits each.
pub const PRIMARY_BUS: u16 = 0x18;
/// Bridge: memory window base, 16 bits, units of 1 MiB in bits 15..4.
pub const MEMORY_BASE: u16 = 0x20;
/// Bridge: memory window limit.
pub const MEMORY_LIMIT: u16 = 0x22;
/// Bridge: prefetchable window base, low part.
pub const PREFETCH_BASE: u16 = 0x24;
/// Bridge: prefetchable window limit, low part.
pub const PREFETCH_LIMIT: u16 = 0x26;
/// Bridge: prefetchable window base, high 32 bits.
pub const PREFETCH_BASE_HIGH: u16 = 0x28;
/// Bridge: prefetchable window limit, high 32 bits.
pub const PREFETCH_LIMIT_HIGH: u16 = 0x2c;
/// Bridge: control, 16 bits.
pub const BRIDGE_CONTROL: u16 = 0x3e;
/// Bridge control: secondary bus reset.
pub const BRIDGE_CONTROL_RESET: u16 = 1 << 6;

/// Capability id: message-signalled interrupts.
pub const CAP_MSI: u8 = 0x05;
/// Capability id: vendor specific.
pub const CAP_VENDOR: u8 = 0x09;
/// Capability id: PCI Express.
pub const CAP_EXPRESS: u8 = 0x10;
/// Capability id: MSI-X.
pub const CAP_MSIX: u8 = 0x11;
