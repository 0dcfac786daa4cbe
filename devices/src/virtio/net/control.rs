//! The guest's commands (virtio 1.2, section 5.1.6.5): what they say. Pure.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET,
    VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_HASH_CONFIG,
    VIRTIO_NET_CTRL_MQ_RSS_CONFIG, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX,
    VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_ALLUNI, VIRTIO_NET_CTRL_RX_NOBCAST,
    VIRTIO_NET_CTRL_RX_NOMULTI, VIRTIO_NET_CTRL_RX_NOUNI, VIRTIO_NET_CTRL_RX_PROMISC,
    VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, VIRTIO_NET_CTRL_VLAN_DEL,
};

use super::Mac;
use super::filter::{Mode, TABLE, Table};
use super::hash::{HashConfig, KEY};
use super::steering::{self, Ways};

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A switch of the filter.
    Mode(Mode, bool),
    /// The filter's tables.
    Tables {
        /// Single addresses.
        unicast: Table,
        /// Groups.
        multicast: Table,
    },
    /// The card's own address.
    Mac(Mac),
    /// A VLAN, to be let through or not.
    Vlan(u16, bool),
    /// The guest has made its address known.
    Announced,
    /// How many pairs of queues it uses; packets are spread over them as we like.
    Pairs(u16),
    /// What is hashed; packets are spread as before [`Lead`](Self::Lead).
    Hash(HashConfig),
    /// What is hashed, and which hash leads where.
    Lead {
        /// What is hashed.
        hash: HashConfig,
        /// Where packets go.
        ways: Ways,
        /// How many queues the guest sends by.
        senders: u16,
    },
    /// Which packets it takes: bits of features.
    Offloads(u64),
}

/// Reads the command whose bytes `read` gives: it copies from an offset on, and returns how many
/// bytes there were. `None` for a command that is unknown or cut short.
///
/// # Errors
/// Those of `read`.
pub fn command<E>(
    mut read: impl FnMut(usize, &mut [u8]) -> Result<usize, E>,
) -> Result<Option<Command>, E> {
    let Some([class, code]) = array(&mut read, 0)? else {
        return Ok(None);
    };
    Ok(match (u32::from(class), u32::from(code)) {
        (VIRTIO_NET_CTRL_RX, code) => match (mode(code), array(&mut read, 2)?) {
            (Some(mode), Some([on])) => Some(Command::Mode(mode, on != 0)),
            _ => None,
        },
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
            array(&mut read, 2)?.map(Command::Mac)
        }
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => tables(&mut read)?,
        (VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD) => {
            array(&mut read, 2)?.map(|vlan| Command::Vlan(u16::from_le_bytes(vlan), true))
        }
        (VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_DEL) => {
            array(&mut read, 2)?.map(|vlan| Command::Vlan(u16::from_le_bytes(vlan), false))
        }
        (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) => Some(Command::Announced),
        (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
            array(&mut read, 2)?.map(|pairs| Command::Pairs(u16::from_le_bytes(pairs)))
        }
        (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_HASH_CONFIG) => hash(&mut read)?,
        (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_RSS_CONFIG) => lead(&mut read)?,
        (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
            array(&mut read, 2)?.map(|bits| Command::Offloads(u64::from_le_bytes(bits)))
        }
        _ => None,
    })
}

fn mode(code: u32) -> Option<Mode> {
    Some(match code {
        VIRTIO_NET_CTRL_RX_PROMISC => Mode::Promiscuous,
        VIRTIO_NET_CTRL_RX_ALLMULTI => Mode::AllMulticast,
        VIRTIO_NET_CTRL_RX_ALLUNI => Mode::AllUnicast,
        VIRTIO_NET_CTRL_RX_NOMULTI => Mode::NoMulticast,
        VIRTIO_NET_CTRL_RX_NOUNI => Mode::NoUnicast,
        VIRTIO_NET_CTRL_RX_NOBCAST => Mode::NoBroadcast,
        _ => return None,
    })
}

