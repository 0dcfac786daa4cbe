//! Which packets the guest wants: pure bookkeeping over what its driver asked for.
//!
//! Without a word from the driver all packets pass (promiscuous), as drivers expect that never
//! negotiate a filter.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Mac;
use super::state::RxFilterState;

/// The most addresses of a kind that are kept; if the guest asks for more, all pass.
pub const TABLE: usize = 64;
/// How many VLANs there are.
pub(super) const VLANS: u16 = 1 << 12;
/// Type of Ethernet packets that name a VLAN (IEEE 802.1Q).
const TAGGED: [u8; 2] = [0x81, 0x00];

/// Which of a kind of packet pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those whose address is in the table.
    Normal,
    /// None.
    None,
    /// All.
    All,
}

/// Addresses of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Those that are kept.
    pub addresses: Vec<Mac>,
    /// Whether there are more than are kept.
    pub overflow: bool,
}

/// One of the switches that a driver can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// All packets pass.
    Promiscuous,
    /// All to groups.
    AllMulticast,
    /// All to single addresses.
    AllUnicast,
    /// None to groups.
    NoMulticast,
    /// None to single addresses.
    NoUnicast,
    /// None to everybody.
    NoBroadcast,
}

impl Mode {
    const ALL: [Self; 6] = [
        Self::Promiscuous,
        Self::AllMulticast,
        Self::AllUnicast,
        Self::NoMulticast,
        Self::NoUnicast,
        Self::NoBroadcast,
    ];
}

/// The filter of one card.
#[derive(Clone, Debug)]
pub struct RxFilter {
    mac: Mac,
    modes: [bool; 6],
    unicast: Table,
    multicast: Table,
    /// `None`: the driver does not choose VLANs, all pass.
    vlans: Option<BTreeSet<u16>>,
}

/// What a filter lets through, for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterState {
    /// The card's own address.
    pub mac: Mac,
    /// Whether all pass.
    pub promiscuous: bool,
    /// Which to groups.
    pub multicast: Which,
    /// Which to single addresses.
    pub unicast: Which,
    /// Which of VLANs.
    pub vlan: Which,
    /// Whether those to everybody pass.
    pub broadcast: bool,
    /// The groups.
    pub multicast_table: Table,
    /// The single addresses.
    pub unicast_table: Table,
    /// The VLANs.
    pub vlans: Vec<u16>,
}

impl RxFilter {
    /// That of a card with this address after a reset.
    #[must_use]
    pub fn new(mac: Mac) -> Self {
        let mut filter = Self {
            mac,
            modes: [false; 6],
            unicast: Table::default(),
            multicast: Table::default(),
            vlans: None,
        };
        filter.set(Mode::Promiscuous, true);
        filter
    }

    /// The card's own address.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Changes the card's own address.
    pub fn set_mac(&mut self, mac: Mac) {
        self.mac = mac;
    }

    /// Sets a switch.
    pub fn set(&mut self, mode: Mode, on: bool) {
        if let Some(switch) = self.modes.get_mut(mode as usize) {
            *switch = on;
        }
    }

    /// Replaces the tables.
    pub fn set_tables(&mut self, unicast: Table, multicast: Table) {
        self.unicast = unicast;
        self.multicast = multicast;
    }

    /// Whether the driver chooses VLANs; at first then none is chosen.
    pub fn choose_vlans(&mut self, chosen: bool) {
        self.vlans = chosen.then(BTreeSet::new);
    }

    /// Chooses a VLAN, or no longer; whether there is such a VLAN.
    pub fn set_vlan(&mut self, vlan: u16, on: bool) -> bool {
        if vlan >= VLANS {
            return false;
        }
        if let Some(vlans) = &mut self.vlans {
            if on {
                vlans.insert(vlan);
            } else {
                vlans.remove(&vlan);
            }
        }
        true
    }

    /// Whether the guest wants a packet that begins with these bytes, its Ethernet header first.
    #[must_use]
    pub fn wants(&self, packet: &[u8]) -> bool {
        if self.is(Mode::Promiscuous) {
            return true;
        }
        let Some((to, rest)) = packet.split_first_chunk::<6>() else {
            return false;
        };
        if let (Some(vlans), Some([_, _, _, _, _, _, kind @ .., high, low])) =
            (&self.vlans, rest.first_chunk::<10>())
            && *kind == TAGGED
            && !vlans.contains(&(u16::from_be_bytes([*high, *low]) & (VLANS - 1)))
        {
            return false;
        }
        if *to == [0xff; 6] {
            return !self.is(Mode::NoBroadcast);
        }
        let is_group = to[0] & 1 != 0;
        let (none, all, table) = if is_group {
            (Mode::NoMulticast, Mode::AllMulticast, &self.multicast)
        } else {
            (Mode::NoUnicast, Mode::AllUnicast, &self.unicast)
        };
        if self.is(none) {
            return false;
        }
        self.is(all)
            || table.overflow
            || (!is_group && *to == self.mac)
            || table.addresses.contains(to)
    }

