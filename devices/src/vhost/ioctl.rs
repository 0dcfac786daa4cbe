//! What the kernel's vhost is told by ioctl (`linux/vhost.h`).
#![expect(unsafe_code, reason = "vhost's ioctls have no safe wrapper")]
// UNSAFETY: ioctls of vhost. The kernel copies what they point to during the call. What it is told
// of memory here, it uses later as this process would: whoever calls must keep that mapped, which
// is said where it is called.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const VHOST: u8 = 0xaf;

/// `struct vhost_memory_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Region {
    pub(super) guest: u64,
    pub(super) size: u64,
    pub(super) here: u64,
    pub(super) padding: u64,
}

/// The most regions that a table has here: what the kernel takes unless it is told otherwise.
pub(super) const MOST_REGIONS: usize = 64;

/// `struct vhost_memory`, with room for all regions.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Table {
    pub(super) count: u32,
    pub(super) padding: u32,
    pub(super) regions: [Region; MOST_REGIONS],
}

/// `struct vhost_vring_state`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    pub(super) index: u32,
    pub(super) number: u32,
}

/// `struct vhost_vring_file`; -1 for no file.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct File {
    pub(super) index: u32,
    pub(super) fd: i32,
}

/// `struct vhost_vring_addr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) index: u32,
    pub(super) flags: u32,
    pub(super) descriptors: u64,
    pub(super) used: u64,
    pub(super) available: u64,
    pub(super) log: u64,
}

mod request {
    use super::{Addresses, File, State, Table, VHOST};
    nix::ioctl_read!(get_features, VHOST, 0x00, u64);
    nix::ioctl_write_ptr!(set_features, VHOST, 0x00, u64);
    nix::ioctl_write_int_bad!(set_owner, nix::request_code_none!(VHOST, 0x01));
    nix::ioctl_write_int_bad!(reset_owner, nix::request_code_none!(VHOST, 0x02));
    // The number says the size of the table's head alone.
    nix::ioctl_write_ptr_bad!(
        set_mem_table,
        nix::request_code_write!(VHOST, 0x03, size_of::<u64>()),
        Table
    );
    nix::ioctl_write_ptr!(set_vring_num, VHOST, 0x10, State);
    nix::ioctl_write_ptr!(set_vring_addr, VHOST, 0x11, Addresses);
    nix::ioctl_write_ptr!(set_vring_base, VHOST, 0x12, State);
    nix::ioctl_readwrite!(get_vring_base, VHOST, 0x12, State);
    nix::ioctl_write_ptr!(set_vring_kick, VHOST, 0x20, File);
    nix::ioctl_write_ptr!(set_vring_call, VHOST, 0x21, File);
    nix::ioctl_write_ptr!(set_vring_err, VHOST, 0x22, File);
    nix::ioctl_write_ptr!(net_set_backend, VHOST, 0x30, File);
    nix::ioctl_write_ptr!(vsock_set_guest_cid, VHOST, 0x60, u64);
    nix::ioctl_write_ptr!(vsock_set_running, VHOST, 0x61, libc::c_int);
}

/// A request that reads one value.
macro_rules! tell {
    ($($(#[$doc:meta])* $name:ident($value:ty);)*) => {$(
        $(#[$doc])*
        pub(super) fn $name(fd: BorrowedFd<'_>, value: $value) -> io::Result<()> {
            // SAFETY: `fd` is open for the length of the call, and the kernel reads one value.
            unsafe { request::$name(fd.as_raw_fd(), &raw const value)? };
            Ok(())
        }
    )*};
}

tell! {
    /// Says which features are used.
    set_features(u64);
    /// Says how many descriptors a queue has.
    set_vring_num(State);
    /// Says where a queue's rings are. They must stay mapped while the queue has a backend.
    set_vring_addr(Addresses);
    /// Says which chain is next.
    set_vring_base(State);
    /// Says who tells of new chains.
    set_vring_kick(File);
    /// Says whom to tell of used chains.
    set_vring_call(File);
    /// Says whom to tell of broken rules.
    set_vring_err(File);
    /// Says which tap a queue of vhost-net works for; from then on it works.
    net_set_backend(File);
    /// Says what the guest is called.
    vsock_set_guest_cid(u64);
    /// Has vhost-vsock work on its queues, or not.
    vsock_set_running(libc::c_int);
}

/// Asks for the features that there are.
pub(super) fn get_features(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut features = 0;
    // SAFETY: `fd` is open for the length of the call, and the kernel writes one number.
    unsafe { request::get_features(fd.as_raw_fd(), &raw mut features)? };
    Ok(features)
}

/// Makes this process the one whose memory is meant.
pub(super) fn set_owner(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `fd` is open for the length of the call, which touches no memory of ours.
    unsafe { request::set_owner(fd.as_raw_fd(), 0)? };
    Ok(())
}

/// Lets go of this process; where it is done, another can be the owner.
pub(super) fn reset_owner(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: as for `set_owner`.
    unsafe { request::reset_owner(fd.as_raw_fd(), 0)? };
    Ok(())
}

/// Says where guest memory is. It must stay mapped until another table is set, or the fd is closed.
pub(super) fn set_mem_table(fd: BorrowedFd<'_>, table: &Table) -> io::Result<()> {
    // SAFETY: `fd` is open for the length of the call, and the kernel reads as many regions as the
    // table says, at most as many as it has room for.
    unsafe { request::set_mem_table(fd.as_raw_fd(), table)? };
    Ok(())
}

/// Asks which chain is next. The queue has no backend.
pub(super) fn get_vring_base(fd: BorrowedFd<'_>, index: u32) -> io::Result<u32> {
    let mut state = State { index, number: 0 };
    // SAFETY: `fd` is open for the length of the call, and the kernel reads and writes one `State`.
    unsafe { request::get_vring_base(fd.as_raw_fd(), &raw mut state)? };
    Ok(state.number)
}
