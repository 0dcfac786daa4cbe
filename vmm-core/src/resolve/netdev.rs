//! Netdevs: `netdev_add` and `-netdev`; and addresses of network cards.

use std::time::Duration;

use devices::net::{NetdevKind, NetdevSpec, StreamRole, StreamSpec, TapQueues, TapSpec, TapVhost};
use devices::virtio::net::Mac;
use fdset::SocketAddress;
use qapi_schema::QmpError;
use qapi_schema::net::{
    Netdev, NetdevDgramOptions, NetdevSocketOptions, NetdevStreamOptions, NetdevTapOptions,
    NetdevVariant, NetdevVhostUserOptions, SocketAddressVariant,
};

use super::chardev::{inet, unix};
use super::object::check_id;
use super::unmet;

/// The most queues of a tap: as many as the kernel gives an interface.
const MOST_QUEUES: u32 = 256;
/// The most pairs of queues that vhost-user has numbers for.
const MOST_SERVED: u16 = 128;

/// What a netdev is to be.
///
/// # Errors
/// Members contradict each other, or ask for what cannot be had.
pub fn netdev(options: Netdev) -> Result<NetdevSpec, QmpError> {
    check_id(&options.id)?;
    let kind = match options.r#type {
        NetdevVariant::Tap(tap) => NetdevKind::Tap(self::tap(tap)?),
        NetdevVariant::Stream(stream) => NetdevKind::Stream(self::stream(stream)?),
        NetdevVariant::Socket(socket) => NetdevKind::Stream(self::socket(socket)?),
        NetdevVariant::Dgram(dgram) => self::dgram(dgram)?,
        NetdevVariant::VhostUser(options) => vhost_user(options)?,
        NetdevVariant::Hubport(port) => NetdevKind::HubPort { hub: port.hubid },
    };
    Ok(NetdevSpec {
        id: options.id,
        kind,
    })
}

fn tap(tap: NetdevTapOptions) -> Result<TapSpec, QmpError> {
    let is_program = |name: &Option<String>| {
        name.as_deref()
            .is_some_and(|name| !name.is_empty() && name != "no")
    };
    let why = "no program is ever started";
    unmet::refuse(&[
        (is_program(&tap.script), "script", why),
        (is_program(&tap.downscript), "downscript", why),
    ])?;
    let opened = tap.ifname.is_some()
        || tap.vnet_hdr.is_some()
        || tap.queues.is_some()
        || tap.script.is_some()
        || tap.downscript.is_some();
    let vhost = vhost(&tap)?;
    let queues = match (tap.fd, tap.fds, tap.ifname) {
        (Some(_), fds, _) if fds.is_some() || tap.vhostfds.is_some() || opened => {
            return Err(QmpError::generic(
                "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and vhostfds= \
                 are invalid with fd=",
            ));
        }
        (None, Some(_), _) if tap.vhostfd.is_some() || opened => {
            return Err(QmpError::generic(
                "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, and vhostfd= are \
                 invalid with fds=",
            ));
        }
        (Some(fd), ..) => TapQueues::Handed(vec![fd]),
        (None, Some(fds), _) => TapQueues::Handed(names("fds", &fds)?),
        (None, None, Some(_)) if tap.vhostfds.is_some() => {
            return Err(QmpError::generic(
                "vhostfds= is invalid if fds= wasn't specified",
            ));
        }
        (None, None, Some(ifname)) => TapQueues::Named {
            ifname,
            count: count(tap.queues)?,
            header: tap.vnet_hdr.unwrap_or(true),
        },
        (None, None, None) => {
            return Err(QmpError::generic(
                "a tap wants one of 'fd', 'fds' and 'ifname'",
            ));
        }
    };
    // 0 is QEMU's word for no limit.
    let sndbuf = tap.sndbuf.filter(|bytes| *bytes > 0).map(i32::try_from);
    let sndbuf = sndbuf
        .transpose()
        .map_err(|_| QmpError::generic("Parameter 'sndbuf' expects less than 2 GiB"))?;
    let count = match &queues {
        TapQueues::Handed(names) => names.len(),
        TapQueues::Named { count, .. } => usize::from(*count),
    };
    if let TapVhost::Handed(devices) = &vhost
        && devices.len() != count
    {
        return Err(QmpError::generic(
            "The number of fds passed does not match the number of vhostfds passed",
        ));
    }
    Ok(TapSpec {
        queues,
        sndbuf,
        vhost,
    })
}

