//! Rounds of announcements, on the reactor's thread: `announce-self`.
//!
//! ```text
//!   Announcer::start ─► round ─► each card: RARP, and its driver is asked ─► timer ─► round ─► ..
//!                drop: no round comes any more
//! ```

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use devices::net::Announcement;
use devices::reactor::{Reactor, Readiness, Ready, Timer};
use devices::virtio::net::VirtioNet;

/// A series of rounds.
pub struct Announcer {
    /// Held for its drop; the timer holds it weakly.
    _rounds: Arc<Rounds>,
}

struct Rounds {
    cards: Vec<Weak<VirtioNet>>,
    announcement: Announcement,
    done: AtomicU64,
    timer: OnceLock<Timer>,
}

impl Announcer {
    /// Begins with the first round at once. The cards are held weakly.
    ///
    /// # Errors
    /// The reactor's thread cannot start.
    pub fn start(
        reactor: &Reactor,
        cards: Vec<Weak<VirtioNet>>,
        announcement: Announcement,
    ) -> io::Result<Self> {
        let rounds = Arc::new(Rounds {
            cards,
            announcement,
            done: AtomicU64::new(0),
            timer: OnceLock::new(),
        });
        let handler: Weak<Rounds> = Arc::downgrade(&rounds);
        let timer = reactor.timer(Arc::new(Again(handler)))?;
        rounds.timer.get_or_init(|| timer);
        let first = Arc::downgrade(&rounds);
        reactor.run(move || {
            if let Some(rounds) = first.upgrade() {
                rounds.go();
            }
        })?;
        Ok(Self { _rounds: rounds })
    }
}

impl Rounds {
    fn go(&self) {
        for card in self.cards.iter().filter_map(Weak::upgrade) {
            card.send_rarp();
            card.announce();
        }
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if let (Some(wait), Some(timer)) = (self.announcement.wait_after(done), self.timer.get()) {
            timer.arm(wait);
        }
    }
}

struct Again(Weak<Rounds>);

impl Ready for Again {
    fn ready(&self, _readiness: Readiness) {
        if let Some(rounds) = self.0.upgrade() {
            rounds.go();
        }
    }
}
