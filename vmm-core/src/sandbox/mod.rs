//! What the process gives up: `-sandbox`.
//!
//! This room turns a resolved [`SandboxSpec`] into system call filters and puts them on every
//! thread, the ones that exist and the ones to come. It must never know devices or QMP.
//!
//! ```text
//!   -sandbox on,spawn=deny ──► SandboxSpec ──► seccomp::deny_list ──► all threads (TSYNC)
//! ```
//!
//! The meaning of each group is QEMU's, so that the option line a management layer already passes
//! does here what it does there.

mod seccomp;

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
    #[error("-sandbox: the system call filter is not valid")]
    Filter(#[source] seccompiler::BackendError),
    /// The kernel refused the filter.
    #[error("-sandbox: the kernel refused the system call filter (it needs CONFIG_SECCOMP_FILTER)")]
    Refused(#[source] seccompiler::Error),
}

/// Enters the sandbox: from now on a call of a denied group ends the process.
///
/// # Errors
/// The kernel has no seccomp filters, or an outer sandbox forbids more of them.
pub fn enter(spec: &SandboxSpec) -> Result<(), SandboxError> {
    seccomp::apply(spec)
}
