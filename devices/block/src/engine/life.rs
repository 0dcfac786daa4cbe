//! An io-thread's life: its turns, and what it does when there is nothing to do.
//!
//! ```text
//!   ┌─► letters, tasks ── more ready ──► hand over ──► reap ─┐
//!   │        │ none                                          │
//!   │        ▼                                               │
//!   │   look about ── found ─────────────────────────────────┤   only while no file is busy: a
//!   │        │ in vain                                       │   device rings by itself
//!   │        ▼                                               │
//!   │   close eyes: tasks ask to be rung for ── more ready ──┤
//!   │        │ none                                          │
//!   │        ▼                                               │
//!   │   sleep in the ring ──► reap ──────────────────────────┤
//!   └────────────────────────────────────────────────────────┘
//! ```

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::executor::TaskSet;
use super::iothread::{Io, LocalTask, Mailbox};
use super::polling::{PollSpec, Polling};
use super::ring::{Ring, Watch};
use super::rings::{NoRing, Rings};

/// How many tasks run at once on one thread; more wait for their turn.
const MAX_TASKS: usize = 1 << 14;

/// The thread's whole life.
pub(super) fn run(
    mailbox: &Arc<Mailbox>,
    rings: &Rings,
    tell: &mpsc::SyncSender<Result<i32, NoRing>>,
) {
    let (ring, bell) = match start(mailbox, rings) {
        Ok(started) => started,
        Err(error) => {
            drop(tell.send(Err(error)));
            return;
        }
    };
    drop(tell.send(Ok(nix::unistd::gettid().as_raw())));
    if let Err(error) = Turns::new(mailbox, &ring, bell).run() {
        tracing::error!(%error, "io-thread: the ring is broken");
    }
    if let Err(error) = drain(&ring) {
        // The kernel may still write into memory we would free: better to leak the ring.
        tracing::error!(%error, "io-thread: operations are left in the kernel");
        std::mem::forget(ring);
    } else if let Some(ring) = Rc::into_inner(ring) {
        rings.give_back(ring.into_bare());
    }
}

fn start(mailbox: &Mailbox, rings: &Rings) -> Result<(Rc<Ring>, Watch), NoRing> {
    let bell = mailbox.bell.as_fd().try_clone_to_owned();
    let ring = Rc::new(Ring::new(rings.take()?));
    let watch = bell.and_then(|bell| ring.watch(Box::new(bell)));
    Ok((ring, watch.map_err(NoRing::Refused)?))
}

struct Turns<'a> {
    mailbox: &'a Mailbox,
    io: Io,
    tasks: TaskSet<LocalTask>,
    polling: Polling,
}

impl<'a> Turns<'a> {
    fn new(mailbox: &'a Arc<Mailbox>, ring: &Rc<Ring>, bell: Watch) -> Self {
        let io = Io::new(Rc::clone(ring));
        io.spawn(rearm_for_ever(bell));
        Self {
            mailbox,
            io,
            tasks: TaskSet::new(MAX_TASKS, Waker::from(Arc::clone(mailbox))),
            polling: Polling::default(),
        }
    }

    fn run(mut self) -> io::Result<()> {
        loop {
            let spec = self.mailbox.poll_spec();
            self.io
                .looks
                .set_open(!self.polling.window(&spec).is_zero());
            while let Some(letter) = self.mailbox.next_letter() {
                let task = letter(self.io.clone());
                self.io.spawned.borrow_mut().push_back(task);
            }
            self.run_tasks();
            if self.mailbox.stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            if self.has_work() {
                self.io.ring.hand_over()?;
            } else {
                self.rest(&spec)?;
            }
            self.io.ring.reap();
        }
    }

    fn run_tasks(&mut self) {
        self.admit();
        while self.tasks.next_done().is_some() {
            self.admit();
        }
    }

    /// Moves spawned tasks into the set while it has room.
    fn admit(&mut self) {
        let mut spawned = self.io.spawned.borrow_mut();
        while !self.tasks.is_full()
            && let Some(task) = spawned.pop_front()
        {
            if let Err(task) = self.tasks.push(task) {
                spawned.push_front(task);
                return;
            }
        }
    }

    fn has_work(&self) -> bool {
        self.tasks.has_ready() || (!self.tasks.is_full() && !self.io.spawned.borrow().is_empty())
    }

    /// Lets time pass until there may be work. The ring was entered if it has to be.
    fn rest(&mut self, spec: &PollSpec) -> io::Result<()> {
        // What files are busy with is finished with an interrupt, and takes them longer than we
        // could look about.
        if self.io.ring.flying() > 0 || !self.io.looks.has_any() {
            return self.sleep();
        }
        let began = Instant::now();
        if !self.io.looks.is_empty() && self.look_about(began, self.polling.window(spec))? {
            let looked = began.elapsed();
            self.polling.learn(spec, looked, looked);
            return Ok(());
        }
        let looked = began.elapsed();
        self.sleep()?;
        self.polling.learn(spec, looked, began.elapsed());
        Ok(())
    }

    /// Waits with open eyes; whether there is work.
    fn look_about(&self, began: Instant, window: Duration) -> io::Result<bool> {
        let ring = &self.io.ring;
        if ring.has_unsubmitted() {
            ring.hand_over()?;
        }
        loop {
            if ring.has_news() {
                ring.hand_over()?;
                return Ok(true);
            }
            if self.io.looks.find() || self.has_work() || self.mailbox.has_mail() {
                return Ok(true);
            }
            if began.elapsed() >= window {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    /// Sleeps until the ring has a completion, unless there is work after all.
    fn sleep(&mut self) -> io::Result<()> {
        if !self.io.looks.is_empty() {
            self.io.looks.close_eyes();
            self.run_tasks();
        }
        if self.mailbox.fall_asleep(|| self.has_work()) {
            self.io.ring.sleep()?;
        } else {
            self.io.ring.hand_over()?;
        }
        self.mailbox.asleep.store(false, Ordering::SeqCst);
        Ok(())
    }
}

/// Sees that the bell goes on ringing: the kernel may end a multishot poll at any time.
async fn rearm_for_ever(bell: Watch) {
    loop {
        if let Err(error) = std::future::poll_fn(|cx| bell.poll_event(cx)).await {
            tracing::error!(%error, "io-thread: the bell cannot be watched");
            return;
        }
    }
}

/// Waits until the kernel has let go of everything.
fn drain(ring: &Ring) -> io::Result<()> {
    while !ring.is_idle() {
        ring.sleep()?;
        ring.reap();
    }
    Ok(())
}
