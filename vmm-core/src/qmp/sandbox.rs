//! `sandbox.json`: what the process has given up, and giving up more.

use fdset::Policy;
use qapi_schema::sandbox::{
    Commands, LandlockStatus, OpenPolicy, SandboxInfo, SandboxThreadInfo, SandboxThreadKind, Seal,
    SealLevel,
};
use qapi_schema::{Context, QmpError};

use crate::sandbox::{LandlockState, ThreadKind};
use crate::vm::Vm;

impl Commands for Vm {
    fn seal(&mut self, _cx: &mut dyn Context, args: Seal) -> Result<(), QmpError> {
        match args.level {
            SealLevel::Passed => {
                self.open_only_passed();
                Ok(())
            }
            SealLevel::Sealed => Vm::seal(self),
        }
    }

    fn query_sandbox(&mut self, _cx: &mut dyn Context) -> Result<SandboxInfo, QmpError> {
        let main = (ThreadKind::Main, nix::unistd::getpid().as_raw());
        let threads = [main].into_iter().chain(self.threads());
        let threads = threads.map(|(kind, id)| SandboxThreadInfo {
            kind: wire_kind(kind),
            thread_id: i64::from(id),
            filtered: self.sandbox.covers(id),
        });
        Ok(SandboxInfo {
            open_policy: match self.door.registry().policy() {
                Policy::Open => OpenPolicy::Open,
                Policy::Passed => OpenPolicy::Passed,
                Policy::Sealed => OpenPolicy::Sealed,
            },
            threads: threads.collect(),
            landlock: match self.sandbox.landlock() {
                LandlockState::Unavailable => LandlockStatus::Unavailable,
                LandlockState::Available => LandlockStatus::Available,
                LandlockState::Enforced => LandlockStatus::Enforced,
            },
            landlock_abi: self.sandbox.landlock_abi().map(i64::from),
            rings_restricted: true,
        })
    }
}

fn wire_kind(kind: ThreadKind) -> SandboxThreadKind {
    match kind {
        ThreadKind::Main => SandboxThreadKind::Main,
        ThreadKind::QmpIo => SandboxThreadKind::QmpIo,
        ThreadKind::Vcpu => SandboxThreadKind::Vcpu,
        ThreadKind::IoThread => SandboxThreadKind::Iothread,
        ThreadKind::DevIo => SandboxThreadKind::DevIo,
    }
}
