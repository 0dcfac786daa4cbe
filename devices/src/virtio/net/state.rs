//! What a snapshot keeps of a network card: what its driver asked for by commands.
//!
//! A packet that waits for room is not kept: networks lose packets.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_RSS};

use super::card::lock;
use super::features::{self, has};
use super::filter::{Mode, RxFilter, TABLE, Table, VLANS};
use super::hash::HashConfig;
use super::steering::Ways;
use super::{Mac, VirtioNet};
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
    /// What is hashed of packets.
    #[serde(default)]
    pub hash: Option<HashConfig>,
    /// To which queues hashes lead.
    #[serde(default)]
    pub ways: Option<Ways>,
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
        let (hash, ways) = {
            let steering = lock(&self.steering);
            (steering.hash().cloned(), steering.ways().cloned())
        };
        NetState {
            filter: lock(&self.filter).save(),
            pairs: self.used_pairs.load(Ordering::Acquire),
            offloads: self.offloads.load(Ordering::Acquire),
            announcing: self.announcing.load(Ordering::Acquire),
            link: self.link.load(Ordering::Acquire),
            hash,
            ways,
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
        self.check_steering(&state)?;
        if !self.use_pairs(state.pairs) {
            return Err(NetState::refused(format!(
                "pairs: the netdev does not serve {}",
                state.pairs
            )));
        }
        *lock(&self.filter) = RxFilter::load(state.filter);
        {
            let mut steering = lock(&self.steering);
            steering.set_hash(state.hash);
            steering.set_ways(state.ways);
        }
        self.set_offloads(state.offloads);
        self.announcing.store(state.announcing, Ordering::Release);
        self.link.store(state.link, Ordering::Release);
        Ok(())
    }
}

impl VirtioNet {
    /// Whether the driver can have set what is in `state` of hashes.
    fn check_steering(&self, state: &NetState) -> Result<(), StateError> {
        let leads = has(self.negotiated(), VIRTIO_NET_F_RSS);
        let hashes = leads || has(self.negotiated(), VIRTIO_NET_F_HASH_REPORT);
        let is_hash_good = |hash: &HashConfig| hashes && hash.is_sound();
        if !state.hash.as_ref().is_none_or(is_hash_good) {
            return Err(NetState::refused(
                "hash: kinds or a key that this card does not have",
            ));
        }
        let are_ways_good = |ways: &Ways| leads && ways.fit(self.spec.pairs);
        if !state.ways.as_ref().is_none_or(are_ways_good) {
            return Err(NetState::refused(format!(
                "ways: no table of a power of two of queues below {}",
                self.spec.pairs
            )));
        }
        Ok(())
    }
}
