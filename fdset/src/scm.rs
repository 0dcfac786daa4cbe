//! Fds over unix sockets (`SCM_RIGHTS`).
//!
//! What arrives is an `OwnedFd` before anybody can look at it: an fd that is not wanted is closed
//! by being dropped, on every path, and also when the kernel cut the control data short.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use crate::kernel::set_socket_flag;

/// The most fds that the kernel lets one message carry (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

const ROOM: usize = rustix::cmsg_space!(ScmRights(MAX_FDS));

/// What a socket can be made to bring beside fds: the sender's credentials, its security label
/// (`SO_PASSSEC`), and a pidfd of it (`SO_PASSPIDFD`); `libc` has no names for the last two.
const COMPANIONS: [i32; 3] = [nix::libc::SO_PASSCRED, 34, 76];

/// Lets `socket` bring fds and no other control data. Options belong to the socket and not to the
/// fd, so whoever handed it in may have asked the kernel for more: that would take the room of
/// fds, and a pidfd would be an fd that nobody waits for. What a kernel or a kind of socket does
/// not know needs no refusal.
pub fn expect_only_fds(socket: impl AsFd) {
    for option in COMPANIONS {
        let _ = set_socket_flag(socket.as_fd(), option, false);
    }
}

/// Two sockets that are connected to each other: one of them to be sent to a peer, who is then
/// talked to by the other.
///
/// # Errors
/// The process has no descriptors left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (unix, stream) = (AddressFamily::UNIX, SocketType::STREAM);
    Ok(socketpair(unix, stream, SocketFlags::CLOEXEC, None)?)
}

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

#[cfg(test)]
mod tests {
    use std::io::pipe;
    use std::os::unix::net::UnixStream;

    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;
    use crate::watch::watched;

    #[test]
    fn fds_arrive_in_order_and_close_on_exec() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let (reader, writer) = pipe().expect("a pipe");
        let sent = send_with_fds(&theirs, b"hi", &[reader.as_fd(), writer.as_fd()]);
        assert_eq!(sent.expect("sent"), 2);
        let mut buffer = [0; 16];
        let received = recv_with_fds(&ours, &mut buffer).expect("received");
        assert_eq!(&buffer[..received.bytes], b"hi");
        assert!(!received.truncated);
        let mode = |fd: &OwnedFd| fcntl(fd, FcntlArg::F_GETFL).expect("flags") & 3;
        assert_eq!(received.fds.iter().map(mode).collect::<Vec<_>>(), [0, 1]);
        for fd in &received.fds {
            assert_eq!(fcntl(fd, FcntlArg::F_GETFD), Ok(nix::libc::FD_CLOEXEC));
        }
    }

    #[test]
    fn the_most_that_one_message_may_carry_arrives_whole() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let (reader, _writer) = pipe().expect("a pipe");
        send_with_fds(&theirs, b"x", &[reader.as_fd(); MAX_FDS]).expect("sent");
        let received = recv_with_fds(&ours, &mut [0]).expect("received");
        assert_eq!(received.fds.len(), MAX_FDS);
        assert!(!received.truncated);
    }

    #[test]
    fn a_socket_made_to_bring_more_brings_fds_only() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        for option in COMPANIONS {
            // Not every kernel knows all; what it does not know needs no refusal.
            let _ = set_socket_flag(ours.as_fd(), option, true);
        }
        expect_only_fds(&ours);
        let (writer, watch) = watched();
        let mut fds = vec![theirs.as_fd(); MAX_FDS - 1];
        fds.push(writer.as_fd());
        send_with_fds(&theirs, b"x", &fds).expect("sent");
        drop(fds);
        drop(writer);
        let received = recv_with_fds(&ours, &mut [0]).expect("received");
        assert_eq!(received.fds.len(), MAX_FDS);
        assert!(!received.truncated);
        drop(received);
        assert!(watch.is_closed());
    }

    #[test]
    fn one_fd_too_many_is_refused_and_nothing_is_sent() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let error = send_with_fds(&theirs, b"x", &[ours.as_fd(); MAX_FDS + 1]).expect_err("254");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        ours.set_nonblocking(true).expect("a socket");
        let error = recv_with_fds(&ours, &mut [0]).expect_err("nothing there");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn fds_without_a_byte_are_refused() {
        let (_ours, theirs) = UnixStream::pair().expect("a pair");
        let error = send_with_fds(&theirs, b"", &[theirs.as_fd()]).expect_err("no byte");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn an_fd_that_arrives_without_bytes_is_ours_to_close() {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a pair");
        let (writer, watch) = watched();
        let mut room = [MaybeUninit::uninit(); ROOM];
        let mut control = SendAncillaryBuffer::new(&mut room);
        let fds = [writer.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&theirs, &[], &mut control, SendFlags::empty()).expect("an empty packet");
        drop(writer);
        let received = recv_with_fds(&ours, &mut [0]).expect("received");
        assert_eq!((received.bytes, received.fds.len()), (0, 1));
        assert!(!watch.is_closed());
        drop(received);
        assert!(watch.is_closed());
    }

    #[test]
    fn fds_that_nobody_received_die_with_the_socket() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let (writer, watch) = watched();
        send_with_fds(&theirs, b"x", &[writer.as_fd()]).expect("sent");
        drop((writer, ours));
        assert!(watch.is_closed());
    }

    #[test]
    fn a_client_that_is_gone_is_an_end_and_an_error_but_no_signal() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        drop(theirs);
        let received = recv_with_fds(&ours, &mut [0]).expect("an end");
        assert_eq!((received.bytes, received.fds.len()), (0, 0));
        let error = send_with_fds(&ours, b"x", &[]).expect_err("nobody there");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
