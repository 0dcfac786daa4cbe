//! Network cards: which are there, what they negotiated, and their addresses.
#![expect(
    unsafe_code,
    reason = "interfaces are set up by ioctls that have no safe wrapper"
)]
// UNSAFETY: the kernel reads and writes one `ifreq`, and what that points to, during each call.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde_json::{Value, json};

use super::Arguments;
use super::disk::until;

/// Where the kernel lists interfaces.
const CARDS: &str = "/sys/class/net";

mod request {
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_address, libc::SIOCSIFADDR, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_netmask, libc::SIOCSIFNETMASK, libc::ifreq);
    nix::ioctl_write_ptr_bad!(ethtool, libc::SIOCETHTOOL, libc::ifreq);
}

/// Every card but the loop: its name, address, MTU, carrier, queues, and the virtio features that
/// its driver and the device agreed on, as their numbers.
pub(super) fn list() -> io::Result<Value> {
    let mut cards = Vec::new();
    for name in names()? {
        let attribute = |part: &str| {
            fs::read_to_string(format!("{CARDS}/{name}/{part}"))
                .map(|text| text.trim().to_owned())
                .unwrap_or_default()
        };
        let queues = |kind: &str| {
            let queues = fs::read_dir(format!("{CARDS}/{name}/queues"));
            queues.map_or(0, |all| {
                let names = all.flatten().map(|entry| entry.file_name());
                names
                    .filter(|name| name.to_string_lossy().starts_with(kind))
                    .count()
            })
        };
        let bits = attribute("device/features");
        let features = bits.bytes().enumerate().filter(|(_, bit)| *bit == b'1');
        let features: Vec<usize> = features.map(|(number, _)| number).collect();
        cards.push(json!({
            "name": name,
            "mac": attribute("address"),
            "mtu": attribute("mtu").parse::<u32>().ok(),
            "carrier": attribute("carrier") == "1",
            "rx-queues": queues("rx-"),
            "tx-queues": queues("tx-"),
            "features": features,
        }));
    }
    Ok(Value::Array(cards))
}

/// `mac`, `seconds`: the name of the card with that address, once it is there.
pub(super) fn wait(arguments: &Arguments<'_>) -> io::Result<Value> {
    let mac = arguments.text("mac")?;
    until(arguments.number("seconds")?, || find(mac))
        .map(Value::String)
        .ok_or_else(|| io::Error::other(format!("no card with address {mac} came")))
}

/// `mac`, `seconds`: answers once no card has that address.
pub(super) fn wait_gone(arguments: &Arguments<'_>) -> io::Result<Value> {
    let mac = arguments.text("mac")?;
    until(arguments.number("seconds")?, || {
        find(mac).is_none().then_some(())
    })
    .map(|()| Value::Null)
    .ok_or_else(|| io::Error::other(format!("the card with address {mac} stays")))
}

/// `card`, `up`, `seconds`: answers once its carrier is as wanted.
pub(super) fn wait_carrier(arguments: &Arguments<'_>) -> io::Result<Value> {
    let (card, up) = (arguments.text("card")?, arguments.number("up")? != 0);
    until(arguments.number("seconds")?, || {
        let carrier = fs::read_to_string(format!("{CARDS}/{card}/carrier")).ok()?;
        ((carrier.trim() == "1") == up).then_some(())
    })
    .map(|()| Value::Null)
    .ok_or_else(|| io::Error::other(format!("{card}: its carrier stays the other way")))
}

/// `card`: brings it up, without an address.
pub(super) fn up(arguments: &Arguments<'_>) -> io::Result<Value> {
    bring_up(arguments.text("card")?)?;
    Ok(Value::Null)
}

/// `card`, `address` (of IPv4), `prefix` (its network's length): brings it up with that address.
pub(super) fn set_address(arguments: &Arguments<'_>) -> io::Result<Value> {
    let card = arguments.text("card")?;
    let address = arguments
        .text("address")?
        .parse()
        .map_err(io::Error::other)?;
    let prefix = u32::try_from(arguments.number("prefix")?).map_err(io::Error::other)?;
    bring_up(card)?;
    take_address(card, address, prefix)?;
    Ok(Value::Null)
}

/// `card`: how many channels (pairs of queues) it has at most, and how many it uses.
pub(super) fn channels(arguments: &Arguments<'_>) -> io::Result<Value> {
    let channels = ethtool_channels(arguments.text("card")?, ETHTOOL_GCHANNELS, None)?;
    Ok(json!({"most": channels[MAX_COMBINED], "used": channels[COMBINED]}))
}

/// `card`, `count`: uses so many of its channels.
pub(super) fn set_channels(arguments: &Arguments<'_>) -> io::Result<Value> {
    let card = arguments.text("card")?;
    let count = u32::try_from(arguments.number("count")?).map_err(io::Error::other)?;
    ethtool_channels(card, ETHTOOL_SCHANNELS, Some(count))?;
    Ok(Value::Null)
}

