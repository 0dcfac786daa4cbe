//! The console device (virtio 1.2, section 5.3), known as virtio-serial: up to 31 ports, each a
//! pair of queues and a chardev.
//!
//! A port is either a console (`virtconsole`: the guest's hvc terminals) or a named channel
//! (`virtserialport`: guest agents). Ports come and go while the device runs.
//!
//! ```text
//!   queues 0, 1: port 0      2, 3: control      4, 5: port 1      6, 7: port 2 …
//!
//!   guest ── transmit queue ─► VirtioConsole ─► ChardevLease::write
//!                                  │                   a short write keeps the chain
//!         ◄── receive queue ── Port as Frontend ◄── chardev: reads only when chains wait
//!
//!   guest ── READY, OPEN ────► control ──► Notice::PortChange, frontend-open
//!         ◄─ ADD, REMOVE, NAME, OPEN ◄── plug_port, unplug_port, a peer that comes or leaves
//! ```
//!
//! Data, kicks and control messages are handled on the reactor's thread; plugging on the VM's main
//! loop; queues are started and stopped by the transport. A queue is owned by whoever holds its
//! slot's lock.
//!
//! Read next: [`device`] (queues and configuration), `port` (bytes), `control` (what is still to
//! be told to the driver).

mod control;
pub mod device;
mod port;
pub mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use device::VirtioConsole;

use crate::chardev::{Chardev, ChardevError};

/// The most ports a device can have.
pub const MAX_PORTS: u32 = 31;

/// The longest name of a port, in bytes.
pub const MAX_NAME: usize = 255;

/// A console device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleSpec {
    /// The device's id; its bus is called `ID.0`.
    pub id: String,
    /// How many ports it can have, 1 to [`MAX_PORTS`].
    pub max_ports: u32,
}

/// What a port is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// `virtconsole`: a terminal.
    Console,
    /// `virtserialport`: a channel, opened and closed by a guest program.
    Serial,
}

/// A port to plug.
#[derive(Clone, Debug)]
pub struct PortSpec {
    /// The port's device id, under which its changes are reported; without one nobody hears of
    /// them.
    pub id: Option<String>,
    /// What it is to the guest.
    pub kind: PortKind,
    /// The name by which guest programs find it.
    pub name: Option<String>,
    /// Its number; `None` takes the first free one.
    pub number: Option<u32>,
    /// Its host end; without one the guest's bytes are dropped.
    pub chardev: Option<Arc<Chardev>>,
}

/// A plugged port, as the monitor sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortView {
    /// Its number.
    pub number: u32,
    /// Its device id.
    pub id: Option<String>,
    /// What it is to the guest.
    pub kind: PortKind,
    /// Its name.
    pub name: Option<String>,
    /// Whether the guest has it open.
    pub guest_open: bool,
}

/// Why a console device or one of its ports cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The number of ports is out of range.
    #[error("max_ports: a virtio-serial device has 1 to {MAX_PORTS} ports, not {0}")]
    MaxPorts(u32),
    /// Port 0 belongs to consoles.
    #[error(
        "Port number 0 on virtio-serial devices reserved for virtconsole devices \
         for backward compatibility"
    )]
    PortZero,
    /// The number is taken.
    #[error("virtio-serial-bus: A port already exists at id {0}")]
    NumberTaken(u32),
    /// The number is too large.
    #[error("virtio-serial-bus: Out-of-range port id specified, max. allowed: {max}")]
    NumberTooLarge {
        /// The largest number.
        max: u32,
    },
    /// The name is taken.
    #[error("virtio-serial-bus: A port already exists by name {0}")]
    NameTaken(String),
    /// The name is too long.
    #[error("virtio-serial-bus: a port's name has at most {MAX_NAME} bytes, not {0}")]
    NameTooLong(usize),
    /// No number is left.
    #[error("virtio-serial-bus: Maximum port limit for this device reached")]
    Full,
    /// There is no such port.
    #[error("virtio-serial-bus: there is no port {0}")]
    NoSuchPort(u32),
    /// Its chardev cannot be had.
    #[error(transparent)]
    Chardev(#[from] ChardevError),
}
