//! Queues of tap interfaces, as a manager makes them.
#![expect(unsafe_code, reason = "the tun driver's ioctl has no safe wrapper")]
// UNSAFETY: TUNSETIFF, which keeps no address.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::libc;

use crate::fds;

mod request {
    use nix::libc;
    nix::ioctl_write_ptr_bad!(
        tunsetiff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
}

/// `count` queues of one new interface, which goes with the last of them. Its name is `name`, or one
/// that the kernel chooses if that is empty.
pub fn queues(name: &str, count: usize) -> Result<Vec<OwnedFd>> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if count > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    // SAFETY: an all-zero `ifreq` is a valid one.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in interface.ifr_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from.cast_signed();
    }
    interface.ifr_ifru.ifru_flags = libc::c_short::try_from(flags)?;
    let open = |_| {
        let queue: OwnedFd = fds::open_rw(Path::new("/dev/net/tun"))?.into();
        // SAFETY: the fd is open for the length of the call, and the kernel reads and writes one
        // `ifreq`: the first call leaves the name that it chose for those that follow.
        unsafe { request::tunsetiff(queue.as_raw_fd(), &raw const interface) }
            .context("a tap interface")?;
        Ok(queue)
    };
    (0..count).map(open).collect()
}
