//! The device: what is negotiated, which queues run, and what the guest's commands change.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MTU, VIRTIO_NET_F_RSS,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};
use virtio_queue::QueueState;

use super::config::NetConfig;
use super::features::{self, bit, has};
use super::filter::{FilterState, RxFilter};
use super::hash::{HashTypes, KEY};
use super::outside::Outside;
use super::receive::Inbound;
use super::steering::{Steering, TABLE};
use super::transmit::Outbound;
use super::{MTUS, Mac, QUEUE_SIZES};
use crate::net::{NetBackend, NetError, NetFrontend, NetLease};
use crate::notice::NoticeSink;
use crate::reactor::{Reactor, Readiness, Ready};
use crate::repeats::Repeats;
use crate::vhost::ServedView;
use crate::virtio::device::{ActiveQueue, DriverNotifier, VirtioDevice, VirtioError};
use crate::virtio::ring::{Broken, Slot};

/// Entries of the queue for commands.
const CONTROL_SIZE: u16 = 64;
/// How many packets or commands are moved before other devices get their turn.
pub(super) const BATCH: usize = 256;

/// What a card is made of, resolved.
#[derive(Debug)]
pub struct VirtioNetSpec {
    /// The device's name in the tree, for notices and logs.
    pub id: String,
    /// The netdev it is connected to.
    pub netdev: Option<NetLease>,
    /// Its address.
    pub mac: Mac,
    /// How many pairs of queues it has, at least 1 and at most as many as the netdev.
    pub pairs: u16,
    /// Descriptors of each queue for incoming packets: one of [`QUEUE_SIZES`].
    pub rx_queue_size: u16,
    /// Descriptors of each queue for outgoing packets: one of [`QUEUE_SIZES`].
    pub tx_queue_size: u16,
    /// The MTU that the guest is told: one of [`MTUS`].
    pub host_mtu: Option<u16>,
    /// The link's speed in Mbit/s; `u32::MAX` for unknown.
    pub speed: u32,
    /// 0 for half duplex, 1 for full, 255 for unknown.
    pub duplex: u8,
    /// Whether the driver may say which queue gets which packets, by their hashes.
    pub rss: bool,
    /// Whether the driver may be told the hashes of packets.
    pub hash: bool,
    /// Bits of features that are not to be offered.
    pub off: u64,
    /// Where its queues are served.
    pub reactor: Reactor,
    /// Where its news are told.
    pub notices: NoticeSink,
}

/// Why a card cannot be made of a spec.
#[derive(Debug, thiserror::Error)]
pub enum NetSpecError {
    /// A queue's size.
    #[error("Invalid {name} (= {came}), must be a power of 2 between 256 and 1024.")]
    QueueSize {
        /// The property.
        name: &'static str,
        /// What came.
        came: u16,
    },
    /// The MTU.
    #[error("Property 'virtio-net-pci.host_mtu' takes 68 to 65535, not {0}")]
    Mtu(u16),
    /// Hashes of packets without a way for the driver to say which.
    #[error("'{0}=on' needs 'ctrl_vq=on': the guest says by commands what is hashed")]
    Mute(&'static str),
    /// Hashes of packets that are never seen here.
    #[error(
        "'{name}=on' needs a netdev whose packets come by here, and vhost moves those of '{netdev}'; \
         leave '{name}' off, or use a netdev without vhost"
    )]
    Unseen {
        /// The property.
        name: &'static str,
        /// The netdev.
        netdev: String,
    },
    /// The netdev cannot be used.
    #[error(transparent)]
    Netdev(#[from] NetError),
}

/// A pair of queues.
pub(super) struct Pair {
    pub(super) receive: Slot,
    pub(super) transmit: Slot,
    pub(super) inbound: Mutex<Inbound>,
    pub(super) outbound: Mutex<Outbound>,
}

/// A virtio network card.
pub struct VirtioNet {
    me: Weak<Self>,
    pub(super) spec: VirtioNetSpec,
    offered: u64,
    queue_sizes: Vec<u16>,
    pub(super) pairs: Vec<Pair>,
    pub(super) control: Slot,
    /// For a backend that has others serve the queues.
    outside: Option<Outside>,
    pub(super) filter: Mutex<RxFilter>,
    pub(super) steering: Mutex<Steering>,
    features: AtomicU64,
    /// How many pairs the driver uses.
    pub(super) used_pairs: AtomicU16,
    /// The offloads that the driver has the backend do.
    pub(super) offloads: AtomicU64,
    /// The card's own end of the cable.
    pub(super) link: AtomicBool,
    /// The guest was asked to make its address known.
    pub(super) announcing: AtomicBool,
    /// Somebody has asked for the filter since its last change was told.
    pub(super) telling: AtomicBool,
    driver: OnceLock<Arc<dyn DriverNotifier>>,
    broken: Repeats,
    stopped: Repeats,
}

