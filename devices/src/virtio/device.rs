//! The seam between a virtio transport and a virtio device.

use std::fmt;
use std::io;
use std::sync::Arc;

use virtio_queue::{Queue, QueueState};
use vmm_sys_util::eventfd::EventFd;

use crate::irq::Interrupt;
use crate::memory::GuestMem;
use crate::state::AnyStateful;
use crate::vhost::ServedView;

/// A queue that the driver has enabled, handed to the device to own until it is stopped.
pub struct ActiveQueue {
    /// The ring's addresses, size and indices. Owned by the device's worker alone.
    pub queue: Queue,
    /// Where the ring and its buffers live.
    pub memory: GuestMem,
    /// Signalled by the guest's doorbell (and once by the transport at the start, for buffers
    /// made available before the queue was enabled).
    pub kick: EventFd,
    /// Tells the driver that buffers were used.
    pub interrupt: Arc<dyn Interrupt>,
}

impl fmt::Debug for ActiveQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActiveQueue")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

/// What a device may say to its driver besides used buffers. Implemented by the transport and
/// given to the device once, by [`VirtioDevice::attach`].
pub trait DriverNotifier: Send + Sync {
    /// The configuration space has changed (virtio 1.2, 2.5).
    fn config_changed(&self);

    /// The device is broken until the driver resets it (virtio 1.2, 2.1.2, DEVICE_NEEDS_RESET).
    /// Called when the driver breaks the rules: a descriptor loop, a ring outside memory.
    fn needs_reset(&self);
}

/// A virtio device, whatever transport carries it.
///
/// The transport promises: at most one `start_queue` for an index without a `stop_queue` between;
/// `set_features` before the first `start_queue` and only with a subset of `features`; every
/// started queue stopped before `reset` or drop. The device promises: `stop_queue` returns when
/// the queue's last request is finished and guest memory is no longer touched; no method panics,
/// whatever the driver wrote.
pub trait VirtioDevice: AnyStateful + Send + Sync {
    /// The virtio device type (virtio 1.2, section 5), such as 2 for a block device.
    fn device_type(&self) -> u16;

    /// The largest size of each queue, in the order of their indices.
    fn queue_sizes(&self) -> &[u16];

    /// The device-specific and ring features offered. The transport adds `VIRTIO_F_VERSION_1`.
    fn features(&self) -> u64;

    /// The features the driver accepted.
    fn set_features(&self, features: u64);

    /// Fills `data` from the configuration space; zero beyond its end.
    fn config_read(&self, offset: u64, data: &mut [u8]);

    /// Takes a driver's write to the configuration space; writes to read-only fields are ignored.
    fn config_write(&self, offset: u64, data: &[u8]);

    /// Gives the device its way back to the driver. Called once, before anything else.
    fn attach(&self, driver: Arc<dyn DriverNotifier>);

    /// Gives the device a queue that the driver has enabled.
    ///
    /// # Errors
    /// The backend cannot serve it; the transport then reports DEVICE_NEEDS_RESET.
    fn start_queue(&self, index: usize, queue: ActiveQueue) -> Result<(), VirtioError>;

    /// Takes a queue back and returns where it stands, or `None` if it was not started. Returns
    /// only when nothing is in flight on it.
    fn stop_queue(&self, index: usize) -> Option<QueueState>;

    /// The interrupt of a started queue may be another eventfd from now on, or none. Of interest to
    /// devices whose queues are served outside of this process.
    fn interrupt_moved(&self, _index: usize) {}

    /// Guest memory has other regions from now on. Of interest to the same devices.
    ///
    /// # Errors
    /// Who serves the queues cannot work with these regions, and goes on with those before, which
    /// are kept for it.
    fn memory_changed(&self) -> io::Result<()> {
        Ok(())
    }

    /// If somebody outside of this process serves queues of it now: which features that one can do.
    fn served_outside(&self) -> Option<u64> {
        None
    }

    /// A look at the queue `index`, if somebody outside of this process serves it now.
    fn queue_outside(&self, _index: usize) -> Option<ServedView> {
        None
    }

    /// Forgets what was negotiated. All queues are stopped.
    fn reset(&self);
}

/// Why a virtio device could not do what the transport asked.
#[derive(Debug, thiserror::Error)]
pub enum VirtioError {
    /// The driver set up a queue the device does not have.
    #[error("virtio queue {index}: the device has {count}")]
    NoSuchQueue {
        /// The index asked for.
        index: usize,
        /// How many queues the device has.
        count: usize,
    },
    /// The queue's rings are not inside guest memory or not aligned.
    #[error("virtio queue {index}: the rings are not valid guest memory")]
    BadRing {
        /// The queue's index.
        index: usize,
    },
    /// The host side failed.
    #[error("virtio queue {index}: {what}")]
    Backend {
        /// The queue's index.
        index: usize,
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Answers [`VirtioDevice::config_read`] from the whole of a configuration space; what lies beyond
/// its end is zero.
pub fn read_config(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|at| config.get(at..));
    for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_across_the_end_of_a_configuration_space_gives_zeros_there() {
        let mut data = [0xff; 3];
        for (offset, wanted) in [
            (0, [1, 2, 0]),
            (1, [2, 0, 0]),
            (2, [0; 3]),
            (u64::MAX, [0; 3]),
        ] {
            read_config(&[1, 2], offset, &mut data);
            assert_eq!(data, wanted, "{offset}");
        }
    }
}
