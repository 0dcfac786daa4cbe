//! One conversation as one future, polled on the reactor's thread.
//!
//! ```text
//!   socket readable, timer, orders ─► Bell::ring ─► Waker ─► Reactor::run ─► Task::poll
//! ```

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crate::reactor::{Reactor, Readiness, Ready};

/// What is under way.
type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A future that goes on whenever its waker is called, until it is done or [ended](Self::end).
pub(super) struct Task {
    reactor: Reactor,
    /// Held while it is polled, so that whoever ends it waits for that.
    work: Mutex<Option<Work>>,
    queued: AtomicBool,
}

impl Task {
    /// Begins with it soon, on the reactor's thread.
    pub(super) fn spawn(reactor: &Reactor, work: Work) -> Arc<Self> {
        let task = Arc::new(Self {
            reactor: reactor.clone(),
            work: Mutex::new(Some(work)),
            queued: AtomicBool::new(false),
        });
        Arc::clone(&task).wake();
        task
    }

    /// Drops what is left to do. Not to be called by the work itself.
    pub(super) fn end(&self) {
        let left = self.lock().take();
        drop(left);
    }

    fn poll(self: Arc<Self>) {
        self.queued.store(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&self));
        let mut work = self.lock();
        if let Some(future) = work.as_mut()
            && future
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_ready()
        {
            let done = work.take();
            drop(work);
            drop(done);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Work>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if self.queued.swap(true, Ordering::SeqCst) {
            return;
        }
        let reactor = self.reactor.clone();
        if let Err(error) = reactor.run(move || self.poll()) {
            tracing::error!(%error, "vhost-user: dev-io cannot be woken");
        }
    }
}

/// Something has happened: who waits looks again for what it was.
#[derive(Default)]
pub(super) struct Bell {
    rung: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Bell {
    /// From any thread.
    pub(super) fn ring(&self) {
        self.rung.store(true, Ordering::SeqCst);
        let waiting = self.lock().take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    /// Waits until it has rung since it was waited for last.
    pub(super) async fn wait(&self) {
        poll_fn(|context| {
            *self.lock() = Some(context.waker().clone());
            if self.rung.swap(false, Ordering::SeqCst) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ready for Bell {
    fn ready(&self, _readiness: Readiness) {
        self.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn work_goes_on_when_its_bell_rings() {
        let reactor = Reactor::new();
        let bell = Arc::new(Bell::default());
        let (tell, told) = mpsc::channel();
        let heard = Arc::clone(&bell);
        let work = async move {
            for round in 0..3 {
                heard.wait().await;
                tell.send(round).expect("listened to");
            }
        };
        let task = Task::spawn(&reactor, Box::pin(work));
        for round in 0..3 {
            bell.ring();
            assert_eq!(told.recv(), Ok(round));
        }
        assert!(told.recv().is_err(), "it is done");
        task.end();
    }

    #[test]
    fn what_is_ended_is_dropped_where_it_stands() {
        let reactor = Reactor::new();
        let held = Arc::new(());
        let kept = Arc::clone(&held);
        let work = async move {
            Bell::default().wait().await;
            drop(kept);
        };
        let task = Task::spawn(&reactor, Box::pin(work));
        reactor.settle().expect("dev-io runs");
        assert_eq!(Arc::strong_count(&held), 2);
        task.end();
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
