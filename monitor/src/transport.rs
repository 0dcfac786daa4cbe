//! One way to one client: a socket, a terminal, or a pair of pipes.
//!
//! A [`Port`] receives bytes with the fds that came along, and sends bytes. An [`Outlet`] puts a
//! bounded queue before the sending half, so that any thread may answer: while the queue is empty
//! a message goes straight into the socket, and the thread `qmp-io` takes over only when the
//! client is slower than its answers.
//!
//! ```text
//!   main ──┐            lock     ┌─ queue empty: send(2), now, on the caller's thread
//!   qmp-io ┼─► Outlet::send ─────┤
//!   events ┘                     └─ else append ──► flushed by qmp-io when the socket has room
//!                                        │ more than QUEUE_LIMIT waits
//!                                        ▼
//!                                  Overrun: the client is dropped
//! ```

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fdset::scm::{Received, expect_only_fds, recv_with_fds};
use fdset::{Lease, OpenFile};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, Shutdown, sendmsg, shutdown};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::uio::writev;

use crate::print::Message;

use crate::tls::{Tls, TlsServer};

/// How many bytes may wait for a client before it counts as one that does not read.
pub(crate) const QUEUE_LIMIT: usize = 8 << 20;
/// How many bytes may wait before the client's next requests are left unread.
const QUEUE_BUSY: usize = 64 << 10;
/// What a queue keeps allocated once it is empty.
const QUEUE_KEPT: usize = 16 << 10;

/// One fd that a client is behind, made non-blocking.
#[derive(Debug)]
pub(crate) struct Port {
    fd: OwnedFd,
    socket: bool,
    /// The status flags to put back at the end: a terminal is shared with the shell.
    restore: Option<OFlag>,
    /// The line of the ledger, while the client is there.
    lease: Option<Lease>,
    /// What stands between the bytes of the session and those of the socket.
    tls: Option<Tls>,
}

