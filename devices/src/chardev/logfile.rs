//! A chardev's log: a copy of what the guest wrote.

use std::sync::atomic::{AtomicBool, Ordering};

use fdset::{Access, Door, Existing, OpenFile, Request, Role};
use nix::errno::Errno;

use super::spec::LogSpec;
use super::{ChardevError, endpoint};

/// Permission bits of a log file that is created.
const MODE: u32 = 0o600;

/// An open log.
#[derive(Debug)]
pub(super) struct LogFile {
    file: OpenFile,
    /// Set at the first failure, so that a full disk is reported once and not per byte.
    failed: AtomicBool,
}

impl LogFile {
    /// Opens the log of the chardev `id`.
    pub(super) fn open(id: &str, spec: &LogSpec, door: &Door) -> Result<Self, ChardevError> {
        let existing = if spec.append {
            Existing::Append
        } else {
            Existing::Truncate
        };
        let reason = format!("chardev '{id}'");
        let request = Request::new(&spec.name, Access::WriteOnly, Role::ChardevLog, &reason)
            .create(MODE, existing)
            .nonblocking(true);
        let file = fdset::open(door, &request)?;
        // A log that is a pipe must not stop a vCPU when its reader does.
        endpoint::unblock(&file)
            .map_err(|source| ChardevError::host(id, "unblocking its log", source))?;
        Ok(Self {
            file,
            failed: AtomicBool::new(false),
        })
    }

    /// Adds `bytes`. What a full disk or pipe does not take is lost to the log only.
    pub(super) fn write(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match nix::unistd::write(&self.file, bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                Err(error) => {
                    if !self.failed.swap(true, Ordering::Relaxed) {
                        tracing::warn!(%error, "a chardev's log loses output");
                    }
                    return;
                }
            }
        }
    }
}