/// `card`: which of its queues packets go to, by the low bits of their hashes (`ethtool -x`).
pub(super) fn spread(arguments: &Arguments<'_>) -> io::Result<Value> {
    let mut table = [0_u32; 2 + SPREAD as usize];
    table[..2].copy_from_slice(&[ETHTOOL_GRXFHINDIR, SPREAD]);
    ethtool(arguments.text("card")?, &mut table)?;
    let count = usize::try_from(table[1]).map_err(io::Error::other)?;
    Ok(json!(table.get(2..2 + count)))
}

/// `card`, `queue`: all packets go to this one of its queues.
pub(super) fn set_spread(arguments: &Arguments<'_>) -> io::Result<Value> {
    let queue = u32::try_from(arguments.number("queue")?).map_err(io::Error::other)?;
    let mut table = [queue; 2 + SPREAD as usize];
    table[..2].copy_from_slice(&[ETHTOOL_SRXFHINDIR, SPREAD]);
    ethtool(arguments.text("card")?, &mut table)?;
    Ok(Value::Null)
}

pub(super) fn bring_up(card: &str) -> io::Result<()> {
    let mut interface = named(card)?;
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    interface.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    let socket = any_socket()?;
    // SAFETY: as said above.
    unsafe { request::set_flags(socket.as_raw_fd(), &raw const interface) }?;
    Ok(())
}

pub(super) fn take_address(card: &str, address: Ipv4Addr, prefix: u32) -> io::Result<()> {
    let socket = any_socket()?;
    let host_bits = 32_u32.saturating_sub(prefix);
    let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
    let with = |address: Ipv4Addr| -> io::Result<libc::ifreq> {
        let mut interface = named(card)?;
        let [a, b, c, d] = address.octets();
        // A `sockaddr_in` behind its family: two bytes of port, four of address.
        let place = [0, 0, a, b, c, d].map(u8::cast_signed);
        let mut socket_address = libc::sockaddr {
            sa_family: libc::sa_family_t::try_from(libc::AF_INET).map_err(io::Error::other)?,
            sa_data: [0; 14],
        };
        socket_address.sa_data[..place.len()].copy_from_slice(&place);
        interface.ifr_ifru.ifru_addr = socket_address;
        Ok(interface)
    };
    let (address, mask) = (with(address)?, with(mask.into())?);
    // SAFETY: as said above.
    unsafe { request::set_address(socket.as_raw_fd(), &raw const address) }?;
    // SAFETY: as said above.
    unsafe { request::set_netmask(socket.as_raw_fd(), &raw const mask) }?;
    Ok(())
}

const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;
/// Places in `struct ethtool_channels`, which is nine numbers of 32 bits.
const MAX_COMBINED: usize = 4;
const COMBINED: usize = 8;
const ETHTOOL_GRXFHINDIR: u32 = 0x38;
const ETHTOOL_SRXFHINDIR: u32 = 0x39;
/// How many entries a table of queues has.
const SPREAD: u32 = 128;

fn ethtool_channels(card: &str, command: u32, count: Option<u32>) -> io::Result<[u32; 9]> {
    let mut channels = [0_u32; 9];
    channels[0] = command;
    if let Some(count) = count {
        channels[COMBINED] = count;
    }
    ethtool(card, &mut channels)?;
    Ok(channels)
}

/// A command of ethtool: its number, and what it takes and gives.
fn ethtool(card: &str, command: &mut [u32]) -> io::Result<()> {
    let mut interface = named(card)?;
    interface.ifr_ifru.ifru_data = command.as_mut_ptr().cast();
    let socket = any_socket()?;
    // SAFETY: as said above; `command` is as long as the commands here say, and outlives the call.
    unsafe { request::ethtool(socket.as_raw_fd(), &raw const interface) }?;
    Ok(())
}

fn named(card: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an all-zero `ifreq` is a valid one.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    if card.len() >= interface.ifr_name.len() {
        return Err(io::Error::other(format!("no card has a name like {card}")));
    }
    for (to, from) in interface.ifr_name.iter_mut().zip(card.bytes()) {
        *to = from.cast_signed();
    }
    Ok(interface)
}

/// What ioctls on interfaces are made on.
fn any_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socket(
        AddressFamily::Inet,
        SockType::Datagram,
        flags,
        None,
    )?)
}

fn names() -> io::Result<Vec<String>> {
    let entries = fs::read_dir(CARDS)?.flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name != "lo").collect();
    names.sort();
    Ok(names)
}

fn find(mac: &str) -> Option<String> {
    names().ok()?.into_iter().find(|name| {
        let address = fs::read_to_string(format!("{CARDS}/{name}/address"));
        address.is_ok_and(|address| address.trim() == mac)
    })
}
