//! Fds on their way in: whose they are, and that none stays behind.

use std::os::fd::AsFd;

use crate::stage::{Client, Stage};
use fdset::Scope;
use monitor::{FdScope, Style};

/// A pipe whose reading end is passed: the writer sees when the last copy is closed.
struct Probe {
    reader: Option<std::io::PipeReader>,
    writer: std::io::PipeWriter,
}

impl Probe {
    fn new() -> Self {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        Self {
            reader: Some(reader),
            writer,
        }
    }

    fn send(&mut self, client: &mut Client, bytes: &str) {
        let reader = self.reader.take().expect("sent once");
        client.send_with(bytes, &[reader.as_fd()]);
    }

    /// Whether every copy of the reading end is closed.
    fn is_closed(&self) -> bool {
        use std::io::Write;
        (&self.writer).write(b"x").is_err()
    }
}

fn session() -> (Client, std::sync::Arc<fdset::FdRegistry>) {
    let stage = Stage::new();
    let client = stage.client(7, Style::Line);
    let registry = std::sync::Arc::clone(&stage.registry);
    stage.run();
    (client.ready(), registry)
}

#[test]
fn an_fd_comes_with_its_request_and_goes_into_the_registry() {
    let (mut client, registry) = session();
    let mut probe = Probe::new();
    probe.send(
        &mut client,
        "{'execute': 'getfd', 'arguments': {'fdname': 'disk'}}",
    );
    assert_eq!(client.line().as_deref(), Some("{\"return\": {}}"));
    assert_eq!(registry.names(Scope::Monitor(7)), ["disk"]);
    assert!(!probe.is_closed());
    let answer = client.ask("{'execute': 'closefd', 'arguments': {'fdname': 'disk'}}");
    assert_eq!(answer, "{\"return\": {}}");
    assert!(probe.is_closed());
    assert_eq!(
        client
            .ask_in_vain("{'execute': 'closefd', 'arguments': {'fdname': 'disk'}}")
            .1,
        "File descriptor named 'disk' not found"
    );
}

#[test]
fn fd_sets_are_added_to_listed_and_removed() {
    let (mut client, registry) = session();
    let mut probe = Probe::new();
    probe.send(
        &mut client,
        "{'execute': 'add-fd', 'arguments': {'fdset-id': 3, 'opaque': 'mine'}}",
    );
    let answer = client.line().expect("an answer");
    let fd = registry.query()[0].members[0].fd;
    assert_eq!(
        answer,
        format!("{{\"return\": {{\"fd\": {fd}, \"fdset-id\": 3}}}}")
    );
    let listed = client.ask("{'execute': 'query-fdsets'}");
    assert!(listed.contains("\"opaque\": \"mine\""), "{listed}");
    let answer = client.ask("{'execute': 'remove-fd', 'arguments': {'fdset-id': 3}}");
    assert_eq!(answer, "{\"return\": {}}");
    assert!(probe.is_closed());
    assert_eq!(
        client
            .ask_in_vain("{'execute': 'remove-fd', 'arguments': {'fdset-id': 3}}")
            .1,
        "File descriptor named 'fdset-id:3' not found"
    );
}

#[test]
fn a_request_that_wants_an_fd_and_has_none_says_so() {
    let (mut client, _) = session();
    for request in [
        "{'execute': 'getfd', 'arguments': {'fdname': 'a'}}",
        "{'execute': 'add-fd'}",
    ] {
        assert_eq!(
            client.ask_in_vain(request).1,
            "No file descriptor supplied via SCM_RIGHTS"
        );
    }
}

#[test]
fn a_surplus_fd_fails_the_request_and_is_closed() {
    let (mut client, registry) = session();
    let mut probe = Probe::new();
    probe.send(&mut client, "{'execute': 'query-status'}");
    let (class, desc) = crate::stage::error(&client.line().expect("an answer"));
    assert_eq!(class, "GenericError");
    assert!(desc.starts_with("Command 'query-status' takes no file descriptors, but 1 came"));
    assert!(probe.is_closed());

    let (one, other) = (Probe::new(), Probe::new());
    let fds = [one.reader.as_ref(), other.reader.as_ref()].map(|fd| fd.expect("kept").as_fd());
    client.send_with("{'execute': 'add-fd'}", &fds);
    let (_, desc) = crate::stage::error(&client.line().expect("an answer"));
    assert!(desc.starts_with("Command 'add-fd' takes 1 file descriptor, but 2 came"));
    assert!(registry.query().is_empty());
}

