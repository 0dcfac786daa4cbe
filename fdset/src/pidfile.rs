//! The pid file: written, locked for as long as we live, and removed at the end.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::unistd::{ftruncate, write};

use crate::error::{OpenError, Wanted};
use crate::lease::OpenFile;
use crate::open::{is_passed, open};
use crate::registry::Door;
use crate::request::{Access, Existing, Request, Role};

/// A pid file of ours. Dropping it removes the file (one that was passed stays) and unlocks it.
#[derive(Debug)]
pub struct PidFile {
    /// Holds the lock.
    file: OpenFile,
    path: Option<PathBuf>,
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
    let path = (!is_passed(name)).then(|| PathBuf::from(name));
    let pid_file = PidFile { file, path };
    pid_file
        .write_id()
        .map_err(|source| OpenError::os(wanted(), source))?;
    Ok(pid_file)
}

impl PidFile {
    fn write_id(&self) -> io::Result<()> {
        let text = format!("{}\n", std::process::id());
        ftruncate(&self.file, 0)?;
        let written = write(&self.file, text.as_bytes())?;
        if written < text.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
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
