//! The pid file: written, locked for as long as we live, and removed at the end.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::uio::pwrite;
use nix::unistd::ftruncate;

use crate::error::{OpenError, Wanted};
use crate::lease::OpenFile;
use crate::ledger::Via;
use crate::open::open;
use crate::policy::Policy;
use crate::registry::{Door, FdRegistry};
use crate::request::{Access, Existing, Request, Role};

/// A pid file of ours. Dropping it removes the file (one that was passed, or that the open hook
/// gave, stays) and unlocks it.
#[derive(Debug)]
pub struct PidFile {
    /// Holds the lock.
    file: OpenFile,
    path: Option<PathBuf>,
    registry: Arc<FdRegistry>,
}

/// Writes our process id to `name`, which may be a path or a passed fd. After a fork call it in
/// the process that stays.
///
/// # Errors
/// When it cannot be opened for writing, or a living process has it locked.
pub fn pid_file(door: &Door, name: &str, reason: &str) -> Result<PidFile, OpenError> {
    let request =
        Request::new(name, Access::WriteOnly, Role::PidFile, reason).create(0o644, Existing::Keep);
    let file = open(door, &request)?;
    let wanted = || Wanted::from(&request);
    lock(&file).map_err(|errno| match errno {
        Errno::EAGAIN | Errno::EACCES => OpenError::unfit(
            wanted(),
            "another process that is alive has this file locked; give each its own",
        ),
        other => OpenError::os(wanted(), other),
    })?;
    let by_path = file.lease().is_some_and(|lease| lease.via() == Via::Path);
    let path = by_path.then(|| PathBuf::from(name));
    let pid_file = PidFile {
        file,
        path,
        registry: Arc::clone(door.registry()),
    };
    pid_file
        .write_id()
        .map_err(|source| OpenError::os(wanted(), source))?;
    Ok(pid_file)
}

impl PidFile {
    fn write_id(&self) -> io::Result<()> {
        let text = format!("{}\n", std::process::id());
        ftruncate(&self.file, 0)?;
        // At the start, wherever the manager of a passed file left its offset.
        let written = pwrite(&self.file, text.as_bytes(), 0)?;
        if written < text.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
        if self.registry.policy() == Policy::Sealed {
            tracing::info!(path = %path.display(), "a sealed process leaves its pid file");
            return;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "removes the pid file that this process wrote and still has locked"
        )]
        if let Err(error) = std::fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "could not remove the pid file");
        }
    }
}

/// Locks the whole file. The lock belongs to the open file, so a fork does not lose it, and it
/// collides with the process locks that other programs use.
fn lock(file: &OpenFile) -> Result<(), Errno> {
    let whole = libc::flock {
        l_type: LOCK_KIND,
        l_whence: LOCK_START,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole)).map(drop)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "struct flock holds these small constants in 16 bits"
)]
const LOCK_KIND: i16 = libc::F_WRLCK as i16;
#[expect(
    clippy::cast_possible_truncation,
    reason = "struct flock holds these small constants in 16 bits"
)]
const LOCK_START: i16 = libc::SEEK_SET as i16;

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::sync::Arc;

    use super::*;
    use crate::registry::{FdRegistry, Scope};
    use crate::watch::passed;

    fn door() -> Door {
        Door::new(Arc::new(FdRegistry::new()), Scope::Process)
    }

    fn text_of(mut file: impl Read) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).expect("text");
        text
    }

    #[test]
    fn a_pid_file_holds_our_id_until_we_are_done() {
        let door = door();
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pid");
        let name = path.to_str().expect("plain text");
        let pid_file = pid_file(&door, name, "-pidfile").expect("written");
        let request = Request::new(name, Access::ReadOnly, Role::PidFile, "test");
        let (file, _) = open(&door, &request).expect("readable").into_file();
        assert_eq!(text_of(file), format!("{}\n", std::process::id()));
        drop(pid_file);
        assert!(!path.exists());
    }

    #[test]
    fn a_pid_file_of_a_living_process_is_not_overwritten() {
        let door = door();
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pid");
        let name = path.to_str().expect("plain text");
        let first = pid_file(&door, name, "-pidfile").expect("written");
        let error = pid_file(&door, name, "-pidfile").expect_err("locked");
        assert!(error.to_string().contains("alive"), "{error}");
        assert!(path.exists());
        drop(first);
    }

    #[test]
    fn a_passed_pid_file_is_cut_and_written_but_not_removed() {
        let door = door();
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"a longer text than an id\n").expect("room");
        let copy = file.try_clone().expect("an fd");
        door.registry()
            .add_named(Scope::Process, "pid", passed(copy))
            .expect("good name");
        drop(pid_file(&door, "fd:pid", "-pidfile").expect("written"));
        file.rewind().expect("a regular file");
        assert_eq!(text_of(file), format!("{}\n", std::process::id()));
    }
}
