//! What a thread looks at before it sleeps, so that nobody need ring for it meanwhile.
//!
//! ```text
//!            the task asks `Look::is_kept`            `find` sees that something has come
//!   quiet ◄──────────────────────────────── awake ◄──────────────────────────────────┐
//!     │                                        ▲                                      │
//!     ├────────────────────────────────────────┼──────────────────────────────────────┘
//!     └── the thread is about to sleep: `close_eyes` wakes the task, whose `is_kept` is now
//!         false: it asks to be rung for, looks once more itself, and only then the thread sleeps
//! ```
//!
//! Nothing is lost between looking and sleeping, because the last look is the task's own, after it
//! has asked to be rung for.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

/// Says whether there is something new to be taken.
type HasCome = Box<dyn Fn() -> bool>;

struct Entry {
    has_come: HasCome,
    waker: Option<Waker>,
    quiet: bool,
}

/// All that one thread looks at.
#[derive(Default)]
pub(super) struct Looks {
    entries: RefCell<Vec<Option<Entry>>>,
    quiet: Cell<usize>,
    /// Whether the thread will look before it sleeps.
    open: Cell<bool>,
}

impl Looks {
    /// Whether the thread will look before it sleeps.
    pub(super) fn set_open(&self, open: bool) {
        self.open.set(open);
    }

    /// Whether there is anything that could be looked at.
    pub(super) fn has_any(&self) -> bool {
        self.entries.borrow().iter().any(Option::is_some)
    }

    /// Whether there is nothing to look at now.
    pub(super) fn is_empty(&self) -> bool {
        self.quiet.get() == 0
    }

    /// Wakes the tasks for which something has come; whether there are any.
    pub(super) fn find(&self) -> bool {
        self.wake(|entry| (entry.has_come)())
    }

    /// The thread will sleep: all quiet tasks are woken, to look themselves.
    pub(super) fn close_eyes(&self) {
        self.open.set(false);
        self.wake(|_| true);
    }

    fn wake(&self, wanted: impl Fn(&Entry) -> bool) -> bool {
        let mut found = false;
        for entry in self.entries.borrow_mut().iter_mut().flatten() {
            if entry.quiet && wanted(entry) {
                entry.quiet = false;
                self.quiet.set(self.quiet.get() - 1);
                found = true;
                if let Some(waker) = &entry.waker {
                    waker.wake_by_ref();
                }
            }
        }
        found
    }
}

/// One thing that the thread looks at, until this is dropped.
pub struct Look {
    looks: Rc<Looks>,
    index: usize,
}

impl Look {
    pub(super) fn new(looks: &Rc<Looks>, has_come: HasCome) -> Self {
        let entry = Some(Entry {
            has_come,
            waker: None,
            quiet: false,
        });
        let mut entries = looks.entries.borrow_mut();
        let free = entries.iter().position(Option::is_none);
        let index = free.unwrap_or(entries.len());
        match entries.get_mut(index) {
            Some(place) => *place = entry,
            None => entries.push(entry),
        }
        drop(entries);
        Self {
            looks: Rc::clone(looks),
            index,
        }
    }

    /// Whether the thread looks for the task from now on, and wakes it when something has come or
    /// it stops looking. If not, the task sees to it that it is rung for.
    pub fn is_kept(&self, cx: &Context<'_>) -> bool {
        if !self.looks.open.get() {
            return false;
        }
        let mut entries = self.looks.entries.borrow_mut();
        let Some(Some(entry)) = entries.get_mut(self.index) else {
            return false;
        };
        if !entry.quiet {
            entry.quiet = true;
            self.looks.quiet.set(self.looks.quiet.get() + 1);
        }
        match &mut entry.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        true
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        let place = self
            .looks
            .entries
            .borrow_mut()
            .get_mut(self.index)
            .and_then(Option::take);
        if place.is_some_and(|entry| entry.quiet) {
            self.looks.quiet.set(self.looks.quiet.get() - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A task that is looked for: its look, whether something has come, and how often it was woken.
    struct Task {
        look: Look,
        has_come: Rc<Cell<bool>>,
        woken: Arc<Count>,
    }

    impl Task {
        fn new(looks: &Rc<Looks>) -> Self {
            let has_come = Rc::new(Cell::new(false));
            let seen = Rc::clone(&has_come);
            Self {
                look: Look::new(looks, Box::new(move || seen.get())),
                has_come,
                woken: Arc::default(),
            }
        }

        fn asks(&self) -> bool {
            let waker = Waker::from(Arc::clone(&self.woken));
            self.look.is_kept(&Context::from_waker(&waker))
        }

        fn woken(&self) -> usize {
            self.woken.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn task_is_looked_for_until_something_has_come_for_it() {
        let looks = Rc::new(Looks::default());
        let (one, other) = (Task::new(&looks), Task::new(&looks));
        assert!(!one.asks(), "the thread does not look");
        looks.set_open(true);
        assert!(one.asks() && other.asks());
        assert!(!looks.find());
        other.has_come.set(true);
        assert!(looks.find());
        assert!(!looks.find(), "it was told");
        assert_eq!((one.woken(), other.woken()), (0, 1));
    }

    #[test]
    fn every_quiet_task_looks_itself_before_the_thread_sleeps() {
        let looks = Rc::new(Looks::default());
        let (quiet, awake) = (Task::new(&looks), Task::new(&looks));
        looks.set_open(true);
        assert!(quiet.asks());
        looks.close_eyes();
        assert_eq!((quiet.woken(), awake.woken()), (1, 0));
        assert!(!quiet.asks(), "it has to be rung for");
        assert!(looks.is_empty());
    }

    #[test]
    fn dropped_look_leaves_nothing_to_look_at_and_its_place_to_the_next() {
        let looks = Rc::new(Looks::default());
        looks.set_open(true);
        let task = Task::new(&looks);
        assert!(task.asks());
        drop(task);
        assert!(looks.is_empty() && !looks.has_any());
        let next = Task::new(&looks);
        assert!(next.asks() && looks.has_any());
        assert_eq!(looks.entries.borrow().len(), 1);
    }
}
