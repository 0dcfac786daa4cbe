//! The device: its queues, its configuration space, and the ports that are plugged.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use super::control::{Due, Dues, HEADER, Message, Order};
use super::port::{Port, Sent};
use super::{ConsoleError, ConsoleSpec, MAX_NAME, MAX_PORTS, PortKind, PortSpec, PortView};
use crate::memory::GuestMemView;
use crate::notice::{Notice, NoticeSink};
use crate::reactor::{Reactor, Readiness, Ready};
use crate::repeats::Repeats;
use crate::state::AnyStateful;
use crate::virtio::device::{ActiveQueue, DriverNotifier, VirtioDevice, VirtioError, read_config};
use crate::virtio::ring::{Broken, Ring, Slot};

/// A console (virtio 1.2, section 5).
const DEVICE_TYPE: u16 = 3;

/// `VIRTIO_CONSOLE_F_MULTIPORT` (virtio 1.2, 5.3.3).
const F_MULTIPORT: u64 = 1 << 1;

const PORT_QUEUE_SIZE: u16 = 128;
const CONTROL_QUEUE_SIZE: u16 = 32;
const CONTROL_TO_DRIVER: usize = 2;
const CONTROL_FROM_DRIVER: usize = 3;

/// Where `max_nr_ports` stands in the configuration space; the size before it is not offered.
const CONFIG_MAX_PORTS: usize = 4;
const CONFIG_LEN: usize = 12;

/// How many control messages are read before other devices get their turn.
const BATCH: usize = 64;

/// A console device. Unplug its ports before dropping it: a chardev is free only when its port is
/// gone, and the device itself may live on for the length of a call on the reactor's thread.
pub struct VirtioConsole {
    me: Weak<Self>,
    spec: ConsoleSpec,
    reactor: Reactor,
    notices: NoticeSink,
    queue_sizes: Vec<u16>,
    slots: Vec<Slot>,
    features: AtomicU64,
    driver: OnceLock<Arc<dyn DriverNotifier>>,
    ports: Mutex<Ports>,
    broken_rings: Repeats,
    stuck_queues: Repeats,
    refused_ports: Repeats,
}

#[derive(Default)]
pub(super) struct Ports {
    plugged: [Option<Arc<Port>>; MAX_PORTS as usize],
    pub(super) dues: Dues,
    /// The driver wants to hear of ports.
    pub(super) driver_ready: bool,
}

impl Ports {
    fn plugged(&self) -> impl Iterator<Item = (u32, &Arc<Port>)> {
        (0..)
            .zip(&self.plugged)
            .filter_map(|(number, port)| Some((number, port.as_ref()?)))
    }

    fn place(&mut self, number: u32) -> Option<&mut Option<Arc<Port>>> {
        self.plugged.get_mut(usize::try_from(number).ok()?)
    }

    /// Notes what the driver is to be told, if it wants to hear of it.
    fn owe(&mut self, number: u32, due: Due) {
        if self.driver_ready {
            self.dues.add(number, due);
        }
    }

    /// The number a new port gets.
    fn number_for(&self, spec: &PortSpec, max_ports: u32) -> Result<u32, ConsoleError> {
        let is_free = |number| self.plugged().all(|(taken, _)| taken != number);
        let number = match spec.number {
            Some(0) if spec.kind != PortKind::Console => return Err(ConsoleError::PortZero),
            Some(number) => number,
            None => {
                let first = u32::from(spec.kind != PortKind::Console);
                (first..max_ports)
                    .find(|number| is_free(*number))
                    .ok_or(ConsoleError::Full)?
            }
        };
        if number >= max_ports {
            return Err(ConsoleError::NumberTooLarge { max: max_ports - 1 });
        }
        if !is_free(number) {
            return Err(ConsoleError::NumberTaken(number));
        }
        Ok(number)
    }
}

