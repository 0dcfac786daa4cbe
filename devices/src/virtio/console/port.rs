//! One port: the bytes between its queues and its chardev.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::device::VirtioConsole;
use super::{PortKind, PortSpec, PortView};
use crate::chardev::{ChardevError, ChardevLease, Frontend};
use crate::memory::GuestMemView;
use crate::virtio::ring::{Broken, Chain, Ring};

/// How many bytes are moved at once.
const CHUNK: usize = 4 << 10;

/// How many chains are sent before other devices get their turn.
const BATCH: usize = 64;

/// A plugged port.
pub(super) struct Port {
    device: Weak<VirtioConsole>,
    number: u32,
    id: Option<String>,
    kind: PortKind,
    name: Option<String>,
    /// Held while the chardev takes bytes, so that an unplugged port gives it back at once.
    lease: Mutex<Option<ChardevLease>>,
    guest_open: AtomicBool,
    host_open: AtomicBool,
    /// How much of the first available chain was sent already.
    sent: AtomicUsize,
}

/// Why sending stopped.
pub(super) enum Sent {
    /// Nothing is left.
    All,
    /// The batch is done, chains may be left.
    Batch,
    /// The chardev takes no more now.
    Blocked,
}

impl Port {
    /// A port of `device` that is not connected yet.
    pub(super) fn new(device: Weak<VirtioConsole>, number: u32, spec: &PortSpec) -> Arc<Self> {
        Arc::new(Self {
            device,
            number,
            id: spec.id.clone(),
            kind: spec.kind,
            name: spec.name.clone(),
            lease: Mutex::new(None),
            guest_open: AtomicBool::new(false),
            host_open: AtomicBool::new(false),
            sent: AtomicUsize::new(0),
        })
    }

    /// Takes its place at the chardev.
    pub(super) fn connect(self: &Arc<Self>, spec: &PortSpec) -> Result<(), ChardevError> {
        let Some(chardev) = &spec.chardev else {
            return Ok(());
        };
        let frontend: Arc<dyn Frontend> = Arc::clone(self) as _;
        let lease = chardev.attach(&frontend)?;
        // A console listens from the start; a channel when a guest program opens it.
        lease.set_open(self.kind == PortKind::Console);
        *self.lease() = Some(lease);
        Ok(())
    }

    /// Gives its chardev back.
    pub(super) fn disconnect(&self) {
        let lease = self.lease().take();
        drop(lease);
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    pub(super) fn kind(&self) -> PortKind {
        self.kind
    }

    pub(super) fn view(&self) -> PortView {
        PortView {
            number: self.number,
            id: self.id.clone(),
            kind: self.kind,
            name: self.name.clone(),
            guest_open: self.guest_open.load(Ordering::SeqCst),
        }
    }

    /// Whether the host side is open, as the driver is told.
    pub(super) fn is_host_open(&self) -> bool {
        self.host_open.load(Ordering::SeqCst)
    }

    /// A guest program opened or closed the port; tells whether that is news.
    pub(super) fn set_guest_open(&self, open: bool) -> bool {
        let news = self.guest_open.swap(open, Ordering::SeqCst) != open;
        if let Some(lease) = &*self.lease() {
            if self.kind == PortKind::Serial {
                lease.set_open(open);
            }
            if open {
                lease.resume_input();
            }
        }
        news
    }

    /// The driver has given buffers to receive into.
    pub(super) fn resume_input(&self) {
        if let Some(lease) = &*self.lease() {
            lease.resume_input();
        }
    }

    /// Looks whether the host side is open; tells whether that is news. On the reactor's thread.
    pub(super) fn refresh_host(&self) -> bool {
        let open = match &*self.lease() {
            // The terminal is there whether or not somebody looks at it.
            Some(_) if self.kind == PortKind::Console => true,
            Some(lease) => lease.is_connected(),
            None => false,
        };
        self.host_open.swap(open, Ordering::SeqCst) != open
    }

    /// Whether the guest has it open, and how many bytes of a buffer are sent.
    pub(super) fn progress(&self) -> (bool, usize) {
        let sent = self.sent.load(Ordering::SeqCst);
        (self.guest_open.load(Ordering::SeqCst), sent)
    }

    /// Goes on where a port of a snapshot was; whoever had it open knows.
    pub(super) fn resume_at(&self, guest_open: bool, sent: usize) {
        self.set_guest_open(guest_open);
        self.sent.store(sent, Ordering::SeqCst);
    }

    /// The next chain is sent from its beginning.
    pub(super) fn forget_progress(&self) {
        self.sent.store(0, Ordering::SeqCst);
    }

    /// Sends available chains to the chardev.
    pub(super) fn send(&self, ring: &mut Ring, memory: &GuestMemView) -> Result<Sent, Broken> {
        for _ in 0..BATCH {
            let Some(chain) = ring.next(memory)? else {
                return Ok(Sent::All);
            };
            if !self.send_chain(&chain)? {
                ring.put_back();
                return Ok(Sent::Blocked);
            }
            self.forget_progress();
            ring.add_used(memory, &chain, 0)?;
        }
        Ok(Sent::Batch)
    }

    /// Sends what is left of a chain; tells whether all of it was taken.
    fn send_chain(&self, chain: &Chain<'_>) -> Result<bool, Broken> {
        let lease = self.lease();
        let Some(lease) = &*lease else {
            return Ok(true);
        };
        let mut chunk = [0; CHUNK];
        loop {
            let sent = self.sent.load(Ordering::SeqCst);
            let count = chain.gather(sent, &mut chunk)?;
            let bytes = chunk.get(..count).unwrap_or_default();
            if bytes.is_empty() {
                return Ok(true);
            }
            let taken = lease.write(bytes);
            self.sent
                .store(sent.saturating_add(taken), Ordering::SeqCst);
            if taken < bytes.len() {
                return Ok(false);
            }
        }
    }

    /// Fills available chains with `bytes`; returns how many were placed.
    fn place(ring: &mut Ring, memory: &GuestMemView, bytes: &[u8]) -> Result<usize, Broken> {
        let mut placed = 0;
        while let Some(rest) = bytes.get(placed..).filter(|rest| !rest.is_empty()) {
            let Some(chain) = ring.next(memory)? else {
                break;
            };
            let count = chain.scatter(rest)?;
            ring.add_used(memory, &chain, count)?;
            placed += count;
        }
        Ok(placed)
    }

    fn lease(&self) -> MutexGuard<'_, Option<ChardevLease>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Frontend for Port {
    fn room(&self) -> usize {
        let Some(device) = self.device.upgrade() else {
            return 0;
        };
        // Without the multiport feature nobody opens port 0: it is simply there.
        if device.is_multiport() && !self.guest_open.load(Ordering::SeqCst) {
            return 0;
        }
        let room = device.with_receive_queue(self.number, |ring, memory| {
            let Some(chain) = ring.next(memory)? else {
                return Ok(0);
            };
            let room = chain.writable()?;
            ring.put_back();
            // An empty buffer is no room, but it would hide the next one: `receive` returns it.
            Ok(room.clamp(1, CHUNK))
        });
        room.unwrap_or(0)
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        let Some(device) = self.device.upgrade() else {
            return 0;
        };
        let placed =
            device.with_receive_queue(self.number, |ring, memory| Self::place(ring, memory, bytes));
        placed.unwrap_or(0)
    }

    fn writable(&self) {
        if let Some(device) = self.device.upgrade() {
            device.transmit(self.number);
        }
    }

    fn peer_changed(&self) {
        if self.refresh_host()
            && let Some(device) = self.device.upgrade()
        {
            device.tell_host_open(self.number);
        }
    }
}