fn array<const N: usize, E>(
    read: &mut impl FnMut(usize, &mut [u8]) -> Result<usize, E>,
    offset: usize,
) -> Result<Option<[u8; N]>, E> {
    let mut bytes = [0; N];
    Ok((read(offset, &mut bytes)? == N).then_some(bytes))
}

/// `struct virtio_net_hash_config`.
fn hash<E>(
    read: &mut impl FnMut(usize, &mut [u8]) -> Result<usize, E>,
) -> Result<Option<Command>, E> {
    let Some(types) = array(read, 2)? else {
        return Ok(None);
    };
    // What is reserved lies where the other command has its table, and is not looked at: Linux leaves
    // in it how many queues it sends by.
    let config = key(read, 14)?.map(|key| HashConfig {
        types: u32::from_le_bytes(types),
        key,
    });
    Ok(config.map(Command::Hash))
}

/// `struct virtio_net_rss_config`.
fn lead<E>(
    read: &mut impl FnMut(usize, &mut [u8]) -> Result<usize, E>,
) -> Result<Option<Command>, E> {
    let Some([a, b, c, d, mask @ .., low, high]) = array::<8, E>(read, 2)? else {
        return Ok(None);
    };
    let mask = u16::from_le_bytes(mask);
    if mask >= steering::TABLE {
        return Ok(None);
    }
    let mut table = Vec::with_capacity(usize::from(mask) + 1);
    let mut next = 10;
    for _ in 0..=mask {
        let Some(entry) = array(read, next)? else {
            return Ok(None);
        };
        table.push(u16::from_le_bytes(entry));
        next += 2;
    }
    let (Some(senders), Some(key)) = (array(read, next)?, key(read, next + 2)?) else {
        return Ok(None);
    };
    Ok(Some(Command::Lead {
        hash: HashConfig {
            types: u32::from_le_bytes([a, b, c, d]),
            key,
        },
        ways: Ways {
            table,
            unclassified: u16::from_le_bytes([low, high]),
        },
        senders: u16::from_le_bytes(senders),
    }))
}

/// A key at `offset`, behind its length.
fn key<E>(
    read: &mut impl FnMut(usize, &mut [u8]) -> Result<usize, E>,
    offset: usize,
) -> Result<Option<Vec<u8>>, E> {
    let Some([length]) = array(read, offset)? else {
        return Ok(None);
    };
    if usize::from(length) > KEY {
        return Ok(None);
    }
    let mut key = vec![0; length.into()];
    let count = read(offset + 1, &mut key)?;
    Ok((count == key.len()).then_some(key))
}

fn tables<E>(
    read: &mut impl FnMut(usize, &mut [u8]) -> Result<usize, E>,
) -> Result<Option<Command>, E> {
    let Some((unicast, next)) = table(read, 2)? else {
        return Ok(None);
    };
    let multicast = table(read, next)?;
    Ok(multicast.map(|(multicast, _)| Command::Tables { unicast, multicast }))
}