impl VirtioConsole {
    /// A device without ports. What happens to its ports goes to `notices`.
    ///
    /// # Errors
    /// The number of ports is out of range.
    pub fn new(
        spec: ConsoleSpec,
        reactor: Reactor,
        notices: NoticeSink,
    ) -> Result<Arc<Self>, ConsoleError> {
        if !(1..=MAX_PORTS).contains(&spec.max_ports) {
            return Err(ConsoleError::MaxPorts(spec.max_ports));
        }
        let mut queue_sizes = Vec::new();
        for pair in 0..=spec.max_ports {
            let size = if pair == 1 {
                CONTROL_QUEUE_SIZE
            } else {
                PORT_QUEUE_SIZE
            };
            queue_sizes.extend([size, size]);
        }
        let slots = queue_sizes.iter().map(|_| Slot::default()).collect();
        Ok(Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            spec,
            reactor,
            notices,
            queue_sizes,
            slots,
            features: AtomicU64::new(0),
            driver: OnceLock::new(),
            ports: Mutex::default(),
            broken_rings: Repeats::default(),
            stuck_queues: Repeats::default(),
            refused_ports: Repeats::default(),
        }))
    }

    /// The name of the bus its ports are plugged into.
    #[must_use]
    pub fn bus_name(&self) -> String {
        format!("{}.0", self.spec.id)
    }

    /// Plugs a port and returns its number. A running driver hears of it.
    ///
    /// # Errors
    /// Its number or name is taken or out of range, or another device has its chardev.
    pub fn plug_port(&self, spec: &PortSpec) -> Result<u32, ConsoleError> {
        if let Some(len) = spec
            .name
            .as_ref()
            .map(String::len)
            .filter(|len| *len > MAX_NAME)
        {
            return Err(ConsoleError::NameTooLong(len));
        }
        let (number, port) = {
            let mut ports = self.ports();
            if let Some(name) = &spec.name {
                let taken = ports
                    .plugged()
                    .any(|(_, port)| port.name() == Some(name.as_str()));
                if taken {
                    return Err(ConsoleError::NameTaken(name.clone()));
                }
            }
            let number = ports.number_for(spec, self.spec.max_ports)?;
            let port = Port::new(Weak::clone(&self.me), number, spec);
            if let Some(place) = ports.place(number) {
                *place = Some(Arc::clone(&port));
            }
            (number, port)
        };
        // The place is held; the chardev is asked outside the lock.
        if let Err(error) = port.connect(spec) {
            if let Some(place) = self.ports().place(number) {
                *place = None;
            }
            return Err(error.into());
        }
        if spec.chardev.is_some() {
            // Later changes are seen on the reactor's thread, so the first look is there as well.
            let port = Arc::clone(&port);
            let look = self.reactor.run(move || {
                use crate::chardev::Frontend;
                port.peer_changed();
            });
            if let Err(error) = look {
                tracing::error!(%error, "a port does not hear of its peer");
            }
        }
        self.ports().owe(number, Due::ADD);
        self.tell_driver();
        Ok(number)
    }

    /// Unplugs a port and gives its chardev back. A running driver hears of it.
    ///
    /// # Errors
    /// There is no such port.
    pub fn unplug_port(&self, number: u32) -> Result<(), ConsoleError> {
        let port = {
            let mut ports = self.ports();
            let port = ports.place(number).and_then(Option::take);
            let Some(port) = port else {
                return Err(ConsoleError::NoSuchPort(number));
            };
            ports.dues.cancel(number);
            ports.owe(number, Due::REMOVE);
            port
        };
        port.disconnect();
        self.tell_driver();
        // What the guest still sends to it is dropped.
        self.transmit(number);
        Ok(())
    }

    /// The plugged ports, by number.
    #[must_use]
    pub fn ports_plugged(&self) -> Vec<PortView> {
        self.ports()
            .plugged()
            .map(|(_, port)| port.view())
            .collect()
    }

    /// What a port saves, if there is one of this number.
    #[must_use]
    pub fn port_state(&self, number: u32) -> Option<Arc<dyn AnyStateful>> {
        Some(self.port(number)?)
    }

    /// One more than the highest number of a port.
    pub(super) fn max_ports(&self) -> u32 {
        self.spec.max_ports
    }

    /// Whether the driver knows of more than port 0.
    pub(super) fn is_multiport(&self) -> bool {
        self.features.load(Ordering::SeqCst) & F_MULTIPORT != 0
    }

    /// Works on the queue into which a port receives.
    pub(super) fn with_receive_queue<T>(
        &self,
        number: u32,
        work: impl FnOnce(&mut Ring, &GuestMemView) -> Result<T, Broken>,
    ) -> Option<T> {
        let (receive, _) = queues_of(number);
        self.with_queue(receive, work)
    }

    /// The host side of a port has opened or closed.
    pub(super) fn tell_host_open(&self, number: u32) {
        self.ports().owe(number, Due::OPEN);
        self.tell_driver();
    }

    /// Sends what the guest has for a port, as far as the chardev takes it.
    pub(super) fn transmit(&self, number: u32) {
        let (_, transmit) = queues_of(number);
        let port = self.port(number);
        let outcome = self.with_queue(transmit, |ring, memory| match &port {
            Some(port) => port.send(ring, memory),
            None => discard(ring, memory),
        });
        if let Some(Sent::Batch) = outcome {
            self.rearm(transmit);
        }
    }

    pub(super) fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn port(&self, number: u32) -> Option<Arc<Port>> {
        self.ports().place(number)?.clone()
    }

    fn with_queue<T>(
        &self,
        index: usize,
        work: impl FnOnce(&mut Ring, &GuestMemView) -> Result<T, Broken>,
    ) -> Option<T> {
        match self.slots.get(index)?.with(work)? {
            Ok(done) => Some(done),
            Err(Broken) => {
                if let Some(times) = self.broken_rings.note() {
                    tracing::warn!(
                        device = self.spec.id,
                        queue = index,
                        times,
                        "the driver broke a ring"
                    );
                }
                if let Some(driver) = self.driver.get() {
                    driver.needs_reset();
                }
                None
            }
        }
    }

    fn rearm(&self, index: usize) {
        let rearmed = self.slots.get(index).map_or(Ok(()), Slot::rearm);
        if let Err(error) = rearmed
            && let Some(times) = self.stuck_queues.note()
        {
            tracing::error!(%error, device = self.spec.id, times, "a queue cannot be resumed");
        }
    }

    /// Tells the driver what is due, as far as it has buffers for it.
    fn tell_driver(&self) {
        self.with_queue(CONTROL_TO_DRIVER, |ring, memory| {
            while !self.ports().dues.is_empty() {
                let Some(chain) = ring.next(memory)? else {
                    break;
                };
                let Some(message) = self.next_message() else {
                    ring.put_back();
                    break;
                };
                let written = chain.scatter(message.bytes())?;
                ring.add_used(memory, &chain, written)?;
            }
            Ok(())
        });
    }

    fn next_message(&self) -> Option<Message> {
        let mut ports = self.ports();
        let (number, due) = ports.dues.take()?;
        let port = ports.place(number)?.as_ref();
        let open = port.is_some_and(|port| port.is_host_open());
        Some(Message::new(
            number,
            due,
            open,
            port.and_then(|port| port.name()),
        ))
    }

    /// Takes what the driver has to say.
    fn listen_to_driver(&self) {
        for _ in 0..BATCH {
            let header = self.with_queue(CONTROL_FROM_DRIVER, |ring, memory| {
                let Some(chain) = ring.next(memory)? else {
                    return Ok(None);
                };
                let mut header = [0; HEADER];
                let count = chain.gather(0, &mut header)?;
                ring.add_used(memory, &chain, 0)?;
                Ok(Some((header, count)))
            });
            let Some(Some((header, count))) = header else {
                self.tell_driver();
                return;
            };
            match Order::parse(header).filter(|_| count == HEADER) {
                Some(order) => self.obey(order),
                None => tracing::debug!(device = self.spec.id, "an unknown control message"),
            }
        }
        self.tell_driver();
        self.rearm(CONTROL_FROM_DRIVER);
    }

    fn obey(&self, order: Order) {
        match order {
            Order::DeviceReady(true) => {
                let mut ports = self.ports();
                ports.driver_ready = true;
                let numbers: u32 = ports
                    .plugged()
                    .fold(0, |set, (number, _)| set | 1 << number);
                for number in (0..MAX_PORTS).filter(|number| numbers & 1 << number != 0) {
                    ports.owe(number, Due::ADD);
                }
            }
            Order::PortReady(number, true) => {
                let mut ports = self.ports();
                let Some(Some(port)) = ports.place(number) else {
                    return;
                };
                let mut due = Due::empty();
                due.set(Due::CONSOLE, port.kind() == PortKind::Console);
                due.set(Due::NAME, port.name().is_some());
                due.set(Due::OPEN, port.is_host_open());
                ports.owe(number, due);
            }
            Order::PortOpen(number, open) => self.guest_opened(number, open),
            Order::DeviceReady(false) | Order::PortReady(_, false) => {
                if let Some(times) = self.refused_ports.note() {
                    tracing::warn!(
                        device = self.spec.id,
                        ?order,
                        times,
                        "the driver could not add a port"
                    );
                }
            }
        }
    }

    fn guest_opened(&self, number: u32, open: bool) {
        let Some(port) = self.port(number) else {
            return;
        };
        let news = port.set_guest_open(open);
        if let Some(id) = port.id().filter(|_| news) {
            let id = id.to_owned();
            self.notices.send(Notice::PortChange { id, open });
        }
    }

    fn kicked(&self, index: usize) {
        match index {
            CONTROL_TO_DRIVER => self.tell_driver(),
            CONTROL_FROM_DRIVER => self.listen_to_driver(),
            _ => {
                let number = port_of(index);
                if index % 2 == 1 {
                    self.transmit(number);
                } else if let Some(port) = self.port(number) {
                    port.resume_input();
                }
            }
        }
    }
}

