//! All netdevs of a VM, by id.

use std::sync::{Arc, Weak};

use fdset::{Door, Escrow};
use indexmap::IndexMap;

use super::NetError;
use super::backend::NetBackend;
use super::datagram::DatagramNet;
use super::hub::Hub;
use super::netdev::Netdev;
use super::spec::{NetdevKind, NetdevSpec};
use super::stream::StreamNet;
use super::tap::Tap;
use super::vhost_user::VhostUserNet;
use crate::chardev::ChardevRegistry;
use crate::notice::NoticeSink;
use crate::reactor::Reactor;

/// The netdevs, in the order they were added.
pub struct Netdevs {
    reactor: Reactor,
    notices: NoticeSink,
    netdevs: IndexMap<String, Arc<Netdev>>,
    hubs: IndexMap<i32, Weak<Hub>>,
}

impl Netdevs {
    /// None yet; those that come wait on `reactor` and send their news to `notices`.
    #[must_use]
    pub fn new(reactor: Reactor, notices: NoticeSink) -> Self {
        Self {
            reactor,
            notices,
            netdevs: IndexMap::new(),
            hubs: IndexMap::new(),
        }
    }

    /// Opens a netdev and adds it; a chardev that it names is one of `chardevs`. All names that it
    /// uses up are used up at the end, when everything has worked.
    ///
    /// # Errors
    /// The id is taken, or something cannot be had; then nothing has changed.
    pub fn add(
        &mut self,
        spec: &NetdevSpec,
        door: &Door,
        chardevs: &ChardevRegistry,
    ) -> Result<(), NetError> {
        let id = &spec.id;
        if self.netdevs.contains_key(id) {
            return Err(NetError::Duplicate(id.clone()));
        }
        let escrow = Arc::new(Escrow::new(Arc::clone(door.registry())));
        let door = door.clone().with_escrow(Arc::clone(&escrow));
        let (kind, backend) = self.open(spec, &door, chardevs)?;
        escrow.use_up();
        let netdev = Netdev::new(id, kind, backend, self.reactor.clone());
        self.netdevs.insert(id.clone(), netdev);
        Ok(())
    }

    fn open(
        &mut self,
        spec: &NetdevSpec,
        door: &Door,
        chardevs: &ChardevRegistry,
    ) -> Result<(&'static str, Arc<dyn NetBackend>), NetError> {
        let (id, reactor) = (&spec.id, &self.reactor);
        Ok(match &spec.kind {
            NetdevKind::Tap(tap) => ("tap", Tap::open(id, tap, door, reactor)?),
            NetdevKind::Stream(stream) => {
                let notices = self.notices.clone();
                let opened = StreamNet::open(id, stream, door, reactor, notices)?;
                (stream.kind, opened)
            }
            NetdevKind::Dgram { local, remote } => {
                let (local, remote) = (local.as_ref(), remote.as_ref());
                let opened = DatagramNet::open(id, local, remote, door, reactor)?;
                ("dgram", opened)
            }
            NetdevKind::VhostUser { chardev, pairs } => {
                let (chardev, notices) = (chardevs.find(chardev)?, self.notices.clone());
                let opened = VhostUserNet::open(id, chardev, *pairs, reactor, notices)?;
                ("vhost-user", opened)
            }
            NetdevKind::HubPort { hub } => {
                let port = self.hub(*hub).port(*hub, &self.reactor);
                ("hubport", port)
            }
        })
    }

    fn hub(&mut self, number: i32) -> Arc<Hub> {
        if let Some(hub) = self.hubs.get(&number).and_then(Weak::upgrade) {
            return hub;
        }
        self.hubs.retain(|_, hub| hub.strong_count() > 0);
        let hub = Arc::new(Hub::default());
        self.hubs.insert(number, Arc::downgrade(&hub));
        hub
    }

    /// Takes a netdev away and closes all that it holds; a card that has it keeps an end without a
    /// link. Whether there was one.
    pub fn remove(&mut self, id: &str) -> bool {
        let Some(netdev) = self.netdevs.shift_remove(id) else {
            return false;
        };
        netdev.close();
        true
    }

    /// The netdev with this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<&Arc<Netdev>> {
        self.netdevs.get(id)
    }

    /// All of them, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Netdev>> {
        self.netdevs.values()
    }
}
