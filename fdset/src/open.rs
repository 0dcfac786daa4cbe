//! The one open.
//!
//! ```text
//!   name            source                 what the opener gets
//!   fd:NAME         a named fd             the fd itself; the name is used up
//!   /dev/fdset/N    a member of set N      a dup, and a lease on the set
//!   anything else   the file system        a new open file
//! ```
//!
//! The first source that recognises the name answers, for good or ill: a missing `fd:NAME` or a
//! malformed `/dev/fdset/x` is never tried as a path. (A file that is really called `fd:x` is
//! reached as `./fd:x`.)

use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use tracing::debug;

use crate::error::{OpenError, Wanted};
use crate::lease::{Lease, OpenFile};
use crate::registry::Door;
use crate::request::{Access, Existing, Request, Role};
use crate::sets::{FdsetId, NoDup};

const NAMED_PREFIX: &str = "fd:";
const SET_PREFIX: &str = "/dev/fdset/";

/// Opens what `request` asks for.
///
/// A named fd must be able to do what is wanted (an `O_RDWR` one can do all); of a set, the member
/// whose access mode is exactly the wanted one is taken, as QEMU does, preferring one whose
/// `O_DIRECT` flag agrees. A failed open uses nothing up: the name stays.
///
/// # Errors
/// When no source has it, the access does not fit, or the kernel refuses.
pub fn open(door: &Door, request: &Request<'_>) -> Result<OpenFile, OpenError> {
    let opened = if let Some(name) = request.name.strip_prefix(NAMED_PREFIX) {
        open_named(door, name, request)
    } else if let Some(id) = request.name.strip_prefix(SET_PREFIX) {
        open_set(door, id, request)
    } else {
        open_path(request).map(|fd| OpenFile::new(fd, None))
    };
    debug!(
        name = request.name,
        access = %request.access,
        role = %request.role,
        reason = request.reason,
        opened = opened.is_ok(),
        "open"
    );
    opened
}

/// The null device.
///
/// # Errors
/// When the kernel refuses.
pub fn null(door: &Door, access: Access, role: Role, reason: &str) -> Result<OpenFile, OpenError> {
    open(door, &Request::new("/dev/null", access, role, reason))
}

/// Whether `name` leads to a passed fd and not into the file system.
pub(crate) fn is_passed(name: &str) -> bool {
    name.starts_with(NAMED_PREFIX) || name.starts_with(SET_PREFIX)
}

fn open_named(door: &Door, name: &str, request: &Request<'_>) -> Result<OpenFile, OpenError> {
    let wanted = || Wanted::from(request);
    match door.registry().take_if(door.scope(), name, request.access) {
        Some(Ok(fd)) => Ok(OpenFile::new(fd, None)),
        Some(Err(came)) => Err(OpenError::WrongAccess {
            wanted: wanted(),
            came,
        }),
        None => Err(OpenError::NoSuchName { wanted: wanted() }),
    }
}

fn open_set(door: &Door, id: &str, request: &Request<'_>) -> Result<OpenFile, OpenError> {
    let wanted = || Wanted::from(request);
    let set = FdsetId::parse(id).ok_or_else(|| OpenError::MalformedSet { wanted: wanted() })?;
    match door.registry().dup(set, request.access, request.direct) {
        Ok(fd) => {
            let lease = Lease::counted(door.registry().clone(), set);
            Ok(OpenFile::new(fd, Some(lease)))
        }
        Err(NoDup::NoSuchSet) => Err(OpenError::NoSuchSet {
            wanted: wanted(),
            set,
        }),
        Err(NoDup::NoMember(came)) => Err(OpenError::NoMember {
            wanted: wanted(),
            set,
            came,
        }),
        Err(NoDup::Os(source)) => Err(OpenError::os(wanted(), source)),
    }
}

fn open_path(request: &Request<'_>) -> Result<OwnedFd, OpenError> {
    // Without O_NOCTTY a terminal given as a chardev would become ours and signal us.
    let mut flags = request.access.flag() | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    flags.set(OFlag::O_DIRECT, request.direct);
    flags.set(OFlag::O_NONBLOCK, request.nonblocking);
    let mut mode = Mode::empty();
    if let Some(create) = request.create {
        mode = Mode::from_bits_truncate(create.mode);
        flags |= OFlag::O_CREAT
            | match create.existing {
                Existing::Keep => OFlag::empty(),
                Existing::Truncate => OFlag::O_TRUNC,
                Existing::Append => OFlag::O_APPEND,
                Existing::Refuse => OFlag::O_EXCL,
            };
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where a path is opened"
    )]
    nix::fcntl::open(request.name, flags, mode)
        .map_err(|errno| OpenError::os(Wanted::from(request), errno))
}
