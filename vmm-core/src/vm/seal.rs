//! The VM's part in the seal: it knows all threads, and what must be ready before.

use std::sync::Arc;

use fdset::Policy;
use qapi_schema::QmpError;

use super::Vm;
use crate::process;
use crate::sandbox::ThreadKind;

/// How many io-threads can be added to a sealed process at a time. Each costs its ring's memory,
/// some 60 KiB, from the seal on.
const RINGS_IN_STOCK: usize = 16;

impl Vm {
    /// Opens nothing any more that is not handed in, from now on.
    pub fn open_only_passed(&self) {
        self.door.registry().raise_policy(Policy::Passed);
    }

    /// Seals the process: whatever needs the right to open is done here, and then the right is
    /// gone.
    ///
    /// # Errors
    /// The kernel has no filters, or a thread does not take its own.
    pub fn seal(&mut self) -> Result<(), QmpError> {
        let registry = Arc::clone(self.door.registry());
        registry.raise_policy(Policy::Passed);
        self.rings
            .stock_up(RINGS_IN_STOCK)
            .map_err(|error| QmpError::from_error(&error))?;
        // Otherwise a guest's access to a device may start it, on a thread that may start none. And
        // a chardev may be calling its peer there, since before the policy forbade it.
        self.reactor
            .settle()
            .map_err(|error| QmpError::from_error(&error))?;
        // The first look at the local time reads the time zone's file.
        let _: i64 = process::local_time_offset();
        let threads = self.threads();
        self.sandbox
            .seal(&threads)
            .map_err(|error| QmpError::from_error(&error))?;
        registry.raise_policy(Policy::Sealed);
        Ok(())
    }

    /// Gives threads that a command has started the filters of their kinds.
    pub(super) fn cover_new_threads(&mut self) {
        if self.sandbox.is_sealed() {
            let threads = self.threads();
            if let Err(error) = self.sandbox.cover(&threads) {
                // They have the main thread's, which opens nothing either.
                tracing::error!(%error, "a new thread keeps the filter of the main thread");
            }
        }
    }

    /// All threads but the main one, which calls this.
    pub(crate) fn threads(&self) -> Vec<(ThreadKind, i32)> {
        let vcpus = self.machine.cpus().into_iter();
        let vcpus = vcpus.map(|cpu| (ThreadKind::Vcpu, cpu.thread_id));
        let iothreads = self.objects.iothreads().chain(&self.default_iothread);
        let iothreads = iothreads.map(|iothread| (ThreadKind::IoThread, iothread.thread_id()));
        let qmp_io = self.server.thread_id().map(|id| (ThreadKind::QmpIo, id));
        let dev_io = self.reactor.thread_id().map(|id| (ThreadKind::DevIo, id));
        qmp_io
            .into_iter()
            .chain(vcpus)
            .chain(iothreads)
            .chain(dev_io)
            .collect()
    }
}
