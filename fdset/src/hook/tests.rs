//! A client and a manager over a real socket pair, with the simplest of wires:
//! `open ID NAME`, `cancel ID`; `ID`, `ID!text`.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::open::open;
use crate::registry::{Door, FdRegistry, Scope};
use crate::request::{Access, Request, Role};
use crate::scm::{recv_with_fds, send_with_fds};
use crate::watch::watched;

const PATIENCE: Duration = Duration::from_secs(10);

struct Plain;

impl HookWire for Plain {
    fn open(&self, id: u64, wish: &Wish, _command: Option<&str>, _patience: Duration) -> Vec<u8> {
        format!("open {id} {}", wish.name).into_bytes()
    }

    fn cancel(&self, id: u64) -> Vec<u8> {
        format!("cancel {id}").into_bytes()
    }

    fn answer(&self, line: &[u8]) -> Result<WireAnswer, String> {
        let text = str::from_utf8(line).map_err(|error| error.to_string())?;
        let (id, error) = match text.split_once('!') {
            Some((id, error)) => (id, Some(error.to_owned())),
            None => (text, None),
        };
        let id = id.parse().map_err(|_| "no number".to_owned())?;
        Ok(WireAnswer { id, error })
    }
}

fn hook() -> (HookClient, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let client = HookClient::new(ours.into(), Box::new(Plain), PATIENCE);
    (client, theirs)
}

fn wish(name: &str, access: Access, expected: Expected) -> Wish {
    let request = Request::new(name, access, Role::Image, "node 'n'");
    Wish::new(&request, expected)
}

fn image() -> Wish {
    wish("/disk", Access::ReadWrite, Expected::RegularFile)
}

fn reader() -> Wish {
    wish("/pipe", Access::ReadOnly, Expected::Stream)
}

fn file() -> OwnedFd {
    tempfile::tempfile().expect("a file").into()
}

