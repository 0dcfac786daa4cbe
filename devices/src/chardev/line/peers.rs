//! How a line finds its peers and loses them: it accepts, calls, waits for an answer, and looks again.
//!
//! All of it is on the reactor's thread, but for the first peer.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use fdset::{OpenFile, Wish};
use mio::Interest;

use super::{Connected, Line, Part, Phase};
use crate::chardev::endpoint::{self, Accepted};
use crate::chardev::peer::Peer;
use crate::reactor::Registration;

/// How long a server that is out of descriptors waits before it accepts again.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);
/// How often a caller that may not call looks whether a connection was handed in.
const HANDED_IN_AGAIN: Duration = Duration::from_secs(1);

impl Line {
    /// Takes up a connection.
    pub(super) fn greet(&self, peer: Peer) -> io::Result<()> {
        let serial = self.connections.fetch_add(1, Ordering::SeqCst);
        // Connected before the watch, so that the first event finds it so.
        self.state().phase = Phase::Connected(Connected {
            serial,
            peer: peer.clone(),
            watch_output: None,
            watch_input: None,
        });
        let duplex = peer.is_duplex();
        let watch_output = if duplex {
            let both = Interest::READABLE | Interest::WRITABLE;
            self.watch(&peer.output, both, Part::Both(serial))?
        } else {
            self.watch(&peer.output, Interest::WRITABLE, Part::Output(serial))?
        };
        let watch_input = match peer.input.as_ref().filter(|_| !duplex) {
            Some(input) => self.watch(input, Interest::READABLE, Part::Input)?,
            None => None,
        };
        let late = {
            let mut state = self.state();
            match &mut state.phase {
                Phase::Connected(connected) => {
                    connected.watch_output = watch_output;
                    connected.watch_input = watch_input;
                    None
                }
                // It has left in the meantime.
                Phase::Waiting | Phase::Ended => Some((watch_output, watch_input)),
            }
        };
        drop(late);
        Ok(())
    }

    /// Watches a descriptor, unless it never blocks.
    fn watch(
        &self,
        file: &Arc<OpenFile>,
        interest: Interest,
        part: Part,
    ) -> io::Result<Option<Registration>> {
        if endpoint::never_blocks(file)? {
            return Ok(None);
        }
        let file: Arc<OpenFile> = Arc::clone(file);
        match self.reactor.register(file, interest, self.hook(part)) {
            Ok(watch) => Ok(Some(watch)),
            // Devices such as /dev/null are always ready as well.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks for the next peer. On the reactor's thread.
    pub(super) fn find_peer(&self) {
        if self.is_waiting() {
            self.receive(self.origin.next_peer());
        }
    }

    fn is_waiting(&self) -> bool {
        matches!(self.state().phase, Phase::Waiting)
    }

    fn receive(&self, accepted: Accepted) {
        match accepted {
            Accepted::Peer(peer) => self.take_up(peer),
            Accepted::Calling(peer) => self.await_answer(peer),
            Accepted::Nobody => {}
            Accepted::Asking(wish) => self.ask(wish),
            Accepted::Later(after) => self.look_again(after),
            Accepted::Refused(_) => {
                let interval = self.origin.pause_between_peers().unwrap_or_default();
                self.look_again(interval.max(HANDED_IN_AGAIN));
            }
            Accepted::OutOfDescriptors(error) => {
                tracing::warn!(%error, "a chardev cannot accept its peer now");
                self.look_again(ACCEPT_AGAIN);
            }
        }
    }

    /// Goes on with the call when the open hook has answered.
    fn ask(&self, wish: Wish) {
        let (line, reactor) = (Weak::clone(&self.me), self.reactor.clone());
        let told = move |answers| {
            let job = move || {
                if let Some(line) = line.upgrade().filter(|line| line.is_waiting()) {
                    line.receive(line.origin.call(answers));
                }
            };
            if let Err(error) = reactor.run(job) {
                tracing::error!(%error, "a chardev cannot call its peer");
            }
        };
        self.origin.ask(wish, Box::new(told));
    }

    fn take_up(&self, peer: Peer) {
        match self.greet(peer) {
            Ok(()) => {
                if let Some(frontend) = self.seat.frontend() {
                    frontend.peer_changed();
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a chardev's new peer cannot be watched");
                self.hang_up();
            }
        }
    }

    /// Waits until a call is answered or refused.
    fn await_answer(&self, peer: Peer) {
        let file: Arc<OpenFile> = Arc::clone(&peer.output);
        match self
            .reactor
            .register(file, Interest::WRITABLE, self.hook(Part::Call))
        {
            Ok(watch) => *self.calling() = Some((peer, watch)),
            Err(error) => tracing::error!(%error, "a chardev's call cannot be watched"),
        }
    }

    pub(super) fn answered(&self) {
        let Some((peer, watch)) = self.calling().take() else {
            return;
        };
        drop(watch);
        match fdset::finish_connect(&*peer.output) {
            Ok(()) => self.take_up(peer),
            Err(error) => {
                tracing::debug!(%error, "a chardev's peer does not answer");
                if let Some(pause) = self.origin.pause_between_peers() {
                    self.look_again(pause);
                }
            }
        }
    }

    fn look_again(&self, after: Duration) {
        if let Some(timer) = self.timer.get() {
            timer.arm(after);
            return;
        }
        match self.reactor.timer(self.hook(Part::Timer)) {
            Ok(timer) => self.timer.get_or_init(|| timer).arm(after),
            Err(error) => tracing::error!(%error, "a chardev cannot wait for its peer"),
        }
    }

    /// Lets the peer go and looks for the next one. On the reactor's thread.
    pub(super) fn hang_up(&self) {
        let (left, starved) = {
            let mut state = self.state();
            if !matches!(state.phase, Phase::Connected(_)) {
                return;
            }
            let next = if self.origin.has_more_peers() {
                Phase::Waiting
            } else {
                Phase::Ended
            };
            state.outgoing.clear();
            let starved = std::mem::take(&mut state.starved);
            (std::mem::replace(&mut state.phase, next), starved)
        };
        drop(left);
        if let Some(frontend) = self.seat.frontend() {
            if starved {
                frontend.writable();
            }
            frontend.peer_changed();
        }
        match self.origin.pause_between_peers() {
            Some(pause) => self.look_again(pause),
            None => self.find_peer(),
        }
    }
}
