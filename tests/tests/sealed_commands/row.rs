//! A row of the table: a command, what it is sent with, and whether a sealed process can do it.

use serde_json::{Value, json};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const PORTS: u32 = 17;
/// Room for one more vCPU.
pub(super) const ROOM: [&str; 2] = ["-smp", "1,sockets=2,maxcpus=2"];
/// Room for more memory.
pub(super) const MEMORY: &str = "256,slots=2,maxmem=1G";
/// Paths of the manager's, for what stands for them in the table.
pub(super) const LISTENER: &str = "@listener";
pub(super) const FILE: &str = "@file";

/// What a command is sent with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hand {
    Nothing,
    Disk,
    /// An empty qcow2 image.
    Image,
    /// One of the test certificates.
    Tls(&'static str),
    Memory,
    /// A file that can only be written.
    Output,
    /// A device file, by its path.
    Device(&'static str),
    Eventfd,
    Pipe,
    /// A socket that listens.
    Listener,
    /// One end of a connection; the other stays with the manager.
    Connection,
    /// A datagram socket; the other one stays with the manager.
    Datagram,
    /// A queue of a tap interface.
    Tap,
}

/// Whether a sealed process can do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// Nothing that was not handed in.
    Fds,
    /// To open by itself: it must say so, and what to do.
    ToOpen,
}

pub(super) struct Row {
    pub(super) command: &'static str,
    pub(super) arguments: Value,
    pub(super) hand: Hand,
    pub(super) wants: Wants,
}

pub(super) fn row(command: &'static str, arguments: Value) -> Row {
    let (hand, wants) = (Hand::Nothing, Wants::Fds);
    Row {
        command,
        arguments,
        hand,
        wants,
    }
}

impl Row {
    pub(super) fn with(mut self, hand: Hand) -> Self {
        self.hand = hand;
        self
    }

    pub(super) fn wants_to_open(mut self) -> Self {
        self.wants = Wants::ToOpen;
        self
    }
}

/// An fd under a name.
pub(super) fn named(name: &str, hand: Hand) -> Row {
    row("getfd", json!({"fdname": name})).with(hand)
}
