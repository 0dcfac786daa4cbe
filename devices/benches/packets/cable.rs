//! The other end of the netdev's socket: gives bursts of packets, and takes them without a look.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, recv, send, sendmmsg};
use serde::Deserialize;

/// How packets lie in the socket.
#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Each is a datagram.
    Dgram,
    /// Each is behind its length, 32 bits in network order.
    Stream,
}

pub(crate) struct Cable {
    socket: OwnedFd,
    kind: Kind,
    room: Vec<u8>,
    headers: MultiHeaders<()>,
}

/// The most packets of a burst.
const MOST: usize = 256;

impl Cable {
    pub(crate) fn new(socket: OwnedFd, kind: Kind) -> Self {
        Self {
            socket,
            kind,
            room: vec![0; 256 << 10],
            headers: MultiHeaders::preallocate(MOST, None),
        }
    }

    /// Sends the packet `count` times.
    pub(crate) fn give(&mut self, packet: &[u8], count: usize) {
        let fd = self.socket.as_raw_fd();
        match self.kind {
            Kind::Dgram => {
                let pieces = vec![[IoSlice::new(packet)]; count];
                let mut rest = pieces.as_slice();
                let nowhere = vec![None::<()>; count];
                while !rest.is_empty() {
                    let flags = MsgFlags::empty();
                    let sent = sendmmsg(
                        fd,
                        &mut self.headers,
                        rest,
                        &nowhere[..rest.len()],
                        [],
                        flags,
                    );
                    let sent = sent.expect("the netdev's socket").count();
                    rest = &rest[sent..];
                }
            }
            Kind::Stream => {
                let length = u32::try_from(packet.len()).expect("a packet");
                let one = [&length.to_be_bytes(), packet].concat();
                let all = one.repeat(count);
                let mut rest = all.as_slice();
                while !rest.is_empty() {
                    let sent = send(fd, rest, MsgFlags::empty()).expect("the netdev's socket");
                    rest = &rest[sent..];
                }
            }
        }
    }

    /// Throws away what has come.
    pub(crate) fn drain(&mut self) {
        let fd = self.socket.as_raw_fd();
        loop {
            match recv(fd, &mut self.room, MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(Errno::EAGAIN) => return,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => panic!("the netdev's socket: {error}"),
            }
        }
    }
}
