//! An address for a card from whoever gives them out (RFC 2131): ask, choose, confirm.
//!
//! ```text
//!   discover ──► offer ──► request ──► ack ──► the card has the address
//! ```
//!
//! Not every server answers to everybody when it is asked to: answers may be for the address that the
//! card does not have yet, so they are taken from the wire.
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::{Value, json};

use super::Arguments;
use super::net;

/// Where the options begin, behind the cookie.
const OPTIONS: usize = 240;
const COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
/// What we call our exchange.
const EXCHANGE: [u8; 4] = *b"sesa";
const PATIENCE: Duration = Duration::from_secs(60);

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;

const OPTION_MASK: u8 = 1;
const OPTION_ROUTER: u8 = 3;
const OPTION_ADDRESS: u8 = 50;
const OPTION_KIND: u8 = 53;
const OPTION_SERVER: u8 = 54;
const OPTION_END: u8 = 255;

/// `card`, `mac`: brings the card up and gets it an address; that, its network's length and the
/// router.
pub(super) fn ask(arguments: &Arguments<'_>) -> io::Result<Value> {
    let card = arguments.text("card")?;
    let mac = mac(arguments.text("mac")?)?;
    net::bring_up(card)?;
    let socket = UdpSocket::bind(("0.0.0.0", 68))?;
    socket.set_broadcast(true)?;
    setsockopt(&socket, sockopt::BindToDevice, &card.into())?;
    let wire = wire()?;
    let exchange = |message: &[u8], kind| exchange(&socket, &wire, message, kind);
    let offer = exchange(&message(mac, DISCOVER, &[]), OFFER)?;
    let chosen = place(&offer, 16)?;
    let server = address(&offer, OPTION_SERVER)?;
    let wish = [(OPTION_ADDRESS, chosen), (OPTION_SERVER, server)];
    let lease = exchange(&message(mac, REQUEST, &wish), ACK)?;
    let given = place(&lease, 16)?;
    let prefix = u32::from(address(&lease, OPTION_MASK)?).leading_ones();
    net::take_address(card, given, prefix)?;
    let router = address(&lease, OPTION_ROUTER)?;
    Ok(json!({"address": given.to_string(), "prefix": prefix, "router": router.to_string()}))
}

/// All packets of IPv4 that come in, behind their Ethernet headers.
fn wire() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let wire = socket(
        AddressFamily::Packet,
        SockType::Datagram,
        flags,
        SockProtocol::EthIp,
    )?;
    setsockopt(&wire, sockopt::ReceiveTimeout, &TimeVal::new(2, 0))?;
    Ok(wire)
}

/// What a packet carries behind its headers of IP and UDP.
fn payload(packet: &[u8]) -> &[u8] {
    let header = packet
        .first()
        .map_or(0, |first| usize::from(first & 15) * 4);
    packet.get(header + 8..).unwrap_or_default()
}

/// Sends until an answer of that kind comes.
fn exchange(socket: &UdpSocket, wire: &OwnedFd, message: &[u8], kind: u8) -> io::Result<Vec<u8>> {
    let start = Instant::now();
    let mut packet = vec![0; 2000];
    while start.elapsed() < PATIENCE {
        socket.send_to(message, (Ipv4Addr::BROADCAST, 67))?;
        while let Ok(count) = recv(wire.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            let answer = payload(packet.get(..count).unwrap_or_default());
            let is_ours = answer.get(4..8) == Some(&EXCHANGE);
            if is_ours && option(answer, OPTION_KIND) == Some(&[kind]) {
                return Ok(answer.to_vec());
            }
        }
    }
    Err(io::Error::other(format!("no answer of kind {kind} came")))
}

/// A request of ours, to be answered to everybody: the card has no address yet.
fn message(mac: [u8; 6], kind: u8, addresses: &[(u8, Ipv4Addr)]) -> Vec<u8> {
    let mut message = vec![0; OPTIONS];
    // A request, over Ethernet, from an address of 6 bytes.
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(&EXCHANGE);
    message[10] = 0x80;
    message[28..34].copy_from_slice(&mac);
    message[OPTIONS - 4..].copy_from_slice(&COOKIE);
    message.extend([OPTION_KIND, 1, kind]);
    for (option, address) in addresses {
        message.extend([*option, 4]);
        message.extend(address.octets());
    }
    message.push(OPTION_END);
    message
}

/// What an option says.
fn option(message: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = message.get(OPTIONS..)?;
    loop {
        let (&name, behind) = rest.split_first()?;
        match name {
            0 => rest = behind,
            OPTION_END => return None,
            _ => {
                let (&length, behind) = behind.split_first()?;
                let (value, behind) = behind.split_at_checked(length.into())?;
                if name == wanted {
                    return Some(value);
                }
                rest = behind;
            }
        }
    }
}

fn address(message: &[u8], wanted: u8) -> io::Result<Ipv4Addr> {
    option(message, wanted)
        .and_then(|value| value.first_chunk::<4>())
        .map(|octets| (*octets).into())
        .ok_or_else(|| io::Error::other(format!("the answer has no option {wanted}")))
}

fn place(message: &[u8], at: usize) -> io::Result<Ipv4Addr> {
    let octets = message.get(at..).and_then(|rest| rest.first_chunk::<4>());
    octets
        .map(|octets| (*octets).into())
        .ok_or_else(|| io::Error::other("the answer is too short"))
}

fn mac(text: &str) -> io::Result<[u8; 6]> {
    let wrong = || io::Error::other(format!("'{text}' is no address of a card"));
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().ok_or_else(wrong)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_and_what_is_cut_off_is_not() {
        let mut answer = message([2; 6], ACK, &[(OPTION_SERVER, Ipv4Addr::LOCALHOST)]);
        assert_eq!(option(&answer, OPTION_KIND), Some(&[ACK][..]));
        assert_eq!(
            address(&answer, OPTION_SERVER).unwrap(),
            Ipv4Addr::LOCALHOST
        );
        assert!(address(&answer, OPTION_MASK).is_err());
        answer.truncate(OPTIONS + 5);
        assert_eq!(option(&answer, OPTION_SERVER), None);
    }
}
