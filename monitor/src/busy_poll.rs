//! Busy polling: how `qmp-io` waits after an answer. It looks for the next request a moment longer
//! before it sleeps, as long as that pays.
//!
//! To wake a CPU that sleeps takes ten times as long as most commands, for the client's CPU as for
//! ours. A client that sends one command after the other finds us awake, and has its answer before
//! its own CPU has fallen asleep. A client that comes once a second costs nothing: polling in vain
//! is followed by ever more answers without. Nor does a busy machine pay: whoever else wants this
//! CPU gets it at once, and then there is no polling for a while.
//!
//! ```text
//!                 request came: again after the next answer
//!                ┌───────────────────────────────────────┐
//!   answer ─► due? ─ yes ─► look, yield, look, ... ──────┤
//!                │ no             │ in vain, or the CPU is wanted
//!                ▼                ▼
//!              sleep ◄──── due again after 1, 2, 4 … 64 answers
//! ```

use std::time::Duration;

/// How long to look: a client's CPU wakes up and the client thinks.
pub(crate) const LENGTH: Duration = Duration::from_micros(100);
/// Who gives way to others for so long has kept them from working.
pub(crate) const CROWDED: Duration = Duration::from_micros(50);
/// The most answers without polling.
const MOST_REST: u32 = 64;

/// Whether the next wait begins with polling.
#[derive(Debug)]
pub(crate) struct BusyPoll {
    answered: bool,
    /// How many answers to go without.
    rest: u32,
    /// How many it will be after the next one in vain.
    next_rest: u32,
}

impl BusyPoll {
    pub(crate) fn new() -> Self {
        Self {
            answered: false,
            rest: 0,
            next_rest: 1,
        }
    }

    /// A request was answered at once.
    pub(crate) fn answered(&mut self) {
        self.answered = true;
    }

    /// Whether this wait begins with polling.
    pub(crate) fn is_due(&mut self) -> bool {
        if !std::mem::take(&mut self.answered) {
            return false;
        }
        let rests = self.rest > 0;
        self.rest = self.rest.saturating_sub(1);
        !rests
    }

    /// The next request came meanwhile.
    pub(crate) fn paid(&mut self) {
        self.next_rest = 1;
    }

    /// It did not.
    pub(crate) fn in_vain(&mut self) {
        self.rest = self.next_rest;
        self.next_rest = (self.next_rest * 2).min(MOST_REST);
    }

    /// Somebody else wants the CPU.
    pub(crate) fn crowded(&mut self) {
        self.next_rest = MOST_REST;
        self.in_vain();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many answers are followed by polling that ends like this.
    fn polls(poll: &mut BusyPoll, answers: u32, end: fn(&mut BusyPoll)) -> u32 {
        let mut count = 0;
        for _ in 0..answers {
            poll.answered();
            if poll.is_due() {
                count += 1;
                end(poll);
            }
            assert!(!poll.is_due(), "one for each answer");
        }
        count
    }

    #[test]
    fn a_talkative_client_is_polled_for_after_each_answer() {
        assert_eq!(polls(&mut BusyPoll::new(), 1000, BusyPoll::paid), 1000);
    }

    #[test]
    fn polling_in_vain_becomes_rare_and_once_it_pays_it_is_back() {
        let mut poll = BusyPoll::new();
        assert_eq!(polls(&mut poll, 6500, BusyPoll::in_vain), 105);
        assert!(polls(&mut poll, 200, BusyPoll::paid) >= 200 - MOST_REST);
    }

    #[test]
    fn on_a_crowded_machine_there_is_next_to_no_polling() {
        assert_eq!(polls(&mut BusyPoll::new(), 6500, BusyPoll::crowded), 100);
    }
}
