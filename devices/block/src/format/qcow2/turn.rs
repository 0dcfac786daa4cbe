//! One at a time, across io-threads: a value that a task takes away and brings back, and ranges
//! that a task has for itself.
//!
//! ```text
//!   task ── Turn::take().await ──► Taken<T>: the value itself ── drop ──► back, next is woken
//!   task ── Ranges::take(from..to).await ──► RangeTaken       ── drop ──► free, all are woken
//! ```
//!
//! Futures stay on their thread, but wakers go anywhere: a task of one io-thread wakes one of
//! another. The mutexes inside are held for bookkeeping only, never across an await.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::{Deref, DerefMut, Range};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

struct Queue<T> {
    /// `None` while a task has it.
    value: Option<Box<T>>,
    waiting: VecDeque<(u64, Waker)>,
    next: u64,
}

/// A value that one task at a time has, in the order in which they asked.
pub(super) struct Turn<T>(Mutex<Queue<T>>);

impl<T> Turn<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Mutex::new(Queue {
            value: Some(Box::new(value)),
            waiting: VecDeque::new(),
            next: 0,
        }))
    }

    fn queue(&self) -> MutexGuard<'_, Queue<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives each the value of the other; no task has or wants one of them.
    pub(super) fn exchange(&self, other: &Self) {
        let (mine, theirs) = (self.queue().value.take(), other.queue().value.take());
        self.queue().value = theirs;
        other.queue().value = mine;
    }

    /// Waits for the value and takes it.
    pub(super) fn take(&self) -> TakeTurn<'_, T> {
        TakeTurn {
            turn: self,
            ticket: None,
        }
    }
}

/// The wait for a [`Turn`].
pub(super) struct TakeTurn<'a, T> {
    turn: &'a Turn<T>,
    ticket: Option<u64>,
}

impl<'a, T> Future for TakeTurn<'a, T> {
    type Output = Taken<'a, T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut queue = self.turn.queue();
        let first = queue.waiting.front().map(|(ticket, _)| *ticket);
        let mine = first.is_none() || first == self.ticket;
        if mine && let Some(value) = queue.value.take() {
            queue.waiting.pop_front();
            drop(queue);
            self.ticket = None;
            return Poll::Ready(Taken {
                turn: self.turn,
                value: Some(value),
            });
        }
        let waker = cx.waker().clone();
        match self.ticket {
            Some(ticket) => {
                let place = queue.waiting.iter_mut().find(|(other, _)| *other == ticket);
                if let Some(place) = place {
                    place.1 = waker;
                }
            }
            None => {
                let ticket = queue.next;
                queue.next += 1;
                queue.waiting.push_back((ticket, waker));
                drop(queue);
                self.ticket = Some(ticket);
            }
        }
        Poll::Pending
    }
}

impl<T> Drop for TakeTurn<'_, T> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else {
            return;
        };
        // Whoever was behind may have the turn now.
        let next = {
            let mut queue = self.turn.queue();
            queue.waiting.retain(|(other, _)| *other != ticket);
            queue
                .value
                .is_some()
                .then(|| queue.waiting.front().cloned())
        };
        if let Some(Some((_, waker))) = next {
            waker.wake();
        }
    }
}

/// The value, until this is dropped.
pub(super) struct Taken<'a, T> {
    turn: &'a Turn<T>,
    value: Option<Box<T>>,
}

impl<T> Deref for Taken<'_, T> {
    type Target = T;

    #[expect(clippy::expect_used, reason = "only `drop` takes the value out")]
    fn deref(&self) -> &T {
        self.value.as_deref().expect("the value until the drop")
    }
}

impl<T> DerefMut for Taken<'_, T> {
    #[expect(clippy::expect_used, reason = "only `drop` takes the value out")]
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_deref_mut().expect("the value until the drop")
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        let next = {
            let mut queue = self.turn.queue();
            queue.value = self.value.take();
            queue.waiting.front().map(|(_, waker)| waker.clone())
        };
        if let Some(waker) = next {
            waker.wake();
        }
    }
}

#[derive(Debug, Default)]
struct Busy {
    taken: Vec<(u64, Range<u64>)>,
    waiting: Vec<Waker>,
    next: u64,
}

/// Ranges of guest bytes, each with one task at a time.
#[derive(Debug, Default)]
pub(crate) struct Ranges(Mutex<Busy>);

impl Ranges {
    fn busy(&self) -> MutexGuard<'_, Busy> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody has a part of `range`, and takes it.
    pub(crate) async fn take(&self, range: Range<u64>) -> RangeTaken<'_> {
        std::future::poll_fn(|cx| {
            let mut busy = self.busy();
            let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
            if busy.taken.iter().any(|(_, other)| overlaps(other)) {
                busy.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            let ticket = busy.next;
            busy.next += 1;
            busy.taken.push((ticket, range.clone()));
            Poll::Ready(RangeTaken {
                ranges: self,
                ticket,
            })
        })
        .await
    }
}

/// A range, until this is dropped.
pub(crate) struct RangeTaken<'a> {
    ranges: &'a Ranges,
    ticket: u64,
}

impl Drop for RangeTaken<'_> {
    fn drop(&mut self) {
        let wakers = {
            let mut busy = self.ranges.busy();
            busy.taken.retain(|(ticket, _)| *ticket != self.ticket);
            std::mem::take(&mut busy.waiting)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::{IoThread, IoThreadSpec};

    async fn yield_once() {
        let mut first = true;
        std::future::poll_fn(|cx| {
            if std::mem::take(&mut first) {
                cx.waker().wake_by_ref();
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }

    #[test]
    fn tasks_of_two_threads_never_have_the_value_or_a_range_at_once() {
        let turn = Arc::new(Turn::new(0_u64));
        let ranges = Arc::new(Ranges::default());
        let inside = Arc::new(AtomicU64::new(0));
        let threads: Vec<IoThread> = ["a", "b"]
            .map(|id| IoThread::start(IoThreadSpec { id: id.to_owned() }).expect("io-thread"))
            .into();
        let (tell, told) = std::sync::mpsc::channel();
        for task in 0..8 {
            let (turn, ranges, inside, tell) = (
                Arc::clone(&turn),
                Arc::clone(&ranges),
                Arc::clone(&inside),
                tell.clone(),
            );
            threads[task % 2].spawn(move |_| async move {
                for _ in 0..200 {
                    {
                        let mut value = turn.take().await;
                        let before = *value;
                        yield_once().await;
                        *value = before + 1;
                    }
                    let _range = ranges.take(5..10).await;
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    yield_once().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                }
                tell.send(turn).expect("listener");
            });
        }
        drop(tell);
        assert_eq!(told.iter().count(), 8);
        let queue = turn.queue();
        assert_eq!(
            (queue.value.as_deref(), queue.waiting.len()),
            (Some(&1600), 0)
        );
    }

    #[test]
    fn waiter_that_goes_away_passes_its_turn_on() {
        let turn = Turn::new(());
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = Box::pin(turn.take());
        let Poll::Ready(taken) = first.as_mut().poll(&mut cx) else {
            panic!("free");
        };
        let mut second = Box::pin(turn.take());
        let mut third = Box::pin(turn.take());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        assert!(third.as_mut().poll(&mut cx).is_pending());
        drop(taken);
        assert!(third.as_mut().poll(&mut cx).is_pending(), "not its turn");
        drop(second);
        assert!(third.as_mut().poll(&mut cx).is_ready());
    }
}
