//! What will be opened: a request that outlives whoever makes it, and what would do.

use std::os::fd::BorrowedFd;

use nix::sys::stat::fstat;
use rustix::net::sockopt::socket_acceptconn;

use crate::lease::FileType;
use crate::request::{Access, Create, Request, Role};

/// What an fd must lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// A regular file; a memfd is one.
    RegularFile,
    /// A block device.
    BlockDevice,
    /// The KVM device. Only KVM itself can tell, so any character device passes here.
    Kvm,
    /// Anything that bytes can be read from or written to.
    Stream,
    /// A stream socket after `listen(2)`.
    ListeningSocket,
    /// One end of a connection.
    ConnectedSocket,
}

impl Expected {
    /// As errors write it.
    #[must_use]
    pub fn noun(self) -> &'static str {
        match self {
            Self::RegularFile => "a regular file",
            Self::BlockDevice => "a block device",
            Self::Kvm => "the KVM device",
            Self::Stream => "something to read from or write to",
            Self::ListeningSocket => "a listening socket",
            Self::ConnectedSocket => "a connected socket",
        }
    }

    /// Whether an access mode means anything for it.
    fn is_socket(self) -> bool {
        matches!(self, Self::ListeningSocket | Self::ConnectedSocket)
    }

    /// What is wrong with `fd`, as what came instead.
    fn fault(self, fd: BorrowedFd<'_>) -> Option<String> {
        let Ok(stat) = fstat(fd) else {
            return Some("an fd that cannot be looked at".to_owned());
        };
        let came = FileType::of(&stat);
        let listening = || socket_acceptconn(fd).is_ok_and(|listening| listening);
        let fits = match self {
            Self::RegularFile => came == FileType::Regular,
            Self::BlockDevice => came == FileType::BlockDevice,
            Self::Kvm => came == FileType::CharDevice,
            Self::Stream => match came {
                FileType::Regular | FileType::CharDevice | FileType::Fifo => true,
                FileType::BlockDevice | FileType::Directory | FileType::Other => false,
                FileType::Socket => rustix::net::getpeername(fd).is_ok(),
            },
            Self::ListeningSocket => came == FileType::Socket && listening(),
            Self::ConnectedSocket => {
                came == FileType::Socket && rustix::net::getpeername(fd).is_ok()
            }
        };
        let noun = match came {
            FileType::Regular => "a regular file",
            FileType::BlockDevice => "a block device",
            FileType::CharDevice => "a character device",
            FileType::Fifo => "a pipe",
            FileType::Socket if listening() => "a listening socket",
            FileType::Socket if rustix::net::getpeername(fd).is_ok() => "a connected socket",
            FileType::Socket => "a socket that neither listens nor is connected",
            FileType::Directory => "a directory",
            FileType::Other => "an fd that is no file",
        };
        (!fits).then(|| noun.to_owned())
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
        let mut request = Request::new(&self.name, self.access, self.role, &self.reason);
        request.create = self.create;
        request.direct = self.direct;
        request
    }

    /// What `fd` is instead of what is wished for; `None` if it will do.
    pub(super) fn fault(&self, fd: BorrowedFd<'_>) -> Option<String> {
        if let Some(fault) = self.expected.fault(fd) {
            return Some(fault);
        }
        if self.expected.is_socket() {
            return None;
        }
        match Access::of(fd) {
            Some(came) if came.covers(self.access) => None,
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
