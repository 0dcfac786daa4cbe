//! A network card whose cable leads back: what the guest sends comes in again.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use devices::chardev::ChardevRegistry;
use devices::net::{NetdevKind, NetdevSpec, Netdevs};
use devices::virtio::net::{VirtioNet, VirtioNetSpec};
use fdset::{Door, FdRegistry, Handover, Origin, Scope, SocketAddress};

use super::SIZE;
use super::hosts::notices;
use crate::board::reactor;

/// The host's end of the cable.
pub(super) struct Echo {
    socket: UnixDatagram,
    /// The netdev goes with it.
    _netdevs: Netdevs,
}

impl Echo {
    /// Sends back what has come.
    pub(super) fn answer(&self) {
        let mut packet = vec![0; 1 << 17];
        while let Ok(count) = self.socket.recv(&mut packet) {
            // With no room left it is lost, as on any cable.
            let _ = self.socket.send(&packet[..count]);
        }
    }
}

/// A card with one pair of queues, and its cable.
pub(super) fn card() -> (Arc<VirtioNet>, Echo) {
    let (ours, theirs) = UnixDatagram::pair().expect("a pair");
    ours.set_nonblocking(true).expect("a flag");
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let passed = Handover::new(theirs.into(), Origin::CommandLine);
    let added = door.registry().add_named(Scope::Process, "cable", passed);
    added.expect("a good name");
    let mut netdevs = Netdevs::new(reactor().clone(), notices());
    let local = SocketAddress::Fd {
        name: "cable".to_owned(),
    };
    let spec = NetdevSpec {
        id: "cable".to_owned(),
        kind: NetdevKind::Dgram {
            local: Some(local),
            remote: None,
        },
    };
    let chardevs = ChardevRegistry::new(reactor().clone());
    let added = netdevs.add(&spec, &door, &chardevs);
    added.expect("a netdev");
    let netdev = netdevs.find("cable").expect("it is there");
    let card = VirtioNet::new(VirtioNetSpec {
        id: "card".to_owned(),
        netdev: Some(netdev.lease().expect("nobody has it")),
        mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
        pairs: 1,
        rx_queue_size: SIZE * 32,
        tx_queue_size: SIZE * 32,
        host_mtu: Some(1500),
        speed: u32::MAX,
        duplex: 255,
        off: 0,
        reactor: reactor().clone(),
        notices: notices(),
    });
    let echo = Echo {
        socket: ours,
        _netdevs: netdevs,
    };
    (card.expect("a card"), echo)
}
