//! A mark in a node: told once when a write goes beyond it, so that thin storage can be made longer
//! before it is full.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A write that went beyond the mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// Where the mark was, in bytes from the start.
    pub threshold: u64,
    /// How far the write went beyond it, in bytes.
    pub exceeded: u64,
}

/// Who is told. It runs on whatever thread writes, and must not block.
pub type Tell = Arc<dyn Fn(Crossing) + Send + Sync>;

/// The mark. A write costs one look at it.
#[derive(Default)]
pub(crate) struct Threshold {
    /// 0 for none.
    at: AtomicU64,
    tell: Mutex<Option<Tell>>,
}

impl Threshold {
    /// Sets the mark, or takes it away with 0.
    pub(crate) fn set(&self, at: u64, tell: Tell) {
        self.at.store(0, Ordering::SeqCst);
        *self.tell.lock().unwrap_or_else(PoisonError::into_inner) = Some(tell);
        self.at.store(at, Ordering::SeqCst);
    }

    /// Where it is; 0 for none.
    pub(crate) fn load(&self) -> u64 {
        self.at.load(Ordering::Relaxed)
    }

    /// A write has ended at `end`.
    pub(crate) fn reach(&self, end: u64) {
        let threshold = self.load();
        if threshold == 0 || end <= threshold {
            return;
        }
        let alone = self
            .at
            .compare_exchange(threshold, 0, Ordering::SeqCst, Ordering::SeqCst);
        if alone.is_err() {
            // Another write tells, or the mark was moved.
            return;
        }
        let tell = {
            let tell = self.tell.lock().unwrap_or_else(PoisonError::into_inner);
            tell.clone()
        };
        if let Some(tell) = tell {
            tell(Crossing {
                threshold,
                exceeded: end - threshold,
            });
        }
    }
}

impl fmt::Debug for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Threshold").field(&self.load()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_is_told_once_until_it_is_set_again() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&told);
        let tell: Tell = Arc::new(move |crossing| list.lock().expect("list").push(crossing));
        let mark = Threshold::default();
        mark.reach(1 << 30);
        mark.set(4096, Arc::clone(&tell));
        mark.reach(4096);
        mark.reach(4097);
        mark.reach(8192);
        assert_eq!(mark.load(), 0);
        mark.set(8192, Arc::clone(&tell));
        mark.set(0, tell);
        mark.reach(1 << 30);
        let first = Crossing {
            threshold: 4096,
            exceeded: 1,
        };
        assert_eq!(*told.lock().expect("list"), [first]);
    }
}
