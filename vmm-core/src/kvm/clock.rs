//! The guest's clock stands still while the guest does.
//!
//! kvmclock would go on while the vCPUs are paused, and a guest would see a jump. So it is read
//! when they stop and set back when they start; each vCPU is told that it was stopped by the
//! host, so that the guest's watchdogs do not complain.

use std::sync::{Mutex, PoisonError};

use kvm_bindings::kvm_clock_data;

use super::{KvmError, KvmVm, VcpuSet};

/// The time at which the guest was stopped.
#[derive(Default)]
pub struct KvmClock {
    /// Nanoseconds; `None` while the clock runs. Leaf lock: nothing is called with it.
    stopped_at: Mutex<Option<u64>>,
}

impl KvmClock {
    /// Stops the clock. The vCPUs are paused.
    ///
    /// # Errors
    /// KVM does not tell the time.
    pub fn stop(&self, vm: &KvmVm) -> Result<(), KvmError> {
        let now = vm
            .fd()
            .get_clock()
            .map_err(KvmError::ioctl("reading the guest's clock"))?;
        let mut stopped_at = self.lock();
        stopped_at.get_or_insert(now.clock);
        Ok(())
    }

    /// Lets the clock go on from where it was stopped; nothing if it was not. The vCPUs are still
    /// paused.
    ///
    /// # Errors
    /// KVM refuses the time.
    pub fn start(&self, vm: &KvmVm, vcpus: &VcpuSet) -> Result<(), KvmError> {
        let Some(clock) = self.lock().take() else {
            return Ok(());
        };
        let data = kvm_clock_data {
            clock,
            ..Default::default()
        };
        vm.fd()
            .set_clock(&data)
            .map_err(KvmError::ioctl("setting the guest's clock"))?;
        for vcpu in vcpus.iter() {
            // A guest that does not use kvmclock needs not be told, and KVM says so by an error.
            let _ = vcpu.with_cpu(|cpu| cpu.kvmclock_ctrl().is_ok())?;
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<u64>> {
        self.stopped_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
