//! `virtio-net-pci`.

use std::sync::Arc;

use super::Plug;
use super::pci::{plug_virtio, virtio_place};
use crate::device_tree::Part;
use crate::resolve::netdev;
use crate::resolve::unmet;
use crate::vm::Vm;
use devices::net::NetLease;
use devices::virtio::net::features::bit;
use devices::virtio::net::features::numbers::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS,
};
use devices::virtio::net::{Mac, VirtioNet, VirtioNetSpec};
use qapi_schema::QmpError;
use qapi_schema::devices::VirtioNetProperties;
use vm_memory::GuestAddressSpace;

/// Entries of a queue where the client does not say.
const QUEUE_SIZE: u16 = 256;
/// The address of the first card where the client does not say.
const FIRST_MAC: Mac = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
/// A duplex mode that the guest is not told (virtio 1.2, 5.1.4).
const DUPLEX_UNKNOWN: u8 = 0xff;

pub(super) fn plug(plug: &mut Plug<'_>, options: VirtioNetProperties) -> Result<Part, QmpError> {
    refuse_unmet(&options)?;
    let place = virtio_place!(options);
    let lease = match &options.netdev {
        None => None,
        Some(id) => {
            let netdev = plug.vm.netdevs.find(id).ok_or_else(|| {
                QmpError::generic(format!(
                    "Property 'virtio-net-device.netdev' can't find value '{id}'"
                ))
            })?;
            Some(
                netdev
                    .lease()
                    .map_err(|error| QmpError::from_error(&error))?,
            )
        }
    };
    let backend = lease.as_ref().and_then(NetLease::backend);
    let queues = backend.as_ref().map_or(1, |backend| backend.queues());
    if let Some(server) = backend.and_then(|backend| backend.server()) {
        let board = plug.vm.machine.board(&plug.name)?;
        let reached = server.could_reach(&board.memory().memory());
        reached.map_err(|error| QmpError::generic(error.to_string()))?;
    }
    let card = VirtioNet::new(VirtioNetSpec {
        id: plug.name.clone(),
        netdev: lease,
        mac: mac(plug.vm, options.mac.as_deref())?,
        pairs: if options.mq.unwrap_or(false) {
            queues
        } else {
            1
        },
        rx_queue_size: options.rx_queue_size.unwrap_or(QUEUE_SIZE),
        tx_queue_size: options.tx_queue_size.unwrap_or(QUEUE_SIZE),
        host_mtu: options.host_mtu.filter(|mtu| *mtu != 0),
        speed: speed(options.speed)?,
        duplex: duplex(options.duplex.as_deref())?,
        rss: options.rss.unwrap_or(false),
        hash: options.hash.unwrap_or(false),
        off: switched_off(&options),
        reactor: plug.vm.reactor.clone(),
        notices: plug.vm.mailbox.notices(),
    })
    .map_err(|error| QmpError::from_error(&error))?;
    plug_virtio(plug, place, Arc::clone(&card) as _)?;
    Ok(Part::Net(card))
}

fn refuse_unmet(options: &VirtioNetProperties) -> Result<(), QmpError> {
    unmet::refuse(&[
        (
            options.packed == Some(true),
            "packed=on",
            "there are no packed queues",
        ),
        (
            options.gso == Some(false),
            "gso=off",
            "guest_tso4, host_tso4 and their like say it one by one",
        ),
        (
            options.tx.as_deref().is_some_and(|tx| tx != "bh"),
            "tx",
            "packets are sent at once",
        ),
    ])
}

/// The address asked for, or one that no other card has.
fn mac(vm: &Vm, wanted: Option<&str>) -> Result<Mac, QmpError> {
    if let Some(text) = wanted {
        return netdev::mac(text).ok_or_else(|| {
            QmpError::generic(format!(
                "Property 'virtio-net-device.mac' doesn't take value '{text}'"
            ))
        });
    }
    let [head @ .., last] = FIRST_MAC;
    let candidates = (0..=u8::MAX).map(|more| {
        let [a, b, c, d, e] = head;
        [a, b, c, d, e, last.wrapping_add(more)]
    });
    let is_taken = |mac: &Mac| vm.devices.cards().any(|(.., card)| card.mac() == *mac);
    let mut free = candidates.filter(|mac| !is_taken(mac));
    free.next().ok_or_else(|| {
        QmpError::generic("each address of a card that is given unasked is taken; give 'mac'")
    })
}