/// A table at `offset`, and where the next one begins.
fn table<E>(
    read: &mut impl FnMut(usize, &mut [u8]) -> Result<usize, E>,
    offset: usize,
) -> Result<Option<(Table, usize)>, E> {
    let Some(count) = array(read, offset)? else {
        return Ok(None);
    };
    let count = u32::from_le_bytes(count) as usize;
    let (start, entry) = (offset + 4, size_of::<Mac>());
    // No usize overflows here: a table is far below 2^36 bytes.
    let next = start + count * entry;
    if count > TABLE {
        // That all of it is there is left to the next table's count; its addresses make no
        // difference.
        let last = array::<1, E>(read, next - 1)?;
        let table = Table {
            addresses: Vec::new(),
            overflow: true,
        };
        return Ok(last.map(|_| (table, next)));
    }
    let mut addresses = Vec::with_capacity(count);
    for at in 0..count {
        let Some(address) = array(read, start + at * entry)? else {
            return Ok(None);
        };
        addresses.push(address);
    }
    let table = Table {
        addresses,
        overflow: false,
    };
    Ok(Some((table, next)))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Option<Command> {
        let from = |offset: usize, out: &mut [u8]| {
            let rest = bytes.get(offset..).unwrap_or_default();
            let count = rest.len().min(out.len());
            out[..count].copy_from_slice(&rest[..count]);
            Ok::<_, Infallible>(count)
        };
        let Ok(command) = command(from);
        command
    }

    #[test]
    fn commands_are_read_and_those_cut_short_are_none() {
        assert_eq!(
            read(&[0, 1, 1]),
            Some(Command::Mode(Mode::AllMulticast, true))
        );
        assert_eq!(read(&[0, 1]), None);
        assert_eq!(read(&[0, 6, 1]), None);
        assert_eq!(
            read(&[1, 1, 1, 2, 3, 4, 5, 6]),
            Some(Command::Mac([1, 2, 3, 4, 5, 6]))
        );
        assert_eq!(read(&[2, 0, 7, 1]), Some(Command::Vlan(0x107, true)));
        assert_eq!(read(&[2, 1, 7, 1]), Some(Command::Vlan(0x107, false)));
        assert_eq!(read(&[3, 0]), Some(Command::Announced));
        assert_eq!(read(&[4, 0, 4, 0]), Some(Command::Pairs(4)));
        assert_eq!(
            read(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]),
            Some(Command::Offloads(2))
        );
        assert_eq!(read(&[9, 0, 0]), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn tables_are_kept_up_to_their_size() {
        let small = [&[1, 0], &[1, 0, 0, 0][..], &[2; 6], &[2, 0, 0, 0], &[3; 12]].concat();
        let Some(Command::Tables { unicast, multicast }) = read(&small) else {
            panic!("no tables")
        };
        assert_eq!(unicast.addresses, [[2; 6]]);
        assert_eq!(multicast.addresses, [[3; 6], [3; 6]]);
        let large = [&[1, 0], &[65, 0, 0, 0][..], &[2; 65 * 6], &[0; 4]].concat();
        let Some(Command::Tables { unicast, .. }) = read(&large) else {
            panic!("no tables")
        };
        assert!(unicast.overflow && unicast.addresses.is_empty());
        let lying = [&[1, 0], &[0xff; 4][..], &[2; 100]].concat();
        assert_eq!(read(&lying), None);
    }

    /// What leads packets, with this mask, so many entries and this length of a key.
    fn leading(mask: u16, entries: u8, length: u8) -> Vec<u8> {
        let table: Vec<u8> = (0..entries).flat_map(|pair| [pair, 0]).collect();
        let start = [&[4, 1, 0x3f, 1, 0, 0][..], &mask.to_le_bytes(), &[2, 0]].concat();
        [start.as_slice(), &table, &[3, 0, length]].concat()
    }

    #[test]
    fn a_table_and_a_key_are_read_whole_or_not_at_all() {
        let bytes = [leading(3, 4, 2).as_slice(), &[7, 8]].concat();
        let hash = |types| HashConfig {
            types,
            key: vec![7, 8],
        };
        let wanted = Command::Lead {
            hash: hash(0x13f),
            ways: Ways {
                table: vec![0, 1, 2, 3],
                unclassified: 2,
            },
            senders: 3,
        };
        assert_eq!(read(&bytes), Some(wanted));
        for length in 0..bytes.len() {
            assert_eq!(read(&bytes[..length]), None, "{length}");
        }
        let plain = [4, 2, 0x3f, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 2, 7, 8];
        assert_eq!(read(&plain), Some(Command::Hash(hash(0x3f))));
        for length in 0..plain.len() {
            assert_eq!(read(&plain[..length]), None, "{length}");
        }
        // More than the card says it takes, all of it there.
        let table_too_long = [leading(128, 129, 2).as_slice(), &[0; 2]].concat();
        assert_eq!(read(&table_too_long), None);
        let key_too_long = [leading(3, 4, 41).as_slice(), &[0; 41]].concat();
        assert_eq!(read(&key_too_long), None);
        assert!(read(&[leading(3, 4, 40).as_slice(), &[0; 40]].concat()).is_some());
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = read(&bytes);
        }
    }
}
