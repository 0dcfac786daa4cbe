//! Microsoft's vectors for receive-side scaling ("Verifying the RSS Hash Calculation"), as packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;

/// The key of the vectors.
const SECRET: [u8; KEY] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// To, its port, from, its port, the hash of addresses, and with ports.
const VECTORS: [(&str, u16, &str, u16, u32, u32); 8] = [
    (
        "161.142.100.80",
        1766,
        "66.9.149.187",
        2794,
        0x323e_8fc2,
        0x51cc_c178,
    ),
    (
        "65.69.140.83",
        4739,
        "199.92.111.2",
        14230,
        0xd718_262a,
        0xc626_b0ea,
    ),
    (
        "12.22.207.184",
        38024,
        "24.19.198.95",
        12898,
        0xd2d0_a5de,
        0x5c2b_394a,
    ),
    (
        "209.142.163.6",
        2217,
        "38.27.205.30",
        48228,
        0x8298_9176,
        0xafc7_327f,
    ),
    (
        "202.188.127.2",
        1303,
        "153.39.163.191",
        44251,
        0x5d18_09c5,
        0x10e8_28a2,
    ),
    (
        "3ffe:2501:200:3::1",
        1766,
        "3ffe:2501:200:1fff::7",
        2794,
        0x2cc1_8cd5,
        0x4020_7d3d,
    ),
    (
        "ff02::1",
        4739,
        "3ffe:501:8::260:97ff:fe40:efab",
        14230,
        0x0f0c_461c,
        0xdde5_1bbf,
    ),
    (
        "fe80::200:f8ff:fe21:67cf",
        38024,
        "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
        44251,
        0x4b61_e985,
        0x02d1_feef,
    ),
];

const TCP: u8 = 6;
const UDP: u8 = 17;

fn hasher(types: HashTypes) -> Hasher {
    Hasher::new(&HashConfig {
        types: types.bits(),
        key: SECRET.to_vec(),
    })
}

fn ethernet(kind: u16, body: &[u8]) -> Vec<u8> {
    [[2; 12].as_slice(), &kind.to_be_bytes(), body].concat()
}

fn v4(protocol: u8, fragment: u16, from: Ipv4Addr, to: Ipv4Addr, body: &[u8]) -> Vec<u8> {
    // With an option, so that the length of the header counts.
    let [high, low] = fragment.to_be_bytes();
    let start = [0x46, 0, 0, 0, 0, 0, high, low, 64, protocol, 0, 0];
    let packet = [
        &start[..],
        &from.octets(),
        &to.octets(),
        &[1, 1, 1, 1],
        body,
    ]
    .concat();
    ethernet(0x0800, &packet)
}

fn v6(next: u8, from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> Vec<u8> {
    let start = [0x60, 0, 0, 0, 0, 0, next, 64];
    let packet = [&start[..], &from.octets(), &to.octets(), body].concat();
    ethernet(0x86dd, &packet)
}

fn ports(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes(), [0; 2], [0; 2]].concat()
}

/// A packet of a vector.
fn packet(protocol: u8, to: &str, to_port: u16, from: &str, from_port: u16) -> Vec<u8> {
    let body = ports(from_port, to_port);
    match (from.parse().unwrap(), to.parse().unwrap()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => v4(protocol, 0, from, to, &body),
        (IpAddr::V6(from), IpAddr::V6(to)) => v6(protocol, from, to, &body),
        _ => panic!("of one version"),
    }
}

fn hash(types: HashTypes, packet: &[u8]) -> Option<(u32, u16)> {
    hasher(types)
        .hash(packet)
        .map(|hash| (hash.value, hash.report))
}

#[test]
fn the_published_vectors_come_out() {
    let ip = HashTypes::IPV4 | HashTypes::IPV6;
    for (to, to_port, from, from_port, addresses, with_ports) in VECTORS {
        let is_v6 = u16::from(to.contains(':'));
        for (protocol, precise) in [(TCP, 2), (UDP, 3)] {
            let packet = packet(protocol, to, to_port, from, from_port);
            let all = hash(HashTypes::all(), &packet);
            assert_eq!(all, Some((with_ports, precise + 3 * is_v6)), "{to}");
            assert_eq!(hash(ip, &packet), Some((addresses, 1 + 3 * is_v6)), "{to}");
        }
    }
}

#[test]
fn what_the_driver_did_not_enable_is_not_hashed() {
    let (to, to_port, from, from_port, addresses, with_ports) = VECTORS[0];
    let tcp = packet(TCP, to, to_port, from, from_port);
    assert_eq!(hash(HashTypes::empty(), &tcp), None);
    assert_eq!(hash(HashTypes::UDPV4 | HashTypes::TCPV6, &tcp), None);
    let udp_too = HashTypes::IPV4 | HashTypes::UDPV4;
    assert_eq!(hash(udp_too, &tcp), Some((addresses, 1)));
    assert_eq!(hash(HashTypes::TCPV4, &tcp), Some((with_ports, 2)));
    let icmp = packet(1, to, to_port, from, from_port);
    assert_eq!(hash(HashTypes::all(), &icmp), Some((addresses, 1)));
    assert_eq!(hash(HashTypes::TCPV4, &icmp), None);
}

