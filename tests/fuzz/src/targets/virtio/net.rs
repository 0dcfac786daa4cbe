//! A network card whose cable leads back: what the guest sends comes in again.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
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

/// What looks like a packet or a command, and the queue for it.
pub(super) fn words(input: &mut Unstructured<'_>) -> Result<(u16, Vec<u8>)> {
    if input.ratio(1_u8, 2)? {
        let queue = *input.choose(&[1, 3])?;
        return Ok((queue, packet(input)?));
    }
    // Where the commands go depends on whether the driver knows of all pairs.
    let queue = *input.choose(&[2, 4])?;
    Ok((queue, command(input)?))
}

/// A packet of IP, behind a header of either length.
fn packet(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let header = *input.choose(&[12, 20])?;
    let (kind, start) = *input.choose(&[([8, 0], 0x45), ([0x86, 0xdd], 0x60), ([0x81, 0], 0)])?;
    let length = input.int_in_range(0..=100)?.min(input.len());
    let rest = input.bytes(length)?;
    Ok([vec![0; header].as_slice(), &[2; 12], &kind, &[start], rest].concat())
}

/// A command about hashes and where they lead; most of them are refused.
fn command(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let leads = input.arbitrary::<bool>()?;
    let types = u32::from(input.arbitrary::<u16>()? & 0x3ff);
    let mut command = vec![4, if leads { 1 } else { 2 }];
    command.extend(types.to_le_bytes());
    if leads {
        let entries = *input.choose(&[1, 2, 4, 3, 128, 256])?;
        let pair = |input: &mut Unstructured<'_>| Ok(u16::from(input.arbitrary::<u8>()? % 4));
        command.extend(u16::to_le_bytes(entries - 1));
        for _ in 0..=entries {
            command.extend(pair(input)?.to_le_bytes());
        }
        command.extend(pair(input)?.to_le_bytes());
    } else {
        command.extend([0; 8]);
    }
    let length = input.int_in_range(0..=50)?;
    command.push(length);
    command.extend(vec![input.arbitrary::<u8>()?; length.into()]);
    let cut = usize::from(input.arbitrary::<u8>()? & 7).saturating_sub(4);
    command.truncate(command.len() - cut);
    Ok(command)
}

/// A card with two pairs of queues, and its cable, which knows of one.
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
        pairs: 2,
        rx_queue_size: SIZE * 32,
        tx_queue_size: SIZE * 32,
        host_mtu: Some(1500),
        speed: u32::MAX,
        duplex: 255,
        rss: true,
        hash: true,
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
