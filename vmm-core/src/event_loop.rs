//! The main thread's loop: what reaches the VM's owner, and in which order.
//!
//! ```text
//!   signals (signalfd) ───────────────┐
//!   devices, vCPUs ── Mailbox::send ──┼─► mio ─► EventLoop::wait ─► Vm
//!   monitor ───────── Mailbox::wake ──┤
//!   open hook ─────── its socket ─────┘
//! ```
//!
//! Whoever wants the owner's attention puts a letter into the mailbox or only wakes the loop; the
//! owner looks at everything that may have happened and goes back to sleep. Nothing here decides.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use block::CorruptionSink;
use devices::notice::NoticeSink;
use fdset::{Asker, Told, Wish};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::letters::{Letter, Letters, Question};
use crate::process::{EndRequest, EndSignals};

const WAKE: Token = Token(0);
const SIGNAL: Token = Token(1);
const HOOK: Token = Token(2);

/// The way to the VM's owner, from any thread. Cheap to clone; never blocks.
#[derive(Clone, Debug)]
pub struct Mailbox {
    letters: Arc<Letters>,
    waker: Arc<Waker>,
    /// Whether somebody wants the owner's attention and it has not begun to look yet.
    news: Arc<AtomicBool>,
    /// Whether there is an open hook to be asked.
    has_hook: Arc<AtomicBool>,
}

impl Mailbox {
    /// Where it is noted whether there is an open hook.
    pub fn hook_mark(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.has_hook)
    }

    /// Leaves a letter.
    pub fn send(&self, letter: Letter) {
        self.letters.push(letter);
        self.wake();
    }

    /// Takes the letters about corrupt images, before their turn.
    pub(crate) fn take_corruptions(&self) -> Vec<Letter> {
        self.letters.take_corruptions()
    }

    /// Makes the owner look around.
    pub fn wake(&self) {
        self.news.store(true, Ordering::Release);
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "the main loop cannot be woken");
        }
    }

    /// Whether something has happened that the owner has not begun to look at.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.news.load(Ordering::Acquire)
    }

    /// The way for images.
    pub fn corruptions(&self) -> CorruptionSink {
        let mailbox = self.clone();
        CorruptionSink::new(move |corruption| mailbox.send(Letter::Corrupt(corruption)))
    }

    /// The way for devices.
    pub fn notices(&self) -> NoticeSink {
        let mailbox = self.clone();
        NoticeSink::new(move |notice| mailbox.send(Letter::Device(notice)))
    }
}

impl Asker for Mailbox {
    fn ask(&self, wish: Wish, told: Told) {
        // Nobody need be asked then, least of all the owner: it may be waiting for what comes over
        // just this connection.
        if !self.has_hook.load(Ordering::Acquire) {
            return told(Arc::default());
        }
        self.send(Letter::Ask(Question { wish, told }));
    }
}

/// The loop's own side.
#[derive(Debug)]
pub struct EventLoop {
    poll: Poll,
    events: Events,
    letters: Arc<Letters>,
    news: Arc<AtomicBool>,
    signals: EndSignals,
    /// Whether a signal may wait: else each command of a client would cost one more system call.
    signalled: bool,
}

impl EventLoop {
    /// A loop that also listens to `signals`, and the way into it.
    ///
    /// # Errors
    /// No fd is left.
    pub fn new(signals: EndSignals) -> io::Result<(Self, Mailbox)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let fd = signals.as_fd().as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&fd), SIGNAL, Interest::READABLE)?;
        let letters = Arc::new(Letters::default());
        let news = Arc::new(AtomicBool::new(false));
        let event_loop = Self {
            poll,
            events: Events::with_capacity(8),
            letters: Arc::clone(&letters),
            news: Arc::clone(&news),
            signals,
            signalled: false,
        };
        Ok((
            event_loop,
            Mailbox {
                letters,
                waker,
                news,
                has_hook: Arc::default(),
            },
        ))
    }

    /// Listens to the open hook's socket too. Once it is closed it is forgotten by itself.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn watch_hook(&mut self, socket: RawFd) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut SourceFd(&socket), HOOK, both)
    }

    /// Sleeps until something may have happened, or until `deadline`.
    ///
    /// # Errors
    /// The kernel refuses to wait: there is no way on.
    pub fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let patience = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        match self.poll.poll(&mut self.events, patience) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        self.signalled |= self.events.iter().any(|event| event.token() == SIGNAL);
        Ok(())
    }

    /// The owner begins to look at everything that may have happened.
    pub fn begin(&self) {
        self.news.store(false, Ordering::Release);
    }

    /// The next letter, if there is one.
    pub fn next_letter(&self) -> Option<Letter> {
        self.letters.pop()
    }

    /// The next request from outside to end the process.
    pub fn next_end_request(&mut self) -> Option<EndRequest> {
        let request = if self.signalled {
            self.signals.next_request()
        } else {
            None
        };
        self.signalled = request.is_some();
        request
    }
}

#[cfg(test)]
mod tests {
    use devices::notice::Notice;
    use fdset::{Access, Expected, Request, Role};

    use super::*;

    #[test]
    fn without_a_hook_who_asks_is_told_at_once() {
        let (_event_loop, mailbox) = EventLoop::new(EndSignals::take().unwrap()).unwrap();
        let told = Arc::new(AtomicBool::new(false));
        let ask = || {
            let told = Arc::clone(&told);
            let request = Request::new("/peer", Access::ReadWrite, Role::Chardev, "a test");
            let wish = Wish::new(&request, Expected::ConnectedSocket);
            mailbox.ask(wish, Box::new(move |_| told.store(true, Ordering::SeqCst)));
        };
        mailbox.hook_mark().store(true, Ordering::SeqCst);
        ask();
        assert!(!told.load(Ordering::SeqCst), "the owner asks the hook");
        mailbox.hook_mark().store(false, Ordering::SeqCst);
        ask();
        assert!(told.load(Ordering::SeqCst));
    }

    #[test]
    fn a_letter_from_another_thread_wakes_the_loop() {
        let (mut event_loop, mailbox) = EventLoop::new(EndSignals::take().unwrap()).unwrap();
        let notices = mailbox.notices();
        let sender = std::thread::spawn(move || notices.send(Notice::PowerOff));
        let letter = loop {
            event_loop.wait(None).unwrap();
            if let Some(letter) = event_loop.next_letter() {
                break letter;
            }
        };
        sender.join().unwrap();
        assert!(matches!(letter, Letter::Device(Notice::PowerOff)));
        assert!(mailbox.has_news(), "the owner has not begun");
        event_loop.begin();
        assert!(!mailbox.has_news());
        assert!(event_loop.next_letter().is_none());
        assert_eq!(event_loop.next_end_request(), None);
    }

    #[test]
    fn each_signal_is_one_request() {
        use nix::sys::signal::{Signal, raise};
        let (mut event_loop, _mailbox) = EventLoop::new(EndSignals::take().unwrap()).unwrap();
        for signal in [Signal::SIGHUP, Signal::SIGTERM] {
            raise(signal).unwrap();
            event_loop.wait(None).unwrap();
            let request = event_loop.next_end_request().unwrap();
            assert_eq!(request.signal, signal as u32);
            assert_eq!(event_loop.next_end_request(), None);
        }
    }
}