impl Port {
    /// Takes over `fd`.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let mode = SFlag::from_bits_truncate(fstat(&fd)?.st_mode) & SFlag::S_IFMT;
        let socket = mode == SFlag::S_IFSOCK;
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        if socket {
            expect_only_fds(&fd);
        }
        let mut restore = None;
        if !flags.contains(OFlag::O_NONBLOCK) {
            fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            restore = (!socket).then_some(flags);
        }
        Ok(Self {
            fd,
            socket,
            restore,
            lease: None,
            tls: None,
        })
    }

    /// Takes over whoever connected to a listener.
    pub(crate) fn of_caller(caller: OpenFile) -> io::Result<Self> {
        let (fd, lease) = caller.into_parts();
        let mut port = Self::new(fd)?;
        port.lease = lease;
        Ok(port)
    }

    /// The same, with all that is said encrypted, if there is a server for that.
    pub(crate) fn wrapped(mut self, server: Option<&TlsServer>) -> io::Result<Self> {
        self.tls = server.map(TlsServer::connection).transpose()?;
        Ok(self)
    }

    /// Whether what is said is encrypted: then there may be something to send that nobody said.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// What has come in; no bytes means that the client sends no more.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        if let Some(tls) = &self.tls {
            // Over TLS no fds come: the kernel gives them with bytes that nobody can read.
            let receive = |cipher: &mut [u8]| Ok(recv_with_fds(&self.fd, cipher)?.bytes);
            let bytes = tls.receive(buffer, receive, |bytes| self.send_bytes(bytes))?;
            return Ok(Received {
                bytes,
                fds: Vec::new(),
                truncated: false,
            });
        }
        if self.socket {
            return recv_with_fds(&self.fd, buffer);
        }
        Ok(Received {
            bytes: nix::unistd::read(&self.fd, buffer)?,
            fds: Vec::new(),
            truncated: false,
        })
    }

    /// Whether the kernel has nothing more to give after `received`, for which `room` bytes of
    /// buffer were offered: a short read says so, unless fds cut it short.
    pub(crate) fn is_emptied_by(&self, received: &Received, room: usize) -> bool {
        self.socket && self.tls.is_none() && received.bytes < room && received.fds.is_empty()
    }

    fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &self.tls else {
            return self.send_plain(pieces);
        };
        // Piece by piece: what is left is sent by the next call.
        let first = pieces.iter().find(|piece| !piece.is_empty());
        first.map_or(Ok(0), |piece| {
            tls.send(piece, |bytes| self.send_bytes(bytes))
        })
    }

    /// Whether something waits that the peer must have before the next byte.
    fn is_backlogged(&self) -> bool {
        self.tls.as_ref().is_some_and(Tls::is_backlogged)
    }

    /// Sends what waits so; false: the peer does not take it yet.
    fn settle(&self) -> io::Result<bool> {
        match &self.tls {
            Some(tls) => tls.flush(|bytes| self.send_bytes(bytes)),
            None => Ok(true),
        }
    }

    fn send_bytes(&self, bytes: &[u8]) -> io::Result<usize> {
        self.send_plain(&[IoSlice::new(bytes)])
    }

    fn send_plain(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let sent = if self.socket {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            sendmsg::<()>(self.fd.as_raw_fd(), pieces, &[], flags, None)?
        } else {
            writev(&self.fd, pieces)?
        };
        Ok(sent)
    }

    /// Tells the peer that this is the end, although somebody may still hold the fd.
    fn hang_up(&self) {
        if let Some(tls) = &self.tls {
            tls.close(|bytes| self.send_bytes(bytes));
        }
        if self.socket {
            // A peer that is gone already is no news.
            let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Port {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Some(flags) = self.restore {
            // The terminal may be gone; then nobody misses the flags.
            let _ = fcntl(&self.fd, FcntlArg::F_SETFL(flags));
        }
    }
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The kernel has all of it.
    Through,
    /// Some of it waits for the client to read, and before it nothing did.
    BeganToWait,
    /// It waits behind others.
    Waiting,
    /// The client is gone, or was given up before. The message is lost.
    Gone,
    /// The client does not read, and too much waits already. It is to be dropped.
    Overrun,
}

/// The sending half of a session, for any thread.
#[derive(Debug)]
pub(crate) struct Outlet {
    queue: Mutex<Queue>,
    /// How many bytes wait, or [`ENDED`]: lets `qmp-io` look without the lock, which the thread
    /// that answers holds just when the client's next request comes in.
    load: AtomicUsize,
    /// Whether more may wait than was sent here: what a handshake has to say.
    encrypted: bool,
}

/// The load of an outlet that sends nothing any more.
const ENDED: usize = usize::MAX;

#[derive(Debug)]
struct Queue {
    /// `None` once the session is over.
    port: Option<Arc<Port>>,
    waiting: VecDeque<u8>,
    /// Why nothing is sent any more.
    ended: Option<Sent>,
}

impl Outlet {
    /// An outlet to `port`.
    pub(crate) fn new(port: Arc<Port>) -> Self {
        Self {
            encrypted: port.is_encrypted(),
            queue: Mutex::new(Queue {
                port: Some(port),
                waiting: VecDeque::new(),
                ended: None,
            }),
            load: AtomicUsize::new(0),
        }
    }

    /// Sends one message, or as much of it as the client takes now, and keeps the rest.
    pub(crate) fn send(&self, message: &Message<'_>) -> Sent {
        let mut queue = self.queue();
        let sent = queue.put(message);
        self.load.store(queue.load(), Ordering::Release);
        sent
    }

    /// Sends what waits, as far as the client takes it.
    pub(crate) fn flush(&self) -> Sent {
        if self.load.load(Ordering::Acquire) == 0 && !self.encrypted {
            return Sent::Through;
        }
        let mut queue = self.queue();
        let sent = queue.flush();
        self.load.store(queue.load(), Ordering::Release);
        sent
    }

    /// Whether so much waits that the client should read before it asks for more.
    pub(crate) fn is_busy(&self) -> bool {
        let load = self.load.load(Ordering::Acquire);
        load > QUEUE_BUSY && load != ENDED
    }

    /// Whether nothing waits: the client has everything, or will get no more.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.load.load(Ordering::Acquire), 0 | ENDED)
    }

    /// Ends the session: nothing is sent any more, and the peer is told.
    pub(crate) fn close(&self) {
        let port = {
            let mut queue = self.queue();
            queue.end(Sent::Gone);
            self.load.store(queue.load(), Ordering::Release);
            queue.port.take()
        };
        if let Some(port) = port {
            port.hang_up();
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn put(&mut self, message: &Message<'_>) -> Sent {
        if let Some(end) = self.ended {
            return end;
        }
        if self.waiting.len() > QUEUE_LIMIT {
            return self.end(Sent::Overrun);
        }
        let mut pieces = message.slices();
        let mut rest = pieces.as_mut_slice();
        if !self.waiting.is_empty() {
            self.keep(rest);
            return Sent::Waiting;
        }
        while !rest.is_empty() {
            match self.send(rest) {
                Ok(sent) => IoSlice::advance_slices(&mut rest, sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.keep(rest);
                    return Sent::BeganToWait;
                }
                Err(_) => return self.end(Sent::Gone),
            }
        }
        match self.load() {
            0 => Sent::Through,
            _ => Sent::BeganToWait,
        }
    }

    fn flush(&mut self) -> Sent {
        if let Some(end) = self.ended {
            return end;
        }
        while !self.waiting.is_empty() {
            let (first, second) = self.waiting.as_slices();
            match self.send(&[IoSlice::new(first), IoSlice::new(second)]) {
                Ok(sent) => drop(self.waiting.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Sent::Waiting,
                Err(_) => return self.end(Sent::Gone),
            }
        }
        self.waiting.shrink_to(QUEUE_KEPT);
        match self.port.as_ref().map(|port| port.settle()) {
            None | Some(Ok(true)) => Sent::Through,
            Some(Ok(false)) => Sent::Waiting,
            Some(Err(_)) => self.end(Sent::Gone),
        }
    }

    /// Keeps what the client does not take now.
    fn keep(&mut self, pieces: &[IoSlice<'_>]) {
        for piece in pieces {
            self.waiting.extend(piece.iter());
        }
    }

    fn load(&self) -> usize {
        match self.ended {
            Some(_) => ENDED,
            None => {
                let backlog = self.port.as_ref().is_some_and(|port| port.is_backlogged());
                self.waiting.len().max(usize::from(backlog))
            }
        }
    }

    /// Gives the client up.
    fn end(&mut self, why: Sent) -> Sent {
        self.waiting = VecDeque::new();
        *self.ended.get_or_insert(why)
    }

    fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.port {
            Some(port) => port.send(pieces),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn outlet() -> (Outlet, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let port = Port::new(ours.into()).expect("a port");
        (Outlet::new(Arc::new(port)), theirs)
    }

    #[test]
    fn messages_keep_their_order_past_a_full_socket() {
        let (outlet, mut client) = outlet();
        let mut wanted = Vec::new();
        for number in 0..20_000_u32 {
            let message = format!("message {number}\r\n");
            assert_ne!(
                outlet.send(&Message::whole(message.clone().into_bytes())),
                Sent::Gone
            );
            wanted.extend(message.bytes());
        }
        assert!(!outlet.is_settled());
        let mut got = Vec::new();
        let mut buffer = vec![0; 4096];
        while got.len() < wanted.len() {
            let count = client.read(&mut buffer).expect("bytes");
            got.extend_from_slice(&buffer[..count]);
            outlet.flush();
        }
        assert!(got == wanted && outlet.is_settled());
    }

    #[test]
    fn a_client_that_never_reads_is_an_overrun_with_a_bounded_queue() {
        let (outlet, _client) = outlet();
        let message = Message::whole(vec![b'x'; 1 << 20]);
        let sent: Vec<_> = (0..12).map(|_| outlet.send(&message)).collect();
        assert_eq!(sent.first(), Some(&Sent::BeganToWait));
        assert_eq!(sent.get(1), Some(&Sent::Waiting));
        assert_eq!(sent.last(), Some(&Sent::Overrun));
        assert!(outlet.queue().waiting.capacity() == 0, "given back at once");
    }

    #[test]
    fn a_client_that_is_gone_takes_nothing() {
        let (outlet, client) = outlet();
        drop(client);
        assert_eq!(outlet.send(&Message::whole(b"x".to_vec())), Sent::Gone);
        outlet.close();
        assert_eq!(outlet.send(&Message::whole(b"x".to_vec())), Sent::Gone);
    }

    #[test]
    fn a_pipe_gets_its_flags_back() {
        let (reader, _writer) = nix::unistd::pipe().expect("a pipe");
        let twin = reader.try_clone().expect("a duplicate");
        let flags = |fd: &OwnedFd| fcntl(fd, FcntlArg::F_GETFL).expect("flags");
        let before = flags(&twin);
        let port = Port::new(reader).expect("a port");
        assert_ne!(flags(&twin), before);
        drop(port);
        assert_eq!(flags(&twin), before);
    }
}