#[test]
fn more_fds_than_one_message_carries_fail_their_request_and_the_session_goes_on() {
    let (mut client, registry) = session();
    let (mut last, first) = (Probe::new(), Probe::new());
    let many = vec![first.reader.as_ref().expect("kept").as_fd(); fdset::scm::MAX_FDS];
    client.send_with(" ", &many);
    last.send(&mut client, "{'execute': ");
    client.send_with("'add-fd', ", &many);
    client.send("'id': 1}");
    let answer = client.line().expect("an answer");
    assert!(answer.contains("\"id\": 1"), "{answer}");
    let (_, desc) = crate::stage::error(&answer);
    assert!(
        desc.starts_with("Command 'add-fd' came with more than 253"),
        "{desc}"
    );
    assert!(last.is_closed());
    let mut probe = Probe::new();
    probe.send(&mut client, "{'execute': 'add-fd'}");
    assert!(client.line().expect("an answer").contains("fdset-id"));
    assert_eq!(registry.query().len(), 1);
}

#[test]
fn fds_behind_half_a_request_belong_to_it_however_it_ends() {
    for (rest, kept) in [("'add-fd'}", 1), ("'query-status'}", 0), ("]", 0)] {
        let (mut client, registry) = session();
        let mut probe = Probe::new();
        client.send("{'execute':");
        probe.send(&mut client, " ");
        client.send(rest);
        client.line().expect("an answer");
        assert_eq!(registry.query().len(), kept, "{rest}");
        assert_eq!(probe.is_closed(), kept == 0, "{rest}");
    }
}

#[test]
fn fds_with_white_space_only_belong_to_the_next_request() {
    let (mut client, registry) = session();
    let mut probe = Probe::new();
    probe.send(&mut client, " ");
    client.send("{'execute': 'getfd', 'arguments': {'fdname': 'ahead'}}");
    assert_eq!(client.line().as_deref(), Some("{\"return\": {}}"));
    assert_eq!(registry.names(Scope::Monitor(7)), ["ahead"]);
}

#[test]
fn fds_of_malformed_or_unknown_requests_are_closed() {
    let (mut client, _) = session();
    for bytes in [
        "{]",
        "null ",
        "{'execute': 'nope'}",
        "{'execute': 'getfd', 'arguments': {}}",
    ] {
        let mut probe = Probe::new();
        probe.send(&mut client, bytes);
        client.line().expect("an error");
        assert!(probe.is_closed(), "{bytes}");
    }
}

#[test]
fn a_session_that_ends_in_the_middle_of_a_request_closes_its_fds() {
    let (mut client, _) = session();
    let mut probe = Probe::new();
    probe.send(&mut client, "{'execute': 'getfd', ");
    client
        .socket
        .shutdown(std::net::Shutdown::Write)
        .expect("half closed");
    assert_eq!(client.line(), None);
    assert!(probe.is_closed());
}

#[test]
fn a_client_killed_while_its_request_waits_leaves_no_fd() {
    let stage = Stage::new();
    let mut client = stage.client(0, Style::Line).ready_with_oob();
    client.send("{'execute': 'stop'}");
    let running = stage.next();
    let mut probe = Probe::new();
    probe.send(&mut client, "{'execute': 'add-fd'}");
    let mut half = Probe::new();
    half.send(&mut client, "{'execute': ");
    drop(client);
    // What was complete when the client died still runs; half a request does not.
    assert!(stage.server.next_request().is_none_or(|call| {
        call.command.name == "add-fd" && stage.server.serve_builtin(call).is_none()
    }));
    drop(running);
    stage.server.shutdown();
    assert!(half.is_closed());
    assert!(probe.is_closed() != (stage.registry.query().len() == 1));
}