/// Which queue a kick is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Receive(usize),
    Transmit(usize),
    Control,
}

/// Why the work on a queue has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// Nothing is left to do, or who has more will tell.
    Idle,
    /// The batch is done, more may be left.
    Batch,
}

impl VirtioNet {
    /// Makes a card and connects it to its netdev.
    ///
    /// # Errors
    /// A number is out of range, or the netdev's descriptors cannot be watched.
    pub fn new(spec: VirtioNetSpec) -> Result<Arc<Self>, NetSpecError> {
        check(&spec)?;
        let backend = spec.netdev.as_ref().and_then(NetLease::backend);
        let abilities = backend.as_ref().map(|one| one.abilities());
        let server = backend.as_ref().and_then(|one| one.server());
        let able = server.as_ref().map_or(u64::MAX, |one| one.features());
        let asked = asked(&spec, able)?;
        let abilities = abilities.unwrap_or_default();
        let offered = features::offered(abilities, spec.pairs, asked, spec.off | !able);
        let mut queue_sizes = [spec.rx_queue_size, spec.tx_queue_size].repeat(spec.pairs.into());
        queue_sizes.push(CONTROL_SIZE);
        let (count, size) = (spec.pairs, spec.rx_queue_size);
        let pair = |_| Pair {
            receive: Slot::default(),
            transmit: Slot::default(),
            inbound: Mutex::new(Inbound::new(size)),
            outbound: Mutex::default(),
        };
        let card = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            offered,
            queue_sizes,
            pairs: (0..count).map(pair).collect(),
            control: Slot::default(),
            outside: server.map(|_| Outside::new(spec.reactor.clone(), 2 * usize::from(count))),
            filter: Mutex::new(RxFilter::new(spec.mac)),
            steering: Mutex::default(),
            features: AtomicU64::new(0),
            used_pairs: AtomicU16::new(1),
            offloads: AtomicU64::new(0),
            link: AtomicBool::new(true),
            announcing: AtomicBool::new(false),
            telling: AtomicBool::new(true),
            driver: OnceLock::new(),
            broken: Repeats::default(),
            stopped: Repeats::default(),
            spec,
        });
        card.back_to_start();
        if let Some(netdev) = &card.spec.netdev {
            let me: Weak<Self> = Weak::clone(&card.me);
            netdev.connect(me)?;
        }
        Ok(card)
    }

    /// Its address.
    pub fn mac(&self) -> Mac {
        lock(&self.filter).mac()
    }

    /// The netdev it is connected to.
    pub fn netdev(&self) -> Option<&str> {
        self.spec.netdev.as_ref().map(NetLease::id)
    }

    /// Which packets reach the guest; the next change is told.
    pub fn look_at_filter(&self) -> FilterState {
        let state = lock(&self.filter).state();
        self.telling.store(true, Ordering::Release);
        state
    }

    /// Plugs the cable in or out.
    pub fn set_link(&self, up: bool) {
        self.link.store(up, Ordering::Release);
        self.link_changed();
    }

    /// Has the guest make its address known, if its driver can.
    pub fn announce(&self) {
        let needed = bit(VIRTIO_NET_F_GUEST_ANNOUNCE) | bit(VIRTIO_NET_F_CTRL_VQ);
        if self.negotiated() & needed == needed {
            self.announcing.store(true, Ordering::Release);
            self.config_changed();
        }
    }

    /// Makes its address known to switches. On the reactor's thread.
    pub fn send_rarp(&self) {
        if let Some(backend) = self.backend_if_up() {
            backend.announce(self.mac());
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.spec.id
    }

    pub(super) fn weak(&self) -> Weak<Self> {
        Weak::clone(&self.me)
    }

    pub(super) fn driver(&self) -> Option<Arc<dyn DriverNotifier>> {
        self.driver.get().map(Arc::clone)
    }

    pub(super) fn needs_reset(&self) {
        if let Some(driver) = self.driver.get() {
            driver.needs_reset();
        }
    }

    pub(super) fn negotiated(&self) -> u64 {
        self.features.load(Ordering::Acquire)
    }

    pub(super) fn is_up(&self) -> bool {
        let netdev = self.spec.netdev.as_ref();
        self.link.load(Ordering::Acquire) && netdev.is_some_and(NetLease::is_up)
    }

    pub(super) fn backend(&self) -> Option<Arc<dyn NetBackend>> {
        self.spec.netdev.as_ref()?.backend()
    }

    pub(super) fn backend_if_up(&self) -> Option<Arc<dyn NetBackend>> {
        self.backend().filter(|_| self.is_up())
    }

    fn config_changed(&self) {
        if let Some(driver) = self.driver.get() {
            driver.config_changed();
        }
    }

    /// What the guest may be given, by these features.
    pub(super) fn set_offloads(&self, features: u64) {
        let offloads = features & features::changeable();
        self.offloads.store(offloads, Ordering::Release);
        if let Some(backend) = self.backend() {
            backend.set_offloads(features::offloads(features));
        }
    }

    pub(super) fn use_pairs(&self, pairs: u16) -> bool {
        let told = self.backend().map(|backend| backend.use_queues(pairs));
        if let Some(Err(error)) = told {
            tracing::warn!(device = %self.spec.id, pairs, %error, "virtio-net: queues of the netdev");
            return false;
        }
        self.used_pairs.store(pairs, Ordering::Release);
        true
    }

    /// As after power-on, but for the ends of the cable.
    fn back_to_start(&self) {
        self.features.store(0, Ordering::Release);
        self.announcing.store(false, Ordering::Release);
        *lock(&self.filter) = RxFilter::new(self.spec.mac);
        *lock(&self.steering) = Steering::default();
        self.set_offloads(0);
        self.use_pairs(1);
        for pair in &self.pairs {
            lock(&pair.inbound).forget();
        }
    }

    /// Where the driver has its queue for commands: behind the pairs that it knows of.
    fn control_index(&self) -> Option<usize> {
        let features = self.negotiated();
        let knows_all = has(features, VIRTIO_NET_F_MQ) || has(features, VIRTIO_NET_F_RSS);
        let pairs = if knows_all { self.pairs.len() } else { 1 };
        has(features, VIRTIO_NET_F_CTRL_VQ).then_some(2 * pairs)
    }

    pub(super) fn role(&self, index: usize) -> Option<Role> {
        if self.control_index() == Some(index) {
            return Some(Role::Control);
        }
        let pair = index / 2;
        (pair < self.pairs.len()).then_some(if index.is_multiple_of(2) {
            Role::Receive(pair)
        } else {
            Role::Transmit(pair)
        })
    }

    pub(super) fn slot(&self, role: Role) -> Option<&Slot> {
        match role {
            Role::Receive(pair) => Some(&self.pairs.get(pair)?.receive),
            Role::Transmit(pair) => Some(&self.pairs.get(pair)?.transmit),
            Role::Control => Some(&self.control),
        }
    }

    fn slot_to_rearm(&self, role: Role) -> Option<&Slot> {
        match role {
            Role::Receive(pair) => self.receiver_to_rearm(pair),
            other => self.slot(other),
        }
    }

    /// The books on the queue `index`, if it may be with somebody else.
    fn outside_of(&self, index: usize) -> Option<&Outside> {
        let is_packets = self.role(index).is_some_and(Self::is_packets);
        self.outside.as_ref().filter(|_| is_packets)
    }

    pub(super) fn start_here(&self, index: usize, queue: ActiveQueue) -> Result<(), VirtioError> {
        let count = self.queue_sizes.len();
        let none = || VirtioError::NoSuchQueue { index, count };
        let role = self.role(index).ok_or_else(none)?;
        let slot = self.slot(role).ok_or_else(none)?;
        let (features, handler) = (self.negotiated(), self.handler(role));
        slot.start(index, queue, features, &self.spec.reactor, handler)
    }

    /// Works on a queue until there is nothing left to do.
    pub(super) fn serve(&self, role: Role) {
        let outcome = match role {
            Role::Receive(pair) => self.refill(pair),
            Role::Transmit(pair) => self.transmit(pair),
            Role::Control => self.control.with(|ring, memory| self.obey(ring, memory)),
        };
        self.conclude(role, outcome);
    }

    /// Sees to what the end of some work asks for.
    fn conclude(&self, role: Role, outcome: Option<Result<Pause, Broken>>) {
        let again = match outcome {
            None | Some(Ok(Pause::Idle)) => Ok(()),
            Some(Ok(Pause::Batch)) => self.slot_to_rearm(role).map_or(Ok(()), Slot::rearm),
            Some(Err(Broken)) => {
                if let Some(times) = self.broken.note() {
                    tracing::warn!(device = %self.spec.id, ?role, times, "virtio-net: queue is broken");
                }
                self.needs_reset();
                Ok(())
            }
        };
        if let Err(error) = again
            && let Some(times) = self.stopped.note()
        {
            tracing::error!(device = %self.spec.id, times, %error, "virtio-net cannot go on");
        }
    }

    fn handler(&self, role: Role) -> Arc<dyn Ready> {
        Arc::new(Kick {
            card: Weak::clone(&self.me),
            role,
        })
    }
}

