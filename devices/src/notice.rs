//! What devices tell the VM's owner: one enum, sent from any thread, handled on the main loop.
//!
//! A notice is news, not a request: the sender never waits. `vmm-core` turns each into a run-state
//! change or a QMP event.

use std::sync::Arc;

use block::job::ErrorAction;
use fdset::SocketAddress;

/// News from a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The guest asked to be powered off (ACPI S5).
    PowerOff,
    /// The guest asked to be reset (port 0xcf9, the keyboard controller, a triple fault).
    Reset,
    /// The guest's panic notifier reported through pvpanic.
    GuestPanicked,
    /// The guest's kernel reported that it loads a crash kernel.
    GuestCrashLoaded,
    /// The guest reported through pvpanic that it has shut down.
    GuestPvShutdown,
    /// A watchdog has run out.
    Watchdog,
    /// A guest program opened or closed a virtio-serial port.
    PortChange {
        /// The port's device id.
        id: String,
        /// Whether the guest side is now open.
        open: bool,
    },
    /// The guest has filled or emptied its balloon.
    BalloonChange {
        /// The pages of 4 KiB in it.
        pages: u32,
    },
    /// The guest has plugged or unplugged blocks of a memory device.
    MemorySizeChange {
        /// The device's name in the device tree.
        device: String,
        /// How many bytes are plugged.
        size: u64,
    },
    /// A write went beyond a node's threshold.
    WriteThreshold {
        /// The node.
        node: String,
        /// Where the threshold was, in bytes.
        threshold: u64,
        /// How far the write went beyond it, in bytes.
        exceeded: u64,
    },
    /// A request of the guest failed on the host.
    BlockError {
        /// The device's id or QOM path.
        device: String,
        /// The node that failed.
        node: String,
        /// `true` for a write, flush, discard or write-zeroes.
        write: bool,
        /// The error's number.
        errno: i32,
        /// What is done about it: with `Stop` the request waits until the device's queues are
        /// started again.
        action: ErrorAction,
    },
    /// The guest has opened or closed the tray of a drive.
    TrayMoved {
        /// The drive's id or QOM path.
        id: String,
        /// Whether it is open now.
        open: bool,
    },
    /// The guest has let go of a hot-pluggable device: it can be removed.
    Unplugged {
        /// The device's id.
        id: String,
    },
    /// The guest does not let go of a device that it was asked for.
    UnplugRefused {
        /// The device's id.
        id: String,
    },
    /// The guest has let go of a CPU: it can be taken out.
    CpuEjected {
        /// Its number.
        index: u32,
    },
    /// The guest has let go of a memory module: it can be taken out.
    MemoryEjected {
        /// The number of its place.
        slot: u32,
    },
    /// The guest's operating system says how it gets on with a change of CPUs or memory (ACPI's
    /// `_OST`).
    OspmStatus {
        /// What changes.
        slot: OspmSlot,
        /// The event: 1 is an insertion, 3 a removal.
        event: u32,
        /// The status: 0 is success.
        status: u32,
    },
    /// A chardev with `server=on,wait=off` got or lost its peer; for lists only.
    ChardevChange {
        /// The chardev's id.
        id: String,
        /// Whether a peer is connected.
        open: bool,
    },
    /// A netdev's stream got or lost its peer.
    NetStream {
        /// The netdev's id.
        id: String,
        /// Where the peer is that came; `None` when one has left.
        peer: Option<SocketAddress>,
    },
    /// A back end of a vhost-user netdev came or left.
    NetVhostUser {
        /// The netdev's id.
        id: String,
        /// The chardev where it came; `None` when it has left.
        chardev: Option<String>,
    },
    /// The guest has changed which packets it wants, for the first time since somebody asked.
    RxFilterChanged {
        /// The card's name in the device tree.
        device: String,
    },
}

/// What an operating system can speak of by ACPI's `_OST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OspmSlot {
    /// The place for a CPU with this number.
    Cpu(u32),
    /// The place for a memory module with this number.
    Dimm(u32),
}

impl Notice {
    /// Whether this one, coming later, says all that `earlier` would still be good for: it is of
    /// the same kind, about the same thing.
    #[must_use]
    pub fn replaces(&self, earlier: &Self) -> bool {
        match (self, earlier) {
            (Self::PortChange { id, .. }, Self::PortChange { id: other, .. })
            | (Self::TrayMoved { id, .. }, Self::TrayMoved { id: other, .. })
            | (Self::ChardevChange { id, .. }, Self::ChardevChange { id: other, .. }) => {
                id == other
            }
            (
                Self::MemorySizeChange { device, .. },
                Self::MemorySizeChange { device: other, .. },
            ) => device == other,
            (Self::BalloonChange { .. }, Self::BalloonChange { .. }) => true,
            _ => self == earlier,
        }
    }
}

/// Where devices send their news. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct NoticeSink(Arc<dyn Fn(Notice) + Send + Sync>);

impl NoticeSink {
    /// A sink that hands each notice to `deliver`, which must not block.
    pub fn new(deliver: impl Fn(Notice) + Send + Sync + 'static) -> Self {
        Self(Arc::new(deliver))
    }

    /// Sends one notice.
    pub fn send(&self, notice: Notice) {
        (self.0)(notice);
    }
}

impl std::fmt::Debug for NoticeSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NoticeSink")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_state_replaces_an_earlier_one_of_the_same_thing_only() {
        let port = |id: &str, open| Notice::PortChange {
            id: id.to_owned(),
            open,
        };
        assert!(port("a", true).replaces(&port("a", false)));
        assert!(!port("a", true).replaces(&port("b", true)));
        assert!(Notice::Reset.replaces(&Notice::Reset));
        assert!(!Notice::Reset.replaces(&Notice::PowerOff));
        let chardev = Notice::ChardevChange {
            id: "a".to_owned(),
            open: true,
        };
        assert!(!chardev.replaces(&port("a", true)));
    }
}
