//! What an opener says about itself: which name, which access, for which role, and why.

use std::fmt;
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::kind::{Kind, Nature};

/// How a file is to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// Only read (`O_RDONLY`).
    ReadOnly,
    /// Only written (`O_WRONLY`).
    WriteOnly,
    /// Both (`O_RDWR`).
    ReadWrite,
}

impl Access {
    /// The access mode an fd came with; `None` for an `O_PATH` fd, which gives no access at all.
    pub(crate) fn of(fd: impl AsFd) -> Option<Self> {
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).ok()?);
        if flags.contains(OFlag::O_PATH) {
            return None;
        }
        match flags & OFlag::O_ACCMODE {
            OFlag::O_RDONLY => Some(Self::ReadOnly),
            OFlag::O_WRONLY => Some(Self::WriteOnly),
            OFlag::O_RDWR => Some(Self::ReadWrite),
            _ => None,
        }
    }

    /// Whether an fd with this access can serve a request for `wanted`.
    #[must_use]
    pub fn covers(self, wanted: Self) -> bool {
        self == Self::ReadWrite || self == wanted
    }

    /// The flag of `open(2)`.
    pub(crate) fn flag(self) -> OFlag {
        match self {
            Self::ReadOnly => OFlag::O_RDONLY,
            Self::WriteOnly => OFlag::O_WRONLY,
            Self::ReadWrite => OFlag::O_RDWR,
        }
    }

    /// The flag's name as the manuals write it, for errors that say what to pass instead.
    pub(crate) fn flag_name(self) -> &'static str {
        match self {
            Self::ReadOnly => "O_RDONLY",
            Self::WriteOnly => "O_WRONLY",
            Self::ReadWrite => "O_RDWR",
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadOnly => "read-only",
            Self::WriteOnly => "write-only",
            Self::ReadWrite => "read-write",
        })
    }
}

/// What a resource is for. Errors print it, and it decides which [kinds](Role::kinds) will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Role {
    /// The storage of a block node.
    Image,
    /// A backing file that only an image's header names.
    Backing,
    /// An external data file that only an image's header names.
    DataFile,
    /// A guest memory backend.
    Memory,
    /// The guest's kernel.
    Kernel,
    /// The guest's initial RAM disk.
    Initrd,
    /// Firmware, an option ROM, or another blob for the guest.
    Firmware,
    /// The KVM device.
    Kvm,
    /// A character device: file, pty or socket.
    Chardev,
    /// The log file of a character device.
    ChardevLog,
    /// A monitor's socket.
    Monitor,
    /// Which commands a monitor's clients may send.
    Commands,
    /// The connection to the open hook.
    OpenHook,
    /// A source of random bytes.
    Entropy,
    /// A secret.
    Secret,
    /// The file of a filter that writes packets.
    NetDump,
    /// The socket of a network backend.
    Net,
    /// A queue of a tap interface.
    Tap,
    /// A device of the kernel that serves queues.
    Vhost,
    /// A snapshot or migration stream.
    Snapshot,
    /// The file that names our process id.
    PidFile,
    /// The program's own log.
    Log,
    /// An fd given on the command line, whose use is not known yet.
    CommandLine,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Image => "image",
            Self::Backing => "backing file",
            Self::DataFile => "data file",
            Self::Memory => "guest memory",
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Firmware => "firmware",
            Self::Kvm => "KVM device",
            Self::Chardev => "character device",
            Self::ChardevLog => "character device log",
            Self::Monitor => "monitor",
            Self::Commands => "command policy",
            Self::OpenHook => "open hook",
            Self::Entropy => "entropy source",
            Self::Secret => "secret",
            Self::Net => "network backend",
            Self::NetDump => "packet dump",
            Self::Tap => "tap interface",
            Self::Vhost => "vhost device",
            Self::Snapshot => "snapshot",
            Self::PidFile => "pid file",
            Self::Log => "log",
            Self::CommandLine => "command line fd",
        })
    }
}

/// What to do when the file to be created is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Open it as it is.
    Keep,
    /// Open it and cut it to nothing.
    Truncate,
    /// Open it and write at its end.
    Append,
    /// Fail.
    Refuse,
}

/// Leave to create a missing file. It concerns real paths only: a passed fd is used as it came,
/// neither cut nor turned into append mode, because its manager decided that when opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Create {
    /// Permission bits of a new file, before the umask; 0 to 0o7777.
    pub mode: u32,
    /// What happens to a file that exists.
    pub existing: Existing,
}

/// One wish to open something. Made by [`Request::new`] and refined by the chained methods, so
/// that a new aspect never touches existing callers.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Request<'a> {
    /// `fd:NAME`, `/dev/fdset/N`, or a path.
    pub name: &'a str,
    /// The access wanted.
    pub access: Access,
    /// What it is for.
    pub role: Role,
    /// The kinds of file that will do; empty for all. At first those of the role.
    pub kinds: &'a [Kind],
    /// For whom: a device, a node or a command line option, as `node 'disk0'`. Printed in errors.
    pub reason: &'a str,
    /// Leave to create.
    pub create: Option<Create>,
    /// `O_DIRECT`: of a set, a member with that flag is preferred; a real path is opened with it.
    pub direct: bool,
    /// A directory will do: a file without a name is made in it.
    pub unnamed: bool,
    /// `O_NONBLOCK` on the opening of a real path: for FIFOs and terminals, whose open may block.
    pub nonblocking: bool,
}

impl<'a> Request<'a> {
    /// A wish to open `name`, with nothing special about it.
    #[must_use]
    pub fn new(name: &'a str, access: Access, role: Role, reason: &'a str) -> Self {
        Self {
            name,
            access,
            role,
            kinds: role.kinds(),
            reason,
            create: None,
            direct: false,
            unnamed: false,
            nonblocking: false,
        }
    }

    /// With other kinds than those of the role; empty for all.
    #[must_use]
    pub fn kinds(mut self, kinds: &'a [Kind]) -> Self {
        self.kinds = kinds;
        self
    }

    /// Whether a file of this kind will do.
    #[must_use]
    pub fn takes(&self, kind: Kind) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&kind) || self.is_place(kind)
    }

    /// Whether it is a place in which the file is to be made.
    pub(crate) fn is_place(&self, kind: Kind) -> bool {
        self.unnamed && kind == Kind::Directory
    }

    /// Whether a file with this nature can do what is wanted. A directory is only ever read.
    pub(crate) fn is_served_by(&self, nature: Nature) -> bool {
        self.is_place(nature.kind) || nature.access.is_some_and(|came| came.covers(self.access))
    }

    /// With leave to create a missing file.
    #[must_use]
    pub fn create(mut self, mode: u32, existing: Existing) -> Self {
        self.create = Some(Create { mode, existing });
        self
    }

    /// With or without `O_DIRECT`.
    #[must_use]
    pub fn direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// Satisfied with a directory too: a new file without a name is then made in it, empty and for
    /// reading and writing, whatever the access wanted.
    #[must_use]
    pub fn or_unnamed_within(mut self) -> Self {
        self.unnamed = true;
        self
    }

    /// With or without `O_NONBLOCK`.
    #[must_use]
    pub fn nonblocking(mut self, nonblocking: bool) -> Self {
        self.nonblocking = nonblocking;
        self
    }
}
