//! Fds over unix sockets (`SCM_RIGHTS`).
//!
//! What arrives is an `OwnedFd` before anybody can look at it: an fd that is not wanted is closed
//! by being dropped, on every path, and also when the kernel cut the control data short.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The most fds that the kernel lets one message carry (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

const ROOM: usize = rustix::cmsg_space!(ScmRights(MAX_FDS));

/// What one receive call brought.
#[derive(Debug)]
pub struct Received {
    /// How many bytes of the buffer are filled; 0 means that the peer has closed.
    pub bytes: usize,
    /// The fds that came along, close-on-exec, in the order of the sender.
    pub fds: Vec<OwnedFd>,
    /// Whether fds were lost on the way: this process has no room for more (`EMFILE`). Those in
    /// `fds` did arrive, but nobody can say which request they were meant for.
    pub truncated: bool,
}

/// Receives bytes and the fds that came with them.
///
/// # Errors
/// Those of `recvmsg(2)`; [`io::ErrorKind::WouldBlock`] when a non-blocking socket has nothing.
pub fn recv_with_fds(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let message = recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    Ok(Received {
        bytes: message.bytes,
        fds,
        truncated: message.flags.contains(ReturnFlags::CTRUNC),
    })
}

/// Sends bytes and, with the first of them, `fds`. Gives the number of bytes sent: when fewer
/// than all, the fds have gone and the rest of the bytes is to be sent without them.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for more than [`MAX_FDS`] fds or for fds without a byte to
/// carry them; else those of `sendmsg(2)`. A peer that is gone is an error, not a signal.
pub fn send_with_fds(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if !fds.is_empty() && bytes.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "fds need at least one byte to travel with",
        ));
    }
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if fds.len() > MAX_FDS
        || !(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)))
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} fds: one message carries at most {MAX_FDS}", fds.len()),
        ));
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(sent)
}
