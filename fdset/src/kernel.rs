//! The calls for which no safe wrapper exists.

#![expect(unsafe_code, reason = "ioctls, and taking over an inherited fd")]
// UNSAFETY: the ioctls have no safe wrapper, and an fd that came by inheritance is only a number
// until somebody vouches for it.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;

mod request {
    use nix::libc;
    nix::ioctl_read!(blkgetsize64, 0x12, 114, libc::size_t);
    // The number says `unsigned int`; what the kernel writes is a whole `ifreq`.
    nix::ioctl_read_bad!(
        tungetiff,
        nix::request_code_read!(b'T', 210, size_of::<libc::c_uint>()),
        libc::ifreq
    );
    nix::ioctl_read!(tiocgptn, b'T', 0x30, libc::c_uint);
    nix::ioctl_write_int_bad!(
        tiocgptpeer,
        libc::TIOCGPTPEER as nix::sys::ioctl::ioctl_num_type
    );
    // With an explicit argument of 0: KVM refuses any other.
    nix::ioctl_write_int_bad!(kvm_get_api_version, nix::request_code_none!(0xAE, 0x00));
}

/// The size of a block device in bytes.
pub(crate) fn block_device_size(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: `fd` is open for the length of the call, and the kernel writes one u64 (its number
    // says size_t, which is the same on the 64-bit hosts we run on) into `bytes`.
    unsafe { request::blkgetsize64(fd.as_raw_fd(), &raw mut bytes)? };
    u64::try_from(bytes).map_err(io::Error::other)
}

/// Whether `fd`, which is the tun device, is a queue of a tap interface.
pub(crate) fn is_tap_queue(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: an all-zero `ifreq` is a valid one.
    let mut interface: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: `fd` is open for the length of the call, and the kernel writes one `ifreq`.
    let asked = unsafe { request::tungetiff(fd.as_raw_fd(), &raw mut interface) };
    // SAFETY: for this call the kernel fills the member for flags, and it was zero before.
    let flags = unsafe { interface.ifr_ifru.ifru_flags };
    asked.is_ok() && libc::c_int::from(flags) & libc::IFF_TAP != 0
}

/// The number of the pty whose first end `fd` is.
pub(crate) fn pty_number(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    let mut number = 0;
    // SAFETY: `fd` is open for the length of the call, and the kernel writes one int.
    unsafe { request::tiocgptn(fd.as_raw_fd(), &raw mut number)? };
    Ok(number)
}

/// Opens the other end of the pty whose first end `fd` is, whatever its path.
pub(crate) fn open_pty_peer(fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: `fd` is open for the length of the call, which touches no memory of ours.
    let peer = unsafe { request::tiocgptpeer(fd.as_raw_fd(), flags)? };
    // SAFETY: the kernel has just made this fd, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(peer) })
}

/// The version that the KVM device `fd` speaks.
pub(crate) fn kvm_api_version(fd: BorrowedFd<'_>) -> nix::Result<i32> {
    // SAFETY: `fd` is open for the length of the call, which touches no memory of ours.
    unsafe { request::kvm_get_api_version(fd.as_raw_fd(), 0) }
}

/// Sets or clears a flag of the socket `fd` (`SOL_SOCKET`).
pub(crate) fn set_socket_flag(fd: BorrowedFd<'_>, option: i32, value: bool) -> nix::Result<()> {
    let value = libc::c_int::from(value);
    let size = libc::socklen_t::try_from(size_of_val(&value)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `fd` is open for the length of the call, and the kernel reads one int at `value`.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size,
        )
    };
    Errno::result(done).map(drop)
}

/// The supplementary groups of the process that is connected to the socket `fd`, as they were when
/// it connected.
pub(crate) fn peer_groups(fd: BorrowedFd<'_>) -> nix::Result<Vec<libc::gid_t>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let room = size_of_val(groups.as_slice());
        let mut size = libc::socklen_t::try_from(room).map_err(|_| Errno::EINVAL)?;
        // SAFETY: `fd` is open for the length of the call, and the kernel writes at most `size`
        // bytes at `groups`, which has that many, and the size into `size`.
        let done = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        let came = usize::try_from(size).unwrap_or(0) / size_of::<libc::gid_t>();
        match Errno::result(done) {
            Ok(_) => {
                groups.truncate(came);
                return Ok(groups);
            }
            // There are more, and it says how many: a number that never changes again.
            Err(Errno::ERANGE) if came > groups.len() => groups.resize(came, 0),
            Err(error) => return Err(error),
        }
    }
}

/// What became of an inherited number.
pub(crate) enum Claim<E> {
    /// It is ours now, and close-on-exec.
    Taken(OwnedFd),
    /// It is close-on-exec: nobody passed it, we opened it ourselves.
    Ours,
    /// The caller's check found fault with it; it is untouched.
    Unfit(E),
}

/// Whether something is behind `number` that would outlive an exec: what this process opens does
/// not.
pub(crate) fn is_inherited(number: RawFd) -> bool {
    // SAFETY: the number is not -1, and the borrow ends with this one call, which fails with EBADF
    // if no file is behind it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(borrowed, FcntlArg::F_GETFD)
        .is_ok_and(|flags| !FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC))
}

/// Takes over the inherited fd `number` if `check` finds nothing wrong with it. The caller has
/// made sure that this happens at most once for a number, and that it is not negative.
pub(crate) fn take_inherited<E>(
    number: RawFd,
    check: impl FnOnce(BorrowedFd<'_>) -> Result<(), E>,
) -> io::Result<Claim<E>> {
    // SAFETY: the number is not -1, and the borrow ends before anything of this process could
    // close it; if no file is behind it, the first call fails with EBADF and nothing is touched.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = FdFlag::from_bits_retain(fcntl(borrowed, FcntlArg::F_GETFD)?);
    if flags.contains(FdFlag::FD_CLOEXEC) {
        return Ok(Claim::Ours);
    }
    if let Err(fault) = check(borrowed) {
        return Ok(Claim::Unfit(fault));
    }
    fcntl(borrowed, FcntlArg::F_SETFD(flags | FdFlag::FD_CLOEXEC))?;
    // SAFETY: the fd is open, and it was not close-on-exec. Everything that this process opens is
    // close-on-exec from birth, so it was inherited; the registry hands out each number once, so
    // nobody else owns it.
    Ok(Claim::Taken(unsafe { OwnedFd::from_raw_fd(number) }))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_peer_is_in_the_groups_that_its_process_was_in() {
        let (ours, _theirs) = UnixStream::pair().expect("a socket pair");
        let own = nix::unistd::getgroups().expect("our groups");
        let own: Vec<_> = own.into_iter().map(nix::unistd::Gid::as_raw).collect();
        assert_eq!(peer_groups(ours.as_fd()), Ok(own));
        let (reader, _writer) = nix::unistd::pipe().expect("a pipe");
        assert_eq!(peer_groups(reader.as_fd()), Err(Errno::ENOTSOCK));
    }
}
