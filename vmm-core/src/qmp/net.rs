//! `net.json`: network backends, and what concerns cards of every kind.

use std::sync::{Arc, Weak};
use std::time::Duration;

use devices::net::Announcement;
use devices::virtio::net::{FilterState, VirtioNet, Which};
use fdset::{Door, SocketAddress};
use qapi_schema::char::{InetSocketAddress, UnixSocketAddress};
use qapi_schema::net::{
    AnnounceParameters, Commands, Netdev, NetdevDel, NetdevStreamConnected,
    NetdevStreamDisconnected, NetdevVhostUserConnected, NetdevVhostUserDisconnected,
    NicRxFilterChanged, QueryRxFilter, RxFilterInfo, RxState, SetLink,
    SocketAddress as WireAddress, SocketAddressVariant,
};
use qapi_schema::{Context, Event, QmpError};

use crate::announcer::Announcer;
use crate::device_tree::path;
use crate::resolve::netdev::{mac_text, netdev};
use crate::vm::Vm;

impl Commands for Vm {
    fn netdev_add(&mut self, cx: &mut dyn Context, args: Netdev) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        self.add_netdev(&door, args)
    }

    fn netdev_del(&mut self, _cx: &mut dyn Context, args: NetdevDel) -> Result<(), QmpError> {
        self.objects.remove_filters(&args.id);
        if self.netdevs.remove(&args.id) {
            Ok(())
        } else {
            Err(QmpError::device_not_found(&args.id))
        }
    }

    fn set_link(&mut self, _cx: &mut dyn Context, args: SetLink) -> Result<(), QmpError> {
        let mut found = false;
        if let Some(netdev) = self.netdevs.find(&args.name) {
            netdev.set_link(args.up);
            found = true;
        }
        if let Some((.., card)) = self.devices.cards().find(|(name, ..)| *name == args.name) {
            card.set_link(args.up);
            found = true;
        }
        if found {
            Ok(())
        } else {
            Err(QmpError::device_not_found(&args.name))
        }
    }

    fn query_rx_filter(
        &mut self,
        _cx: &mut dyn Context,
        args: QueryRxFilter,
    ) -> Result<Vec<RxFilterInfo>, QmpError> {
        let Some(wanted) = args.name else {
            let cards = self.devices.cards();
            return Ok(cards.map(|(name, _, card)| filter(name, card)).collect());
        };
        match self.devices.cards().find(|(name, ..)| *name == wanted) {
            Some((name, _, card)) => Ok(vec![filter(name, card)]),
            None if self.netdevs.find(&wanted).is_some() => Err(QmpError::generic(format!(
                "net client({wanted}) isn't a NIC"
            ))),
            None => Err(QmpError::generic(format!(
                "invalid net client name: {wanted}"
            ))),
        }
    }

    fn announce_self(
        &mut self,
        _cx: &mut dyn Context,
        args: AnnounceParameters,
    ) -> Result<(), QmpError> {
        let id = args.id.unwrap_or_default();
        let announcement = Announcement {
            initial: milliseconds("initial", args.initial)?,
            max: milliseconds("max", args.max)?,
            rounds: u64::try_from(args.rounds).map_err(|_| negative("rounds"))?,
            step: milliseconds("step", args.step)?,
        };
        let ended = self.announcers.shift_remove(&id);
        drop(ended);
        if announcement.rounds == 0 {
            return Ok(());
        }
        let takes_part = |name: &str| {
            let chosen = args.interfaces.as_ref();
            chosen.is_none_or(|chosen| chosen.iter().any(|one| one == name))
        };
        let cards = self.devices.cards().filter(|(name, ..)| takes_part(name));
        let cards: Vec<Weak<VirtioNet>> = cards.map(|(.., card)| Arc::downgrade(card)).collect();
        let announcer = Announcer::start(&self.reactor, cards, announcement)
            .map_err(|error| QmpError::generic(format!("the rounds cannot begin: {error}")))?;
        self.announcers.insert(id, announcer);
        Ok(())
    }
}

