//! Whether the storage answers while it is asked, as the page cache does, and how many requests
//! should therefore go to the kernel together.
//!
//! A device is asked all at once: each time costs it a doorbell. Where the answers are there when
//! the kernel comes back, few at a time are better: the guest has the first ones to work on while
//! the next ones are fetched, instead of all when the last is done.
//!
//! ```text
//!              all answered at once, and no doubt
//!   ┌────────┐ ──────────────────────────────────► ┌────────┐
//!   │ device │                                     │ memory │
//!   └────────┘ ◄────────────────────────────────── └────────┘
//!              less than half answered at once: doubt for so many batches
//! ```

use std::cell::Cell;

/// How many requests go together to storage that answers at once.
const FEW: usize = 16;
/// For how many batches storage that was taken for memory is not.
const DOUBT: u32 = 256;

/// What one ring has learnt of its storage.
#[derive(Debug, Default)]
pub(super) struct Promptness {
    at_once: Cell<bool>,
    doubt: Cell<u32>,
}

impl Promptness {
    /// How many requests to start before the ring is entered.
    pub(super) fn batch(&self) -> usize {
        if self.at_once.get() { FEW } else { usize::MAX }
    }

    /// The ring took `asked` operations and had `answered` when it came back; `waited`: it may have
    /// slept meanwhile.
    pub(super) fn learn(&self, asked: usize, answered: usize, waited: bool) {
        if asked == 0 {
            return;
        }
        if self.at_once.get() {
            if !waited && answered * 2 < asked {
                self.at_once.set(false);
                self.doubt.set(DOUBT);
            }
        } else if self.doubt.get() > 0 {
            self.doubt.set(self.doubt.get() - 1);
        } else if asked > FEW && answered >= asked {
            self.at_once.set(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_known_by_its_answers_and_asked_little_by_little() {
        let storage = Promptness::default();
        assert_eq!(storage.batch(), usize::MAX);
        storage.learn(32, 32, true);
        assert_eq!(storage.batch(), FEW);
        storage.learn(FEW, FEW, false);
        storage.learn(1, 0, true);
        assert_eq!(
            storage.batch(),
            FEW,
            "a sleep says nothing of how prompt it is"
        );
    }

    #[test]
    fn device_that_was_taken_for_memory_is_asked_all_at_once_for_long() {
        let storage = Promptness::default();
        storage.learn(32, 20, true);
        assert_eq!(storage.batch(), usize::MAX);
        storage.learn(32, 32, true);
        storage.learn(FEW, 0, false);
        let fooled = (0..1000).filter(|_| {
            storage.learn(32, 32, true);
            let fooled = storage.batch() == FEW;
            storage.learn(FEW, 0, false);
            fooled
        });
        assert!(fooled.count() <= 8);
    }
}
