//! The receiving half of one client's session: bytes and fds in, requests out.
//!
//! ```text
//!                  qmp_capabilities              input ended
//!    Negotiating ────────────────────► Ready ─────────────────► Draining
//!         │   │                          │    answers are owed     │
//!         │   └──────── input ended ─────┼─────────────────────────┤
//!         │ connection lost              │ connection lost         │ nothing owed,
//!         │                              │                         │ connection lost
//!         └──────────────────────────────┴───► Closed ◄────────────┘
//! ```
//!
//! Fds belong to the first value completed after they came (see ARCHITECTURE.md, path 1): to that
//! one wholly, and to no other. Fds that came with white space only, or with half a request, wait
//! here. Whatever way a request or a session ends, its fds are closed by being dropped.

use std::mem;
use std::os::fd::OwnedFd;

use fdset::scm::{MAX_FDS, Received};

use crate::framer::{Framer, Step};
use crate::json;
use crate::request::{Refusal, Request};

/// What a session's input buffer keeps allocated once it is empty.
const KEPT_INPUT: usize = 4 << 10;

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Only `qmp_capabilities` is allowed, and no events are sent.
    Negotiating,
    /// Commands are accepted and events are sent.
    Ready,
    /// The client sends no more, but answers are owed to it.
    Draining,
    /// Nothing is sent or received any more.
    Closed,
}

/// What moves a session on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// `qmp_capabilities` succeeded.
    Negotiated,
    /// The client sends no more.
    InputEnded,
    /// The client has all the answers, after its input ended.
    Drained,
    /// The connection broke, or the client was dropped.
    Lost,
}

/// The drawing as a table.
const TRANSITIONS: &[(State, Cause, State)] = &[
    (State::Negotiating, Cause::Negotiated, State::Ready),
    (State::Negotiating, Cause::InputEnded, State::Draining),
    (State::Negotiating, Cause::Lost, State::Closed),
    (State::Ready, Cause::InputEnded, State::Draining),
    (State::Ready, Cause::Lost, State::Closed),
    (State::Draining, Cause::Drained, State::Closed),
    (State::Draining, Cause::Lost, State::Closed),
];

impl State {
    /// The state after `cause`; the same where the table has no such line.
    pub(crate) fn after(self, cause: Cause) -> Self {
        TRANSITIONS
            .iter()
            .find(|(from, by, _)| (*from, *by) == (self, cause))
            .map_or(self, |(_, _, to)| *to)
    }
}

/// One input with everything that belongs to it.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// The request, or why the input is none.
    pub(crate) request: Result<Request, Refusal>,
    /// The fds that came with it.
    pub(crate) fds: Vec<OwnedFd>,
}

/// The client sent more fds than one request could ever carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_FDS} file descriptors came before one request was complete")]
pub(crate) struct TooManyFds;

/// One client's input.
#[derive(Debug)]
pub(crate) struct Session {
    state: State,
    oob: bool,
    framer: Framer,
    /// Bytes received; those before `read` are used up.
    input: Vec<u8>,
    read: usize,
    /// Fds received that no request has claimed yet.
    fds: Vec<OwnedFd>,
    /// The kernel could not deliver fds that came with these bytes.
    fds_lost: bool,
}

impl Session {
    /// A session that has just begun.
    pub(crate) fn new() -> Self {
        Self {
            state: State::Negotiating,
            oob: false,
            framer: Framer::new(),
            input: Vec::new(),
            read: 0,
            fds: Vec::new(),
            fds_lost: false,
        }
    }

    /// Where the session stands.
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Moves on by `cause`.
    pub(crate) fn step(&mut self, cause: Cause) {
        self.state = self.state.after(cause);
    }

    /// Notes that the client sends no more: half a request will never be whole.
    pub(crate) fn end_input(&mut self) {
        self.fds.clear();
        self.step(Cause::InputEnded);
    }

    /// Ends the session and closes the fds that no request has claimed.
    pub(crate) fn close(&mut self) {
        *self = Self {
            state: self.state.after(Cause::Lost),
            ..Self::new()
        };
    }

    /// Ends the negotiation; `oob` says whether the client asked for out-of-band commands.
    pub(crate) fn negotiated(&mut self, oob: bool) {
        self.oob = oob;
        self.step(Cause::Negotiated);
    }