#[test]
fn tags_of_vlans_are_passed_over_and_other_packets_have_no_hash() {
    let (to, to_port, from, from_port, _, with_ports) = VECTORS[0];
    let plain = packet(TCP, to, to_port, from, from_port);
    let (addresses, rest) = plain.split_at(12);
    let mut tagged = plain.clone();
    for tag in [[0x81, 0, 0, 7], [0x88, 0xa8, 0, 9]] {
        tagged = [addresses, &tag, &tagged[12..]].concat();
        let hashed = hash(HashTypes::all(), &tagged);
        assert_eq!(hashed, Some((with_ports, 2)));
    }
    let arp = [addresses, &[8, 6], &rest[2..]].concat();
    assert_eq!(hash(HashTypes::all(), &arp), None);
    for length in 0..34 {
        assert_eq!(hash(HashTypes::all(), &plain[..length]), None, "{length}");
    }
}

#[test]
fn all_fragments_of_a_packet_have_one_hash() {
    let (to, to_port, from, from_port, addresses, _) = VECTORS[0];
    let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
    for fragment in [0x2000, 0x2005, 0x0005] {
        let body = ports(from_port, to_port);
        let hashed = hash(HashTypes::all(), &v4(TCP, fragment, from, to, &body));
        assert_eq!(hashed, Some((addresses, 1)), "{fragment:#x}");
    }
}

/// The first vector of IPv6, with these extension headers: kinds and what is in them.
fn extended(from: &str, to: &str, headers: &[(u8, Vec<u8>)], last: u8) -> Vec<u8> {
    let (_, to_port, _, from_port, ..) = VECTORS[5];
    let mut nexts = headers.iter().map(|(kind, _)| *kind).chain([last]);
    let first = nexts.next().unwrap();
    let header = |(next, (_, body)): (u8, &(u8, Vec<u8>))| {
        let length = u8::try_from((body.len() + 2) / 8 - 1).unwrap();
        [&[next, length], body.as_slice()].concat()
    };
    let mut body: Vec<u8> = nexts.zip(headers).flat_map(header).collect();
    body.extend(ports(from_port, to_port));
    v6(first, from.parse().unwrap(), to.parse().unwrap(), &body)
}

#[test]
fn extension_headers_are_passed_over_and_tell_mobile_addresses() {
    let (to, _, from, _, addresses, with_ports) = VECTORS[5];
    let octets = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
    let nothing = (0, vec![1, 4, 0, 0, 0, 0]);
    let home = (60, [&[1, 2, 0, 0, 0xc9, 16][..], &octets(from)].concat());
    let route = (43, [&[2, 1, 0, 0, 0, 0][..], &octets(to)].concat());
    // Without mobile addresses both kinds are of the same ones.
    let plain = extended(from, to, std::slice::from_ref(&nothing), TCP);
    assert_eq!(hash(HashTypes::all(), &plain), Some((with_ports, 8)));
    let old = HashTypes::TCPV6 | HashTypes::IPV6;
    assert_eq!(hash(old, &plain), Some((with_ports, 5)));
    let ends = [nothing, route, home];
    let mobile = extended("2001:db8::1", "2001:db8::2", &ends, UDP);
    assert_eq!(hash(HashTypes::all(), &mobile), Some((with_ports, 9)));
    assert_eq!(hash(HashTypes::IP_EX, &mobile), Some((addresses, 7)));
    // The order of the specification: addresses of the extended kind before ports of the plain one.
    let mixed = HashTypes::IP_EX | HashTypes::UDPV6;
    assert_eq!(hash(mixed, &mobile), Some((addresses, 7)));
    let other = hash(HashTypes::UDPV6, &mobile).unwrap();
    assert!(other.0 != with_ports && other.1 == 6);
    let fragment = extended(from, to, &[(44, vec![0; 6])], TCP);
    assert_eq!(hash(HashTypes::all(), &fragment), Some((addresses, 7)));
    let endless = vec![(60, vec![1, 4, 0, 0, 0, 0]); 20];
    let deep = extended(from, to, &endless, TCP);
    assert_eq!(hash(HashTypes::all(), &deep), Some((addresses, 7)));
}

#[test]
fn a_configuration_needs_kinds_that_there_are_and_a_key_that_fits() {
    let sound = |types, length| {
        let key = vec![1; length];
        HashConfig { types, key }.is_sound()
    };
    assert!(sound(0x1ff, 40) && sound(1, 1) && sound(0, 0));
    assert!(!sound(0x200, 40) && !sound(1, 41) && !sound(1, 0));
}
