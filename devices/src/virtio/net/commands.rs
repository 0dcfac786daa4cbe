//! What the guest's commands change.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_RSS, VIRTIO_NET_OK,
};

use super::card::{BATCH, Pause, VirtioNet, lock};
use super::control::{self, Command};
use super::features::{self, has};
use super::filter::RxFilter;
use super::hash::HashConfig;
use super::steering::Ways;
use crate::memory::GuestMemView;
use crate::net::NetFrontend;
use crate::notice::Notice;
use crate::virtio::ring::{Broken, Ring};

impl VirtioNet {
    /// Does what the guest's commands say.
    pub(super) fn obey(&self, ring: &mut Ring, memory: &GuestMemView) -> Result<Pause, Broken> {
        for _ in 0..BATCH {
            let Some(chain) = ring.next(memory)? else {
                return Ok(Pause::Idle);
            };
            let command = control::command(|offset, out| chain.gather(offset, out))?;
            let done = command.is_some_and(|command| self.carry_out(command));
            let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            let answer = u8::try_from(answer).unwrap_or(u8::MAX);
            if chain.scatter(&[answer])? == 0 {
                return Err(Broken);
            }
            ring.add_used(memory, &chain, 1)?;
        }
        Ok(Pause::Batch)
    }

    /// Whether it could be done.
    fn carry_out(&self, command: Command) -> bool {
        match command {
            Command::Mode(mode, on) => self.change_filter(|filter| {
                filter.set(mode, on);
                true
            }),
            Command::Tables { unicast, multicast } => self.change_filter(|filter| {
                filter.set_tables(unicast, multicast);
                true
            }),
            Command::Mac(mac) => self.change_filter(|filter| {
                filter.set_mac(mac);
                true
            }),
            Command::Vlan(vlan, on) => self.change_filter(|filter| filter.set_vlan(vlan, on)),
            Command::Announced => self.announcing.swap(false, Ordering::AcqRel),
            Command::Pairs(pairs) => self.choose_pairs(pairs),
            Command::Hash(hash) => self.choose_hash(hash),
            Command::Lead {
                hash,
                ways,
                senders,
            } => self.lead(hash, ways, senders),
            Command::Offloads(wanted) => {
                let features = self.negotiated();
                let allowed = has(features, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)
                    && wanted & !(features & features::changeable()) == 0;
                if allowed {
                    self.set_offloads(wanted);
                }
                allowed
            }
        }
    }

    fn choose_pairs(&self, pairs: u16) -> bool {
        let is_known = has(self.negotiated(), VIRTIO_NET_F_MQ);
        if !is_known || !self.has_pairs(pairs) || !self.use_pairs(pairs) {
            return false;
        }
        lock(&self.steering).set_ways(None);
        self.receive_from(pairs);
        true
    }

    /// Hashes what the guest says. Packets are spread as without its table: the last command counts
    /// (virtio 1.2, 5.1.6.5.5).
    fn choose_hash(&self, hash: HashConfig) -> bool {
        let allowed = has(self.negotiated(), VIRTIO_NET_F_HASH_REPORT) && hash.is_sound();
        if allowed {
            let mut steering = lock(&self.steering);
            steering.set_hash(Some(hash));
            steering.set_ways(None);
        }
        allowed
    }

    /// Leads packets to where the guest's table says.
    fn lead(&self, hash: HashConfig, ways: Ways, senders: u16) -> bool {
        let is_known = has(self.negotiated(), VIRTIO_NET_F_RSS);
        let is_sound = hash.is_sound() && ways.fit(self.spec.pairs) && self.has_pairs(senders);
        if !is_known || !is_sound || !self.use_pairs(senders) {
            return false;
        }
        {
            let mut steering = lock(&self.steering);
            steering.set_hash(Some(hash));
            steering.set_ways(Some(ways));
        }
        self.receive_from(senders);
        true
    }

    fn has_pairs(&self, count: u16) -> bool {
        (1..=self.spec.pairs).contains(&count)
    }

    /// Packets may wait in queues that were not used before.
    fn receive_from(&self, pairs: u16) {
        for pair in 0..usize::from(pairs) {
            self.readable(pair);
        }
    }

    fn change_filter(&self, change: impl FnOnce(&mut RxFilter) -> bool) -> bool {
        let changed = change(&mut lock(&self.filter));
        if changed && self.telling.swap(false, Ordering::AcqRel) {
            self.spec.notices.send(Notice::RxFilterChanged {
                device: self.spec.id.clone(),
            });
        }
        changed
    }
}
