//! From the peer to the frontend: read as long as it has room, and what was read last when the peer
//! left. On the reactor's thread.

use std::sync::Weak;
use std::sync::atomic::Ordering;

use super::{Line, Phase};
use crate::chardev::peer::{Intake, Received};

/// How often one visit reads before other descriptors get their turn.
const ROUNDS: usize = 16;

/// What became of one turn of reading.
enum Flow {
    More,
    Stopped,
    EndOfInput,
}

impl Line {
    /// The frontend has room again.
    pub(in crate::chardev) fn resume_input(&self) {
        if !self.paused.swap(false, Ordering::SeqCst) {
            return;
        }
        // Bytes whose sender may have left already, and regular files, have no event to come.
        let mut by_hand = self.has_intake();
        let mut done = Ok(());
        if let Phase::Connected(connected) = &self.state().phase {
            match connected.watch_of_input() {
                Some(watch) if !by_hand => done = watch.rearm(),
                Some(_) => {}
                None => by_hand |= connected.peer.input.is_some(),
            }
        }
        if by_hand {
            let line = Weak::clone(&self.me);
            done = self.reactor.run(move || {
                if let Some(line) = line.upgrade() {
                    line.pump();
                }
            });
        }
        if let Err(error) = done {
            tracing::error!(%error, "a chardev's input cannot be resumed");
        }
    }

    fn has_intake(&self) -> bool {
        self.intake()
            .as_ref()
            .is_some_and(|intake| !intake.waiting().is_empty())
    }

    /// Reads as long as the frontend has room. On the reactor's thread.
    pub(super) fn pump(&self) {
        let Some(mut intake) = self.intake().take() else {
            return;
        };
        let flow = (0..ROUNDS)
            .map(|_| self.pump_once(&mut intake))
            .find(|flow| !matches!(flow, Flow::More))
            .unwrap_or(Flow::More);
        *self.intake() = Some(intake);
        match flow {
            Flow::More => {
                self.paused.store(true, Ordering::SeqCst);
                self.resume_input();
            }
            Flow::Stopped => {}
            Flow::EndOfInput => self.end_input(),
        }
    }

    fn pump_once(&self, intake: &mut Intake) -> Flow {
        // Before the question, so that an answer that changes meanwhile is not missed.
        self.paused.store(true, Ordering::SeqCst);
        let Some(frontend) = self.seat.frontend() else {
            return Flow::Stopped;
        };
        let room = frontend.room();
        if room == 0 {
            return Flow::Stopped;
        }
        if intake.waiting().is_empty() {
            let read = match &self.state().phase {
                Phase::Connected(connected) => intake.refill(&connected.peer, room),
                Phase::Waiting | Phase::Ended => Received::Nothing,
            };
            match read {
                Received::Bytes => {}
                Received::Nothing => {
                    self.paused.store(false, Ordering::SeqCst);
                    return Flow::Stopped;
                }
                Received::End => return Flow::EndOfInput,
            }
        }
        let waiting = intake.waiting();
        let offered = waiting.get(..room).unwrap_or(waiting);
        let taken = frontend.receive(offered);
        intake.consume(taken);
        // A frontend that took nothing asks for more when it can.
        if taken == 0 {
            return Flow::Stopped;
        }
        self.paused.store(false, Ordering::SeqCst);
        Flow::More
    }

    /// There is no more input: a duplex peer has left, a separate input is only done with.
    fn end_input(&self) {
        let ended = {
            let mut state = self.state();
            match &mut state.phase {
                Phase::Connected(connected) if !connected.peer.is_duplex() => {
                    let input = connected.peer.input.take();
                    Some((input, connected.watch_input.take()))
                }
                Phase::Connected(_) | Phase::Waiting | Phase::Ended => None,
            }
        };
        if ended.is_none() {
            self.hang_up();
        }
    }

    /// The peer is gone in both directions. What it sent last is kept for a frontend that is open
    /// (up to what is read at once); one that is not shall not find old orders later.
    pub(super) fn peer_left(&self, serial: usize) {
        match &self.state().phase {
            Phase::Connected(connected) if connected.serial == serial => {}
            Phase::Connected(_) | Phase::Waiting | Phase::Ended => return,
        }
        let Some(mut intake) = self.intake().take() else {
            return;
        };
        if !self.seat.is_open() {
            intake.clear();
        } else if intake.waiting().is_empty()
            && let Phase::Connected(connected) = &self.state().phase
        {
            intake.refill(&connected.peer, usize::MAX);
        }
        *self.intake() = Some(intake);
        self.hang_up();
    }
}
