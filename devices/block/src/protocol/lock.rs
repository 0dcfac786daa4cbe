//! What other processes are told of a file's users, and what these tell us: locks of the open file
//! description (fcntl(2), `F_OFD_SETLK`) on bytes that QEMU and its tools use for the same.
//!
//! ```text
//!   byte 100 + n   somebody uses permission n        n   0 consistent read   1 write
//!   byte 200 + n   somebody does not share it            2 write unchanged   3 resize
//!
//!   widen:  take what will be needed beside what is held ─► look whether anybody minds
//!   settle: keep what is needed, and nothing else
//! ```
//!
//! All are read locks, so everybody can hold the same; whoever minds looks for the other byte. They
//! go with the last copy of the fd, also when the process is killed. A copy may stay with the
//! manager that handed the fd in, so they are given back in so many words, too.

use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fdset::OpenFile;
use nix::fcntl::{FcntlArg, fcntl};

use crate::permission::{Permissions, Usage};

const USES: i64 = 100;
const DENIES: i64 = 200;

/// Whether a file's users are told to other processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locking {
    /// Where the file system knows such locks.
    #[default]
    Auto,
    /// Always; it is an error where that cannot be.
    On,
    /// Never.
    Off,
}

/// What is held: permissions used, and permissions not shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    uses: u8,
    denies: u8,
}

impl From<Usage> for Held {
    fn from(usage: Usage) -> Self {
        Self {
            uses: usage.uses.bits(),
            denies: (Permissions::all() - usage.shares).bits(),
        }
    }
}

impl Held {
    fn and(self, other: Self) -> Self {
        Self {
            uses: self.uses | other.uses,
            denies: self.denies | other.denies,
        }
    }

    fn without(self, other: Self) -> Self {
        Self {
            uses: self.uses & !other.uses,
            denies: self.denies & !other.denies,
        }
    }

    fn bytes(self) -> impl Iterator<Item = i64> {
        let of = |base: i64, bits: u8| {
            let all = Permissions::from_bits_truncate(bits).iter();
            all.map(move |one| base + i64::from(one.bits().trailing_zeros()))
        };
        of(USES, self.uses).chain(of(DENIES, self.denies))
    }
}

/// Why a file cannot be used so.
#[derive(Debug)]
pub(crate) enum NotLocked {
    /// Another process uses it in a way that does not fit. Worded as QEMU words it, since clients
    /// look for that.
    Taken {
        /// Whether it uses what we would not share, and not the other way round.
        shared: bool,
        permission: Permissions,
    },
    /// The kernel gives no such lock.
    Unable(io::Error),
}

impl fmt::Display for NotLocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken { shared, permission } => {
                let shared = if *shared { "shared " } else { "" };
                write!(f, "Failed to get {shared}\"{permission}\" lock")
            }
            Self::Unable(error) => write!(f, "it cannot be locked: {error}"),
        }
    }
}

/// The locks that one node has on its file.
#[derive(Debug)]
pub(super) struct ImageLock {
    /// `None`: the file is not locked at all.
    held: Mutex<Option<Held>>,
    must: bool,
}

impl ImageLock {
    pub(super) fn new(locking: Locking) -> Self {
        Self {
            held: Mutex::new((locking != Locking::Off).then(Held::default)),
            must: locking == Locking::On,
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what `usage` needs beside what is held, and looks whether another process minds.
    ///
    /// # Errors
    /// One does; what was taken is kept until [`settle`](Self::settle).
    pub(super) fn widen(&self, file: &OpenFile, usage: Usage) -> Result<(), NotLocked> {
        let mut held = self.held();
        let Some(had) = *held else { return Ok(()) };
        let wanted = Held::from(usage);
        for byte in wanted.without(had).bytes() {
            if let Err(error) = change(file, byte, libc::F_RDLCK) {
                if self.must || !is_unknown(&error) {
                    return Err(NotLocked::Unable(error));
                }
                *held = None;
                return Ok(());
            }
        }
        *held = Some(had.and(wanted));
        drop(held);
        look(file, DENIES, wanted.uses, false)?;
        look(file, USES, wanted.denies, true)
    }

    /// Gives back what `usage` does not need.
    pub(super) fn narrow(&self, file: &OpenFile, usage: Usage) {
        let mut held = self.held();
        let Some(had) = *held else { return };
        let wanted = Held::from(usage);
        for byte in had.without(wanted).bytes() {
            if let Err(error) = change(file, byte, libc::F_UNLCK) {
                tracing::error!(%error, byte, "a lock of an image cannot be given back");
            }
        }
        *held = Some(Held {
            uses: had.uses & wanted.uses,
            denies: had.denies & wanted.denies,
        });
    }

    /// Takes what `usage` needs without asking anybody: it was agreed before. Also what is held:
    /// another node with a copy of the same fd may have given it back.
    pub(super) fn assert(&self, file: &OpenFile, usage: Usage) {
        let mut held = self.held();
        let Some(had) = *held else { return };
        let wanted = Held::from(usage);
        for byte in wanted.bytes() {
            if let Err(error) = change(file, byte, libc::F_RDLCK) {
                tracing::error!(%error, byte, "an image cannot be locked");
            }
        }
        *held = Some(had.and(wanted));
    }

    /// What is held moves from one fd of the file to another.
    pub(super) fn move_over(&self, from: &OpenFile, to: &OpenFile) {
        let Some(held) = *self.held() else { return };
        for (file, kind) in [(to, libc::F_RDLCK), (from, libc::F_UNLCK)] {
            for byte in held.bytes() {
                if let Err(error) = change(file, byte, kind) {
                    tracing::error!(%error, byte, "a lock of an image does not move");
                }
            }
        }
    }
}

/// Whether anybody else has one of these bytes.
fn look(file: &OpenFile, base: i64, bits: u8, shared: bool) -> Result<(), NotLocked> {
    for permission in Permissions::from_bits_truncate(bits).iter() {
        let byte = base + i64::from(permission.bits().trailing_zeros());
        let mut other = one(byte, libc::F_WRLCK);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut other))
            .map_err(|errno| NotLocked::Unable(errno.into()))?;
        if i32::from(other.l_type) != libc::F_UNLCK {
            return Err(NotLocked::Taken { shared, permission });
        }
    }
    Ok(())
}

fn change(file: &OpenFile, byte: i64, kind: i32) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&one(byte, kind)))?;
    Ok(())
}

fn one(byte: i64, kind: i32) -> libc::flock {
    libc::flock {
        // All three kinds are small.
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

/// A file system without such locks.
fn is_unknown(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOLCK)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(shared: bool) -> String {
        let permission = Permissions::WRITE;
        NotLocked::Taken { shared, permission }.to_string()
    }

    #[test]
    fn bytes_and_words_are_those_of_qemu() {
        let usage = Usage {
            uses: Permissions::CONSISTENT_READ | Permissions::WRITE,
            shares: Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED,
        };
        let bytes: Vec<i64> = Held::from(usage).bytes().collect();
        assert_eq!(bytes, [100, 101, 201, 203]);
        assert_eq!(Held::from(Usage::NONE).bytes().count(), 0);
        assert_eq!(shown(false), "Failed to get \"write\" lock");
        assert_eq!(shown(true), "Failed to get shared \"write\" lock");
    }
}
