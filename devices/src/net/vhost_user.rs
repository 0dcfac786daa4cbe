//! A card's queues are served by another process: vhost-user.
//!
//! ```text
//!   card ── server() ─► VhostUser ── memory, rings, eventfds ─► back end
//!    ▲                     │
//!    └── Netdev ◄── link ──┘ came, left
//! ```
//!
//! No packet passes through here. The link is there as long as a back end is; while it is away the
//! card has its queues, and drops what the guest sends.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MAC, VIRTIO_NET_F_RSS, VIRTIO_NET_F_SPEED_DUPLEX,
    VIRTIO_NET_F_STATUS,
};

use super::NetError;
use super::backend::{Abilities, NetBackend, NetFrontend, Offloads, Received, Sent};
use super::netdev::Netdev;
use super::packet::Packet;
use crate::chardev::Chardev;
use crate::notice::{Notice, NoticeSink};
use crate::reactor::Reactor;
use crate::vhost::QueueServer;
use crate::vhost_user::{Protocol, VhostUser, VhostUserError, VhostUserSpec, Wants, Watcher};

/// What is between the guest and its card alone.
const APART: u64 = 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_SPEED_DUPLEX
    | 1 << VIRTIO_NET_F_STATUS
    | 1 << VIRTIO_NET_F_CTRL_VQ
    | 1 << VIRTIO_NET_F_CTRL_RX
    | 1 << VIRTIO_NET_F_CTRL_RX_EXTRA
    | 1 << VIRTIO_NET_F_CTRL_VLAN
    | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR;

/// The protocol has no word for packets of another kind while queues run, nor for hashes and tables.
const NEVER: u64 =
    1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS | 1 << VIRTIO_NET_F_RSS | 1 << VIRTIO_NET_F_HASH_REPORT;

/// A place at a chardev where back ends come and go.
pub struct VhostUserNet {
    me: Weak<Self>,
    id: String,
    front: Arc<VhostUser>,
    pairs: u16,
    reactor: Reactor,
    notices: NoticeSink,
    netdev: Mutex<Weak<Netdev>>,
    /// Whether it was told that a back end is there.
    told: AtomicBool,
}

impl VhostUserNet {
    /// Takes the place at `chardev`, and waits for a back end that serves `pairs` pairs of queues:
    /// not longer than some seconds.
    ///
    /// # Errors
    /// The chardev is taken or no unix socket, or no such back end comes.
    pub(super) fn open(
        id: &str,
        chardev: Arc<Chardev>,
        pairs: u16,
        reactor: &Reactor,
        notices: NoticeSink,
    ) -> Result<Arc<Self>, NetError> {
        let name = format!("netdev '{id}'");
        let front = VhostUser::new(VhostUserSpec {
            name: name.clone(),
            chardev,
            queues: 2 * usize::from(pairs),
            wants: Wants {
                protocol: Wants::ORDINARY | Protocol::RARP,
                needed: Protocol::empty(),
                config: 0,
            },
            apart: APART,
            never: NEVER,
            reactor: reactor.clone(),
        })?;
        let (has, wanted) = (front.offer().queues, u64::from(pairs));
        if has < wanted {
            return Err(VhostUserError::Queues { name, has, wanted }.into());
        }
        let net = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            id: id.to_owned(),
            front,
            pairs,
            reactor: reactor.clone(),
            notices,
            netdev: Mutex::new(Weak::new()),
            told: AtomicBool::new(false),
        });
        let watcher: Weak<dyn Watcher> = Arc::downgrade(&(Arc::clone(&net) as _));
        net.front.watch(watcher);
        Ok(net)
    }

    /// Tells whether a back end is there, if that is news. On the reactor's thread.
    fn look(&self) {
        let is_there = self.front.is_connected();
        if self.told.swap(is_there, Ordering::AcqRel) == is_there {
            return;
        }
        let chardev = is_there.then(|| self.front.chardev().to_owned());
        self.notices.send(Notice::NetVhostUser {
            id: self.id.clone(),
            chardev,
        });
        let netdev = self.netdev.lock();
        let netdev = netdev.unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(netdev) = netdev {
            netdev.link_moved();
        }
    }
}

impl Watcher for VhostUserNet {
    fn came(&self) {
        self.look();
    }

    fn left(&self) {
        self.look();
    }
}

impl NetBackend for VhostUserNet {
    fn abilities(&self) -> Abilities {
        Abilities {
            header: true,
            offloads: Offloads::all(),
        }
    }

    fn queues(&self) -> u16 {
        self.pairs
    }

    /// The back end sees it by the features.
    fn set_offloads(&self, _offloads: Offloads) {}

    fn use_queues(&self, count: u16) -> io::Result<()> {
        self.front.use_queues(2 * usize::from(count));
        Ok(())
    }

    fn attach(&self, _frontend: Weak<dyn NetFrontend>) -> io::Result<()> {
        Ok(())
    }

    fn detach(&self) {}

    /// Nobody is at the other end.
    fn send(&self, _queue: usize, _packet: &Packet<'_>) -> Sent {
        Sent::Done
    }

    fn receive(&self, _queue: usize, _buffer: &mut [u8]) -> Received {
        Received::Nothing
    }

    fn announce(&self, mac: [u8; 6]) {
        self.front.send_rarp(mac);
    }

    fn server(&self) -> Option<Arc<dyn QueueServer>> {
        Some(Arc::clone(&self.front) as _)
    }

    fn is_linked(&self) -> bool {
        self.front.is_connected()
    }

    fn watch_link(&self, netdev: Weak<Netdev>) {
        *self.netdev.lock().unwrap_or_else(PoisonError::into_inner) = netdev;
        let me = Weak::clone(&self.me);
        let first = move || {
            if let Some(net) = me.upgrade() {
                net.look();
            }
        };
        if let Err(error) = self.reactor.run(first) {
            tracing::error!(%error, netdev = %self.id, "nobody is told of its back ends");
        }
    }

    fn describe(&self) -> String {
        format!("chardev={}", self.front.chardev())
    }
}

#[cfg(test)]
mod tests;
