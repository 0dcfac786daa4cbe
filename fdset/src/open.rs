//! The one open.
//!
//! ```text
//!   name            source                 what the opener gets
//!   fd:NAME         a named fd             the fd itself; the name is used up
//!   /dev/fdset/N    a member of set N      a dup, and a lease on the set
//!   an alias        a member of its set    as /dev/fdset/N
//!   anything else   the open hook          the fd that the manager has answered
//!   anything else   the file system        a new open file, where the policy allows
//! ```
//!
//! Where a request is satisfied with a directory, whichever source it came from, the opener gets a
//! file that was made in it (`unnamed`).
//!
//! The hook's answers are in the door before the open is asked ([`crate::hook`]); with none for
//! this name there, the file system has its turn.
//!
//! The first source that recognises the name answers, for good or ill: a missing `fd:NAME` or a
//! malformed `/dev/fdset/x` is never tried as a path. (A file that is really called `fd:x` is
//! reached as `./fd:x`.)

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use tracing::debug;

use crate::error::{OpenError, Wanted};
use crate::handover::Origin;
use crate::kind::{Kind, Nature};
use crate::lease::OpenFile;
use crate::ledger::Via;
use crate::registry::Door;
use crate::request::{Access, Existing, Request, Role};
use crate::sets::{FdsetId, NoDup};
use crate::unnamed;

pub(crate) const NAMED_PREFIX: &str = "fd:";
pub(crate) const SET_PREFIX: &str = "/dev/fdset/";

/// Opens what `request` asks for.
///
/// Whatever the source, the file must be of a kind that the request takes. A named fd must be able
/// to do what is wanted (an `O_RDWR` one can do all); of a set, the member whose access mode is
/// exactly the wanted one is taken, as QEMU does, preferring one whose `O_DIRECT` flag agrees. A
/// failed open uses nothing up: the name stays.
///
/// # Errors
/// When no source has it, the kind or the access does not fit, or the kernel refuses.
pub fn open(door: &Door, request: &Request<'_>) -> Result<OpenFile, OpenError> {
    let opened = if let Some(name) = request.name.strip_prefix(NAMED_PREFIX) {
        open_named(door, name, request)
    } else if let Some(id) = request.name.strip_prefix(SET_PREFIX) {
        match FdsetId::parse(id) {
            Some(set) => open_set(door, set, request),
            None => Err(OpenError::MalformedSet {
                wanted: request.into(),
            }),
        }
    } else if let Some(set) = door.registry().alias(request.name) {
        open_set(door, set, request)
    } else if let Some(answer) = door.answer(request.name, request.access) {
        let refused = |source| OpenError::Hook {
            wanted: request.into(),
            source: Box::new(source),
        };
        answer
            .map_err(refused)
            .and_then(|given| fitting(door, given.fd, Via::Hook, Some(given.origin), request))
    } else {
        open_path(door, request).and_then(|fd| fitting(door, fd, Via::Path, None, request))
    };
    let opened = opened.and_then(|file| unnamed::made_within(door, file, request));
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
pub(crate) fn is_passed(door: &Door, name: &str) -> bool {
    name.starts_with(NAMED_PREFIX)
        || name.starts_with(SET_PREFIX)
        || door.registry().alias(name).is_some()
}

fn open_named(door: &Door, name: &str, request: &Request<'_>) -> Result<OpenFile, OpenError> {
    let wanted = || Wanted::from(request);
    // Asked anew: since it came, a socket may have been connected.
    let mut nature = None;
    let fits = |fd: BorrowedFd<'_>| {
        let nature = nature.insert(Nature::of(fd));
        check_kind(nature.kind, request)?;
        if request.is_served_by(*nature) {
            return Ok(());
        }
        Err(OpenError::WrongAccess {
            wanted: wanted(),
            came: nature.access,
        })
    };
    match door.registry().take_if(door.scope(), name, fits) {
        Some(Ok((owner, passed))) => {
            let nature = nature.unwrap_or(passed.nature());
            let origin = passed.origin();
            let fd = match door.escrow() {
                None => passed.into_fd(),
                Some(escrow) => {
                    let kept = escrow.keep(owner, name, passed);
                    kept.map_err(|source| OpenError::os(wanted(), source))?
                }
            };
            let lease = door.lease(wanted(), Via::Name, nature, Some(origin));
            Ok(OpenFile::new(fd, Some(lease)))
        }
        Some(Err(error)) => Err(error),
        None => Err(OpenError::NoSuchName { wanted: wanted() }),
    }
}

