//! Whose request is next: each member's own come in their order, and the members take turns.
//!
//! ```text
//!   next ─► member 2 : 7 9 12
//!           member 0 : 8
//!           member 1 : 10 11        7 goes ─► member 2 to the end, behind 11's
//! ```
//!
//! Pure but for the wakers it keeps.

use std::collections::VecDeque;
use std::task::Waker;

/// The requests of one direction that wait.
#[derive(Debug, Default)]
pub(super) struct Turns(VecDeque<(u64, VecDeque<Waiter>)>);

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    waker: Waker,
}

impl Turns {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One more waits.
    pub(super) fn push(&mut self, member: u64, ticket: u64, waker: Waker) {
        let waiter = Waiter { ticket, waker };
        match self.0.iter_mut().find(|(other, _)| *other == member) {
            Some((_, waiters)) => waiters.push_back(waiter),
            None => self.0.push_back((member, VecDeque::from([waiter]))),
        }
    }

    fn head(&self) -> Option<&Waiter> {
        self.0.front()?.1.front()
    }

    /// Whether it is this one's turn.
    pub(super) fn is_next(&self, ticket: u64) -> bool {
        self.head().is_some_and(|next| next.ticket == ticket)
    }

    /// Whom to wake now that another one's turn may have come.
    pub(super) fn next(&self) -> Option<Waker> {
        self.head().map(|next| next.waker.clone())
    }

    /// This one waits no more. Where it was its turn, the turn goes on to the next member.
    pub(super) fn remove(&mut self, ticket: u64) {
        let was_next = self.is_next(ticket);
        for (_, waiters) in &mut self.0 {
            waiters.retain(|waiter| waiter.ticket != ticket);
        }
        if was_next && self.0.front().is_some_and(|(_, left)| !left.is_empty()) {
            self.0.rotate_left(1);
        }
        self.0.retain(|(_, waiters)| !waiters.is_empty());
    }

    /// All that wait.
    pub(super) fn wakers(&self) -> impl Iterator<Item = Waker> {
        let waiters = self.0.iter().flat_map(|(_, waiters)| waiters);
        waiters.map(|waiter| waiter.waker.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(waiting: &[(u64, u64)]) -> Turns {
        let mut turns = Turns::default();
        for (member, ticket) in waiting {
            turns.push(*member, *ticket, Waker::noop().clone());
        }
        turns
    }

    fn order(mut turns: Turns) -> Vec<u64> {
        std::iter::from_fn(|| {
            let ticket = turns.head()?.ticket;
            turns.remove(ticket);
            Some(ticket)
        })
        .collect()
    }

    #[test]
    fn a_member_with_many_requests_leaves_the_others_their_turns() {
        let turns = turns(&[(1, 0), (1, 1), (1, 2), (1, 3), (2, 4), (3, 5), (2, 6)]);
        assert_eq!(order(turns), [0, 4, 5, 1, 6, 2, 3]);
    }

    #[test]
    fn one_that_gives_up_takes_nobodys_turn() {
        let mut turns = turns(&[(1, 0), (1, 1), (2, 2)]);
        turns.remove(1);
        assert!(turns.is_next(0));
        turns.remove(0);
        assert!(turns.is_next(2));
        turns.remove(2);
        assert!(turns.is_empty());
    }
}
