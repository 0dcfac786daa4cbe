//! The seam between a network card and the host's end of its cable.

use std::io;
use std::sync::{Arc, Weak};

use bitflags::bitflags;

use super::HEADER;
use super::announce::rarp;
use super::netdev::Netdev;
use super::packet::{Packet, Pieces};
use crate::vhost::QueueServer;

bitflags! {
    /// Work on packets that one side may leave to the other. The values are those of `TUNSETOFFLOAD`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Offloads: u32 {
        /// Checksums.
        const CSUM = 1;
        /// Cutting long TCP packets over IPv4.
        const TSO4 = 2;
        /// The same over IPv6.
        const TSO6 = 4;
        /// The same with congestion marks.
        const ECN = 8;
        /// Cutting long UDP packets into fragments of IP.
        const UFO = 0x10;
        /// Cutting runs of UDP packets over IPv4.
        const USO4 = 0x20;
        /// The same over IPv6.
        const USO6 = 0x40;
    }
}

/// What a backend can do with packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// It passes the virtio header on, and so what the header says of offloads. If not, it drops the
    /// header of what is sent, and puts zeros before what is received.
    pub header: bool,
    /// Which packets it takes, and gives if it is told to.
    pub offloads: Offloads,
}

/// What became of a packet to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is gone, or will be by the next [`flush`](NetBackend::flush), or nobody takes it.
    Done,
    /// There is no room now; [`NetFrontend::writable`] follows.
    Full,
}

/// What there was to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A packet of so many bytes with its header.
    Packet(usize),
    /// Nothing now; [`NetFrontend::readable`] follows.
    Nothing,
}

/// The host's end of a network card's cable. `send`, `receive` and the calls to the frontend are on
/// the reactor's thread; the others on any.
pub trait NetBackend: Send + Sync {
    /// What it can do with packets; never changes.
    fn abilities(&self) -> Abilities;

    /// How many queues it has: pairs of one for each direction, at least 1.
    fn queues(&self) -> u16;

    /// Which packets the guest takes. At first none but plain ones.
    fn set_offloads(&self, offloads: Offloads);

    /// Uses the first `count` queues only: no packet waits in another.
    ///
    /// # Errors
    /// The kernel refuses.
    fn use_queues(&self, count: u16) -> io::Result<()>;

    /// From now on `frontend` hears when there is something to do.
    ///
    /// # Errors
    /// A descriptor cannot be watched.
    fn attach(&self, frontend: Weak<dyn NetFrontend>) -> io::Result<()>;

    /// The opposite of [`attach`](Self::attach). When it returns no call to the frontend is under
    /// way, unless it is made on the reactor's thread.
    fn detach(&self);

    /// Sends one packet. It may be kept, so that it goes together with others.
    fn send(&self, queue: usize, packet: &Packet<'_>) -> Sent;

    /// Sends what was kept: a batch of packets is over.
    fn flush(&self, _queue: usize) {}

    /// Puts one packet with its header into `buffer`, which has room for the longest.
    fn receive(&self, queue: usize, buffer: &mut [u8]) -> Received;

    /// Makes a card's address known to switches.
    fn announce(&self, mac: [u8; 6]) {
        let packet = [[0; HEADER].as_slice(), &rarp(mac)].concat();
        self.send(0, &Pieces::default().of(&packet));
        self.flush(0);
    }

    /// Whether somebody is at its other end; `true` if it cannot tell.
    fn is_linked(&self) -> bool {
        true
    }

    /// From now on `netdev` hears when [`is_linked`](Self::is_linked) has changed.
    fn watch_link(&self, _netdev: Weak<Netdev>) {}

    /// Who serves a card's queues in its place, if anybody does. While the server has a queue,
    /// `send` and `receive` are not called for it, but for announcements.
    fn server(&self) -> Option<Arc<dyn QueueServer>> {
        None
    }

    /// Where it leads, for `info network`: `listening`, `ifname=tap0,script=no,downscript=no`.
    fn describe(&self) -> String;
}

/// The card, as its backend sees it. Every method is called on the reactor's thread.
pub trait NetFrontend: Send + Sync {
    /// There may be packets in `queue`.
    fn readable(&self, queue: usize);

    /// A packet was not taken before, and there may be room now.
    fn writable(&self, queue: usize);

    /// The link came or went. On any thread.
    fn link_changed(&self);
}
