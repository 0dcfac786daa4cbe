//! The VM where two threads can reach it: its owner, and the one that reads requests.
//!
//! ```text
//!   main     ──► run: lock ─► attend ─► unlock ─► sleep ─► lock ...
//!   qmp-io   ──► serve_now: locked, or letters wait? ─ yes ─► the inbox, for main
//!                                │ no: main sleeps, and nothing has happened before
//!                                ▼
//!                        quick commands only ─► reply
//! ```
//!
//! A request that goes through `main` wakes two sleeping threads on its way, which takes longer
//! than nearly every command. So a quick one runs on `qmp-io` while `main` has nothing to do.
//! Commands still run one at a time and see the same VM; only `main` ever waits for the lock, and
//! never longer than for one quick command.

use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use monitor::Call;
use qapi_schema::{CommandSpec, Module};

use super::Vm;
use crate::event_loop::{EventLoop, Mailbox};
use crate::start_code::StartCode;

/// Commands of the VM that only look at what is in memory: they call no device, no file and no
/// other thread.
const QUICK: &[&str] = &[
    "query-block",
    "query-block-jobs",
    "query-blockstats",
    "query-chardev",
    "query-command-line-options",
    "query-cpu-definitions",
    "query-cpus-fast",
    "query-current-machine",
    "query-hotpluggable-cpus",
    "query-iothreads",
    "query-jobs",
    "query-kvm",
    "query-machines",
    "query-memdev",
    "query-memory-devices",
    "query-memory-size-summary",
    "query-migrate-capabilities",
    "query-name",
    "query-named-block-nodes",
    "query-status",
    "query-target",
    "query-uuid",
];

/// Commands of the monitor that are not quick, or end something.
const NOT_QUICK: &[&str] = &["query-qmp-schema", "quit"];

/// Whether a command may run on the thread that reads requests.
fn is_quick(command: &CommandSpec) -> bool {
    match command.module {
        Module::Control | Module::Fds => !NOT_QUICK.contains(&command.name),
        _ => QUICK.contains(&command.name),
    }
}

/// A VM that runs, or will. Clones are the same VM.
#[derive(Clone)]
pub struct VmCell {
    /// `None` before it runs and once it has ended.
    vm: Arc<Mutex<Option<Vm>>>,
    mailbox: Mailbox,
}

impl VmCell {
    /// A cell whose VM is still to be built.
    #[must_use]
    pub fn new(mailbox: Mailbox) -> Self {
        Self {
            vm: Arc::default(),
            mailbox,
        }
    }

    /// Runs `vm` until it has ended; gives the process's exit status.
    ///
    /// # Errors
    /// The main loop cannot wait any more.
    pub fn run(&self, vm: Vm, event_loop: &mut EventLoop) -> io::Result<ExitCode> {
        *self.lock() = Some(vm);
        let mut start_code = StartCode::held();
        loop {
            let deadline = {
                let mut place = self.lock();
                let Some(vm) = place.as_mut() else {
                    return Ok(ExitCode::SUCCESS);
                };
                vm.attend(event_loop);
                if let Some(status) = vm.ended {
                    vm.close();
                    let ended = place.take();
                    drop(place);
                    drop(ended);
                    return Ok(status);
                }
                vm.watch_hook(event_loop);
                vm.open_hook.deadline(Instant::now())
            };
            let before = Instant::now();
            event_loop.wait(start_code.wake_by(deadline, before))?;
            start_code.waited(before.elapsed());
        }
    }

    /// Runs a quick command here and now if `main` has nothing to do; gives back any other.
    #[must_use]
    pub fn serve_now(&self, call: Call) -> Option<Call> {
        if !is_quick(call.command) {
            return Some(call);
        }
        let Ok(mut place) = self.vm.try_lock() else {
            return Some(call);
        };
        match place.as_mut() {
            // What a device has told came before this request, and may change its answer.
            Some(vm) if !self.mailbox.has_news() => {
                vm.serve(call);
                None
            }
            _ => Some(call),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vm>> {
        self.vm.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use qapi_schema::{COMMANDS, find_command};

    use super::*;

    #[test]
    fn what_is_quick_is_a_command_and_none_that_changes_the_vm() {
        for name in QUICK.iter().chain(NOT_QUICK) {
            assert!(find_command(name).is_some(), "{name}");
        }
        for command in COMMANDS.iter().filter(|command| is_quick(command)) {
            let is_of_the_monitor = matches!(command.module, Module::Control | Module::Fds);
            let only_looks = command.name.starts_with("query-");
            assert!(is_of_the_monitor || only_looks, "{}", command.name);
        }
    }
}
