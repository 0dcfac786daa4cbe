//! Packets on their way into a datagram socket: kept until a batch is over, and sent with one call
//! for many. What was kept is the socket's: the guest can have its buffers back.

use std::array;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};

use super::packet::Packet;
use super::{HEADER, LONGEST};

/// The most packets that are kept.
const MOST: usize = 64;
/// The most that one call sends: what it needs lies on the stack.
const AT_ONCE: usize = 32;
/// The longest packet in a socket: it has no virtio header.
const BYTES: usize = LONGEST - HEADER;

/// Packets without their headers, behind each other.
#[derive(Debug)]
pub(super) struct Burst {
    bytes: Box<[u8]>,
    /// Where each packet ends.
    ends: [usize; MOST],
    count: usize,
    /// How many of them are gone.
    sent: usize,
}

impl Default for Burst {
    fn default() -> Self {
        Self {
            bytes: vec![0; BYTES].into_boxed_slice(),
            ends: [0; MOST],
            count: 0,
            sent: 0,
        }
    }
}

impl Burst {
    /// Takes a packet, without its header; whether there was room behind those that wait. When none
    /// does there is for every packet; one that is too long loses its end.
    pub(super) fn put(&mut self, packet: &Packet<'_>) -> bool {
        if self.sent == self.count {
            (self.count, self.sent) = (0, 0);
        }
        let (start, length) = (self.end_of(self.count), packet.len().saturating_sub(HEADER));
        let rest = self.bytes.get_mut(start..).unwrap_or_default();
        if self.count == MOST || self.count > 0 && length > rest.len() {
            return false;
        }
        let end = start + packet.copy(HEADER, rest);
        if let Some(place) = self.ends.get_mut(self.count) {
            *place = end;
            self.count += 1;
        }
        true
    }

    /// Where the first `count` packets end.
    fn end_of(&self, count: usize) -> usize {
        let last = count.checked_sub(1).and_then(|last| self.ends.get(last));
        last.copied().unwrap_or(0)
    }

    fn packet(&self, index: usize) -> &[u8] {
        let range = self.end_of(index)..self.end_of(index + 1);
        self.bytes.get(range).unwrap_or_default()
    }

    /// Sends those that wait, to `to` or where the socket is connected to; `refused` hears of each
    /// that is lost.
    ///
    /// # Errors
    /// There is no room now: the rest waits.
    pub(super) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        to: Option<&SocketAddrAny>,
        mut refused: impl FnMut(Errno),
    ) -> Result<(), Full> {
        while self.sent < self.count {
            match self.send_some(fd, to) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return Err(Full),
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.sent += 1;
                    refused(error);
                }
            }
        }
        Ok(())
    }

    fn send_some(&self, fd: BorrowedFd<'_>, to: Option<&SocketAddrAny>) -> Result<usize, Errno> {
        let flags = SendFlags::NOSIGNAL;
        let count = (self.count - self.sent).min(AT_ONCE);
        if count == 1 {
            let packet = self.packet(self.sent);
            let sent = match to {
                Some(to) => rustix::net::sendto(fd, packet, flags, to),
                None => rustix::net::send(fd, packet, flags),
            };
            return sent.map(|_| 1);
        }
        let pieces: [_; AT_ONCE] = array::from_fn(|at| {
            IoSlice::new(if at < count {
                self.packet(self.sent + at)
            } else {
                &[]
            })
        });
        let mut nothing: [_; AT_ONCE] = array::from_fn(|_| SendAncillaryBuffer::default());
        let mut at = 0;
        let mut messages = nothing.each_mut().map(|beside| {
            let piece = pieces.get(at..=at).unwrap_or_default();
            at += 1;
            match to {
                Some(to) => MMsgHdr::new_with_addr(to, piece, beside),
                None => MMsgHdr::new(piece, beside),
            }
        });
        let messages = messages.get_mut(..count).unwrap_or_default();
        sendmmsg(fd, messages, flags)
    }
}

/// The socket takes nothing now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use rustix::net::addr::SocketAddrArg;

    use super::super::packet::Pieces;
    use super::*;

    fn put(burst: &mut Burst, packet: &[u8]) -> bool {
        let whole = [&[7; HEADER], packet].concat();
        burst.put(&Pieces::default().of(&whole))
    }

    fn next(socket: &UnixDatagram) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        let count = socket.recv(&mut bytes).unwrap();
        bytes.truncate(count);
        bytes
    }

    #[test]
    fn what_is_kept_comes_out_one_datagram_for_each_packet() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut burst = Burst::default();
        for turn in 1..3 {
            let packets: Vec<_> = (0..MOST).map(|n| vec![turn; n + 1]).collect();
            assert!(packets.iter().all(|packet| put(&mut burst, packet)));
            assert!(!put(&mut burst, b"one more"));
            burst
                .send(ours.as_fd(), None, |error| panic!("{error}"))
                .unwrap();
            assert!(packets.iter().all(|packet| next(&theirs) == *packet));
        }
    }

    #[test]
    fn the_longest_packet_has_room_when_nothing_waits_and_only_then() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut burst = Burst::default();
        let longest = vec![1; BYTES];
        assert!(put(&mut burst, b"short"));
        assert!(!put(&mut burst, &longest));
        burst
            .send(ours.as_fd(), None, |error| panic!("{error}"))
            .unwrap();
        assert!(put(&mut burst, &longest));
        assert!(!put(&mut burst, b"short"));
        burst
            .send(ours.as_fd(), None, |error| panic!("{error}"))
            .unwrap();
        assert_eq!((next(&theirs), next(&theirs)), (b"short".to_vec(), longest));
    }

    #[test]
    fn what_a_full_socket_does_not_take_waits_and_keeps_its_order() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut burst = Burst::default();
        let mut given = 0_u16;
        let mut give = |burst: &mut Burst| {
            put(burst, &given.to_be_bytes());
            put(burst, &(given + 1).to_be_bytes());
            given += 2;
            burst.send(ours.as_fd(), None, |error| panic!("{error}"))
        };
        while give(&mut burst).is_ok() {}
        let mut taken = 0_u16;
        let mut take = || {
            assert_eq!(next(&theirs), taken.to_be_bytes());
            taken += 1;
        };
        for _ in 0..100 {
            take();
        }
        burst
            .send(ours.as_fd(), None, |error| panic!("{error}"))
            .unwrap();
        for _ in 100..given {
            take();
        }
    }

    #[test]
    fn a_packet_that_nobody_takes_is_lost_and_the_next_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer");
        let to = rustix::net::SocketAddrUnix::new(&path).unwrap().as_any();
        let ours = UnixDatagram::unbound().unwrap();
        let mut burst = Burst::default();
        assert!(put(&mut burst, b"a") && put(&mut burst, b"b"));
        let mut lost = 0;
        burst.send(ours.as_fd(), Some(&to), |_| lost += 1).unwrap();
        assert_eq!(lost, 2);
        #[expect(clippy::disallowed_methods, reason = "the test plays the peer")]
        let theirs = UnixDatagram::bind(&path).unwrap();
        assert!(put(&mut burst, b"c") && put(&mut burst, b"d"));
        burst
            .send(ours.as_fd(), Some(&to), |error| panic!("{error}"))
            .unwrap();
        assert_eq!(
            (next(&theirs), next(&theirs)),
            (b"c".to_vec(), b"d".to_vec())
        );
    }
}
