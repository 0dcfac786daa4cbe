//! Files without a name, made in a directory that somebody opened or handed in: memory of a
//! hugetlbfs mount, as `mem-path=/dev/hugepages` asks for it.
//!
//! ```text
//!   open ─► a directory ─► O_TMPFILE in it ──────────────► the file; the directory is closed
//!                            └ the file system has none ─► made under a name, which is removed
//! ```

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::error::{OpenError, Wanted};
use crate::kind::{Kind, Nature};
use crate::lease::OpenFile;
use crate::policy::Policy;
use crate::registry::Door;
use crate::request::Request;

/// How many names are tried where a file needs one for a moment.
const TRIES: u32 = 100;

/// `file`; or where it is a directory in which the request wants a file, that file, under the
/// directory's lease.
pub(crate) fn made_within(
    door: &Door,
    file: OpenFile,
    request: &Request<'_>,
) -> Result<OpenFile, OpenError> {
    if !request.unnamed || Nature::of(&file).kind != Kind::Directory {
        return Ok(file);
    }
    let wanted = || Wanted::from(request);
    if door.registry().policy() == Policy::Sealed {
        return Err(OpenError::unfit(
            wanted(),
            "a sealed process makes no files; make the memory before sealing, or pass the file",
        ));
    }
    let (folder, lease) = file.into_parts();
    let made = make(&folder).map_err(|errno| OpenError::os(wanted(), errno))?;
    if let Some(lease) = &lease {
        lease.now_is(Nature::of(&made));
    }
    Ok(OpenFile::new(made, lease))
}

#[expect(
    clippy::disallowed_methods,
    reason = "makes a file in a directory that was opened or handed in"
)]
fn make(folder: &OwnedFd) -> nix::Result<OwnedFd> {
    let owner = Mode::S_IRUSR | Mode::S_IWUSR;
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    match nix::fcntl::openat(folder, ".", flags | OFlag::O_TMPFILE | OFlag::O_EXCL, owner) {
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT) => {}
        other => return other,
    }
    for attempt in 0..TRIES {
        let name = format!(".sesame-{}-{attempt}", std::process::id());
        let flags = flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        match nix::fcntl::openat(folder, name.as_str(), flags, owner) {
            Err(Errno::EEXIST) => {}
            Ok(made) => {
                unlinkat(folder, name.as_str(), UnlinkatFlags::NoRemoveDir)?;
                return Ok(made);
            }
            refused => return refused,
        }
    }
    Err(Errno::EEXIST)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::registry::{FdRegistry, Scope};
    use crate::request::{Access, Role};
    use crate::watch::passed;
    use crate::{FdsetId, open};

    fn door() -> Door {
        Door::new(Arc::new(FdRegistry::new()), Scope::Monitor(0))
    }

    fn memory(name: &str, access: Access) -> Request<'_> {
        Request::new(name, access, Role::Memory, "memory backend 'm'").or_unnamed_within()
    }

    fn folder_fd(folder: &tempfile::TempDir) -> OwnedFd {
        let path = folder.path().to_str().expect("text");
        let request = Request::new(path, Access::ReadOnly, Role::CommandLine, "test");
        open(&door(), &request).expect("a folder").into_parts().0
    }

    #[test]
    fn a_directory_from_any_source_gives_a_file_that_nobody_else_can_open() {
        let door = door();
        let folder = tempfile::tempdir().expect("a folder");
        let registry = door.registry();
        registry
            .add_named(door.scope(), "m", passed(folder_fd(&folder)))
            .expect("good name");
        registry.add(passed(folder_fd(&folder)), FdsetId::new(3).ok(), None);
        let path = folder.path().to_str().expect("text");
        for name in ["fd:m", "/dev/fdset/3", path] {
            for access in [Access::ReadWrite, Access::ReadOnly] {
                if name == "fd:m" && access == Access::ReadOnly {
                    continue; // the name is used up
                }
                let made = open(&door, &memory(name, access)).expect(name);
                nix::unistd::ftruncate(&made, 4096).expect("it is ours to write");
                assert_eq!(made.size().expect("a file"), 4096);
                let kind = registry.uses()[0].nature.kind;
                assert!(matches!(kind, Kind::File | Kind::Memfd), "{kind}");
                let left = std::fs::read_dir(folder.path()).expect("a folder").count();
                assert_eq!(left, 0, "{name}");
            }
        }
    }

    #[test]
    fn without_leave_a_directory_is_only_a_directory_and_a_sealed_process_makes_nothing() {
        let door = door();
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_str().expect("text");
        let plain = Request::new(path, Access::ReadOnly, Role::Memory, "memory backend 'm'");
        let error = open(&door, &plain).expect_err("a directory");
        assert!(matches!(error, OpenError::WrongKind { .. }), "{error}");
        door.registry()
            .add_named(door.scope(), "m", passed(folder_fd(&folder)))
            .expect("good name");
        door.registry().raise_policy(Policy::Sealed);
        let error = open(&door, &memory("fd:m", Access::ReadWrite)).expect_err("sealed");
        assert!(
            error
                .to_string()
                .contains("a sealed process makes no files"),
            "{error}"
        );
    }
}
