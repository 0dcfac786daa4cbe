//! What an fd is: the kinds that roles tell apart, and what each role takes.
//!
//! ```text
//!   getfd, add-fd ──► Nature::of(fd) ──► does it have the kind that was announced?   else refused
//!                          │ kept beside the fd
//!   open(.., role) ────────┴──────────► is it a kind that the role takes?            else refused
//! ```
//!
//! How the kernel is asked is in `probe`.

use std::fmt;
use std::os::fd::AsFd;

use crate::lease::Identity;
use crate::probe;
use crate::request::{Access, Role};

/// What an fd leads to, as precisely as a role may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A regular file with a name or without, but not in memory only.
    File,
    /// A file in memory without a name: a memfd, or an unlinked file of tmpfs or hugetlbfs.
    Memfd,
    /// A directory.
    Directory,
    /// A block device.
    BlockDevice,
    /// A character device without a kind of its own: `/dev/null`, `/dev/dax0.0`.
    CharDevice,
    /// A terminal or one end of a pty.
    Terminal,
    /// A pipe or FIFO.
    Fifo,
    /// A unix stream socket that listens.
    UnixListener,
    /// A unix stream socket that is connected.
    UnixStream,
    /// A unix datagram socket.
    UnixDatagram,
    /// A TCP socket that listens.
    InetListener,
    /// A TCP socket that is connected.
    InetStream,
    /// A UDP socket.
    InetDatagram,
    /// A vsock stream socket that listens.
    VsockListener,
    /// A vsock stream socket that is connected.
    VsockStream,
    /// A socket that is none of the above: of another family, or neither listening nor connected.
    Socket,
    /// A queue of a tap interface.
    Tap,
    /// The tun device: a queue of a tun interface, or not yet of any.
    Tun,
    /// The KVM device.
    Kvm,
    /// The vhost-net device.
    VhostNet,
    /// The vhost-vsock device.
    VhostVsock,
    /// A VFIO device (`/dev/vfio/devices/vfioN`).
    Vfio,
    /// The IOMMU device (`/dev/iommu`).
    Iommufd,
    /// An eventfd.
    Eventfd,
    /// A place in a file system (`O_PATH`), which gives no access to what is there.
    Path,
    /// A kernel object of another kind.
    Other,
}

/// Every kind: its name for clients, and for sentences.
const NAMES: &[(Kind, &str, &str)] = &[
    (Kind::File, "file", "a regular file"),
    (Kind::Memfd, "memfd", "a memfd"),
    (Kind::Directory, "directory", "a directory"),
    (Kind::BlockDevice, "block-device", "a block device"),
    (Kind::CharDevice, "char-device", "a character device"),
    (Kind::Terminal, "terminal", "a terminal"),
    (Kind::Fifo, "fifo", "a pipe"),
    (
        Kind::UnixListener,
        "unix-listener",
        "a listening unix socket",
    ),
    (Kind::UnixStream, "unix-stream", "a connected unix socket"),
    (
        Kind::UnixDatagram,
        "unix-datagram",
        "a unix datagram socket",
    ),
    (
        Kind::InetListener,
        "inet-listener",
        "a listening TCP socket",
    ),
    (Kind::InetStream, "inet-stream", "a connected TCP socket"),
    (Kind::InetDatagram, "inet-datagram", "a UDP socket"),
    (
        Kind::VsockListener,
        "vsock-listener",
        "a listening vsock socket",
    ),
    (
        Kind::VsockStream,
        "vsock-stream",
        "a connected vsock socket",
    ),
    (
        Kind::Socket,
        "socket",
        "a socket that neither listens nor is connected",
    ),
    (Kind::Tap, "tap", "a tap interface"),
    (Kind::Tun, "tun", "a tun device without a tap interface"),
    (Kind::Kvm, "kvm", "the KVM device"),
    (Kind::VhostNet, "vhost-net", "the vhost-net device"),
    (Kind::VhostVsock, "vhost-vsock", "the vhost-vsock device"),
    (Kind::Vfio, "vfio", "a VFIO device"),
    (Kind::Iommufd, "iommufd", "the IOMMU device"),
    (Kind::Eventfd, "eventfd", "an eventfd"),
    (Kind::Path, "path", "an O_PATH fd"),
    (Kind::Other, "other", "a kernel object of no known kind"),
];