/// Who moves the tap's packets.
fn vhost(tap: &NetdevTapOptions) -> Result<TapVhost, QmpError> {
    let handed = match (&tap.vhostfd, &tap.vhostfds) {
        (Some(name), _) => Some(vec![name.clone()]),
        (None, Some(list)) => Some(names("vhostfds", list)?),
        (None, None) => None,
    };
    let unasked = handed.is_some() || tap.vhostforce == Some(true);
    match (tap.vhost.unwrap_or(unasked), handed) {
        (true, Some(names)) => Ok(TapVhost::Handed(names)),
        (true, None) => Ok(TapVhost::Opened),
        (false, None) => Ok(TapVhost::Off),
        (false, Some(_)) => Err(QmpError::generic("vhostfd(s)= is not valid without vhost")),
    }
}

/// Names of fds, between colons; one that leads elsewhere by a path has none in it.
fn names(member: &str, list: &str) -> Result<Vec<String>, QmpError> {
    let names: Vec<String> = list.split(':').map(str::to_owned).collect();
    if names.iter().any(String::is_empty) {
        return Err(QmpError::generic(format!(
            "Parameter '{member}' expects names or numbers separated by colons, not '{list}'"
        )));
    }
    if names.len() > MOST_QUEUES as usize {
        return Err(QmpError::generic(format!(
            "Parameter '{member}' expects at most {MOST_QUEUES} fds, not {}",
            names.len()
        )));
    }
    Ok(names)
}

fn count(queues: Option<u32>) -> Result<u16, QmpError> {
    let wanted = queues.unwrap_or(1);
    u16::try_from(wanted)
        .ok()
        .filter(|_| (1..=MOST_QUEUES).contains(&wanted))
        .ok_or_else(|| {
            QmpError::generic(format!(
                "Parameter 'queues' expects 1 to {MOST_QUEUES}, not {wanted}"
            ))
        })
}

