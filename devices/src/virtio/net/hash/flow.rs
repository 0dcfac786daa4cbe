//! Which flow a packet belongs to: a look through its headers.
//!
//! Fragments of IP have no ports here, not even the first one, so that all of them have one hash.

/// Types of Ethernet packets (IEEE 802 numbers).
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// What is between the addresses and the type of a packet of a VLAN.
const TAGS: [u16; 2] = [0x8100, 0x88a8];

/// Headers behind that of IP (IANA's protocol numbers).
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// The most tags, and the most extension headers, that are looked through.
const MOST_TAGS: usize = 2;
const MOST_EXTENSIONS: usize = 8;

/// Which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

/// What has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// A packet's flow. The addresses are where it comes from and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow<'p> {
    pub(super) version: Version,
    pub(super) ends: [&'p [u8]; 2],
    /// Of a packet with extension headers of IPv6: its ends as Mobile IPv6 has them, a home address
    /// (RFC 6275, 6.3) and that of a routing header of type 2 (6.4).
    pub(super) mobile: Option<[&'p [u8]; 2]>,
    /// The two ports, as they lie.
    pub(super) transport: Option<(Transport, &'p [u8])>,
}

impl<'p> Flow<'p> {
    /// The flow of a packet that begins with its Ethernet header; `None` if it is not of IP, or cut
    /// short.
    pub(super) fn of(packet: &'p [u8]) -> Option<Self> {
        let (_, mut rest) = packet.split_at_checked(12)?;
        for _ in 0..=MOST_TAGS {
            let (kind, behind) = rest.split_first_chunk()?;
            match u16::from_be_bytes(*kind) {
                IPV4 => return Self::of_v4(behind),
                IPV6 => return Self::of_v6(behind),
                kind if TAGS.contains(&kind) => rest = behind.get(2..)?,
                _ => return None,
            }
        }
        None
    }

    fn of_v4(packet: &'p [u8]) -> Option<Self> {
        let (header, _) = packet.split_first_chunk::<20>()?;
        let [start, _, _, _, _, _, high, low, _, protocol, ..] = *header;
        let length = usize::from(start & 0xf) * 4;
        if start >> 4 != 4 || length < header.len() {
            return None;
        }
        // More fragments follow, or others came before.
        let is_fragment = u16::from_be_bytes([high, low]) & 0x3fff != 0;
        let body = packet.get(length..).filter(|_| !is_fragment);
        Some(Self {
            version: Version::V4,
            ends: [packet.get(12..16)?, packet.get(16..20)?],
            mobile: None,
            transport: body.and_then(|body| transport(protocol, body)),
        })
    }

    fn of_v6(packet: &'p [u8]) -> Option<Self> {
        let (header, body) = packet.split_at_checked(40)?;
        if header.first()? >> 4 != 6 {
            return None;
        }
        let ends = [header.get(8..24)?, header.get(24..40)?];
        let mut extensions = Extensions::new(*header.get(6)?, body, ends);
        let transport = extensions.skip();
        Some(Self {
            version: Version::V6,
            ends,
            mobile: extensions.any.then_some(extensions.ends),
            transport,
        })
    }
}

fn transport(protocol: u8, body: &[u8]) -> Option<(Transport, &[u8])> {
    let transport = match protocol {
        TCP => Transport::Tcp,
        UDP => Transport::Udp,
        _ => return None,
    };
    body.get(..4).map(|ports| (transport, ports))
}

/// The way through the extension headers of a packet (RFC 8200, 4).
struct Extensions<'p> {
    next: u8,
    rest: &'p [u8],
    ends: [&'p [u8]; 2],
    any: bool,
}

impl<'p> Extensions<'p> {
    fn new(next: u8, rest: &'p [u8], ends: [&'p [u8]; 2]) -> Self {
        Self {
            next,
            rest,
            ends,
            any: false,
        }
    }

    /// Goes to what is behind the last one.
    fn skip(&mut self) -> Option<(Transport, &'p [u8])> {
        for _ in 0..=MOST_EXTENSIONS {
            let unit = match self.next {
                HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HOST_IDENTITY | SHIM6 => 8,
                // Its length is in words, without two of them (RFC 4302, 2.2).
                AUTHENTICATION => 4,
                FRAGMENT => {
                    self.any = true;
                    return None;
                }
                last => return transport(last, self.rest),
            };
            self.any = true;
            let [next, length, ..] = *self.rest.first_chunk::<8>()?;
            let (header, rest) = self.rest.split_at_checked(8 + usize::from(length) * unit)?;
            match self.next {
                ROUTING => self.route(header),
                DESTINATION => self.look_for_home(header),
                _ => {}
            }
            (self.next, self.rest) = (next, rest);
        }
        None
    }

    fn route(&mut self, header: &'p [u8]) {
        let [_, to] = &mut self.ends;
        if let ([_, _, 2, ..], Some(address)) = (header, header.get(8..24)) {
            *to = address;
        }
    }

    /// Looks through the options of a header for a home address.
    fn look_for_home(&mut self, header: &'p [u8]) {
        const PAD: u8 = 0;
        const HOME: u8 = 0xc9;
        let mut options = header.get(2..).unwrap_or_default();
        while let [kind, behind @ ..] = options {
            if *kind == PAD {
                options = behind;
                continue;
            }
            let Some((length, behind)) = behind.split_first() else {
                return;
            };
            let Some((value, behind)) = behind.split_at_checked((*length).into()) else {
                return;
            };
            if *kind == HOME && value.len() == 16 {
                let [from, _] = &mut self.ends;
                *from = value;
                return;
            }
            options = behind;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_packet_breaks_the_look(
            kind in prop::sample::select(vec![IPV4, IPV6, 0x8100, 0x88a8]),
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            next in prop::sample::select(vec![0_u8, 6, 17, 43, 44, 51, 60]),
        ) {
            let mut packet = [[0; 12].as_slice(), &kind.to_be_bytes(), &bytes].concat();
            for (at, value) in [(14, 0x60), (20, next)] {
                if let Some(byte) = packet.get_mut(at).filter(|_| kind == IPV6) {
                    *byte = value;
                }
            }
            if let Some(flow) = Flow::of(&packet) {
                let wanted = if flow.version == Version::V4 { 4 } else { 16 };
                let ends = flow.ends.into_iter().chain(flow.mobile.into_iter().flatten());
                prop_assert!(ends.into_iter().all(|end| end.len() == wanted));
                prop_assert!(flow.transport.is_none_or(|(_, ports)| ports.len() == 4));
            }
        }
    }
}
