//! Where everything is: the BARs of a virtio function, its ids and class codes.

/// The BAR with the four virtio regions.
pub const REGISTERS_BAR: usize = 0;
/// The BAR with MSI-X table and pending bits.
pub const MSIX_BAR: usize = 1;
/// The size of the registers' BAR.
pub const REGISTERS_LEN: u64 = 0x4000;

/// Each region is a page.
pub const REGION_LEN: u64 = 0x1000;
/// Common configuration.
pub const COMMON: u64 = 0x0000;
/// Interrupt status.
pub const ISR: u64 = 0x1000;
/// Device-specific configuration.
pub const DEVICE: u64 = 0x2000;
/// Doorbells.
pub const NOTIFY: u64 = 0x3000;
/// The doorbell of queue `n` is at `NOTIFY + n * NOTIFY_STRIDE`.
pub const NOTIFY_STRIDE: u32 = 4;

/// The most queues whose doorbells fit.
pub const MAX_QUEUES: usize = 1024;

/// Virtio's PCI vendor id.
pub const VENDOR: u16 = 0x1af4;
/// The device id of virtio type 0; type `n` has `DEVICE_ID + n`.
pub const DEVICE_ID: u16 = 0x1040;
/// The subsystem's device id.
pub const SUBSYSTEM: u16 = 0x1100;
/// 1: not transitional (virtio 1.2, 4.1.2.1).
pub const REVISION: u8 = 1;

/// Base class, sub-class and interface for a virtio device type (PCI Code and ID Assignment).
#[must_use]
pub const fn class(device_type: u16) -> [u8; 3] {
    match device_type {
        // network: Ethernet
        1 => [0x02, 0x00, 0x00],
        // block, SCSI: SCSI storage; file system: other storage
        2 | 8 => [0x01, 0x00, 0x00],
        26 => [0x01, 0x80, 0x00],
        // console, vsock: other communication
        3 | 19 => [0x07, 0x80, 0x00],
        // GPU, input
        16 => [0x03, 0x80, 0x00],
        18 => [0x09, 0x80, 0x00],
        _ => [0x00, 0xff, 0x00],
    }
}
