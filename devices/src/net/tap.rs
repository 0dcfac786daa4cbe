//! A tap interface of the host: each queue is a descriptor, each read and write one packet.
//!
//! All descriptors are looked at before any is used: a queue of another interface, one with a header
//! among others without, or something that is no tap at all leaves everything as it was.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use fdset::{Access, Door, Kind, OpenFile, Request, Role};
use mio::Interest;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd;

use super::backend::{Abilities, NetBackend, NetFrontend, Offloads, Received, Sent};
use super::packet::Packet;
use super::spec::{TapQueues, TapSpec, TapVhost};
use super::tap_ioctl;
use super::{HEADER, LONGEST, NetError};
use crate::reactor::{Reactor, Readiness, Ready, Registration};
use crate::repeats::Repeats;
use crate::vhost::{KernelVhost, QueueServer, VhostNet};

/// Where queues of interfaces are opened.
const TUN: &str = "/dev/net/tun";
/// Where the kernel's servers of queues are opened.
pub const VHOST_NET: &str = "/dev/vhost-net";

/// A tap interface.
pub struct Tap {
    name: String,
    abilities: Abilities,
    queues: Vec<Queue>,
    reactor: Reactor,
    /// How many queues the interface uses now; 0 where it has only one and nothing to say.
    used: AtomicU16,
    watches: Mutex<Vec<Registration>>,
    refused: Repeats,
    /// A packet without its header, for an interface that takes none.
    bare: Option<Mutex<Box<[u8]>>>,
    /// Who moves its packets in our place.
    server: Option<Arc<VhostNet>>,
}

struct Queue {
    file: Arc<OpenFile>,
    /// A packet was not taken, and the card waits.
    full: Arc<AtomicBool>,
}

impl Tap {
    /// The tap that `spec` asks for.
    ///
    /// # Errors
    /// A queue cannot be had, is no tap, or does not fit the others.
    pub fn open(
        id: &str,
        spec: &TapSpec,
        door: &Door,
        reactor: &Reactor,
    ) -> Result<Arc<Self>, NetError> {
        let files = match &spec.queues {
            TapQueues::Handed(names) => {
                let reason = format!("netdev '{id}'");
                let take = |name: &String| {
                    fdset::handed_in(door, name, Role::Tap, Role::Tap.kinds(), &reason)
                };
                names.iter().map(take).collect::<Result<Vec<_>, _>>()?
            }
            TapQueues::Named {
                ifname,
                count,
                header,
            } => open_queues(id, ifname, *count, *header, door)?,
        };
        let nature = look(id, &files)?;
        let abilities = prepare(&files, nature.header, spec.sndbuf)
            .map_err(|source| NetError::host(id, "setting its tap up", source))?;
        let files: Vec<_> = files.into_iter().map(Arc::new).collect();
        let server = serve(id, &spec.vhost, &files, nature.header, door)?;
        let queue = |file| Queue {
            file,
            full: Arc::default(),
        };
        Ok(Arc::new(Self {
            name: nature.name,
            abilities,
            queues: files.into_iter().map(queue).collect(),
            reactor: reactor.clone(),
            used: AtomicU16::new(0),
            watches: Mutex::default(),
            refused: Repeats::default(),
            bare: (!nature.header)
                .then(|| Mutex::new(vec![0; LONGEST - HEADER].into_boxed_slice())),
            server,
        }))
    }

