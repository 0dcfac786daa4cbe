//! Hashes of packets, by which packets of one flow are told from others (virtio 1.2, 5.1.6.4.3).
//!
//! ```text
//!   packet ─► flow: addresses, ports ─► the first kind that the driver enabled ─► toeplitz ─► value
//! ```
//!
//! Pure: bytes in, a number out. Packets are hostile; nothing is allocated for one. This room must
//! never know queues. Read next: [`flow`], [`toeplitz`].

mod flow;
mod toeplitz;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net as numbers;

use self::flow::{Flow, Transport, Version};
use self::toeplitz::Toeplitz;

/// The longest key of a driver, in bytes: what the longest input needs.
pub const KEY: usize = toeplitz::KEY;

bitflags! {
    /// Kinds of hashes: what of which packets they are taken of.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct HashTypes: u32 {
        /// Addresses of IPv4.
        const IPV4 = numbers::VIRTIO_NET_RSS_HASH_TYPE_IPv4;
        /// These and ports of TCP.
        const TCPV4 = numbers::VIRTIO_NET_RSS_HASH_TYPE_TCPv4;
        /// These and ports of UDP.
        const UDPV4 = numbers::VIRTIO_NET_RSS_HASH_TYPE_UDPv4;
        /// Addresses of IPv6.
        const IPV6 = numbers::VIRTIO_NET_RSS_HASH_TYPE_IPv6;
        /// These and ports of TCP.
        const TCPV6 = numbers::VIRTIO_NET_RSS_HASH_TYPE_TCPv6;
        /// These and ports of UDP.
        const UDPV6 = numbers::VIRTIO_NET_RSS_HASH_TYPE_UDPv6;
        /// Addresses of IPv6 with extension headers, as Mobile IPv6 has them.
        const IP_EX = numbers::VIRTIO_NET_RSS_HASH_TYPE_IP_EX;
        /// These and ports of TCP.
        const TCP_EX = numbers::VIRTIO_NET_RSS_HASH_TYPE_TCP_EX;
        /// These and ports of UDP.
        const UDP_EX = numbers::VIRTIO_NET_RSS_HASH_TYPE_UDP_EX;
    }
}

/// What the driver wants hashed, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashConfig {
    /// Which kinds it enabled: bits of [`HashTypes`].
    pub types: u32,
    /// The key; what is missing at its end is zeros.
    pub key: Vec<u8>,
}

impl HashConfig {
    /// Whether a driver may ask for it: kinds that there are, with a key that is no longer than
    /// [`KEY`] and there if anything is to be hashed.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let is_needed = self.types != 0;
        HashTypes::from_bits(self.types).is_some()
            && self.key.len() <= KEY
            && (!is_needed || !self.key.is_empty())
    }
}

/// A packet's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash {
    /// The number.
    pub value: u32,
    /// Of which kind it is, as the driver is told: `VIRTIO_NET_HASH_REPORT_*`.
    pub report: u16,
}

/// The kinds of one version of IP.
struct Family {
    ip: HashTypes,
    tcp: HashTypes,
    udp: HashTypes,
}

const V4: Family = Family {
    ip: HashTypes::IPV4,
    tcp: HashTypes::TCPV4,
    udp: HashTypes::UDPV4,
};
const V6: Family = Family {
    ip: HashTypes::IPV6,
    tcp: HashTypes::TCPV6,
    udp: HashTypes::UDPV6,
};
const EXTENDED: Family = Family {
    ip: HashTypes::IP_EX,
    tcp: HashTypes::TCP_EX,
    udp: HashTypes::UDP_EX,
};

/// Hashes packets as one driver wants it.
#[derive(Debug)]
pub struct Hasher {
    types: HashTypes,
    toeplitz: Toeplitz,
}

impl Hasher {
    /// Prepares for this configuration.
    #[must_use]
    pub fn new(config: &HashConfig) -> Self {
        Self {
            types: HashTypes::from_bits_truncate(config.types),
            toeplitz: Toeplitz::new(&config.key),
        }
    }

    /// The hash of a packet that begins with its Ethernet header; `None` if it is of no kind that the
    /// driver enabled.
    #[must_use]
    pub fn hash(&self, packet: &[u8]) -> Option<Hash> {
        let flow = Flow::of(packet)?;
        let plain = match flow.version {
            Version::V4 => V4,
            Version::V6 => V6,
        };
        let extended = flow.mobile.map(|ends| (EXTENDED, ends));
        let mut families = extended.into_iter().chain([(plain, flow.ends)]);
        families.find_map(|(family, ends)| self.hash_of(&flow, &family, ends))
    }

    /// The hash of the most precise kind of `family`.
    fn hash_of(&self, flow: &Flow<'_>, family: &Family, [from, to]: [&[u8]; 2]) -> Option<Hash> {
        let precise = flow.transport.map(|(transport, ports)| match transport {
            Transport::Tcp => (family.tcp, ports),
            Transport::Udp => (family.udp, ports),
        });
        let mut kinds = precise.into_iter().chain([(family.ip, [].as_slice())]);
        let (kind, ports) = kinds.find(|(kind, _)| self.types.contains(*kind))?;
        Some(Hash {
            value: self.toeplitz.hash(&[from, to, ports]),
            report: report(kind),
        })
    }
}

/// How the driver is told of a kind (virtio 1.2, 5.1.6.4.4).
fn report(kind: HashTypes) -> u16 {
    u16::try_from(kind.bits().trailing_zeros() + 1).unwrap_or(0)
}

#[cfg(test)]
mod tests;
