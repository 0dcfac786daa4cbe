//! Servers outside of this process that take over the queues of a device: the kernel's vhost.
//!
//! The device keeps negotiation, configuration space and interrupts; a server gets what it needs to
//! work on the rings by itself: where guest memory is, where the rings are, and the eventfds of the
//! doorbell and of the interrupt. From then on no packet and no request passes through here.
//!
//! ```text
//!   transport ── start_queue ─► device ─► ServedQueues ── memory, rings, fds ─► QueueServer
//!                                             │   ▲                                 │
//!   guest ── doorbell (ioeventfd) ────────────│───│────────────────────────► kick ──┤ the kernel,
//!   guest ◄─ MSI-X (irqfd) ◄──────────────────│───│──────────────────────── call ◄──┤ or another
//!   guest ◄─ INTx ◄─ dev-io ◄─ relay ◄────────┘   └─ error ─► "needs a reset" ◄─────┘ process
//! ```
//!
//! [`ServedQueues`] is a device's books on them: which queues are with the server, and how to get
//! them back. This room knows queues and memory; it must never know what a device does with them,
//! and opens nothing: a server is made of an fd that was opened by its owner.
//!
//! Read next: [`server`] (the seam), [`queues`], [`kernel`] (the ioctls that all kernel servers
//! share), [`net`] and [`vsock`].

mod ioctl;
pub mod kernel;
pub mod net;
pub mod queues;
pub mod server;
pub mod vsock;

pub use kernel::KernelVhost;
pub use net::VhostNet;
pub use queues::ServedQueues;
pub use server::{QueueServer, Rings, ServedQueue, ServedView};
pub use vsock::VhostVsock;
