//! Which pair of queues a received packet goes to, as the driver has set it (virtio 1.2, 5.1.6.5.7).
//!
//! ```text
//!   packet ─► hash ─┬─ none ──────────────► unclassified ─┐
//!                   └─ value & mask ─► table ─────────────┴─► pair
//! ```
//!
//! Pure bookkeeping; without a table each packet stays with the pair that it came by.

use serde::{Deserialize, Serialize};

use super::hash::{Hash, HashConfig, Hasher};

/// The most entries of a table.
pub const TABLE: u16 = 128;

/// Where packets go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ways {
    /// Pairs of queues, by the low bits of hashes.
    pub table: Vec<u16>,
    /// The pair for packets without a hash.
    pub unclassified: u16,
}

impl Ways {
    /// Whether a driver may ask for it on a card with so many pairs.
    #[must_use]
    pub fn fit(&self, pairs: u16) -> bool {
        let count = self.table.len();
        count.is_power_of_two()
            && count <= TABLE.into()
            && self.unclassified < pairs
            && self.table.iter().all(|pair| *pair < pairs)
    }

    fn of(&self, hash: Option<Hash>) -> usize {
        let mask = self.table.len().wrapping_sub(1);
        let entry = |hash: Hash| self.table.get(hash.value as usize & mask);
        let pair = hash.and_then(entry);
        pair.copied().unwrap_or(self.unclassified).into()
    }
}

/// What is found out about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aim {
    /// Its hash, if it is of a kind that the driver wants hashed.
    pub hash: Option<Hash>,
    /// The pair of queues it goes to.
    pub pair: usize,
}

/// What a driver has set. At first nothing is hashed, and nothing is led elsewhere.
#[derive(Debug, Default)]
pub struct Steering {
    hashing: Option<(HashConfig, Hasher)>,
    ways: Option<Ways>,
}

impl Steering {
    /// Hashes by `config` from now on, which is [sound](HashConfig::is_sound).
    pub fn set_hash(&mut self, config: Option<HashConfig>) {
        self.hashing = config.map(|config| {
            let hasher = Hasher::new(&config);
            (config, hasher)
        });
    }

    /// Leads packets by `ways` from now on, which [fit](Ways::fit) the card.
    pub fn set_ways(&mut self, ways: Option<Ways>) {
        self.ways = ways;
    }

    /// What is hashed.
    #[must_use]
    pub fn hash(&self) -> Option<&HashConfig> {
        self.hashing.as_ref().map(|(config, _)| config)
    }

    /// Where packets are led.
    #[must_use]
    pub fn ways(&self) -> Option<&Ways> {
        self.ways.as_ref()
    }

    /// Where a packet goes that came by the pair `own` and begins with its Ethernet header.
    #[must_use]
    pub fn aim(&self, packet: &[u8], own: usize) -> Aim {
        let hasher = self.hashing.as_ref().map(|(_, hasher)| hasher);
        let hash = hasher.and_then(|hasher| hasher.hash(packet));
        let pair = self.ways.as_ref().map_or(own, |ways| ways.of(hash));
        Aim { hash, pair }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(table: &[u16], unclassified: u16) -> Ways {
        Ways {
            table: table.to_vec(),
            unclassified,
        }
    }

    #[test]
    fn a_table_is_a_power_of_two_of_pairs_that_there_are() {
        assert!(ways(&[0], 0).fit(1) && ways(&[3, 0, 2, 1], 3).fit(4));
        assert!(ways(&[0; 128], 0).fit(1));
        for bad in [
            ways(&[], 0),
            ways(&[0; 3], 0),
            ways(&[0; 256], 0),
            ways(&[0, 4], 0),
            ways(&[0, 0x8000], 0),
            ways(&[0], 4),
            ways(&[0], 0x8000),
        ] {
            assert!(!bad.fit(4), "{bad:?}");
        }
    }

    #[test]
    fn low_bits_of_the_hash_choose_and_a_packet_without_one_is_unclassified() {
        let ways = ways(&[5, 6, 7, 8], 9);
        let hash = |value| Some(Hash { value, report: 1 });
        let led = [hash(0), hash(0xffff_fff2), hash(u32::MAX), None].map(|hash| ways.of(hash));
        assert_eq!(led, [5, 7, 8, 9]);
    }

    #[test]
    fn without_a_table_a_packet_stays_where_it_came() {
        let mut steering = Steering::default();
        let aim = |steering: &Steering| steering.aim(&[0; 60], 3);
        let stays = Aim {
            hash: None,
            pair: 3,
        };
        assert_eq!(aim(&steering), stays);
        steering.set_ways(Some(ways(&[0, 1], 1)));
        assert_eq!(aim(&steering).pair, 1);
        steering.set_ways(None);
        assert_eq!(aim(&steering), stays);
    }
}
