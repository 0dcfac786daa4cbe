//! What a snapshot keeps of a network card: what its driver asked for by commands.
//!
//! A packet that waits for room is not kept: networks lose packets.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::card::lock;
use super::filter::{Mode, RxFilter, TABLE, Table, VLANS};
use super::{Mac, VirtioNet, features};
use crate::state::{SavedState, StateError, Stateful};

/// A network card beside its negotiation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Which packets it wants.
    pub filter: RxFilterState,
    /// How many pairs of queues it uses.
    pub pairs: u16,
    /// Which offloads it has the backend do, as feature bits.
    pub offloads: u64,
    /// Whether the guest is still to announce itself.
    pub announcing: bool,
    /// Whether the host has the link up.
    pub link: bool,
}

impl SavedState for NetState {
    const KIND: &'static str = "virtio-net";
    const VERSION: u32 = 1;
}

/// What a snapshot keeps of a filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RxFilterState {
    /// The card's own address.
    pub mac: Mac,
    /// What is on.
    pub modes: Vec<Mode>,
    /// Addresses of cards.
    pub unicast: Table,
    /// Addresses of groups.
    pub multicast: Table,
    /// The networks it wants; none of them without a filter for networks.
    pub vlans: Option<BTreeSet<u16>>,
}

impl RxFilterState {
    fn check(&self) -> Result<(), StateError> {
        for (name, table) in [("unicast", &self.unicast), ("multicast", &self.multicast)] {
            let count = table.addresses.len();
            if count > TABLE {
                return Err(NetState::refused(format!(
                    "filter.{name}: {count} addresses, and there is room for {TABLE}"
                )));
            }
        }
        match self.vlans.iter().flatten().find(|vlan| **vlan >= VLANS) {
            Some(vlan) => Err(NetState::refused(format!(
                "filter.vlans: {vlan}, and the last is {}",
                VLANS - 1
            ))),
            None => Ok(()),
        }
    }
}

impl Stateful for VirtioNet {
    type State = NetState;

    fn save(&self) -> NetState {
        NetState {
            filter: lock(&self.filter).save(),
            pairs: self.used_pairs.load(Ordering::Acquire),
            offloads: self.offloads.load(Ordering::Acquire),
            announcing: self.announcing.load(Ordering::Acquire),
            link: self.link.load(Ordering::Acquire),
        }
    }

    fn load(&self, state: NetState) -> Result<(), StateError> {
        state.filter.check()?;
        if !(1..=self.spec.pairs).contains(&state.pairs) {
            return Err(NetState::refused(format!(
                "pairs: {}, and this card has 1 to {}",
                state.pairs, self.spec.pairs
            )));
        }
        let strange = state.offloads & !(self.negotiated() & features::changeable());
        if strange != 0 {
            return Err(NetState::refused(format!(
                "offloads: {strange:#x}, which the driver did not accept"
            )));
        }
        if !self.use_pairs(state.pairs) {
            return Err(NetState::refused(format!(
                "pairs: the netdev does not serve {}",
                state.pairs
            )));
        }
        *lock(&self.filter) = RxFilter::load(state.filter);
        self.set_offloads(state.offloads);
        self.announcing.store(state.announcing, Ordering::Release);
        self.link.store(state.link, Ordering::Release);
        Ok(())
    }
}
