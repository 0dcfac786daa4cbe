//! Transports: how a driver finds a virtio device, negotiates with it, and hands it queues.
//!
//! There is one, PCI. This room must never know what a device does with a queue.
//!
//! ```text
//!   config space ─► capabilities ─► BAR 0: common · ISR · device · notify      BAR 1: MSI-X
//!                                          │               │        │
//!        status machine, queue registers ◄─┘               │        └─► kick (ioeventfd)
//!                  │ DRIVER_OK                             │
//!                  ▼                                       ▼
//!        VirtioDevice::start_queue               VirtioDevice::config_read/write
//! ```
//!
//! Read next: [`status`] (who may do what when), [`registers`] (the common configuration),
//! [`pci`] (the function).

pub mod bell;
pub mod capability;
pub mod interrupt;
pub mod layout;
mod negotiation;
pub mod pci;
pub mod registers;
pub mod state;
pub mod status;
pub mod view;

pub use self::pci::{VirtioPci, VirtioPciSpec};
pub use self::view::{QueueView, VirtioView};
