//! A fixed number of futures polled by one thread, without an allocation or a lock per task.
//!
//! ```text
//!   TaskSet   slot 0   slot 1   slot 2 …      Pin<Box<Option<F>>>, allocated at first use
//!                │        │        │
//!   ReadySet     1        0        1   …      one bit each, set by the slot's waker
//!                └────────┴────────┴──► parent waker: the task that owns the set, or the thread
//! ```
//!
//! The same structure serves twice: the io-thread's tasks are one set (of boxed futures), and each
//! virtio queue keeps its requests in another one, nested in its task.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Which tasks want to be polled: one bit per slot.
struct ReadySet {
    words: Box<[AtomicU64]>,
    parent: Waker,
}

impl ReadySet {
    fn mark(&self, index: usize) {
        if let Some(word) = self.words.get(index / 64) {
            word.fetch_or(1 << (index % 64), Ordering::SeqCst);
        }
        self.parent.wake_by_ref();
    }
}

/// The waker of one slot.
struct SlotWaker {
    set: Arc<ReadySet>,
    index: usize,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.set.mark(self.index);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.set.mark(self.index);
    }
}

struct TaskSlot<F> {
    future: Pin<Box<Option<F>>>,
    waker: Waker,
}

/// Up to a fixed number of futures of one type, polled in place when they were woken.
///
/// Wakers may be called from any thread; everything else belongs to the owning thread.
pub struct TaskSet<F> {
    slots: Vec<TaskSlot<F>>,
    free: Vec<usize>,
    capacity: usize,
    ready: Arc<ReadySet>,
    word: usize,
    bits: u64,
}

impl<F: Future> TaskSet<F> {
    /// An empty set with room for `capacity` futures. `parent` is woken whenever one of them is:
    /// the waker of the task that will call [`next_done`](Self::next_done).
    pub fn new(capacity: usize, parent: Waker) -> Self {
        let words = (0..capacity.div_ceil(64))
            .map(|_| AtomicU64::new(0))
            .collect();
        let ready = Arc::new(ReadySet { words, parent });
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            capacity,
            ready,
            word: 0,
            bits: 0,
        }
    }

    /// A free slot: one that was used before, or a new one while there is room.
    fn free_slot(&mut self) -> Option<usize> {
        if let Some(index) = self.free.pop() {
            return Some(index);
        }
        let index = self.slots.len();
        (index < self.capacity).then(|| {
            let set = Arc::clone(&self.ready);
            let waker = Waker::from(Arc::new(SlotWaker { set, index }));
            self.slots.push(TaskSlot {
                future: Box::pin(None),
                waker,
            });
            index
        })
    }

    /// Puts a future into a free slot; it is polled by the next [`next_done`](Self::next_done).
    ///
    /// # Errors
    /// All slots are taken: the future comes back.
    pub fn push(&mut self, future: F) -> Result<(), F> {
        let Some(index) = self.free_slot() else {
            return Err(future);
        };
        self.slots[index].future.as_mut().set(Some(future));
        self.ready.mark(index);
        Ok(())
    }

    /// How many futures are unfinished.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether no future is unfinished.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether [`push`](Self::push) would fail.
    pub fn is_full(&self) -> bool {
        self.len() == self.capacity
    }

    /// The ready words of the slots that exist.
    fn words(&self) -> &[AtomicU64] {
        let used = self.slots.len().div_ceil(64);
        self.ready.words.get(..used).unwrap_or_default()
    }

    /// Whether a future waits to be polled.
    pub fn has_ready(&self) -> bool {
        self.bits != 0
            || self
                .words()
                .iter()
                .any(|word| word.load(Ordering::SeqCst) != 0)
    }

    /// Polls woken futures until one finishes and returns its output; `None` when none is left
    /// that was woken. The parent is woken again when that changes.
    pub fn next_done(&mut self) -> Option<F::Output> {
        let mut words_left = self.words().len();
        loop {
            while self.bits == 0 {
                words_left = words_left.checked_sub(1)?;
                self.word = (self.word + 1) % self.words().len();
                self.bits = self.words().get(self.word)?.swap(0, Ordering::SeqCst);
            }
            let index = self.word * 64 + self.bits.trailing_zeros() as usize;
            self.bits &= self.bits - 1;
            if let Some(output) = self.poll_slot(index) {
                return Some(output);
            }
        }
    }

    fn poll_slot(&mut self, index: usize) -> Option<F::Output> {
        let slot = self.slots.get_mut(index)?;
        let future = slot.future.as_mut().as_pin_mut()?;
        match future.poll(&mut Context::from_waker(&slot.waker)) {
            Poll::Pending => None,
            Poll::Ready(output) => {
                slot.future.as_mut().set(None);
                self.free.push(index);
                Some(output)
            }
        }
    }
}

/// The waker of the task that awaits this.
pub async fn own_waker() -> Waker {
    std::future::poll_fn(|cx| Poll::Ready(cx.waker().clone())).await
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use super::*;

    /// A future that finishes with its number once it is allowed to.
    struct Gate {
        number: u32,
        open: Rc<Cell<bool>>,
        waker: Rc<RefCell<Option<Waker>>>,
    }

    impl Future for Gate {
        type Output = u32;
        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u32> {
            if self.open.get() {
                return Poll::Ready(self.number);
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        }
    }

    impl std::fmt::Debug for Gate {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "Gate {}", self.number)
        }
    }

    fn gate(number: u32, open: bool) -> Gate {
        Gate {
            number,
            open: Rc::new(Cell::new(open)),
            waker: Rc::default(),
        }
    }

    #[test]
    fn full_set_gives_the_future_back_and_takes_it_after_one_finished() {
        let mut set = TaskSet::new(1, Waker::noop().clone());
        set.push(gate(1, true)).expect("room for one");
        let second = set.push(gate(2, true)).expect_err("no room for two");
        assert_eq!(set.next_done(), Some(1));
        set.push(second).expect("room again");
        assert_eq!(set.next_done(), Some(2));
        assert_eq!(set.next_done(), None);
        assert!(set.is_empty());
    }

    #[test]
    fn pending_future_is_polled_again_only_after_its_waker_was_called() {
        let mut set = TaskSet::new(130, Waker::noop().clone());
        for number in 0..129 {
            set.push(gate(number, true)).expect("room");
        }
        let late = gate(129, false);
        let (open, waker) = (Rc::clone(&late.open), Rc::clone(&late.waker));
        set.push(late).expect("room");
        let mut done: Vec<u32> = std::iter::from_fn(|| set.next_done()).collect();
        done.sort_unstable();
        assert_eq!(done, (0..129).collect::<Vec<_>>());
        open.set(true);
        assert_eq!(set.next_done(), None, "not woken, so not polled");
        waker.borrow_mut().take().expect("polled once").wake();
        assert!(set.has_ready());
        assert_eq!(set.next_done(), Some(129));
    }
}
