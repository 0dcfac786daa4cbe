//! What will be opened: a request that outlives whoever makes it, and what would do.

use std::os::fd::BorrowedFd;

use crate::kind::{Kind, Nature};
use crate::request::{Access, Create, Request, Role};

/// What an fd must lead to: a manager that opens it has to know no finer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// A regular file; a memfd is one.
    RegularFile,
    /// Something to map as guest memory, or a directory to make a file for it in.
    Memory,
    /// A block device.
    BlockDevice,
    /// The KVM device.
    Kvm,
    /// Anything that bytes can be read from or written to.
    Stream,
    /// The first end of a pty.
    Terminal,
    /// A stream socket after `listen(2)`.
    ListeningSocket,
    /// One end of a connection.
    ConnectedSocket,
    /// A datagram socket.
    DatagramSocket,
    /// A queue of a tap interface.
    Tap,
    /// The vhost-net device.
    VhostNet,
    /// The vhost-vsock device.
    VhostVsock,
}

impl Expected {
    /// As errors write it.
    #[must_use]
    pub fn noun(self) -> &'static str {
        match self {
            Self::RegularFile => "a regular file",
            Self::Memory => "a file, memfd or directory for guest memory",
            Self::BlockDevice => "a block device",
            Self::Kvm => "the KVM device",
            Self::Stream => "something to read from or write to",
            Self::Terminal => "the first end of a pty",
            Self::ListeningSocket => "a listening socket",
            Self::ConnectedSocket => "a connected socket",
            Self::DatagramSocket => "a datagram socket",
            Self::Tap => "a queue of a tap interface",
            Self::VhostNet => "the vhost-net device",
            Self::VhostVsock => "the vhost-vsock device",
        }
    }

    /// The kinds that will do.
    #[must_use]
    pub fn kinds(self) -> &'static [Kind] {
        match self {
            Self::RegularFile => &[Kind::File, Kind::Memfd],
            Self::Memory => Role::Memory.kinds(),
            Self::BlockDevice => &[Kind::BlockDevice],
            Self::Kvm => &[Kind::Kvm],
            Self::Stream => Role::Chardev.kinds(),
            Self::Terminal => &[Kind::Terminal],
            Self::ListeningSocket => &[Kind::UnixListener, Kind::InetListener, Kind::VsockListener],
            Self::ConnectedSocket => &[Kind::UnixStream, Kind::InetStream, Kind::VsockStream],
            Self::DatagramSocket => &[Kind::UnixDatagram, Kind::InetDatagram],
            Self::Tap => Role::Tap.kinds(),
            Self::VhostNet => &[Kind::VhostNet],
            Self::VhostVsock => &[Kind::VhostVsock],
        }
    }

    /// Whether an access mode means nothing for it.
    fn is_socket(self) -> bool {
        matches!(
            self,
            Self::ListeningSocket | Self::ConnectedSocket | Self::DatagramSocket
        )
    }
}

/// Something that will be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// `fd:NAME`, `/dev/fdset/N`, or a path.
    pub name: String,
    /// The access wanted; read-write for sockets.
    pub access: Access,
    /// What it is for.
    pub role: Role,
    /// For whom.
    pub reason: String,
    /// What it must be.
    pub expected: Expected,
    /// Leave to create.
    pub create: Option<Create>,
    /// `O_DIRECT`.
    pub direct: bool,
}

impl Wish {
    /// A wish for what `request` asks, which must be `expected`.
    #[must_use]
    pub fn new(request: &Request<'_>, expected: Expected) -> Self {
        Self {
            name: request.name.to_owned(),
            access: request.access,
            role: request.role,
            reason: request.reason.to_owned(),
            expected,
            create: request.create,
            direct: request.direct,
        }
    }

    /// The same as an open would put it.
    #[must_use]
    pub fn request(&self) -> Request<'_> {
        let mut request = Request::new(&self.name, self.access, self.role, &self.reason)
            .kinds(self.expected.kinds());
        request.create = self.create;
        request.direct = self.direct;
        request.unnamed = self.expected == Expected::Memory;
        request
    }

    /// What `fd` is instead of what is wished for; `None` if it will do.
    pub(super) fn fault(&self, fd: BorrowedFd<'_>) -> Option<String> {
        let nature = Nature::of(fd);
        let request = self.request();
        if !request.takes(nature.kind) {
            return Some(nature.kind.to_string());
        }
        match nature.access {
            _ if self.expected.is_socket() || request.is_served_by(nature) => None,
            Some(came) => Some(format!("a {came} fd")),
            None => Some("an fd that gives no access (O_PATH)".to_owned()),
        }
    }

    /// What would do, as errors write it.
    pub(super) fn wanted(&self) -> String {
        if self.expected.is_socket() {
            return self.expected.noun().to_owned();
        }
        format!("{}, {}", self.expected.noun(), self.access)
    }
}
