//! What a disk does when its storage fails: who is told, and what becomes of the request.
//!
//! ```text
//!   failure ─► Failures::report ─┬─► Report: the guest is told
//!               │                ├─► Ignore: it is told that all is well
//!               ▼                └─► Stop: it is told nothing, and the request is done again when
//!            notice, log                   its queue is started again (`virtio/waiting.rs`)
//! ```

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use block::job::{ErrorAction, OnError, Trouble};

use crate::notice::{Notice, NoticeSink};
use crate::repeats::Repeats;

/// What is done about the failures of one disk, and the one that stopped the machine.
#[derive(Debug)]
pub struct Failures {
    device: String,
    /// For reads, and for anything else.
    on_error: [OnError; 2],
    /// Why it stopped the machine, since that was last let run.
    trouble: Mutex<Option<Trouble>>,
    repeats: Repeats,
    notices: NoticeSink,
}

impl Failures {
    /// Of the device of this id or QOM path: what is done when a read fails, and when anything else
    /// does; and where that is told.
    pub fn new(device: String, on_error: [OnError; 2], notices: NoticeSink) -> Self {
        Self {
            device,
            on_error,
            trouble: Mutex::default(),
            repeats: Repeats::default(),
            notices,
        }
    }

    /// Tells of a failure at `node`; what is done about it.
    pub(crate) fn report(&self, node: &str, error: &io::Error, write: bool) -> ErrorAction {
        let [of_reads, of_others] = self.on_error;
        let policy = if write { of_others } else { of_reads };
        let action = policy.action(error);
        if action == ErrorAction::Stop {
            self.lock().get_or_insert(Trouble::from(error));
        }
        if let Some(times) = self.repeats.note() {
            tracing::warn!(device = %self.device, node, write, times, %error, "I/O error");
        }
        self.notices.send(Notice::BlockError {
            device: self.device.clone(),
            node: node.to_owned(),
            write,
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            action,
        });
        action
    }

    /// Whether any failure stops the machine.
    pub fn can_stop(&self) -> bool {
        self.on_error.iter().any(|policy| policy.can_stop())
    }

    /// The first failure that stopped the machine, since that was last let run.
    pub fn trouble(&self) -> Option<Trouble> {
        *self.lock()
    }

    /// The machine is let run: what stopped it is past.
    pub fn forget_trouble(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
