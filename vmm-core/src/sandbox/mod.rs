//! What the process gives up: `-sandbox`, and the seal.
//!
//! This room turns what was asked for into system call filters and a Landlock rule set, and puts
//! them on every thread, the ones that exist and the ones to come. It must never know devices or
//! QMP: threads are a kind and a number to it.
//!
//! ```text
//!   -sandbox on,spawn=deny ─► SandboxSpec ─► seccomp ──────────────────► all threads (TSYNC)
//!
//!   seal sealed ─► Sandbox::seal ─┬─ floor: forbidden to all ──────────► all threads (TSYNC)
//!                                 ├─ landlock: no rule ──────┐
//!                                 └─ thread: a list for each ┴─ delivery ─► each thread, by signal
//!
//!   a call that is not in the list ─► SIGSYS ─► violation: one line, abort
//! ```
//!
//! The meaning of each group of `-sandbox` is QEMU's, so that the option line a management layer
//! already passes does here what it does there. The seal is ours.
//!
//! Read next: [`seal`] (the order), `thread` (what each kind may call), `floor` (what none may).

use std::io;

use crate::process;

mod delivery;
mod filter;
mod floor;
mod landlock;
mod names;
pub mod seal;
mod seccomp;
#[cfg(test)]
mod tests;
pub mod thread;
mod violation;

pub use seal::{LandlockState, Sandbox};
pub use thread::ThreadKind;

/// Which groups of system calls are taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SandboxSpec {
    /// Calls that no modern program uses: a door for old kernel bugs and nothing else.
    pub deny_obsolete: bool,
    /// Changing user, group or session ids.
    pub deny_elevate_privileges: bool,
    /// Starting processes and programs. Threads stay possible: hot-plug needs them.
    pub deny_spawn: bool,
    /// Changing priorities, affinities and limits.
    pub deny_resource_control: bool,
}

/// Why the sandbox could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The filter could not be built: a mistake of ours.
    #[error("the system call filter is not valid")]
    Filter(#[source] seccompiler::BackendError),
    /// The kernel refused the filter.
    #[error("the kernel refused a system call filter (it needs CONFIG_SECCOMP_FILTER)")]
    Refused(#[source] seccompiler::Error),
    /// The handler that reports violations could not be installed.
    #[error("no handler for calls that may not be made")]
    Handler(#[source] io::Error),
    /// The kernel has Landlock and does not take our rule set.
    #[error("the kernel refused a Landlock rule set without rules")]
    Landlock(#[source] io::Error),
    /// One thread is not sealed as it should be.
    #[error(
        "thread {id} ({kind:?}) did not take its filter; the forbidden calls are gone from all \
         threads, and sealing again tries the rest"
    )]
    Thread {
        /// What the thread is for.
        kind: ThreadKind,
        /// The kernel's id.
        id: i32,
        /// What the kernel said, or that it did not answer.
        #[source]
        source: io::Error,
    },
}

/// Enters the sandbox: from now on a call of a denied group ends the process.
///
/// # Errors
/// The kernel has no seccomp filters, or an outer sandbox forbids more of them.
pub fn enter(spec: &SandboxSpec) -> Result<(), SandboxError> {
    seccomp::apply(spec)
}

/// Makes the calling thread, and those it starts, ready to be sealed later. Called once, before the
/// first of them.
pub fn prepare() {
    delivery::unblock();
    process::use_one_arena();
}