/// Opens a member of `set`, whose number or an alias of which is the request's name.
pub(crate) fn open_set(
    door: &Door,
    set: FdsetId,
    request: &Request<'_>,
) -> Result<OpenFile, OpenError> {
    let wanted = || Wanted::from(request);
    match door.registry().dup(set, request) {
        Ok(dup) => {
            let lease = door.lease(wanted(), Via::Set(set), dup.nature, Some(dup.origin));
            Ok(OpenFile::new(dup.fd, Some(lease)))
        }
        Err(NoDup::NoSuchSet) => Err(OpenError::NoSuchSet {
            wanted: wanted(),
            set,
        }),
        Err(NoDup::WrongKind(came)) => Err(wrong_kind(came, request)),
        Err(NoDup::SeveralFiles(came)) => Err(OpenError::SeveralFiles {
            wanted: wanted(),
            set,
            came,
        }),
        Err(NoDup::NoMember(came)) => Err(OpenError::NoMember {
            wanted: wanted(),
            set,
            came,
        }),
        Err(NoDup::Os(source)) => Err(OpenError::os(wanted(), source)),
    }
}

fn open_path(door: &Door, request: &Request<'_>) -> Result<OwnedFd, OpenError> {
    door.registry().admit(|| request.into())?;
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
    let opened = match nix::fcntl::open(request.name, flags, mode) {
        // Only to be read is a directory, which is good enough to make a file in it.
        Err(Errno::EISDIR) if request.unnamed => {
            let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            nix::fcntl::open(request.name, flags, Mode::empty())
        }
        other => other,
    };
    opened.map_err(|errno| OpenError::os(Wanted::from(request), errno))
}

/// `fd` if it is of a kind that will do; else it is closed.
fn fitting(
    door: &Door,
    fd: OwnedFd,
    via: Via,
    origin: Option<Origin>,
    request: &Request<'_>,
) -> Result<OpenFile, OpenError> {
    let nature = Nature::of(&fd);
    check_kind(nature.kind, request)?;
    let lease = door.lease(request.into(), via, nature, origin);
    Ok(OpenFile::new(fd, Some(lease)))
}

fn check_kind(came: Kind, request: &Request<'_>) -> Result<(), OpenError> {
    if request.takes(came) {
        Ok(())
    } else {
        Err(wrong_kind(came, request))
    }
}