#[test]
fn names_belong_to_the_monitor_and_outlive_a_connection() {
    let stage = Stage::new();
    let registry = std::sync::Arc::clone(&stage.registry);
    let mut one = stage.client(1, Style::Line);
    let mut two = stage.client(2, Style::Line);
    let server = stage.run();
    one = one.ready();
    two = two.ready();
    let mut probe = Probe::new();
    probe.send(
        &mut one,
        "{'execute': 'getfd', 'arguments': {'fdname': 'x'}}",
    );
    one.line().expect("an answer");
    assert_eq!(
        two.ask_in_vain("{'execute': 'closefd', 'arguments': {'fdname': 'x'}}")
            .0,
        "GenericError"
    );
    drop(one);
    assert_eq!(registry.names(Scope::Monitor(1)), ["x"]);
    server.shutdown();
    assert_eq!(two.line(), None);
}

/// Waits until what ends with a session has ended.
fn soon(condition: impl Fn() -> bool) -> bool {
    (0..400).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        condition()
    })
}

#[test]
fn with_fd_scope_session_a_client_that_goes_leaves_nothing() {
    let stage = Stage::new();
    let mut client = stage.client_with(7, Style::Line, FdScope::Session);
    let mut other = stage.client_with(7, Style::Line, FdScope::Session);
    let registry = std::sync::Arc::clone(&stage.registry);
    stage.run();
    (client, other) = (client.ready(), other.ready());
    let mut probes: Vec<_> = (0..4).map(|_| Probe::new()).collect();
    let named = "{'execute': 'getfd', 'arguments': {'fdname': 'a'}}";
    let member = "{'execute': 'add-fd', 'arguments': {'fdset-id': 3}}";
    for (index, request) in [(0, named), (1, member)] {
        probes[index].send(&mut client, request);
        assert!(client.line().expect("an answer").contains("return"));
    }
    for (index, request) in [(2, named), (3, member)] {
        probes[index].send(&mut other, request);
        assert!(other.line().expect("an answer").contains("return"));
    }
    let told = other.ask("{'execute': 'query-fds'}");
    assert_eq!(told.matches("\"session\": true").count(), 4, "{told}");
    drop(client);
    assert!(soon(|| probes[0].is_closed() && probes[1].is_closed()));
    assert!(!probes[2].is_closed() && !probes[3].is_closed());
    assert_eq!(registry.query()[0].members.len(), 1);
    assert_eq!(
        other.ask("{'execute': 'closefd', 'arguments': {'fdname': 'a'}}"),
        "{\"return\": {}}"
    );
    drop(other);
    assert!(soon(
        || registry.waiting().is_empty() && registry.query().is_empty()
    ));
}

#[test]
fn a_request_that_runs_when_its_session_ends_leaves_nothing_either() {
    let stage = Stage::new();
    let client = stage.client_with(7, Style::Line, FdScope::Session);
    let mut client = client.ready();
    let mut probe = Probe::new();
    probe.send(
        &mut client,
        "{'execute': 'getfd', 'arguments': {'fdname': 'late'}}",
    );
    stage.wait_for_a_wake();
    let call = stage.server.next_request().expect("it waits");
    drop(client);
    assert!(soon(|| call.is_deserted()));
    assert!(!probe.is_closed(), "the request has it");
    assert!(stage.server.serve_builtin(call).is_none());
    assert!(soon(
        || probe.is_closed() && stage.registry.waiting().is_empty()
    ));
}

#[test]
fn a_hundred_sessions_with_fds_leave_none_behind() {
    let stage = Stage::new();
    let bytes = [
        "{",
        "{'execute': 'getfd'}",
        "{'execute': 'query-version'}",
        " ",
    ];
    let probes: Vec<_> = (0..100)
        .map(|round| {
            let mut client = stage.client(0, Style::Line).ready();
            let mut probe = Probe::new();
            probe.send(&mut client, bytes[round % bytes.len()]);
            probe
        })
        .collect();
    stage.server.shutdown();
    assert!(probes.iter().all(Probe::is_closed));
}

#[test]
fn a_connection_cut_at_any_byte_leaves_no_fd() {
    let stage = Stage::new();
    let request = "{'execute': 'qmp_capabilities'}";
    let probes: Vec<_> = (1..=request.len())
        .map(|cut| {
            let mut client = stage.client(0, Style::Line);
            let mut probe = Probe::new();
            probe.send(&mut client, &request[..cut]);
            probe
        })
        .collect();
    stage.server.shutdown();
    assert!(probes.iter().all(Probe::is_closed));
}