    /// Takes in what one receive call brought; `buffer` is what it filled.
    pub(crate) fn receive(&mut self, buffer: &[u8], received: Received) -> Result<(), TooManyFds> {
        self.input
            .extend_from_slice(buffer.get(..received.bytes).unwrap_or_default());
        self.fds.extend(received.fds);
        self.fds_lost |= received.truncated;
        if self.fds.len() > MAX_FDS {
            return Err(TooManyFds);
        }
        Ok(())
    }

    /// Whether all the bytes received have been looked at.
    pub(crate) fn is_drained(&self) -> bool {
        self.read >= self.input.len()
    }

    /// The next request or mistake in the bytes received so far.
    pub(crate) fn next(&mut self) -> Option<Incoming> {
        let mut rest = self.input.get(self.read..).unwrap_or_default();
        let request = match self.framer.advance(&mut rest) {
            Step::Incomplete => {
                self.input.clear();
                self.input.shrink_to(KEPT_INPUT);
                self.read = 0;
                return None;
            }
            Step::Malformed(text) => Err(Refusal::anonymous(text)),
            Step::Frame(frame) => match json::parse(frame) {
                Ok(value) => Request::new(value, self.oob),
                Err(error) => Err(Refusal::anonymous(error.to_string())),
            },
        };
        self.read = self.input.len() - rest.len();
        let request = match request {
            Ok(request) if mem::take(&mut self.fds_lost) => Err(Refusal::fds_lost(request)),
            other => other,
        };
        Some(Incoming {
            request,
            fds: mem::take(&mut self.fds),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fd() -> OwnedFd {
        nix::unistd::pipe().expect("a pipe").0
    }

    fn receive(session: &mut Session, bytes: &[u8], fds: usize) {
        let received = Received {
            bytes: bytes.len(),
            fds: (0..fds).map(|_| fd()).collect(),
            truncated: false,
        };
        session.receive(bytes, received).expect("few fds");
    }

    fn fds_of_all(session: &mut Session) -> Vec<usize> {
        std::iter::from_fn(|| session.next())
            .map(|incoming| incoming.fds.len())
            .collect()
    }

    #[test]
    fn fds_belong_to_the_first_request_completed_after_they_came() {
        let mut session = Session::new();
        receive(&mut session, b"{'execute':'a'} {'execute':'b'}", 1);
        assert_eq!(fds_of_all(&mut session), [1, 0]);
    }

    #[test]
    fn fds_with_white_space_or_half_a_request_wait_for_the_next_one() {
        let mut session = Session::new();
        receive(&mut session, b" \n", 1);
        assert!(fds_of_all(&mut session).is_empty());
        receive(&mut session, b"{'execute':", 1);
        assert!(fds_of_all(&mut session).is_empty());
        receive(&mut session, b"'a'}{}", 1);
        assert_eq!(fds_of_all(&mut session), [3, 0]);
    }

    #[test]
    fn fds_of_a_malformed_input_do_not_reach_the_next_request() {
        let mut session = Session::new();
        receive(&mut session, b"{]{'execute':'a'}", 2);
        assert_eq!(fds_of_all(&mut session), [2, 0]);
    }

    #[test]
    fn more_fds_than_a_message_can_carry_are_too_many() {
        let mut session = Session::new();
        receive(&mut session, b" ", MAX_FDS);
        let received = Received {
            bytes: 1,
            fds: vec![fd()],
            truncated: false,
        };
        assert_eq!(session.receive(b" ", received), Err(TooManyFds));
    }

    #[test]
    fn a_request_whose_fds_were_lost_is_refused_with_its_id() {
        let mut session = Session::new();
        let bytes = b"{'execute':'add-fd','id':7}{'execute':'stop'}";
        let received = Received {
            bytes: bytes.len(),
            fds: vec![fd()],
            truncated: true,
        };
        session.receive(bytes, received).expect("few fds");
        let refusal = session.next().expect("an input").request.expect_err("lost");
        assert_eq!(refusal.id, Some(json!(7)));
        assert!(session.next().expect("an input").request.is_ok());
    }

    #[test]
    fn nothing_leaves_the_closed_state() {
        for cause in [
            Cause::Negotiated,
            Cause::InputEnded,
            Cause::Drained,
            Cause::Lost,
        ] {
            assert_eq!(State::Closed.after(cause), State::Closed);
        }
    }

    #[test]
    fn every_open_state_can_be_lost_and_only_a_new_one_negotiates() {
        for state in [State::Negotiating, State::Ready, State::Draining] {
            assert_eq!(state.after(Cause::Lost), State::Closed);
            let ready = state.after(Cause::Negotiated) == State::Ready;
            assert_eq!(ready, state != State::Draining);
        }
    }
}
