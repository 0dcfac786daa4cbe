//! Letters to the VM's owner: what they can say, and the box they wait in.
//!
//! A guest can bring about news faster than an owner that is busy with a long command reads them.
//! So the box is bounded without losing anything: once it is full, news of a device take the place
//! of older news about the same thing. What is left is one letter for each thing there is.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use block::Corruption;
use block::job::JobNews;
use devices::notice::Notice;
use fdset::{Told, Wish};

use crate::kvm::VcpuEvent;

/// How many letters wait before older ones are looked through.
const MANY: usize = 1024;

/// A letter to the VM's owner.
#[derive(Debug)]
pub enum Letter {
    /// A device has news.
    Device(Notice),
    /// A vCPU has paused itself.
    Vcpu(VcpuEvent),
    /// Something that is opened again wants the open hook asked.
    Ask(Question),
    /// A job has news.
    Job(String, JobNews),
    /// An image is corrupt.
    Corrupt(Corruption),
    /// A client asks for the end.
    Quit,
}

/// What the open hook is to be asked, and who is to be told.
pub struct Question {
    /// What.
    pub wish: Wish,
    /// Whom.
    pub told: Told,
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Question").field(&self.wish).finish()
    }
}

/// The box.
#[derive(Debug, Default)]
pub(crate) struct Letters(Mutex<VecDeque<Letter>>);

impl Letters {
    /// Puts a letter behind all others.
    pub(crate) fn push(&self, letter: Letter) {
        let replaced_dropped_without_lock = {
            let mut letters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let replaced = match &letter {
                Letter::Device(news) if letters.len() >= MANY => letters
                    .iter()
                    .position(|waits| matches!(waits, Letter::Device(old) if news.replaces(old))),
                _ => None,
            };
            let replaced = replaced.and_then(|place| letters.remove(place));
            letters.push_back(letter);
            replaced
        };
        drop(replaced_dropped_without_lock);
    }

    /// Takes those about corrupt images, before all others.
    pub(crate) fn take_corruptions(&self) -> Vec<Letter> {
        let mut letters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::new();
        letters.retain_mut(|letter| match letter {
            Letter::Corrupt(corruption) => {
                taken.push(Letter::Corrupt(corruption.clone()));
                false
            }
            _ => true,
        });
        taken
    }

    /// Takes the first.
    pub(crate) fn pop(&self) -> Option<Letter> {
        let mut letters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        letters.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(open: bool) -> Letter {
        Letter::Device(Notice::PortChange {
            id: "p".to_owned(),
            open,
        })
    }

    fn all(letters: &Letters) -> Vec<String> {
        std::iter::from_fn(|| Some(format!("{:?}", letters.pop()?))).collect()
    }

    #[test]
    fn letters_keep_their_order_and_all_of_them_while_there_is_room() {
        let letters = Letters::default();
        for open in [true, false, true] {
            letters.push(port(open));
        }
        letters.push(Letter::Quit);
        assert_eq!(all(&letters).len(), 4);
    }

    #[test]
    fn a_guest_that_toggles_for_ever_fills_no_memory_and_its_last_word_counts() {
        let letters = Letters::default();
        letters.push(Letter::Device(Notice::GuestPanicked));
        for turn in 0..100_000 {
            letters.push(port(turn % 2 == 0));
        }
        letters.push(Letter::Quit);
        let waiting = all(&letters);
        assert_eq!(waiting.len(), MANY + 1);
        assert_eq!(
            waiting[0],
            format!("{:?}", Letter::Device(Notice::GuestPanicked))
        );
        assert_eq!(waiting[MANY - 1], format!("{:?}", port(false)));
        assert_eq!(waiting[MANY], format!("{:?}", Letter::Quit));
    }
}
