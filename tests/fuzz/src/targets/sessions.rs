//! A whole QMP server with one monitor, and a client that sends bytes and fds cut anywhere and
//! then says that it sends no more.
//!
//! What must hold: every input that is a request, or a mistake, has exactly one answer; the
//! answers are in the order of the inputs and carry their ids (out of band they may overtake);
//! what `add-fd` and `getfd` took is in the registry until the session ends, or longer if that is
//! what the monitor wants, and every other fd is closed.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use fdset::FdRegistry;
use fdset::scm::{Received, send_with_fds};
use monitor::fuzz::Input;
use monitor::{Endpoint, FdScope, MonitorSpec, Phase, Server, ServerSpec, Version};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use qapi_schema::{Module, MonitorId, QmpError};
use serde_json::Value;

use crate::fds::{Pool, Watch};

/// How many pieces a plan has at most; with it, fewer fds wait than a session takes.
const PIECES: usize = 60;

pub(super) fn run(input: &[u8]) {
    let (plan, text) = split(input);
    let watch = Watch::new();
    let fd_scope = match plan.len() % 2 {
        0 => FdScope::Monitor,
        _ => FdScope::Session,
    };
    let stage = Stage::new(fd_scope);
    let registry = Arc::clone(&stage.registry);
    let answers = stage.play(&plan, text);
    let kept = registry.waiting().len();
    assert!(
        fd_scope == FdScope::Monitor || kept == 0,
        "{kept} fds have outlived their session"
    );
    watch.assert_more(kept);
    drop(registry);
    watch.assert_nothing_is_left();
    check(&answers, text);
}

/// Lengths of pieces, each with its count of fds, and the text behind them.
fn split(input: &[u8]) -> (Vec<(usize, usize)>, &[u8]) {
    let (mut plan, mut rest) = (Vec::new(), input);
    while let [length, fds, after @ ..] = rest
        && *length > 0
        && plan.len() < PIECES
    {
        plan.push((usize::from(*length), usize::from(fds & 3)));
        rest = after;
    }
    (plan, rest.strip_prefix(&[0]).unwrap_or(rest))
}

/// The ids that must be answered, in their order.
fn expected(text: &[u8]) -> Vec<Option<Value>> {
    let mut input = Input::new();
    let received = Received {
        bytes: text.len(),
        fds: Vec::new(),
        truncated: false,
    };
    input.receive(text, received);
    std::iter::from_fn(|| input.next_request())
        .map(|(told, _)| told.id)
        .collect()
}

fn check(answers: &[Value], text: &[u8]) {
    let mut ids: Vec<Option<&Value>> = Vec::new();
    for answer in answers {
        let result = [answer.get("return"), answer.get("error")];
        assert_eq!(result.iter().flatten().count(), 1, "{answer}");
        ids.push(answer.get("id"));
    }
    let expected = expected(text);
    let mut expected: Vec<Option<&Value>> = expected.iter().map(Option::as_ref).collect();
    let overtakes = text.windows(3).any(|word| word == b"oob");
    if overtakes {
        let key = |id: &Option<&Value>| id.map(ToString::to_string);
        ids.sort_by_key(key);
        expected.sort_by_key(key);
    }
    // Doubles went through serde_json once more on one side.
    let alike = |pair: (&Option<&Value>, &Option<&Value>)| match pair {
        (Some(came), Some(wanted)) => super::json::same(came, wanted),
        (came, wanted) => came == wanted,
    };
    let all = ids.len() == expected.len() && ids.iter().zip(&expected).all(alike);
    assert!(all, "{ids:?} came, wanted were {expected:?}");
}

/// A server with its main loop on this thread.
struct Stage {
    server: Server,
    registry: Arc<FdRegistry>,
    woken: Arc<EventFd>,
    client: UnixStream,
}

impl Stage {
    fn new(fd_scope: FdScope) -> Self {
        let registry = Arc::new(FdRegistry::new());
        let woken = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd"));
        let wake = Arc::clone(&woken);
        let server = Server::new(ServerSpec {
            registry: Arc::clone(&registry),
            version: Version {
                major: 10,
                minor: 0,
                micro: 0,
                package: "fuzz".to_owned(),
            },
            phase: Phase::Ready,
            wake_main: Box::new(move || {
                // It only fails when it is full, and then it has been heard.
                let _ = wake.write(1);
            }),
            // Some run on the thread of the sessions, and must not overtake the others.
            serve_now: Box::new(|call| {
                if matches!(call.command.module, Module::Control | Module::Fds) {
                    return Some(call);
                }
                call.finish(Err(QmpError::generic("no VM here")));
                None
            }),
            out_of_band: Box::new(drop),
            quit: Box::new(|_| ()),
        });
        let (ours, client) = UnixStream::pair().expect("a pair");
        client.set_nonblocking(true).expect("a socket");
        let spec = MonitorSpec {
            fd_scope,
            wait: true,
            ..MonitorSpec::new(MonitorId(0), Endpoint::Stream(ours.into()))
        };
        server.add_monitor(spec).expect("a monitor");
        Self {
            server,
            registry,
            woken,
            client,
        }
    }

    /// Sends it all, and gives the answers.
    fn play(mut self, plan: &[(usize, usize)], text: &[u8]) -> Vec<Value> {
        let (mut output, mut rest, mut sent_fds) = (Vec::new(), text, 0);
        let pool = Pool::of_this_process();
        for &(length, fds) in plan.iter().chain(&[(usize::MAX, 0)]) {
            let (now, later) = rest.split_at(length.min(rest.len()));
            rest = later;
            let fds: Vec<BorrowedFd<'_>> = (sent_fds..sent_fds + fds)
                .map(|index| pool.fd(index).0.as_fd())
                .collect();
            sent_fds += fds.len();
            if !now.is_empty() {
                let sent = send_with_fds(&self.client, now, &fds);
                assert_eq!(sent.expect("room for the little there is"), now.len());
            }
            self.serve();
            self.receive(&mut output);
        }
        let shut = self.client.shutdown(std::net::Shutdown::Write);
        shut.expect("a connection");
        while self.receive(&mut output) {
            self.wait();
            self.serve();
        }
        self.server.shutdown();
        messages(&output)
    }

    fn serve(&self) {
        // Nothing to be read only means that it was not woken.
        let _ = self.woken.read();
        while let Some(call) = self.server.next_request() {
            if let Some(call) = self.server.serve_builtin(call) {
                call.finish(Err(QmpError::generic("no VM here")));
            }
        }
    }

    /// Reads what is there; false at the end.
    fn receive(&mut self, output: &mut Vec<u8>) -> bool {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.client.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => output.extend_from_slice(&buffer[..count]),
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }

    fn wait(&self) {
        let mut both = [
            PollFd::new(self.client.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.woken.as_fd(), PollFlags::POLLIN),
        ];
        // The engine's clock interrupts it, which is as good as being woken.
        let ready = poll(&mut both, PollTimeout::from(20_000_u16));
        assert_ne!(
            ready,
            Ok(0),
            "a client waits for its answers, and nothing happens"
        );
    }
}

/// The answers among what was received, in their order: no greeting, no events.
fn messages(output: &[u8]) -> Vec<Value> {
    let text = str::from_utf8(output).expect("text");
    text.lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON in each line"))
        .filter(|message| message.get("QMP").is_none() && message.get("event").is_none())
        .collect()
}
