//! What names can be opened: a level that is raised and never lowered.
//!
//! ```text
//!   Open ───────────────► Passed ───────────────► Sealed
//!   any name              what was handed in,     the same, and the kernel refuses
//!                         and anonymous memory    all else in every thread
//! ```
//!
//! Here it is a courtesy: a name that would need the file system or the network is refused with an
//! error that says what to do. At `Sealed` a thread that asked the kernel all the same would end
//! the process.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{OpenError, Wanted};

/// What names can be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// All.
    #[default]
    Open,
    /// Only those of fds that were handed in; memory, which needs no name, can still be made.
    Passed,
    /// As `Passed`, and the process can no longer do anything else, not even remove its files.
    Sealed,
}

impl Policy {
    /// Its name, as options and commands have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Passed => "passed",
            Self::Sealed => "sealed",
        }
    }
}

/// The level of one registry.
#[derive(Debug, Default)]
pub(crate) struct Level(AtomicU8);

impl Level {
    pub(crate) fn now(&self) -> Policy {
        match self.0.load(Ordering::Acquire) {
            0 => Policy::Open,
            1 => Policy::Passed,
            _ => Policy::Sealed,
        }
    }

    /// Raises the level to `policy`; a lower one changes nothing.
    pub(crate) fn raise(&self, policy: Policy) {
        self.0.fetch_max(policy as u8, Ordering::AcqRel);
    }

    /// Whether something that was not handed in can be had.
    pub(crate) fn admit(&self, wanted: impl FnOnce() -> Wanted) -> Result<(), OpenError> {
        match self.now() {
            Policy::Open => Ok(()),
            policy => Err(OpenError::NotPassed {
                wanted: wanted(),
                policy,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::watch::passed;
    use crate::{
        Access, Door, FdRegistry, MemfdSpec, Request, Role, Scope, SocketAddress, Wait, connect,
        listen, memfd, open, pid_file, pty,
    };

    fn door_at(policy: Policy) -> Door {
        let registry = Arc::new(FdRegistry::new());
        registry.raise_policy(policy);
        Door::new(registry, Scope::Process)
    }

    #[test]
    fn a_level_is_raised_and_never_lowered() {
        let registry = FdRegistry::new();
        for (given, holds) in [
            (Policy::Open, Policy::Open),
            (Policy::Passed, Policy::Passed),
            (Policy::Open, Policy::Passed),
            (Policy::Sealed, Policy::Sealed),
            (Policy::Passed, Policy::Sealed),
        ] {
            registry.raise_policy(given);
            assert_eq!(registry.policy(), holds);
        }
    }

    #[test]
    fn above_open_nothing_is_had_by_a_name_of_the_host() {
        for policy in [Policy::Passed, Policy::Sealed] {
            let door = door_at(policy);
            let image = Request::new("/dev/null", Access::ReadOnly, Role::Image, "node 'n'");
            let error = open(&door, &image).expect_err("refused");
            assert_eq!(
                error.to_string(),
                format!(
                    "Could not open '/dev/null' read-only as image of node 'n': the open policy is \
                     '{}': only fds that were handed in are opened; pass one with add-fd or getfd \
                     and give '/dev/fdset/N' or 'fd:NAME'",
                    policy.as_str()
                )
            );
            assert_eq!(error.errno(), nix::libc::EPERM);
            let addresses = [
                SocketAddress::Unix {
                    path: PathBuf::from("/nowhere/socket"),
                },
                SocketAddress::Inet {
                    host: "127.0.0.1".into(),
                    port: 0,
                },
            ];
            for address in &addresses {
                let refused = [
                    listen(&door, address, Role::Chardev, "c").err(),
                    connect(&door, address, Wait::Not, Role::Chardev, "c").err(),
                ];
                for error in refused {
                    assert!(
                        matches!(error, Some(OpenError::NotPassed { .. })),
                        "{error:?}"
                    );
                }
            }
            assert!(matches!(
                pty(&door, Role::Chardev, "c"),
                Err(OpenError::NotPassed { .. })
            ));
        }
    }

    #[test]
    fn passed_fds_and_memory_are_had_at_every_level() {
        for policy in [Policy::Open, Policy::Passed, Policy::Sealed] {
            let door = door_at(policy);
            let spec = MemfdSpec {
                size: 4096,
                sealed: false,
                huge: None,
            };
            let memory = memfd(&door, "ram", spec, Role::Memory, "test").expect("memory");
            door.registry()
                .add_named(Scope::Process, "ram", passed(memory.into_parts().0))
                .expect("good name");
            let request = Request::new("fd:ram", Access::ReadWrite, Role::Memory, "test");
            open(&door, &request).expect("handed in");
        }
    }

    #[test]
    fn a_sealed_process_leaves_its_files_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        let door = door_at(Policy::Open);
        let path = dir.path().join("socket");
        let address = SocketAddress::Unix { path: path.clone() };
        let listener = listen(&door, &address, Role::Chardev, "c").expect("bound");
        let pid = dir.path().join("pid");
        let pid_file = pid_file(&door, pid.to_str().expect("text"), "-pidfile").expect("written");
        door.registry().raise_policy(Policy::Sealed);
        drop((listener, pid_file));
        assert!(path.exists() && pid.exists());
    }
}
