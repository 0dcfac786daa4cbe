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
//! Fds belong to one value wholly, and to no other: to the first that is completed after they came,
//! except that a command that takes none leaves them to what follows it in the same read. For the
//! kernel ends a read behind the bytes that fds were sent with, but plain bytes sent before may
//! come along (see ARCHITECTURE.md, path 1). Fds that came with white space only, or with half a
//! request, wait here. Whatever way a request or a session ends, its fds are closed by being
//! dropped.

use std::mem;
use std::os::fd::OwnedFd;

use fdset::scm::{MAX_FDS, Received};
use qapi_schema::find_command;

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

/// Why fds that were sent are not there for their request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LostFds {
    /// The kernel could not deliver them.
    #[error(
        "came with file descriptors that could not be received: this process has too many open; \
         close some and send the request again"
    )]
    NoRoom,
    /// One session holds so many and no more.
    #[error(
        "came with more than {MAX_FDS} file descriptors, which is the most that wait for one \
         request; all of them were closed"
    )]
    TooMany,
}

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
    /// Fds that came for the next request are gone.
    lost: Option<LostFds>,
    /// They came, or were lost, with the bytes in `input`, and not before.
    came_now: bool,
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
            lost: None,
            came_now: false,
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

    /// Takes in what one receive call brought; `buffer` is what it filled. From a request that will
    /// be refused for its fds none is kept, however many are still to come.
    pub(crate) fn receive(&mut self, buffer: &[u8], received: Received) {
        self.came_now = self.fds.is_empty() && self.lost.is_none();
        self.input
            .extend_from_slice(buffer.get(..received.bytes).unwrap_or_default());
        self.fds.extend(received.fds);
        if received.truncated {
            self.lost.get_or_insert(LostFds::NoRoom);
        } else if self.fds.len() > MAX_FDS {
            self.lost.get_or_insert(LostFds::TooMany);
        }
        if self.lost.is_some() {
            self.fds.clear();
        }
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
        let more_follows = !rest.trim_ascii().is_empty();
        if self.came_now && more_follows && request.as_ref().is_ok_and(takes_none) {
            return Some(Incoming {
                request,
                fds: Vec::new(),
            });
        }
        let request = match (request, self.lost.take()) {
            (Ok(request), Some(lost)) => Err(Refusal::without_fds(request, lost)),
            (request, _) => request,
        };
        Some(Incoming {
            request,
            fds: mem::take(&mut self.fds),
        })
    }
}

/// Whether fds cannot be meant for this request. Of a command that nobody knows that cannot be
/// said.
fn takes_none(request: &Request) -> bool {
    find_command(&request.command).is_some_and(|command| command.fds == 0)
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
        session.receive(bytes, received);
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
    fn what_was_sent_before_fds_and_takes_none_leaves_them_to_what_they_were_sent_with() {
        let (plain, taker) = ("{'execute':'query-name'}\n", "{'execute':'getfd'}\n");
        let cases: [(&str, &[usize]); 4] = [
            (&format!("{plain}{plain}{taker}"), &[0, 0, 1]),
            (&format!("{taker}{plain}"), &[1, 0]),
            (plain, &[1]),
            (&format!("{plain}{plain}"), &[0, 1]),
        ];
        for (bytes, fds) in cases {
            let mut session = Session::new();
            receive(&mut session, bytes.as_bytes(), 1);
            assert_eq!(fds_of_all(&mut session), fds, "{bytes}");
        }
        // Half a request, or white space, is what they were sent with, too.
        let mut session = Session::new();
        receive(&mut session, format!("{plain}{{").as_bytes(), 1);
        assert_eq!(fds_of_all(&mut session), [0]);
        receive(
            &mut session,
            format!("'execute':'stop'}}{taker}").as_bytes(),
            0,
        );
        assert_eq!(fds_of_all(&mut session), [1, 0]);
    }

    #[test]
    fn fds_that_were_lost_are_missed_by_the_command_that_they_were_sent_with() {
        let mut session = Session::new();
        let bytes = b"{'execute':'stop'}{'execute':'getfd'}";
        let received = Received {
            bytes: bytes.len(),
            fds: Vec::new(),
            truncated: true,
        };
        session.receive(bytes, received);
        assert!(session.next().is_some_and(|stop| stop.request.is_ok()));
        assert!(session.next().is_some_and(|getfd| getfd.request.is_err()));
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
    fn more_fds_than_a_message_can_carry_are_closed_and_refused_with_their_request() {
        let mut session = Session::new();
        receive(&mut session, b" ", MAX_FDS);
        assert_eq!(session.fds.len(), MAX_FDS);
        receive(&mut session, b" ", 1);
        assert!(session.fds.is_empty());
        receive(&mut session, b" ", 100);
        assert!(
            session.fds.is_empty(),
            "those that follow are not kept either"
        );
        receive(
            &mut session,
            b"{'execute':'add-fd','id':7}{'execute':'stop'}",
            1,
        );
        let refusal = session.next().expect("an input").request.expect_err("253");
        assert_eq!(refusal.id, Some(json!(7)));
        assert_eq!(
            refusal.error.desc,
            "Command 'add-fd' came with more than 253 file descriptors, which is the most that \
             wait for one request; all of them were closed"
        );
        assert!(session.next().expect("an input").request.is_ok());
    }

    fn receive_cut(session: &mut Session, bytes: &[u8]) {
        let received = Received {
            bytes: bytes.len(),
            fds: vec![fd()],
            truncated: true,
        };
        session.receive(bytes, received);
        assert!(session.fds.is_empty(), "nobody can say whose it is");
    }

    #[test]
    fn a_request_whose_fds_were_lost_is_refused_with_its_id() {
        let mut session = Session::new();
        receive_cut(
            &mut session,
            b"{'execute':'add-fd','id':7}{'execute':'stop'}",
        );
        let refusal = session.next().expect("an input").request.expect_err("lost");
        assert_eq!(refusal.id, Some(json!(7)));
        assert!(session.next().expect("an input").request.is_ok());
    }

    #[test]
    fn fds_lost_with_malformed_input_are_not_missed_by_the_next_request() {
        let mut session = Session::new();
        receive_cut(&mut session, b"{]{'execute':'stop'}");
        assert!(session.next().expect("an input").request.is_err());
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
