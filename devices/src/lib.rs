//! Everything a guest can see: the buses, PCI, virtio, the legacy devices, and the chardevs that
//! connect some of them to the host.
//!
//! This crate must never know KVM, QMP or the schema: a device is built from a resolved `*Spec`
//! (no optional member that means a default), reaches the CPUs through the traits in [`irq`], and
//! tells the VM its news through [`notice`].
//!
//! Read next: [`bus`] (how an access finds its device), [`virtio`] (how a queue runs),
//! [`pci`] (the tree, hot-plug), [`legacy`] (the parts of a PC that are older than PCI),
//! [`net`] (network backends), [`tpm`], [`scsi`] (units on a controller),
//! [`lifecycle`] (what every device goes through), [`state`] (what it is saved as), [`vm_clock`] (the time they live in).

pub mod bus;
pub mod chardev;
pub mod failures;
pub mod geometry;
pub mod irq;
pub mod legacy;
pub mod lifecycle;
pub mod memory;
pub mod net;
pub mod notice;
pub mod pci;
pub mod reactor;
pub mod repeats;
pub mod scsi;
pub mod serial;
pub mod state;
pub mod tpm;
pub mod vhost;
pub mod vhost_user;
pub mod virtio;
pub mod vm_clock;
pub mod watchdog;