fn milliseconds(name: &str, value: i64) -> Result<Duration, QmpError> {
    let value = u64::try_from(value).map_err(|_| negative(name))?;
    Ok(Duration::from_millis(value))
}

fn negative(name: &str) -> QmpError {
    QmpError::generic(format!("Parameter '{name}' expects a non-negative value"))
}

fn filter(name: &str, card: &VirtioNet) -> RxFilterInfo {
    let FilterState {
        mac,
        promiscuous,
        multicast,
        unicast,
        vlan,
        broadcast,
        multicast_table,
        unicast_table,
        vlans,
    } = card.look_at_filter();
    let state = |which| match which {
        Which::Normal => RxState::Normal,
        Which::None => RxState::None,
        Which::All => RxState::All,
    };
    let texts = |macs: Vec<_>| macs.into_iter().map(mac_text).collect();
    RxFilterInfo {
        name: name.to_owned(),
        promiscuous,
        multicast: state(multicast),
        unicast: state(unicast),
        vlan: state(vlan),
        broadcast_allowed: broadcast,
        multicast_overflow: multicast_table.overflow,
        unicast_overflow: unicast_table.overflow,
        main_mac: mac_text(mac),
        vlan_table: vlans.into_iter().map(i64::from).collect(),
        unicast_table: texts(unicast_table.addresses),
        multicast_table: texts(multicast_table.addresses),
    }
}

fn wire(address: SocketAddress) -> SocketAddressVariant {
    let unix = |path: String, is_abstract| {
        SocketAddressVariant::Unix(UnixSocketAddress {
            path,
            r#abstract: is_abstract,
            tight: None,
        })
    };
    match address {
        SocketAddress::Inet { host, port } => SocketAddressVariant::Inet(InetSocketAddress {
            host,
            port: port.to_string(),
            ..InetSocketAddress::default()
        }),
        SocketAddress::Unix { path } => unix(path.to_string_lossy().into_owned(), None),
        SocketAddress::Abstract { name } => unix(name, Some(true)),
        other => unix(other.to_string(), None),
    }
}

impl Vm {
    /// Adds a netdev, from a command or from the command line.
    ///
    /// # Errors
    /// The id is taken, or something cannot be had; then nothing is used up.
    pub fn add_netdev(&mut self, door: &Door, options: Netdev) -> Result<(), QmpError> {
        let spec = netdev(options)?;
        self.netdevs
            .add(&spec, door, &self.chardevs)
            .map_err(|error| QmpError::from_error(&error))
    }

    /// A stream got or lost its peer.
    pub(crate) fn stream_changed(&self, netdev_id: String, peer: Option<SocketAddress>) {
        self.events.emit(match peer {
            Some(peer) => Event::NetdevStreamConnected(NetdevStreamConnected {
                netdev_id,
                addr: WireAddress { r#type: wire(peer) },
            }),
            None => Event::NetdevStreamDisconnected(NetdevStreamDisconnected { netdev_id }),
        });
    }

    /// A back end came at a chardev, or left.
    pub(crate) fn vhost_user_changed(&self, netdev_id: String, chardev_id: Option<String>) {
        self.events.emit(match chardev_id {
            Some(chardev_id) => Event::NetdevVhostUserConnected(NetdevVhostUserConnected {
                netdev_id,
                chardev_id,
            }),
            None => Event::NetdevVhostUserDisconnected(NetdevVhostUserDisconnected { netdev_id }),
        });
    }

    /// A guest wants other packets than before.
    pub(crate) fn filter_changed(&self, name: &str) {
        let has_id = self
            .devices
            .find(name)
            .is_some_and(|device| device.id.is_some());
        self.events
            .emit(Event::NicRxFilterChanged(NicRxFilterChanged {
                name: has_id.then(|| name.to_owned()),
                path: path(name, has_id),
            }));
    }
}
