//! A user's own limits: those of the group that it is in, if it is in one.
//!
//! ```text
//!   disk ─► Limiter ─ in no group ─► go (one load)
//!              └───── Member ─► ThrottleGroup
//! ```

use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::buckets::Direction;
use super::group::{Member, ThrottleGroup};
use crate::engine::Io;

/// What a user asks before each request. Clones are the same; the first is in no group.
#[derive(Clone, Debug, Default)]
pub struct Limiter(Arc<Place>);

#[derive(Debug, Default)]
struct Place {
    in_group: AtomicBool,
    member: Mutex<Option<Arc<Member>>>,
}

impl Limiter {
    /// The group it is in.
    #[must_use]
    pub fn group(&self) -> Option<Arc<ThrottleGroup>> {
        let member = self.member().clone();
        member.map(|member| Arc::clone(member.group()))
    }

    /// Puts it into another group, or into none. Requests that wait in the old one do so until it
    /// lets them go.
    pub(crate) fn put(&self, member: Option<Member>) {
        let member = member.map(Arc::new);
        self.0.in_group.store(member.is_some(), Ordering::SeqCst);
        let old = mem::replace(&mut *self.member(), member);
        drop(old);
    }

    /// Waits until a request of so many bytes may go, and counts it.
    ///
    /// # Errors
    /// The thread has no timer.
    pub async fn pass(&self, io: &Io, direction: Direction, bytes: u64) -> io::Result<()> {
        if !self.0.in_group.load(Ordering::SeqCst) {
            return Ok(());
        }
        let member = self.member().clone();
        match member {
            Some(member) => member.pass(io, direction, bytes).await,
            None => Ok(()),
        }
    }

    fn member(&self) -> MutexGuard<'_, Option<Arc<Member>>> {
        self.0.member.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
