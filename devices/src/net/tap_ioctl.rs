//! What the tun driver is told by ioctl.
#![expect(unsafe_code, reason = "the tun driver's ioctls have no safe wrapper")]
// UNSAFETY: ioctls of the tun driver, none of which keeps an address.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::backend::Offloads;

mod request {
    use nix::libc;
    // The numbers say `unsigned int`; what goes there is said here (linux/if_tun.h).
    nix::ioctl_write_ptr_bad!(
        tunsetiff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int_bad!(
        tunsetoffload,
        nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>())
    );
    nix::ioctl_read_bad!(
        tungetiff,
        nix::request_code_read!(b'T', 210, size_of::<libc::c_uint>()),
        libc::ifreq
    );
    nix::ioctl_write_ptr!(tunsetsndbuf, b'T', 212, libc::c_int);
    nix::ioctl_write_ptr!(tunsetvnethdrsz, b'T', 216, libc::c_int);
    nix::ioctl_write_ptr_bad!(
        tunsetqueue,
        nix::request_code_write!(b'T', 217, size_of::<libc::c_int>()),
        libc::ifreq
    );
}

/// What a queue of a tap interface says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nature {
    /// The interface.
    pub(super) name: String,
    /// Whether packets carry a virtio header.
    pub(super) header: bool,
    /// Whether the interface has several queues.
    pub(super) multi_queue: bool,
}

fn zeroed() -> libc::ifreq {
    // SAFETY: an all-zero `ifreq` is a valid one.
    unsafe { mem::zeroed() }
}

fn with_flags(flags: libc::c_int) -> libc::ifreq {
    let mut interface = zeroed();
    // The flags that are used here are below 0x8000; the driver's field is a short.
    interface.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(0);
    interface
}

/// Makes the open tun device a queue of the interface `name`.
pub(super) fn take_queue(
    fd: BorrowedFd<'_>,
    name: &str,
    header: bool,
    multi_queue: bool,
) -> io::Result<()> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
    if header {
        flags |= libc::IFF_VNET_HDR;
    }
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut interface = with_flags(flags);
    // The last byte stays the zero at the end.
    if name.len() >= interface.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in interface.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: `fd` is open for the length of the call, and the kernel reads one `ifreq`.
    unsafe { request::tunsetiff(fd.as_raw_fd(), &raw const interface)? };
    Ok(())
}

/// Asks a queue what it is.
pub(super) fn nature(fd: BorrowedFd<'_>) -> io::Result<Nature> {
    let mut interface = zeroed();
    // SAFETY: `fd` is open for the length of the call, and the kernel writes one `ifreq`.
    unsafe { request::tungetiff(fd.as_raw_fd(), &raw mut interface)? };
    // SAFETY: for this call the kernel fills the member for flags, and it was zero before.
    let flags = libc::c_int::from(unsafe { interface.ifr_ifru.ifru_flags });
    let name = interface.ifr_name.iter().map(|byte| byte.cast_unsigned());
    let name: Vec<u8> = name.take_while(|byte| *byte != 0).collect();
    Ok(Nature {
        name: String::from_utf8_lossy(&name).into_owned(),
        header: flags & libc::IFF_VNET_HDR != 0,
        multi_queue: flags & libc::IFF_MULTI_QUEUE != 0,
    })
}

/// Sets the length of the header before each packet.
pub(super) fn set_header(fd: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    // SAFETY: `fd` is open for the length of the call, and the kernel reads one int.
    unsafe { request::tunsetvnethdrsz(fd.as_raw_fd(), &raw const bytes)? };
    Ok(())
}

/// Says which packets may be given.
pub(super) fn set_offloads(fd: BorrowedFd<'_>, offloads: Offloads) -> io::Result<()> {
    let bits = libc::c_int::try_from(offloads.bits()).unwrap_or(0);
    // SAFETY: `fd` is open for the length of the call, which touches no memory of ours.
    unsafe { request::tunsetoffload(fd.as_raw_fd(), bits)? };
    Ok(())
}

/// Limits how many bytes may be on their way.
pub(super) fn set_sndbuf(fd: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    // SAFETY: `fd` is open for the length of the call, and the kernel reads one int.
    unsafe { request::tunsetsndbuf(fd.as_raw_fd(), &raw const bytes)? };
    Ok(())
}

/// Has the interface use this queue, or not.
pub(super) fn use_queue(fd: BorrowedFd<'_>, used: bool) -> io::Result<()> {
    let flag = if used {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    let interface = with_flags(flag);
    // SAFETY: `fd` is open for the length of the call, and the kernel reads one `ifreq`.
    unsafe { request::tunsetqueue(fd.as_raw_fd(), &raw const interface)? };
    Ok(())
}