fn answer(manager: &UnixStream, line: &str, fds: &[BorrowedFd<'_>]) {
    let sent = send_with_fds(manager, line.as_bytes(), fds).expect("sent");
    assert_eq!(sent, line.len());
}

fn asked(manager: &UnixStream) -> String {
    let mut buffer = [0; 4096];
    let received = recv_with_fds(manager, &mut buffer).expect("a request");
    String::from_utf8(buffer[..received.bytes].to_vec()).expect("text")
}

/// How the only request ends after this answer.
fn outcome_of(wish: Wish, line: &str, fds: &[BorrowedFd<'_>]) -> Result<OwnedFd, HookError> {
    let (mut client, manager) = hook();
    let now = Instant::now();
    client.ask(wish, None, now);
    assert!(asked(&manager).starts_with("open 1 "));
    answer(&manager, line, fds);
    let mut finished = client.attend(now);
    assert_eq!(finished.len(), 1, "one request, one end");
    assert!(client.attend(now).is_empty());
    finished.remove(0).outcome
}

#[test]
fn an_answer_with_one_fd_is_that_fd() {
    let file = file();
    let fd = outcome_of(image(), "1\n", &[file.as_fd()]).expect("an fd");
    let ino = |fd: &OwnedFd| nix::sys::stat::fstat(fd).expect("a file").st_ino;
    assert_eq!(ino(&fd), ino(&file));
}

#[test]
fn answers_may_come_in_any_order_and_in_one_read() {
    let (mut client, manager) = hook();
    let now = Instant::now();
    let first = client.ask(image(), None, now);
    let second = client.ask(image(), None, now);
    let third = client.ask(image(), None, now);
    let file = file();
    answer(&manager, "3!no\n", &[]);
    answer(&manager, "2\n", &[file.as_fd()]);
    answer(&manager, "1\n", &[file.as_fd()]);
    let finished = client.attend(now);
    let order: Vec<_> = finished.iter().map(|end| end.ticket).collect();
    assert_eq!(order, [third, second, first]);
    assert!(finished[0].outcome.is_err());
    assert!(finished[1].outcome.is_ok() && finished[2].outcome.is_ok());
    assert_eq!(client.pending(), 0);
}

#[test]
fn a_refusal_reaches_who_asked() {
    let error = outcome_of(image(), "1!not in the list\n", &[]).expect_err("refused");
    assert_eq!(error, HookError::Refused("not in the list".to_owned()));
}

#[test]
fn what_will_not_do_is_closed_and_says_what_came_and_what_was_wanted() {
    let (writer, watch) = watched();
    let text = |wish, line, fds: &[BorrowedFd<'_>]| {
        outcome_of(wish, line, fds)
            .expect_err("it will not do")
            .to_string()
    };
    let fd = writer.as_fd();
    let (connected, _peer) = UnixStream::pair().expect("a pair");
    let listening = wish("/s", Access::ReadWrite, Expected::ListeningSocket);
    let wanted = "wanted a regular file, read-write";
    for (wish, line, fds, came) in [
        (image(), "1\n", vec![], format!("no fd, {wanted}")),
        (image(), "1\n", vec![fd, fd], format!("2 fds, {wanted}")),
        (image(), "1\n", vec![fd], format!("a pipe, {wanted}")),
        (
            image(),
            "1!no\n",
            vec![fd],
            format!("a refusal and an fd at once, {wanted}"),
        ),
        (
            reader(),
            "1\n",
            vec![fd],
            "a write-only fd, wanted something to read from or write to, read-only".to_owned(),
        ),
        (
            listening,
            "1\n",
            vec![connected.as_fd()],
            "a connected unix socket, wanted a listening socket".to_owned(),
        ),
    ] {
        let text = text(wish, line, &fds);
        assert_eq!(text, format!("the open hook answered with {came}"));
    }
    drop(writer);
    assert!(watch.is_closed(), "nothing of what came is kept");
}

#[test]
fn what_is_not_answered_in_time_fails_and_a_late_answer_is_closed() {
    let (mut client, manager) = hook();
    let now = Instant::now();
    client.ask(reader(), None, now);
    client.attend(now);
    assert_eq!(client.deadline(now), Some(now + PATIENCE));
    let finished = client.attend(now + PATIENCE);
    let error = finished[0].outcome.as_ref().expect_err("too late");
    assert_eq!(
        error.to_string(),
        "the open hook did not answer within 10000 ms"
    );
    assert_eq!(client.deadline(now), None);

    let (writer, watch) = watched();
    answer(&manager, "1\n", &[writer.as_fd()]);
    drop(writer);
    assert!(client.attend(now + PATIENCE).is_empty());
    assert!(watch.is_closed());
    assert!(client.socket().is_some(), "being late is no offence");
}

#[test]
fn a_cancelled_request_is_told_to_the_manager_and_its_answer_is_closed() {
    let (mut client, manager) = hook();
    let now = Instant::now();
    let ticket = client.ask(reader(), None, now);
    client.cancel(ticket);
    client.cancel(ticket);
    assert_eq!(asked(&manager), "open 1 /pipe\ncancel 1\n");
    let (writer, watch) = watched();
    answer(&manager, "1\n", &[writer.as_fd()]);
    drop(writer);
    let finished = client.attend(now);
    assert_eq!(finished.len(), 1);
    let error = finished[0].outcome.as_ref().expect_err("cancelled");
    assert_eq!(error, &HookError::Cancelled);
    assert!(watch.is_closed());
}

#[test]
fn when_the_hook_goes_everything_that_waits_fails_and_so_does_what_comes() {
    let (mut client, manager) = hook();
    let now = Instant::now();
    client.ask(image(), None, now);
    client.ask(image(), None, now);
    drop(manager);
    let finished = client.attend(now);
    assert_eq!(finished.len(), 2);
    client.ask(image(), None, now);
    let later = client.attend(now);
    for end in finished.iter().chain(&later) {
        let error = end.outcome.as_ref().expect_err("gone");
        assert!(matches!(error, HookError::Gone(_)), "{error}");
    }
    assert_eq!((client.pending(), later.len()), (0, 1));
    assert!(client.socket().is_none());
}

#[test]
fn what_a_manager_answered_before_it_went_counts() {
    let (mut client, manager) = hook();
    let now = Instant::now();
    client.ask(image(), None, now);
    answer(&manager, "1!no\n", &[]);
    drop(manager);
    client.ask(image(), None, now);
    let errors: Vec<_> = client
        .attend(now)
        .into_iter()
        .filter_map(|end| end.outcome.err())
        .collect();
    assert_eq!(errors[0], HookError::Refused("no".to_owned()));
    assert!(matches!(errors[1], HookError::Gone(_)), "{errors:?}");
}

#[test]
fn a_manager_that_breaks_the_protocol_is_given_up() {
    for (line, why) in [
        ("nonsense\n", "it sent a line that is no answer: no number"),
        ("7\n", "it answered request 7, which was never made"),
        (
            "1!no\n1!no\n",
            "it answered request 1, which was never made",
        ),
        ("\u{0}\n", "it sent a line that is no answer"),
    ] {
        let (mut client, manager) = hook();
        let now = Instant::now();
        client.ask(image(), None, now);
        answer(&manager, line, &[]);
        client.attend(now);
        client.ask(image(), None, now);
        let last = client.attend(now).pop().expect("an end");
        let text = last.outcome.expect_err("gone").to_string();
        assert!(
            text.starts_with(&format!("the open hook is gone ({why}")),
            "{text}"
        );
    }
}

#[test]
fn a_flood_of_fds_is_closed_and_costs_a_bounded_time_for_each_attendance() {
    let (mut client, manager) = hook();
    let now = Instant::now();
    manager.set_nonblocking(true).expect("a socket");
    let (writer, watch) = watched();
    // Half a line: everything belongs to a request that is never completed.
    while send_with_fds(&manager, b"1", &[writer.as_fd(); 50]).is_ok() {}
    drop(writer);
    while client.socket().is_some() && client.deadline(now).is_some() {
        client.attend(now);
    }
    drop(client);
    assert!(watch.is_closed());
}

#[test]
fn a_manager_that_reads_nothing_is_given_up_before_memory_fills() {
    let (mut client, manager) = hook();
    let now = Instant::now();
    let long = wish(
        &"x".repeat(16 << 10),
        Access::ReadOnly,
        Expected::RegularFile,
    );
    let mut asked = 0;
    while client.socket().is_some() {
        client.ask(long.clone(), None, now);
        asked += 1;
        assert!(asked < 1000, "it grows without end");
    }
    assert_eq!(client.attend(now).len(), asked);
    drop(manager);
}

#[test]
fn a_manager_that_never_answers_is_given_up_in_the_end() {
    let (mut client, mut manager) = hook();
    let mut now = Instant::now();
    let mut asked = 0;
    while client.socket().is_some() {
        client.ask(image(), None, now);
        now += PATIENCE;
        assert_eq!(client.attend(now).len(), 1);
        self::asked(&manager);
        asked += 1;
    }
    assert_eq!(asked, 1025);
    assert!(manager.write_all(b"x").is_err());
}

#[test]
fn an_open_takes_its_answer_once_and_the_rest_is_closed() {
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let answers = Arc::new(Answers::new());
    let (unused, watch) = watched();
    answers.put("/disk", Access::ReadWrite, Ok(file()), None);
    answers.put(
        "/no",
        Access::ReadOnly,
        Err(HookError::Refused("no".into())),
        None,
    );
    answers.put("/unused", Access::ReadOnly, Ok(unused), None);
    let asked = door.with_answers(Arc::clone(&answers));
    let request = |name, access| Request::new(name, access, Role::Image, "node 'n'");
    assert!(open(&asked, &request("/disk", Access::ReadWrite)).is_ok());
    let again = open(&asked, &request("/disk", Access::ReadWrite)).expect_err("used up");
    assert_eq!(again.errno(), nix::libc::ENOENT, "the file system's turn");
    let refused = open(&asked, &request("/no", Access::ReadOnly)).expect_err("refused");
    assert_eq!(refused.errno(), nix::libc::EACCES);
    assert_eq!(
        refused.to_string(),
        "Could not open '/no' read-only as image of node 'n'"
    );
    answers.close();
    assert!(watch.is_closed());
}

#[test]
fn a_connection_must_be_able_to_carry_fds() {
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Monitor(0));
    let connect = |name: &str| {
        let address = crate::SocketAddress::Fd { name: name.into() };
        HookClient::connect(&door, &address, Box::new(Plain), PATIENCE, "open-hook-set")
    };
    let (ours, _theirs) = UnixStream::pair().expect("a pair");
    for (name, fd) in [("pipe", watched().0), ("socket", ours.into())] {
        door.registry()
            .add_named(Scope::Monitor(0), name, crate::watch::passed(fd))
            .expect("good name");
    }
    let error = connect("pipe").expect_err("a pipe").to_string();
    assert!(error.contains("not one end of a unix stream"), "{error}");
    assert_eq!(door.registry().names(Scope::Monitor(0)), ["pipe", "socket"]);
    assert!(connect("socket").is_ok());
}

mod random {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Whatever a manager sends, with whatever fds, in whatever pieces: each request ends once,
        /// and every fd is in an outcome or closed.
        #[test]
        fn nothing_that_a_manager_sends_is_kept(
            sends in prop::collection::vec((prop_oneof![
                Just("1\n".to_owned()), Just("2\n".to_owned()), Just("3!no\n".to_owned()),
                Just("4".to_owned()), Just("\n".to_owned()), "[0-9!\n a-z]{1,6}",
            ], 0_usize..3), 0..8)
        ) {
            let (mut client, manager) = hook();
            let now = Instant::now();
            for _ in 0..4 {
                client.ask(wish("/p", Access::WriteOnly, Expected::Stream), None, now);
            }
            let (writer, watch) = watched();
            let mut finished = Vec::new();
            for (line, fds) in &sends {
                let fds = vec![writer.as_fd(); *fds];
                if send_with_fds(&manager, line.as_bytes(), &fds).is_err() {
                    break;
                }
                finished.extend(client.attend(now));
            }
            drop(writer);
            finished.extend(client.attend(now + PATIENCE));
            let mut tickets: Vec<_> = finished.iter().map(|end| end.ticket).collect();
            tickets.sort();
            tickets.dedup();
            prop_assert_eq!((tickets.len(), finished.len()), (4, 4));
            drop((finished, client, manager));
            prop_assert!(watch.is_closed());
        }
    }
}

#[test]
fn a_manager_that_goes_is_told_of_once_with_what_it_owed() {
    let (mut client, manager) = hook();
    let now = Instant::now();
    client.ask(image(), None, now);
    client.ask(reader(), None, now);
    assert_eq!(client.take_departure(), None);
    drop(manager);
    assert_eq!(client.attend(now).len(), 2);
    let departure = Departure {
        reason: "it has closed the connection".to_owned(),
        unanswered: 2,
    };
    assert_eq!(client.take_departure(), Some(departure));
    client.ask(image(), None, now);
    client.attend(now);
    assert_eq!(client.take_departure(), None, "it was gone already");
}