fn stream(stream: NetdevStreamOptions) -> Result<StreamSpec, QmpError> {
    let address = address(stream.addr.r#type)?;
    let reconnect = u64::try_from(stream.reconnect_ms.unwrap_or(0))
        .map_err(|_| QmpError::generic("Parameter 'reconnect-ms' expects a non-negative value"))?;
    let is_server = stream.server.unwrap_or(false);
    let role = match (is_server, reconnect) {
        (true, _) if stream.reconnect_ms.is_some() => {
            return Err(QmpError::generic("Parameter 'reconnect-ms' is unexpected"));
        }
        (true, _) => StreamRole::Server,
        (false, 0) => StreamRole::Client,
        (false, _) if matches!(address, SocketAddress::Fd { .. }) => {
            return Err(QmpError::generic(
                "a passed connection cannot be made again; leave reconnect-ms out or give a path",
            ));
        }
        (false, interval) => StreamRole::Reconnecting(Duration::from_millis(interval)),
    };
    Ok(StreamSpec {
        kind: "stream",
        address,
        role,
    })
}

fn socket(socket: NetdevSocketOptions) -> Result<StreamSpec, QmpError> {
    let (address, role) = match (socket.fd, socket.listen, socket.connect) {
        (Some(name), None, None) => (handed_in(name), StreamRole::Client),
        (None, Some(place), None) => (host_and_port(&place)?, StreamRole::Server),
        (None, None, Some(place)) => (host_and_port(&place)?, StreamRole::Client),
        _ => {
            return Err(QmpError::generic(
                "exactly one of fd=, listen= and connect= is required",
            ));
        }
    };
    Ok(StreamSpec {
        kind: "socket",
        address,
        role,
    })
}

/// A socket by the name that `fd` has for it, which may also be a set or what the open hook knows, as
/// a tap's may.
fn handed_in(name: String) -> SocketAddress {
    if name.starts_with('/') {
        return SocketAddress::Unix { path: name.into() };
    }
    SocketAddress::Fd { name }
}

fn host_and_port(place: &str) -> Result<SocketAddress, QmpError> {
    let wrong = || QmpError::generic(format!("'{place}' is not a socket's place: HOST:PORT"));
    let (host, port) = place.rsplit_once(':').ok_or_else(wrong)?;
    Ok(SocketAddress::Inet {
        host: host.trim_matches(['[', ']']).to_owned(),
        port: port.parse().map_err(|_| wrong())?,
    })
}

fn dgram(dgram: NetdevDgramOptions) -> Result<NetdevKind, QmpError> {
    let local = dgram.local.map(|one| address(one.r#type)).transpose()?;
    let remote = dgram.remote.map(|one| address(one.r#type)).transpose()?;
    let is_group = matches!(&remote, Some(SocketAddress::Inet { host, .. })
        if host.parse().is_ok_and(|address: std::net::IpAddr| address.is_multicast()));
    let family = |address: &SocketAddress| matches!(address, SocketAddress::Inet { .. });
    match (&local, &remote) {
        (_, Some(SocketAddress::Fd { .. })) => Err(QmpError::generic(
            "don't support type=fd for the remote address; give the connected socket as 'local'",
        )),
        (None, Some(_)) if is_group => Ok(()),
        (None, _) => Err(QmpError::generic("dgram requires local= parameter")),
        (Some(SocketAddress::Fd { .. }), Some(_)) => Err(QmpError::generic(
            "a passed socket is connected already; leave 'remote' out",
        )),
        (Some(SocketAddress::Fd { .. }), None) => Ok(()),
        (Some(_), None) => Err(QmpError::generic(
            "type=inet or type=unix requires remote parameter",
        )),
        (Some(local), Some(remote)) if family(local) != family(remote) => {
            Err(QmpError::generic("remote and local types must be the same"))
        }
        (Some(_), Some(_)) => Ok(()),
    }?;
    Ok(NetdevKind::Dgram { local, remote })
}

fn vhost_user(options: NetdevVhostUserOptions) -> Result<NetdevKind, QmpError> {
    let pairs = u16::try_from(options.queues.unwrap_or(1))
        .ok()
        .filter(|pairs| (1..=MOST_SERVED).contains(pairs))
        .ok_or_else(|| {
            QmpError::generic(format!(
                "vhost-user number of queues must be in range [1, {MOST_SERVED}]"
            ))
        })?;
    Ok(NetdevKind::VhostUser {
        chardev: options.chardev,
        pairs,
    })
}

fn address(address: SocketAddressVariant) -> Result<SocketAddress, QmpError> {
    Ok(match address {
        SocketAddressVariant::Inet(address) => inet(address)?,
        SocketAddressVariant::Unix(address) => unix(address)?,
        SocketAddressVariant::Fd(address) => SocketAddress::Fd { name: address.str },
    })
}

/// An Ethernet address of one card: six numbers in hexadecimal between colons or dashes.
#[must_use]
pub fn mac(text: &str) -> Option<Mac> {
    let mut parts = text.split([':', '-']);
    let mut mac = Mac::default();
    for byte in &mut mac {
        let part = parts.next().filter(|part| (1..=2).contains(&part.len()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// As clients read it.
#[must_use]
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use qapi_schema::input;
    use serde_json::{Value, json};

    use super::*;

    fn resolved(options: Value) -> Result<NetdevKind, String> {
        let options = input::arguments(options).expect("of the schema");
        netdev(options)
            .map(|spec| spec.kind)
            .map_err(|error| error.desc)
    }

    #[test]
    fn a_tap_has_its_queues_from_one_source() {
        let queues = |options| match resolved(options) {
            Ok(NetdevKind::Tap(tap)) => tap.queues,
            other => panic!("{other:?}"),
        };
        let fd = queues(json!({"type": "tap", "id": "t", "fd": "tapfd-net10"}));
        assert_eq!(fd, TapQueues::Handed(vec!["tapfd-net10".into()]));
        let fds = queues(json!({"type": "tap", "id": "t", "fds": "3:a:/dev/fdset/2"}));
        let names = ["3", "a", "/dev/fdset/2"].map(str::to_owned);
        assert_eq!(fds, TapQueues::Handed(names.to_vec()));
        for (options, error) in [
            (json!({"fd": "a", "fds": "b"}), "are invalid with fd="),
            (json!({"fd": "a", "queues": 2}), "are invalid with fd="),
            (json!({"fds": "a:b", "ifname": "x"}), "invalid with fds="),
            (json!({"fds": "a::b"}), "separated by colons"),
            (json!({"fd": "a", "vhostfds": "b"}), "are invalid with fd="),
            (json!({"fds": "a:b", "vhostfd": "c"}), "invalid with fds="),
            (json!({"fds": "a:b", "vhostfds": "c"}), "does not match"),
            (
                json!({"fd": "a", "vhost": false, "vhostfd": "c"}),
                "not valid without vhost",
            ),
            (
                json!({"ifname": "x", "vhostfds": "c"}),
                "fds= wasn't specified",
            ),
            (json!({"ifname": "x", "queues": 257}), "1 to 256"),
            (json!({"ifname": "x", "script": "/etc/up"}), "no program"),
            (json!({}), "wants one of"),
        ] {
            let mut all = json!({"type": "tap", "id": "t"});
            for (key, value) in options.as_object().into_iter().flatten() {
                all[key] = value.clone();
            }
            let refused = resolved(all).expect_err(error);
            assert!(refused.contains(error), "{refused}");
        }
    }

    #[test]
    fn the_kernel_moves_packets_where_it_is_told_to() {
        let vhost = |options: Value| match resolved(options) {
            Ok(NetdevKind::Tap(tap)) => tap.vhost,
            other => panic!("{other:?}"),
        };
        let handed = |names: &[&str]| {
            TapVhost::Handed(names.iter().map(|name| (*name).to_owned()).collect())
        };
        for (more, wanted) in [
            (json!({}), TapVhost::Off),
            (json!({"vhost": true}), TapVhost::Opened),
            (json!({"vhostforce": true}), TapVhost::Opened),
            (json!({"vhost": false, "vhostforce": true}), TapVhost::Off),
            (json!({"vhost": true, "vhostfd": "v"}), handed(&["v"])),
            (json!({"vhostfd": "7"}), handed(&["7"])),
        ] {
            let mut options = json!({"type": "tap", "id": "t", "fd": "q"});
            for (key, value) in more.as_object().into_iter().flatten() {
                options[key] = value.clone();
            }
            assert_eq!(vhost(options), wanted, "{more}");
        }
        let several = json!({"type": "tap", "id": "t", "fds": "a:b", "vhostfds": "c:d"});
        assert_eq!(vhost(several), handed(&["c", "d"]));
    }

    #[test]
    fn a_socket_is_handed_in_by_a_name_a_number_or_a_set() {
        for (fd, wanted) in [
            (
                "given",
                SocketAddress::Fd {
                    name: "given".into(),
                },
            ),
            ("7", SocketAddress::Fd { name: "7".into() }),
            (
                "/dev/fdset/1",
                SocketAddress::Unix {
                    path: "/dev/fdset/1".into(),
                },
            ),
        ] {
            let options = json!({"id": "n", "type": "socket", "fd": fd});
            let spec = resolved(options).unwrap();
            let NetdevKind::Stream(stream) = spec else {
                panic!("{spec:?}");
            };
            assert_eq!(stream.address, wanted);
        }
    }

    #[test]
    fn sockets_are_refused_whose_members_contradict_each_other() {
        let unix = json!({"type": "unix", "path": "/x"});
        let inet = json!({"type": "inet", "host": "127.0.0.1", "port": "9"});
        let fd = json!({"type": "fd", "str": "a"});
        for (options, error) in [
            (
                json!({"type": "stream", "addr": unix, "server": true, "reconnect-ms": 1}),
                "'reconnect-ms' is unexpected",
            ),
            (
                json!({"type": "stream", "addr": fd, "reconnect-ms": 1}),
                "cannot be made again",
            ),
            (json!({"type": "dgram"}), "dgram requires local= parameter"),
            (
                json!({"type": "dgram", "local": unix}),
                "requires remote parameter",
            ),
            (
                json!({"type": "dgram", "remote": inet}),
                "dgram requires local= parameter",
            ),
            (
                json!({"type": "dgram", "local": unix, "remote": inet}),
                "must be the same",
            ),
            (
                json!({"type": "dgram", "local": fd, "remote": inet}),
                "is connected already",
            ),
            (json!({"type": "socket"}), "exactly one of"),
            (json!({"type": "socket", "connect": "x"}), "HOST:PORT"),
        ] {
            let mut options = options;
            options["id"] = "n".into();
            let refused = resolved(options).expect_err(error);
            assert!(refused.contains(error), "{refused}");
        }
        let group = json!({"type": "inet", "host": "230.0.0.1", "port": "9"});
        resolved(json!({"type": "dgram", "id": "d", "remote": group})).expect("a group");
    }

    #[test]
    fn a_back_end_has_as_many_queues_as_have_numbers() {
        let served = |queues: Value| {
            let options =
                json!({"type": "vhost-user", "id": "n", "chardev": "c", "queues": queues});
            match resolved(options) {
                Ok(NetdevKind::VhostUser { chardev, pairs }) => Ok((chardev, pairs)),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error),
            }
        };
        assert_eq!(served(json!(128)), Ok(("c".to_owned(), 128)));
        for queues in [0, -1, 129, i64::MAX] {
            let error = served(json!(queues)).expect_err("no number");
            assert!(error.contains("range [1, 128]"), "{error}");
        }
    }

    #[test]
    fn an_address_of_a_card_is_six_numbers() {
        let wanted = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
        for text in ["52:54:00:12:34:56", "52-54-0-12-34-56"] {
            assert_eq!(mac(text), Some(wanted), "{text}");
        }
        assert_eq!(mac_text(wanted), "52:54:00:12:34:56");
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5g",
            "1:2:3:4:5:678",
        ] {
            assert_eq!(mac(text), None, "{text}");
        }
    }
}