fn wrong_kind(came: Kind, request: &Request<'_>) -> OpenError {
    OpenError::WrongKind {
        wanted: Wanted::from(request),
        came,
        needed: request.kinds.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write, pipe};
    use std::sync::Arc;

    use super::*;
    use crate::lease::FileType;
    use crate::registry::{FdRegistry, Scope};
    use crate::watch::passed;

    fn door() -> Door {
        Door::new(Arc::new(FdRegistry::new()), Scope::Monitor(0))
    }

    fn stream(name: &str, access: Access) -> Request<'_> {
        Request::new(name, access, Role::Chardev, "chardev 'c'")
    }

    fn set(id: i64) -> Option<FdsetId> {
        Some(FdsetId::new(id).expect("not negative"))
    }

    fn path_of(file: &tempfile::NamedTempFile) -> &str {
        file.path().to_str().expect("plain text")
    }

    #[test]
    fn removed_set_lives_until_its_last_lease_drops() {
        let door = door();
        let (mut reader, writer) = pipe().expect("a pipe");
        door.registry().add(passed(writer), set(3), None);
        let first = open(&door, &stream("/dev/fdset/3", Access::WriteOnly)).expect("a member");
        let second = first.try_clone().expect("an fd");
        door.registry().remove(3, None).expect("the set is there");
        assert!(door.registry().query()[0].members.is_empty());

        let (fd, lease) = first.into_parts();
        let mut file = std::fs::File::from(fd);
        file.write_all(b"x").expect("the dup outlives its member");
        drop((file, lease));
        assert_eq!(door.registry().query().len(), 1);
        drop(second);
        assert!(door.registry().query().is_empty());
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("all closed");
        assert_eq!(text, "x");
    }

    #[test]
    fn a_set_without_members_can_be_filled_again_while_leased() {
        let door = door();
        door.registry()
            .add(passed(pipe().expect("a pipe").1), set(3), None);
        let file = open(&door, &stream("/dev/fdset/3", Access::WriteOnly)).expect("a member");
        door.registry().remove(3, None).expect("the set is there");
        let error = open(&door, &stream("/dev/fdset/3", Access::WriteOnly)).expect_err("empty");
        assert_eq!(
            error.to_string(),
            "Could not open '/dev/fdset/3' write-only as character device of chardev 'c': \
             fd set 3 has no fd; add one that was opened with O_WRONLY"
        );
        door.registry()
            .add(passed(pipe().expect("a pipe").1), set(3), None);
        drop(file);
        assert!(open(&door, &stream("/dev/fdset/3", Access::WriteOnly)).is_ok());
    }

    #[test]
    fn access_mode_picks_the_member() {
        let door = door();
        let (reader, writer) = pipe().expect("a pipe");
        door.registry().add(passed(reader), set(0), None);
        door.registry().add(passed(writer), set(0), None);
        for access in [Access::ReadOnly, Access::WriteOnly] {
            let file = open(&door, &stream("/dev/fdset/0", access)).expect("a member");
            assert_eq!(Access::of(&file), Some(access));
            assert_eq!(file.file_type().expect("a type"), FileType::Fifo);
        }
    }

    #[test]
    fn a_set_without_the_wanted_access_says_what_it_has_and_the_fix() {
        let door = door();
        let read_write = tempfile::tempfile().expect("a file");
        let (_, number) = door.registry().add(passed(read_write), set(3), None);
        let error = open(&door, &stream("/dev/fdset/3", Access::ReadOnly)).expect_err("no member");
        assert_eq!(
            error.to_string(),
            format!(
                "Could not open '/dev/fdset/3' read-only as character device of chardev 'c': \
                 fd set 3 has only fd {number} (read-write); add one that was opened with O_RDONLY"
            )
        );
        assert_eq!(error.errno(), nix::libc::EACCES);
        assert!(door.registry().remove(3, None).is_ok());
        assert!(
            door.registry().query().is_empty(),
            "a refusal leases nothing"
        );
    }

    #[test]
    fn an_unknown_set_is_not_found() {
        let error = open(&door(), &stream("/dev/fdset/5", Access::ReadOnly)).expect_err("unknown");
        assert_eq!(error.errno(), nix::libc::ENOENT);
        assert!(
            error.to_string().contains("there is no fd set 5"),
            "{error}"
        );
    }

    #[test]
    fn a_malformed_set_name_is_never_tried_as_a_path() {
        for name in [
            "/dev/fdset/",
            "/dev/fdset/x",
            "/dev/fdset/-1",
            "/dev/fdset/../null",
        ] {
            let error = open(&door(), &stream(name, Access::ReadOnly)).expect_err("malformed");
            assert!(matches!(error, OpenError::MalformedSet { .. }), "{error}");
        }
    }

    #[test]
    fn a_named_fd_is_used_up() {
        let door = door();
        let file = tempfile::tempfile().expect("a file");
        door.registry()
            .add_named(Scope::Monitor(0), "disk", passed(file))
            .expect("good name");
        // An O_RDWR fd can serve a reader.
        open(&door, &stream("fd:disk", Access::ReadOnly)).expect("it is there");
        let error = open(&door, &stream("fd:disk", Access::ReadOnly)).expect_err("used up");
        assert!(matches!(error, OpenError::NoSuchName { .. }), "{error}");
    }

    #[test]
    fn a_named_fd_with_the_wrong_access_survives_the_refusal() {
        let door = door();
        let (reader, _writer) = pipe().expect("a pipe");
        door.registry()
            .add_named(Scope::Process, "disk", passed(reader))
            .expect("good name");
        let error = open(&door, &stream("fd:disk", Access::ReadWrite)).expect_err("read-only");
        assert_eq!(
            error.to_string(),
            "Could not open 'fd:disk' read-write as character device of chardev 'c': \
             the fd is read-only; pass one that was opened with O_RDWR"
        );
        assert!(open(&door, &stream("fd:disk", Access::ReadOnly)).is_ok());
    }

    #[test]
    fn an_fd_that_gives_no_access_serves_nobody() {
        let door = door();
        let only_path = without_access();
        door.registry().add(passed(only_path), set(1), None);
        let error = open(&door, &stream("/dev/fdset/1", Access::ReadOnly)).expect_err("O_PATH");
        assert!(error.to_string().contains("it is an O_PATH fd"), "{error}");
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "makes what no request can ask for"
    )]
    fn without_access() -> OwnedFd {
        nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).expect("the root")
    }

    #[test]
    fn a_file_of_a_kind_that_the_role_does_not_take_is_refused_from_every_source() {
        let door = door();
        let (reader, _writer) = pipe().expect("a pipe");
        let copy = reader.try_clone().expect("an fd");
        door.registry().add(passed(reader), set(2), None);
        door.registry()
            .add_named(Scope::Monitor(0), "disk", passed(copy))
            .expect("good name");
        for (name, came) in [
            ("/dev/fdset/2", "a pipe"),
            ("fd:disk", "a pipe"),
            ("/", "a directory"),
            ("/dev/null", "a character device"),
        ] {
            let request = Request::new(name, Access::ReadOnly, Role::Image, "node 'disk0'");
            let error = open(&door, &request).expect_err("no storage");
            assert_eq!(
                error.to_string(),
                format!(
                    "Could not open '{name}' read-only as image of node 'disk0': it is {came}; \
                     needed is a regular file, a block device or a memfd"
                )
            );
            assert_eq!(error.errno(), nix::libc::EINVAL);
        }
        for name in ["/dev/fdset/2", "fd:disk"] {
            open(&door, &stream(name, Access::ReadOnly)).expect("it is still there");
        }
    }

    #[test]
    fn an_alias_is_opened_from_its_set_and_never_from_the_file_system() {
        let door = door();
        let (mut reader, writer) = pipe().expect("a pipe");
        door.registry().add(passed(writer), set(3), None);
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = path_of(&file);
        let id = FdsetId::new(3).expect("not negative");
        door.registry().add_alias(path, id).expect("a path");
        let opened = open(&door, &stream(path, Access::WriteOnly)).expect("a member");
        assert_eq!(opened.file_type().expect("a type"), FileType::Fifo);
        let error = open(&door, &stream(path, Access::ReadOnly)).expect_err("only a writer");
        assert!(matches!(error, OpenError::NoMember { .. }), "{error}");

        door.registry().remove_alias(path).expect("it is there");
        let real = open(&door, &stream(path, Access::ReadOnly)).expect("the file");
        assert_eq!(real.file_type().expect("a type"), FileType::Regular);
        opened.into_file().0.write_all(b"x").expect("still open");
        reader.read_exact(&mut [0]).expect("it came");
    }

    #[test]
    fn an_alias_goes_with_its_set_and_not_before() {
        let door = door();
        door.registry()
            .add(passed(pipe().expect("a pipe").1), set(3), None);
        let id = FdsetId::new(3).expect("not negative");
        door.registry().add_alias("/nowhere/a", id).expect("a path");
        let opened = open(&door, &stream("/nowhere/a", Access::WriteOnly)).expect("a member");
        door.registry().remove(3, None).expect("the set is there");
        assert_eq!(door.registry().aliases().len(), 1, "the set is in use");
        drop(opened);
        assert!(door.registry().aliases().is_empty());
        assert_eq!(
            door.registry()
                .add_alias("/nowhere/a", id)
                .expect_err("no set")
                .to_string(),
            "File descriptor named 'fdset-id:3' not found"
        );
    }

    #[test]
    fn of_a_mixed_set_the_member_of_the_right_kind_is_taken() {
        let door = door();
        let (reader, _writer) = pipe().expect("a pipe");
        door.registry().add(passed(reader), set(2), None);
        let file = tempfile::NamedTempFile::new().expect("a file");
        let file = open(&door, &stream(path_of(&file), Access::ReadOnly)).expect("a path");
        let identity = file.identity().expect("a file");
        door.registry()
            .add(passed(file.into_parts().0), set(2), None);
        let request = Request::new("/dev/fdset/2", Access::ReadOnly, Role::Image, "node 'n'");
        let opened = open(&door, &request).expect("the second member");
        assert_eq!(opened.identity().expect("a file"), identity);
    }

    #[test]
    fn an_image_is_not_opened_from_a_set_where_either_of_two_files_would_do() {
        let door = door();
        let file = tempfile::NamedTempFile::new().expect("a file");
        let open_as = |file: &tempfile::NamedTempFile, access| {
            let opened = open(&door, &stream(path_of(file), access)).expect("a path");
            passed(opened.into_parts().0)
        };
        for access in [Access::ReadOnly, Access::ReadWrite] {
            door.registry().add(open_as(&file, access), set(3), None);
        }
        let image = |access| {
            let request = Request::new("/dev/fdset/3", access, Role::Image, "node 'n'");
            open(&door, &request)
        };
        let one = image(Access::ReadOnly).expect("a member").identity();
        let other = image(Access::ReadWrite).expect("a member").identity();
        assert_eq!(one.expect("a file"), other.expect("a file"));

        let second = tempfile::NamedTempFile::new().expect("a file");
        let third = tempfile::NamedTempFile::new().expect("a file");
        for (file, access) in [
            (&second, Access::WriteOnly),
            (&third, Access::WriteOnly),
            (&second, Access::ReadOnly),
        ] {
            door.registry().add(open_as(file, access), set(3), None);
        }
        image(Access::ReadWrite).expect("the others cannot be meant");
        let error = image(Access::ReadOnly).expect_err("two files");
        assert!(matches!(error, OpenError::SeveralFiles { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("fd set 3 has different files for that (fd "),
            "{text}"
        );
        let log = stream("/dev/fdset/3", Access::WriteOnly);
        open(&door, &log).expect("a stream's ends may differ");
    }

    #[test]
    fn a_request_may_take_other_kinds_than_its_role() {
        let door = door();
        let request = Request::new("/dev/null", Access::ReadOnly, Role::Image, "node 'n'");
        assert!(open(&door, &request).is_err());
        assert!(open(&door, &request.kinds(&[])).is_ok());
        assert!(open(&door, &request.kinds(&[Kind::CharDevice])).is_ok());
    }

    #[test]
    fn existing_files_are_kept_cut_appended_to_or_refused_as_asked() {
        let door = door();
        let file = tempfile::NamedTempFile::new().expect("a file");
        let write = |existing, text: &str| -> Result<u64, OpenError> {
            let request = stream(path_of(&file), Access::WriteOnly).create(0o600, existing);
            let opened = open(&door, &request)?;
            let probe = opened.try_clone().expect("an fd");
            let (mut output, _) = opened.into_file();
            output.write_all(text.as_bytes()).expect("room");
            Ok(probe.size().expect("a regular file"))
        };
        assert_eq!(write(Existing::Keep, "four").expect("kept"), 4);
        assert_eq!(write(Existing::Append, "four").expect("appended"), 8);
        assert_eq!(write(Existing::Truncate, "one").expect("cut"), 3);
        let error = write(Existing::Refuse, "").expect_err("it exists");
        assert_eq!(error.errno(), nix::libc::EEXIST);
    }

    #[test]
    fn a_missing_path_keeps_its_reason_as_the_source() {
        let error = open(&door(), &stream("/nowhere/disk", Access::ReadOnly)).expect_err("missing");
        assert_eq!(error.errno(), nix::libc::ENOENT);
        assert_eq!(
            error.to_string(),
            "Could not open '/nowhere/disk' read-only as character device of chardev 'c'"
        );
        assert!(std::error::Error::source(&error).is_some());
        let nul = open(&door(), &stream("a\0b", Access::ReadOnly)).expect_err("no such name");
        assert_eq!(nul.errno(), nix::libc::EINVAL);
    }

    #[test]
    fn every_source_gives_a_close_on_exec_fd_of_the_same_file() {
        let door = door();
        let file = tempfile::NamedTempFile::new().expect("a file");
        let by_path = open(&door, &stream(path_of(&file), Access::ReadWrite)).expect("a path");
        let pass = || by_path.try_clone().expect("an fd").into_parts().0;
        door.registry().add(passed(pass()), set(9), None);
        door.registry()
            .add_named(Scope::Monitor(0), "disk", passed(pass()))
            .expect("good name");
        let identity = by_path.identity().expect("a file");
        for name in ["/dev/fdset/9", "fd:disk", path_of(&file)] {
            let opened = open(&door, &stream(name, Access::ReadWrite)).expect(name);
            assert_eq!(opened.identity().expect("a file"), identity, "{name}");
            let flags = nix::fcntl::fcntl(&opened, nix::fcntl::FcntlArg::F_GETFD).expect("flags");
            assert_eq!(flags, nix::libc::FD_CLOEXEC, "{name}");
        }
    }

    #[test]
    fn what_has_no_size_says_so() {
        let null = null(&door(), Access::ReadWrite, Role::Chardev, "chardev 'c'").expect("null");
        assert_eq!(null.file_type().expect("a type"), FileType::CharDevice);
        assert!(null.size().is_err());
    }
}
