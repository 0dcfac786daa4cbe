//! The seal: the process gives up the right to open anything, once and for ever.
//!
//! ```text
//!   Open ──────────────────────── seal ───────────────────────────► Sealed
//!            1  filters, rule set and handlers are made: what can fail, fails here
//!            2  the floor, on all threads in one step: nothing forbidden from now on
//!            3  each thread: Landlock, then the list of its kind
//!            4  this thread, last: its list is what new threads begin with
//!
//!   Sealed ── a command started a thread ── cover ──► it gets the list of its kind
//! ```

use std::collections::HashMap;
use std::os::fd::AsRawFd;

use seccompiler::BpfProgram;

use super::landlock::{self, Nothing};
use super::thread::{self, ThreadKind};
use super::{SandboxError, delivery, filter, violation};
use crate::kvm::vcpu::kick_signal;

/// How far Landlock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LandlockState {
    /// This kernel has none, or it is switched off (`lsm=` on the host's command line).
    Unavailable,
    /// It will be used.
    Available,
    /// All threads are under a rule set that allows nothing.
    Enforced,
}

/// What the process has given up.
#[derive(Debug)]
pub struct Sandbox {
    /// The kernel's Landlock.
    landlock_abi: Option<u32>,
    sealed: Option<Sealed>,
}

#[derive(Debug)]
struct Sealed {
    lists: Lists,
    /// The kernel's id of the main thread, which sealed the process. Who asks later may be another.
    main: i32,
    /// Goes when every thread is under it.
    nothing: Option<Nothing>,
    /// Threads with the list of their kind, by the kernel's ids.
    covered: HashMap<i32, ThreadKind>,
    complete: bool,
}

/// One program for each kind of thread.
#[derive(Debug)]
struct Lists(Vec<(ThreadKind, BpfProgram)>);

impl Lists {
    fn new() -> Result<Self, SandboxError> {
        let (kick, seal) = (kick_signal(), delivery::seal_signal());
        ThreadKind::ALL
            .iter()
            .map(|kind| {
                let program = filter::allow_list(thread::allowed(*kind, kick, seal));
                Ok((*kind, program.map_err(SandboxError::Filter)?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn of(&self, kind: ThreadKind) -> &BpfProgram {
        const NOTHING: &BpfProgram = &BpfProgram::new();
        self.0
            .iter()
            .find(|(other, _)| *other == kind)
            .map_or(NOTHING, |(_, program)| program)
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self {
            landlock_abi: landlock::abi(),
            sealed: None,
        }
    }
}

impl Sandbox {
    /// Whether the process is sealed: in every thread, completely.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed.as_ref().is_some_and(|sealed| sealed.complete)
    }

    /// The version of the kernel's Landlock.
    #[must_use]
    pub fn landlock_abi(&self) -> Option<u32> {
        self.landlock_abi
    }

    /// How far Landlock is.
    #[must_use]
    pub fn landlock(&self) -> LandlockState {
        match self.landlock_abi {
            None => LandlockState::Unavailable,
            Some(_) if self.is_sealed() => LandlockState::Enforced,
            Some(_) => LandlockState::Available,
        }
    }

    /// Whether the thread has the list of its kind.
    #[must_use]
    pub fn covers(&self, thread_id: i32) -> bool {
        self.sealed
            .as_ref()
            .is_some_and(|sealed| sealed.covered.contains_key(&thread_id))
    }

    /// Seals the process. `threads` are all but the calling one, which is the main thread. If it
    /// fails half-way, what was taken away stays away, and another call goes on from there.
    ///
    /// # Errors
    /// The kernel has no filters, or a thread does not take its own.
    pub fn seal(&mut self, threads: &[(ThreadKind, i32)]) -> Result<(), SandboxError> {
        if self.is_sealed() {
            return Ok(());
        }
        if self.sealed.is_none() {
            self.sealed = Some(self.lay_floor()?);
        }
        let Some(sealed) = &mut self.sealed else {
            return Ok(());
        };
        sealed.cover(threads)?;
        if let Some(nothing) = &sealed.nothing {
            landlock::restrict_this_thread(nothing.as_raw_fd()).map_err(|errno| {
                SandboxError::Landlock(std::io::Error::from_raw_os_error(errno))
            })?;
        }
        seccompiler::apply_filter(sealed.lists.of(ThreadKind::Main))
            .map_err(SandboxError::Refused)?;
        sealed.covered.insert(sealed.main, ThreadKind::Main);
        sealed.nothing = None;
        sealed.complete = true;
        Ok(())
    }

    /// Gives threads that were started after the seal the lists of their kinds. `threads` are all
    /// but the main one; only that one may call it when there are new ones. Nothing happens before
    /// the seal.
    ///
    /// # Errors
    /// A thread does not take its list.
    pub fn cover(&mut self, threads: &[(ThreadKind, i32)]) -> Result<(), SandboxError> {
        match &mut self.sealed {
            Some(sealed) if sealed.complete => sealed.cover(threads),
            _ => Ok(()),
        }
    }

    fn lay_floor(&self) -> Result<Sealed, SandboxError> {
        let floor = filter::floor().map_err(SandboxError::Filter)?;
        let without_clone3 = filter::without_clone3().map_err(SandboxError::Filter)?;
        let sealed = Sealed {
            lists: Lists::new()?,
            main: nix::unistd::gettid().as_raw(),
            nothing: self
                .landlock_abi
                .map(Nothing::new)
                .transpose()
                .map_err(SandboxError::Landlock)?,
            covered: HashMap::new(),
            complete: false,
        };
        violation::report().map_err(SandboxError::Handler)?;
        for program in [&without_clone3, &floor] {
            seccompiler::apply_filter_all_threads(program).map_err(SandboxError::Refused)?;
        }
        Ok(sealed)
    }
}

impl Sealed {
    fn cover(&mut self, threads: &[(ThreadKind, i32)]) -> Result<(), SandboxError> {
        // The kernel gives the id of a thread that has ended to a new one.
        self.covered
            .retain(|id, _| *id == self.main || threads.iter().any(|(_, other)| other == id));
        let ruleset = self.nothing.as_ref().map(AsRawFd::as_raw_fd);
        for (kind, id) in threads {
            if self.covered.contains_key(id) {
                continue;
            }
            delivery::deliver(*id, self.lists.of(*kind), ruleset).map_err(|source| {
                SandboxError::Thread {
                    kind: *kind,
                    id: *id,
                    source,
                }
            })?;
            self.covered.insert(*id, *kind);
        }
        Ok(())
    }
}