/// The receive and the transmit queue of a port (virtio 1.2, 5.3.2): the control queues stand
/// between those of port 0 and port 1.
fn queues_of(number: u32) -> (usize, usize) {
    let pair = match number {
        0 => 0,
        _ => number as usize + 1,
    };
    (pair * 2, pair * 2 + 1)
}

/// The port that a queue other than the control queues belongs to.
fn port_of(index: usize) -> u32 {
    let pair = index / 2;
    u32::try_from(pair.saturating_sub(usize::from(pair > 0))).unwrap_or(u32::MAX)
}

/// Drops what the guest sends to a port that is not there.
fn discard(ring: &mut Ring, memory: &GuestMemView) -> Result<Sent, Broken> {
    for _ in 0..BATCH {
        let Some(chain) = ring.next(memory)? else {
            return Ok(Sent::All);
        };
        ring.add_used(memory, &chain, 0)?;
    }
    Ok(Sent::Batch)
}

struct Kick {
    device: Weak<VirtioConsole>,
    index: usize,
}

impl Ready for Kick {
    fn ready(&self, _readiness: Readiness) {
        if let Some(device) = self.device.upgrade() {
            device.kicked(self.index);
        }
    }
}

impl VirtioDevice for VirtioConsole {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        F_MULTIPORT | (1 << VIRTIO_RING_F_INDIRECT_DESC) | (1 << VIRTIO_RING_F_EVENT_IDX)
    }

    fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::SeqCst);
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_LEN];
        config[CONFIG_MAX_PORTS..][..4].copy_from_slice(&self.spec.max_ports.to_le_bytes());
        read_config(&config, offset, data);
    }

    fn config_write(&self, _offset: u64, _data: &[u8]) {}

    fn attach(&self, driver: Arc<dyn DriverNotifier>) {
        self.driver.set(driver).ok();
    }

    fn start_queue(&self, index: usize, queue: ActiveQueue) -> Result<(), VirtioError> {
        let count = self.slots.len();
        let slot = self
            .slots
            .get(index)
            .ok_or(VirtioError::NoSuchQueue { index, count })?;
        let kick = Arc::new(Kick {
            device: Weak::clone(&self.me),
            index,
        });
        let features = self.features.load(Ordering::SeqCst);
        slot.start(index, queue, features, &self.reactor, kick)
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        self.slots.get(index)?.stop()
    }

    fn reset(&self) {
        self.features.store(0, Ordering::SeqCst);
        let plugged: Vec<(u32, Arc<Port>)> = {
            let mut ports = self.ports();
            ports.driver_ready = false;
            ports.dues = Dues::default();
            ports
                .plugged()
                .map(|(number, port)| (number, Arc::clone(port)))
                .collect()
        };
        for (number, port) in plugged {
            port.forget_progress();
            self.guest_opened(number, false);
        }
    }
}

impl fmt::Debug for VirtioConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioConsole")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}
