//! What the standard library cannot do with a socket: send fds along.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};

/// Fds that may go along with one request: as many as Linux takes.
const MOST_FDS: usize = 253;

/// Sends the beginning of `bytes`, and all `fds` with it, and returns how many bytes went.
///
/// # Errors
/// Those of `sendmsg`; `InvalidInput` for more than 253 fds.
pub fn send(socket: &impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        let text = format!("{} fds for one request; at most {MOST_FDS} fit", fds.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let bytes = [IoSlice::new(bytes)];
    let sent = retry_on_intr(|| sendmsg(socket, &bytes, &mut ancillary, SendFlags::NOSIGNAL))?;
    Ok(sent)
}

/// Receives bytes; none when the server has ended the session.
///
/// # Errors
/// Those of `recv`.
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    receive_how(socket, buffer, RecvFlags::empty())
}

/// The same without waiting: `WouldBlock` when nothing has come.
pub(crate) fn receive_ready(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    receive_how(socket, buffer, RecvFlags::DONTWAIT)
}

fn receive_how(socket: &impl AsFd, buffer: &mut [u8], how: RecvFlags) -> io::Result<usize> {
    let (received, _) = retry_on_intr(|| recv(socket, &mut *buffer, how))?;
    Ok(received)
}