fn speed(wanted: Option<i32>) -> Result<u32, QmpError> {
    match wanted.unwrap_or(-1) {
        -1 => Ok(u32::MAX),
        speed => u32::try_from(speed)
            .map_err(|_| QmpError::generic("'speed' must be between 0 and INT_MAX")),
    }
}

fn duplex(wanted: Option<&str>) -> Result<u8, QmpError> {
    match wanted {
        None => Ok(DUPLEX_UNKNOWN),
        Some("half") => Ok(0),
        Some("full") => Ok(1),
        Some(_) => Err(QmpError::generic("'duplex' must be 'half' or 'full'")),
    }
}

/// The features that the client does not want.
fn switched_off(options: &VirtioNetProperties) -> u64 {
    let switches = [
        (options.csum, VIRTIO_NET_F_CSUM),
        (options.guest_csum, VIRTIO_NET_F_GUEST_CSUM),
        (options.guest_tso4, VIRTIO_NET_F_GUEST_TSO4),
        (options.guest_tso6, VIRTIO_NET_F_GUEST_TSO6),
        (options.guest_ecn, VIRTIO_NET_F_GUEST_ECN),
        (options.guest_ufo, VIRTIO_NET_F_GUEST_UFO),
        (options.guest_uso4, VIRTIO_NET_F_GUEST_USO4),
        (options.guest_uso6, VIRTIO_NET_F_GUEST_USO6),
        (options.host_tso4, VIRTIO_NET_F_HOST_TSO4),
        (options.host_tso6, VIRTIO_NET_F_HOST_TSO6),
        (options.host_ecn, VIRTIO_NET_F_HOST_ECN),
        (options.host_ufo, VIRTIO_NET_F_HOST_UFO),
        (options.host_uso, VIRTIO_NET_F_HOST_USO),
        (options.mrg_rxbuf, VIRTIO_NET_F_MRG_RXBUF),
        (options.status, VIRTIO_NET_F_STATUS),
        (options.ctrl_vq, VIRTIO_NET_F_CTRL_VQ),
        (options.ctrl_rx, VIRTIO_NET_F_CTRL_RX),
        (options.ctrl_rx_extra, VIRTIO_NET_F_CTRL_RX_EXTRA),
        (options.ctrl_vlan, VIRTIO_NET_F_CTRL_VLAN),
        (options.ctrl_mac_addr, VIRTIO_NET_F_CTRL_MAC_ADDR),
        (
            options.ctrl_guest_offloads,
            VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        ),
        (options.guest_announce, VIRTIO_NET_F_GUEST_ANNOUNCE),
    ];
    let off = switches.iter().filter(|(wanted, _)| *wanted == Some(false));
    off.fold(0, |all, (_, feature)| all | bit(*feature))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn properties(options: Value) -> VirtioNetProperties {
        qapi_schema::input::arguments(options).expect("of the schema")
    }

    #[test]
    fn a_feature_is_off_by_its_property_alone() {
        assert_eq!(switched_off(&properties(json!({"mrg_rxbuf": true}))), 0);
        let off = switched_off(&properties(json!({"mrg_rxbuf": false, "csum": false})));
        assert_eq!(off, bit(VIRTIO_NET_F_MRG_RXBUF) | bit(VIRTIO_NET_F_CSUM));
    }

    #[test]
    fn a_wish_that_cannot_be_met_is_refused_by_its_name() {
        for (name, met, unmet) in [
            ("packed", json!(false), json!(true)),
            ("gso", json!(true), json!(false)),
            ("tx", json!("bh"), json!("timer")),
        ] {
            refuse_unmet(&properties(json!({name: met}))).expect(name);
            let error = refuse_unmet(&properties(json!({name: unmet}))).expect_err(name);
            assert!(
                error.desc.starts_with(&format!("'{name}")),
                "{}",
                error.desc
            );
        }
        assert_eq!(duplex(Some("full")).map_err(|error| error.desc), Ok(1));
        assert!(duplex(Some("both")).is_err() && speed(Some(-2)).is_err());
    }
}