    /// What it lets through.
    #[must_use]
    pub fn state(&self) -> FilterState {
        let which = |none, all| match (self.is(none), self.is(all)) {
            (true, _) => Which::None,
            (_, true) => Which::All,
            _ => Which::Normal,
        };
        FilterState {
            mac: self.mac,
            promiscuous: self.is(Mode::Promiscuous),
            multicast: which(Mode::NoMulticast, Mode::AllMulticast),
            unicast: which(Mode::NoUnicast, Mode::AllUnicast),
            vlan: match &self.vlans {
                None => Which::All,
                Some(vlans) if vlans.is_empty() => Which::None,
                Some(_) => Which::Normal,
            },
            broadcast: !self.is(Mode::NoBroadcast),
            multicast_table: self.multicast.clone(),
            unicast_table: self.unicast.clone(),
            vlans: match &self.vlans {
                None => (0..VLANS).collect(),
                Some(vlans) => vlans.iter().copied().collect(),
            },
        }
    }

    /// What a snapshot keeps.
    pub(super) fn save(&self) -> RxFilterState {
        RxFilterState {
            mac: self.mac,
            modes: Mode::ALL
                .into_iter()
                .filter(|mode| self.is(*mode))
                .collect(),
            unicast: self.unicast.clone(),
            multicast: self.multicast.clone(),
            vlans: self.vlans.clone(),
        }
    }

    /// The filter as it was saved.
    pub(super) fn load(state: RxFilterState) -> Self {
        let mut filter = Self {
            mac: state.mac,
            modes: [false; 6],
            unicast: state.unicast,
            multicast: state.multicast,
            vlans: state.vlans,
        };
        for mode in state.modes {
            filter.set(mode, true);
        }
        filter
    }

    fn is(&self, mode: Mode) -> bool {
        self.modes.get(mode as usize).is_some_and(|switch| *switch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const GROUP: Mac = [1, 0, 0, 0, 0, 1];

    fn packet(to: Mac) -> Vec<u8> {
        [to.as_slice(), &OTHER, &[8, 0]].concat()
    }

    fn tagged(vlan: u16) -> Vec<u8> {
        let tag = (vlan | 0x6000).to_be_bytes();
        [OWN.as_slice(), &OTHER, &TAGGED, &tag, &[8, 0]].concat()
    }

    fn quiet() -> RxFilter {
        let mut filter = RxFilter::new(OWN);
        filter.set(Mode::Promiscuous, false);
        filter
    }

    #[test]
    fn all_pass_until_the_driver_says_otherwise() {
        let filter = RxFilter::new(OWN);
        assert!(filter.wants(&packet(OTHER)) && filter.wants(b"x"));
        assert_eq!(filter.state().vlans.len(), 4096);
    }

    #[test]
    fn own_and_broadcast_pass_and_strangers_only_from_the_tables() {
        let mut filter = quiet();
        assert!(filter.wants(&packet(OWN)) && filter.wants(&packet([0xff; 6])));
        assert!(!filter.wants(&packet(OTHER)) && !filter.wants(&packet(GROUP)));
        assert!(!filter.wants(b"short"));
        let table = |mac| Table {
            addresses: vec![mac],
            overflow: false,
        };
        filter.set_tables(table(OTHER), table(GROUP));
        assert!(filter.wants(&packet(OTHER)) && filter.wants(&packet(GROUP)));
        filter.set(Mode::NoUnicast, true);
        filter.set(Mode::NoBroadcast, true);
        assert!(!filter.wants(&packet(OWN)) && !filter.wants(&packet([0xff; 6])));
        assert!(filter.wants(&packet(GROUP)));
    }

    #[test]
    fn a_table_that_is_too_small_lets_all_of_its_kind_through() {
        let mut filter = quiet();
        let overflow = Table {
            addresses: Vec::new(),
            overflow: true,
        };
        filter.set_tables(Table::default(), overflow);
        assert!(filter.wants(&packet(GROUP)) && !filter.wants(&packet(OTHER)));
    }

    #[test]
    fn a_driver_that_chooses_vlans_gets_those() {
        let mut filter = quiet();
        assert!(filter.wants(&tagged(7)));
        filter.choose_vlans(true);
        assert!(!filter.wants(&tagged(7)));
        assert_eq!(filter.state().vlan, Which::None);
        assert!(filter.set_vlan(7, true) && !filter.set_vlan(4096, true));
        assert!(filter.wants(&tagged(7)) && !filter.wants(&tagged(8)));
        filter.set_vlan(7, false);
        assert!(!filter.wants(&tagged(7)));
    }
}