impl Kind {
    /// The name that clients use, such as `block-device`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.names().0
    }

    /// The kind of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES
            .iter()
            .find(|(_, of, _)| *of == name)
            .map(|(kind, ..)| *kind)
    }

    /// Every kind.
    pub fn all() -> impl Iterator<Item = Self> {
        NAMES.iter().map(|(kind, ..)| *kind)
    }

    fn names(self) -> (&'static str, &'static str) {
        NAMES
            .iter()
            .find(|(kind, ..)| *kind == self)
            .map_or(("other", "an fd"), |(_, name, noun)| (*name, *noun))
    }
}

/// With its article, for a sentence: `a block device`.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.names().1)
    }
}

/// What there is to know of an fd without using it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nature {
    /// What it is.
    pub kind: Kind,
    /// How it may be used; `None` for an `O_PATH` fd.
    pub access: Option<Access>,
    /// Which file it is; `None` when the kernel would not say.
    pub identity: Option<Identity>,
}

impl Nature {
    /// Asks the kernel about `fd`.
    #[must_use]
    pub fn of(fd: impl AsFd) -> Self {
        probe::nature(fd.as_fd())
    }
}

const STORAGE: &[Kind] = &[Kind::File, Kind::BlockDevice, Kind::Memfd];

/// What can be read or written from one end to the other.
const STREAM: &[Kind] = &[
    Kind::File,
    Kind::Memfd,
    Kind::BlockDevice,
    Kind::CharDevice,
    Kind::Terminal,
    Kind::Fifo,
    Kind::UnixStream,
    Kind::InetStream,
    Kind::VsockStream,
];

/// What packets can go through.
const NET: &[Kind] = &[
    Kind::UnixStream,
    Kind::InetStream,
    Kind::VsockStream,
    Kind::UnixDatagram,
    Kind::InetDatagram,
];

impl Role {
    /// The kinds that this role takes from [`open`](crate::open()) unless the request says
    /// otherwise; empty where every kind will do.
    #[must_use]
    pub fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Image
            | Self::Backing
            | Self::DataFile
            | Self::Kernel
            | Self::Initrd
            | Self::Firmware => STORAGE,
            Self::Memory => &[Kind::File, Kind::Memfd],
            Self::Kvm => &[Kind::Kvm],
            Self::PidFile | Self::Secret => &[Kind::File, Kind::Memfd],
            Self::Commands => &[Kind::File, Kind::Memfd, Kind::Fifo],
            Self::Net => NET,
            Self::Tap => &[Kind::Tap],
            Self::Vhost => &[Kind::VhostNet, Kind::VhostVsock],
            Self::Chardev
            | Self::ChardevLog
            | Self::NetDump
            | Self::Monitor
            | Self::Entropy
            | Self::Snapshot
            | Self::Log => STREAM,
            Self::OpenHook => &[Kind::UnixStream],
            Self::CommandLine => &[],
        }
    }
}

impl Role {
    /// Whether all that is passed for one name must be one file: opened again with another access
    /// mode, it must still be what it was.
    pub(crate) fn is_one_file(self) -> bool {
        matches!(
            self,
            Self::Image
                | Self::Backing
                | Self::DataFile
                | Self::Kernel
                | Self::Initrd
                | Self::Firmware
                | Self::Memory
        )
    }
}

/// Kinds in a sentence: `a regular file, a block device or a memfd`.
pub(crate) fn either(kinds: &[Kind]) -> String {
    let mut text = String::new();
    for (at, kind) in kinds.iter().enumerate() {
        if at > 0 {
            text.push_str(if at + 1 == kinds.len() { " or " } else { ", " });
        }
        text.push_str(kind.names().1);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_that_leads_back_to_it() {
        for kind in Kind::all() {
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
            assert!(!kind.to_string().is_empty());
        }
        assert_eq!(Kind::from_name("floppy"), None);
    }

    #[test]
    fn several_kinds_read_as_a_sentence() {
        assert_eq!(either(STORAGE), "a regular file, a block device or a memfd");
        assert_eq!(either(&[Kind::Kvm]), "the KVM device");
        assert_eq!(either(&[]), "");
    }
}