/// The features that only a card has that was asked for them, if who serves its queues is `able`.
fn asked(spec: &VirtioNetSpec, able: u64) -> Result<u64, NetSpecError> {
    let mut asked = 0;
    if spec.host_mtu.is_some() {
        asked |= bit(VIRTIO_NET_F_MTU);
    }
    for (name, wanted, feature) in [
        ("rss", spec.rss, VIRTIO_NET_F_RSS),
        ("hash", spec.hash, VIRTIO_NET_F_HASH_REPORT),
    ] {
        if !wanted {
            continue;
        }
        if has(spec.off, VIRTIO_NET_F_CTRL_VQ) {
            return Err(NetSpecError::Mute(name));
        }
        if !has(able, feature) {
            let netdev = spec.netdev.as_ref().map(NetLease::id);
            return Err(NetSpecError::Unseen {
                name,
                netdev: netdev.unwrap_or_default().to_owned(),
            });
        }
        asked |= bit(feature);
    }
    Ok(asked)
}

fn check(spec: &VirtioNetSpec) -> Result<(), NetSpecError> {
    for (name, came) in [
        ("rx_queue_size", spec.rx_queue_size),
        ("tx_queue_size", spec.tx_queue_size),
    ] {
        if !came.is_power_of_two() || !QUEUE_SIZES.contains(&came) {
            return Err(NetSpecError::QueueSize { name, came });
        }
    }
    match spec.host_mtu {
        Some(mtu) if !MTUS.contains(&mtu) => Err(NetSpecError::Mtu(mtu)),
        _ => Ok(()),
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Kick {
    card: Weak<VirtioNet>,
    role: Role,
}

impl Ready for Kick {
    fn ready(&self, _readiness: Readiness) {
        if let Some(card) = self.card.upgrade() {
            card.serve(self.role);
        }
    }
}

impl NetFrontend for VirtioNet {
    fn readable(&self, queue: usize) {
        self.conclude(Role::Receive(queue), self.receive(queue));
    }

    fn writable(&self, queue: usize) {
        self.serve(Role::Transmit(queue));
    }

    fn link_changed(&self) {
        if let Some(outside) = &self.outside {
            self.change_hands(outside);
        }
        if has(self.negotiated(), VIRTIO_NET_F_STATUS) {
            self.config_changed();
        }
    }
}

impl VirtioDevice for VirtioNet {
    fn device_type(&self) -> u16 {
        u16::try_from(VIRTIO_ID_NET).unwrap_or(1)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::Release);
        lock(&self.filter).choose_vlans(has(features, VIRTIO_NET_F_CTRL_VLAN));
        self.set_offloads(features);
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let mut status = 0;
        for (is_set, flag) in [
            (self.is_up(), VIRTIO_NET_S_LINK_UP),
            (
                self.announcing.load(Ordering::Acquire),
                VIRTIO_NET_S_ANNOUNCE,
            ),
        ] {
            if is_set {
                status |= u16::try_from(flag).unwrap_or(0);
            }
        }
        let hashes = self.spec.rss || self.spec.hash;
        let config = NetConfig {
            mac: self.mac(),
            status: status.into(),
            max_pairs: self.spec.pairs.into(),
            mtu: self.spec.host_mtu.unwrap_or(0).into(),
            speed: self.spec.speed.into(),
            duplex: self.spec.duplex,
            key_size: u8::try_from(if hashes { KEY } else { 0 }).unwrap_or(u8::MAX),
            table_length: if self.spec.rss { TABLE } else { 0 }.into(),
            hash_types: if hashes { HashTypes::all().bits() } else { 0 }.into(),
        };
        config.read(offset, data);
    }

    /// The address is changed by command; nothing else can be.
    fn config_write(&self, _offset: u64, _data: &[u8]) {}

    fn attach(&self, driver: Arc<dyn DriverNotifier>) {
        self.driver.set(driver).ok();
    }

    fn start_queue(&self, index: usize, queue: ActiveQueue) -> Result<(), VirtioError> {
        match self.outside_of(index) {
            Some(outside) => self.start_packets(outside, index, queue),
            None => self.start_here(index, queue),
        }
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        match self.outside_of(index) {
            Some(outside) => self.stop_packets(outside, index),
            None => self.slot(self.role(index)?)?.stop(),
        }
    }

    fn served_outside(&self) -> Option<u64> {
        self.outside
            .as_ref()
            .and_then(|outside| self.server_at_work(outside))
    }

    fn queue_outside(&self, index: usize) -> Option<ServedView> {
        self.outside.as_ref()?.view(index)
    }

    fn interrupt_moved(&self, index: usize) {
        if let Some(outside) = self.outside_of(index) {
            self.call_moved(outside, index);
        }
    }

    fn memory_changed(&self) -> io::Result<()> {
        match &self.outside {
            Some(outside) => self.memory_moved(outside),
            None => Ok(()),
        }
    }

    fn reset(&self) {
        self.back_to_start();
    }
}

impl fmt::Debug for VirtioNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioNet")
            .field("id", &self.spec.id)
            .finish_non_exhaustive()
    }
}