    fn watches(&self) -> MutexGuard<'_, Vec<Registration>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens queues of an interface by its name.
fn open_queues(
    id: &str,
    ifname: &str,
    count: u16,
    header: bool,
    door: &Door,
) -> Result<Vec<OpenFile>, NetError> {
    let reason = format!("netdev '{id}'");
    let open = |_| {
        let request = Request::new(TUN, Access::ReadWrite, Role::Tap, &reason);
        let file = fdset::open(door, &request.kinds(&[Kind::Tun]))?;
        tap_ioctl::take_queue(file.as_fd(), ifname, header, count > 1)
            .map_err(|source| NetError::host(id, "taking a queue of its interface", source))?;
        Ok(file)
    };
    (0..count).map(open).collect()
}

/// The kernel's servers for the queues, if they are wanted.
fn serve(
    id: &str,
    vhost: &TapVhost,
    queues: &[Arc<OpenFile>],
    header: bool,
    door: &Door,
) -> Result<Option<Arc<VhostNet>>, NetError> {
    let reason = format!("netdev '{id}'");
    let kinds = &[Kind::VhostNet];
    let handed = |name: &String| fdset::handed_in(door, name, Role::Vhost, kinds, &reason);
    let opened = |_: &_| {
        let request = Request::new(VHOST_NET, Access::ReadWrite, Role::Vhost, &reason);
        fdset::open(door, &request.kinds(kinds))
    };
    let devices: Vec<OpenFile> = match vhost {
        TapVhost::Off => return Ok(None),
        TapVhost::Handed(names) => names.iter().map(handed).collect::<Result<_, _>>()?,
        TapVhost::Opened => queues.iter().map(opened).collect::<Result<_, _>>()?,
    };
    if devices.len() != queues.len() {
        return Err(NetError::Unfit {
            id: id.to_owned(),
            problem: format!(
                "it has {} queues and {} vhost devices; pass one for each queue",
                queues.len(),
                devices.len()
            ),
        });
    }
    let own = |device| {
        KernelVhost::own(device).map_err(|source| {
            let what = if source.raw_os_error() == Some(libc::EBUSY) {
                "taking a vhost device that serves another card (open it once for each queue)"
            } else {
                "taking its vhost device"
            };
            NetError::host(id, what, source)
        })
    };
    let instances = devices
        .into_iter()
        .map(own)
        .collect::<Result<Vec<_>, _>>()?;
    let pairs = instances.into_iter().zip(queues.iter().map(Arc::clone));
    Ok(Some(Arc::new(VhostNet::new(pairs.collect(), header))))
}

/// What all the queues are.
fn look(id: &str, files: &[OpenFile]) -> Result<tap_ioctl::Nature, NetError> {
    let mut first: Option<tap_ioctl::Nature> = None;
    for file in files {
        let nature = tap_ioctl::nature(file.as_fd())
            .map_err(|source| NetError::host(id, "asking a queue for its interface", source))?;
        let unfit = |problem: String| NetError::Unfit {
            id: id.to_owned(),
            problem,
        };
        match &first {
            None => first = Some(nature),
            Some(first) if first.header != nature.header => {
                return Err(unfit(
                    "vnet_hdr not consistent across given tap fds; open all of them with \
                     IFF_VNET_HDR or none"
                        .to_owned(),
                ));
            }
            Some(first) if first.name != nature.name => {
                return Err(unfit(format!(
                    "the fds are queues of two interfaces, '{}' and '{}'; pass queues of one",
                    first.name, nature.name
                )));
            }
            Some(_) => {}
        }
    }
    first.ok_or_else(|| NetError::Unfit {
        id: id.to_owned(),
        problem: "no fd was given; pass one for each queue".to_owned(),
    })
}

/// Makes the queues ready, and finds out what the interface can do.
fn prepare(files: &[OpenFile], header: bool, sndbuf: Option<i32>) -> io::Result<Abilities> {
    let mut offloads = Offloads::empty();
    for file in files {
        let fd = file.as_fd();
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        if files.len() > 1 {
            use_again(fd)?;
        }
        if let Some(bytes) = sndbuf {
            tap_ioctl::set_sndbuf(fd, bytes)?;
        }
        if header {
            tap_ioctl::set_header(fd, i32::try_from(HEADER).unwrap_or(i32::MAX))?;
            offloads = supported(file);
            tap_ioctl::set_offloads(fd, Offloads::empty())?;
        }
    }
    Ok(Abilities { header, offloads })
}

/// Has the interface use a queue that somebody may have left unused before handing it on.
fn use_again(fd: BorrowedFd<'_>) -> io::Result<()> {
    match tap_ioctl::use_queue(fd, true) {
        // It is used.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    }
}

/// Which offloads the kernel's driver has: UFO and USO came and went with its versions.
fn supported(file: &OpenFile) -> Offloads {
    let basic = Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6 | Offloads::ECN;
    let groups = [basic, Offloads::UFO, Offloads::USO4 | Offloads::USO6];
    let works =
        |group: &Offloads| tap_ioctl::set_offloads(file.as_fd(), Offloads::CSUM | *group).is_ok();
    groups.into_iter().filter(works).collect()
}

impl NetBackend for Tap {
    fn abilities(&self) -> Abilities {
        self.abilities
    }

    fn queues(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    fn set_offloads(&self, offloads: Offloads) {
        if !self.abilities.header {
            return;
        }
        for queue in &self.queues {
            // A queue that the interface does not use has no settings; all share one set of them.
            if let Err(error) = tap_ioctl::set_offloads(queue.file.as_fd(), offloads) {
                tracing::debug!(%error, tap = %self.name, ?offloads, "offloads");
            }
        }
    }

    fn use_queues(&self, count: u16) -> io::Result<()> {
        if self.queues.len() < 2 {
            return Ok(());
        }
        let before = self.used.swap(count, Ordering::AcqRel);
        for (at, queue) in self.queues.iter().enumerate() {
            let is_within = |count: u16| at < usize::from(count);
            // At first all are used.
            let is_used = before == 0 || is_within(before);
            if is_used != is_within(count) {
                tap_ioctl::use_queue(queue.file.as_fd(), is_within(count))?;
            }
        }
        Ok(())
    }

    fn attach(&self, frontend: Weak<dyn NetFrontend>) -> io::Result<()> {
        let mut watches = Vec::with_capacity(self.queues.len());
        for (queue, Queue { file, full }) in self.queues.iter().enumerate() {
            let handler = Arc::new(QueueReady {
                frontend: Weak::clone(&frontend),
                full: Arc::clone(full),
                queue,
            });
            let file: Arc<OpenFile> = Arc::clone(file);
            let both = Interest::READABLE | Interest::WRITABLE;
            watches.push(self.reactor.register(file, both, handler)?);
        }
        let before = std::mem::replace(&mut *self.watches(), watches);
        drop(before);
        Ok(())
    }

    fn detach(&self) {
        let watches = std::mem::take(&mut *self.watches());
        drop(watches);
        // The queues are handed back as they came: all in use.
        if self.used.load(Ordering::Acquire) != 0
            && let Err(error) = self.use_queues(self.queues())
        {
            tracing::warn!(%error, tap = %self.name, "a queue stays unused");
        }
    }

    fn send(&self, queue: usize, packet: &Packet<'_>) -> Sent {
        let Some(Queue { file, full }) = self.queues.get(queue) else {
            return Sent::Done;
        };
        loop {
            // Set before the look, so that room that comes after it is told.
            full.store(true, Ordering::Release);
            let written = match &self.bare {
                None => packet.write_to(file.as_fd()),
                Some(bare) => {
                    let mut bytes = bare.lock().unwrap_or_else(PoisonError::into_inner);
                    let count = packet.copy(HEADER, &mut bytes);
                    let bytes = bytes.get(..count).unwrap_or_default();
                    unistd::write(file.as_fd(), bytes).map_err(io::Error::from)
                }
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Sent::Full,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    // EINVAL: no packet; EIO: the interface is down.
                    if let Some(times) = self.refused.note() {
                        tracing::debug!(times, %error, tap = %self.name, "a packet is dropped");
                    }
                }
                Ok(_) => {}
            }
            full.store(false, Ordering::Release);
            return Sent::Done;
        }
    }

    fn receive(&self, queue: usize, buffer: &mut [u8]) -> Received {
        let Some(Queue { file, .. }) = self.queues.get(queue) else {
            return Received::Nothing;
        };
        let header = if self.abilities.header { 0 } else { HEADER };
        let Some((head, room)) = buffer.split_at_mut_checked(header) else {
            return Received::Nothing;
        };
        head.fill(0);
        loop {
            match unistd::read(&**file, room) {
                Ok(0) => return Received::Nothing,
                Ok(count) => return Received::Packet(header + count),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Received::Nothing,
                Err(error) => {
                    // EBADFD: the interface is gone.
                    if let Some(times) = self.refused.note() {
                        tracing::debug!(times, %error, tap = %self.name, "nothing can be received");
                    }
                    return Received::Nothing;
                }
            }
        }
    }

    fn server(&self) -> Option<Arc<dyn QueueServer>> {
        self.server.as_ref().map(|server| Arc::clone(server) as _)
    }

    fn describe(&self) -> String {
        match self.queues.first() {
            Some(queue) => format!("fd={},ifname={}", queue.file.as_raw_fd(), self.name),
            None => String::new(),
        }
    }
}

/// Passes the readiness of one queue on.
struct QueueReady {
    frontend: Weak<dyn NetFrontend>,
    full: Arc<AtomicBool>,
    queue: usize,
}

impl Ready for QueueReady {
    fn ready(&self, readiness: Readiness) {
        let Some(frontend) = self.frontend.upgrade() else {
            return;
        };
        if readiness.contains(Readiness::WRITE) && self.full.swap(false, Ordering::AcqRel) {
            frontend.writable(self.queue);
        }
        if readiness.contains(Readiness::READ) {
            frontend.readable(self.queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    /// Both queues of a new interface; `None` where this machine makes none.
    #[expect(clippy::disallowed_methods, reason = "tests play the manager")]
    fn queues() -> Option<Vec<OpenFile>> {
        let mut name = String::new();
        let mut files = Vec::new();
        for _ in 0..2 {
            let file = OpenOptions::new().read(true).write(true).open(TUN).ok()?;
            tap_ioctl::take_queue(file.as_fd(), &name, true, true).ok()?;
            name = tap_ioctl::nature(file.as_fd()).ok()?.name;
            files.push(OpenFile::new(file.into(), None));
        }
        Some(files)
    }

    fn is_used(file: &OpenFile) -> bool {
        tap_ioctl::use_queue(file.as_fd(), false).is_ok()
    }

    #[test]
    fn a_queue_that_its_last_owner_left_unused_is_used_again() {
        let Some(files) = queues() else {
            println!("no tap interfaces here");
            return;
        };
        tap_ioctl::use_queue(files[1].as_fd(), false).unwrap();
        prepare(&files, true, None).unwrap();
        assert!(is_used(&files[0]) && is_used(&files[1]));
    }

    #[test]
    fn queues_are_handed_back_as_they_came() {
        let Some(files) = queues() else {
            println!("no tap interfaces here");
            return;
        };
        let abilities = prepare(&files, true, None).unwrap();
        let queue = |file| Queue {
            file: Arc::new(file),
            full: Arc::default(),
        };
        let tap = Tap {
            name: "tap".to_owned(),
            abilities,
            queues: files.into_iter().map(queue).collect(),
            reactor: Reactor::new(),
            used: AtomicU16::new(0),
            watches: Mutex::default(),
            refused: Repeats::default(),
            bare: None,
            server: None,
        };
        tap.use_queues(1).unwrap();
        tap.detach();
        assert!(tap.queues.iter().all(|queue| is_used(&queue.file)));
    }
}
