//! Many clients, slow clients, clients that send too much, and the end.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use crate::stage::{Client, Stage};
use fdset::{Access, Door, FdRegistry, Request, Role, Scope, SocketAddress, Wait};
use monitor::{Endpoint, MonitorError, MonitorSpec, Style};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use qapi_schema::char::VserportChange;
use qapi_schema::{Event, MonitorId, Reply};

fn answer(stage: &Stage) {
    stage.next().finish(Ok(Reply::EMPTY));
}

#[test]
fn without_oob_the_next_request_is_read_when_the_one_before_is_done() {
    let stage = Stage::new();
    let mut client = stage.client(0, Style::Line).ready();
    client.send(
        "{'execute': 'stop', 'id': 1}{'execute': 'nope', 'id': 2}{'execute': 'stop', 'id': 3}",
    );
    let first = stage.next();
    assert!(stage.server.next_request().is_none());
    first.finish(Ok(Reply::EMPTY));
    answer(&stage);
    for id in 1..=3 {
        assert!(
            client
                .line()
                .expect("an answer")
                .contains(&format!("\"id\": {id}"))
        );
    }
}

#[test]
fn a_client_that_sends_too_much_loses_nothing() {
    for oob in [false, true] {
        let stage = Stage::new();
        let mut client = stage.client(0, Style::Line);
        client = if oob {
            client.ready_with_oob()
        } else {
            client.ready()
        };
        let many = 500;
        let text: String = (0..many)
            .map(|id| format!("{{'execute': 'stop', 'id': {id}}}"))
            .collect();
        client.send(text);
        for _ in 0..many {
            answer(&stage);
        }
        for id in 0..many {
            assert_eq!(
                client.line(),
                Some(format!("{{\"return\": {{}}, \"id\": {id}}}"))
            );
        }
    }
}

#[test]
fn out_of_band_an_error_overtakes_what_waits() {
    let stage = Stage::new();
    let mut client = stage.client(0, Style::Line).ready_with_oob();
    client.send("{'execute': 'stop', 'id': 1}{'exec-oob': 'no-such-command', 'id': 2}");
    let overtaking = client.line().expect("an answer");
    assert!(overtaking.contains("\"id\": 2, \"error\""), "{overtaking}");
    answer(&stage);
    let waiting = client.line().expect("an answer");
    assert!(waiting.contains("\"id\": 1"), "{waiting}");
}

#[test]
fn with_oob_errors_are_answered_in_the_order_of_their_requests() {
    let stage = Stage::new();
    let mut client = stage.client(0, Style::Line).ready_with_oob();
    client.send("{'execute': 'stop', 'id': 1}{'id': 'err-2'}{]{'execute': 'stop', 'id': 3}");
    answer(&stage);
    answer(&stage);
    let lines: Vec<_> = (0..4).map(|_| client.line().expect("an answer")).collect();
    for (line, part) in lines
        .iter()
        .zip(["\"id\": 1", "err-2", "expecting value", "\"id\": 3"])
    {
        assert!(line.contains(part), "{lines:?}");
    }
}

#[test]
fn sessions_take_turns() {
    let stage = Stage::new();
    let mut greedy = stage.client(0, Style::Line).ready_with_oob();
    let mut modest = stage.client(1, Style::Line).ready_with_oob();
    greedy.send("{'execute': 'stop'}".repeat(5));
    let running = stage.next();
    modest.send("{'execute': 'stop', 'id': 'modest'}");
    std::thread::sleep(Duration::from_millis(50));
    running.finish(Ok(Reply::EMPTY));
    answer(&stage);
    answer(&stage);
    assert!(modest.line().expect("an answer").contains("modest"));
}

#[test]
fn events_go_to_negotiated_sessions_only_and_precede_the_reply() {
    let stage = Stage::new();
    let mut ready = stage.client(0, Style::Line);
    let mut raw = stage.client(1, Style::Line);
    let server = stage.run();
    ready = ready.ready();
    raw.line().expect("a greeting");
    ready.send("{'execute': 'stop'}");
    let event = ready.line().expect("an event");
    assert!(
        event.starts_with("{\"timestamp\": {\"seconds\": "),
        "{event}"
    );
    assert!(event.ends_with("}, \"event\": \"STOP\"}"), "{event}");
    assert_eq!(
        ready.line().as_deref(),
        Some("{\"return\": {\"played\": true}}")
    );
    assert_eq!(
        raw.ask("{'execute': 'qmp_capabilities'}"),
        "{\"return\": {}}"
    );
    server.events().emit(Event::Stop);
    assert!(raw.line().expect("an event").contains("STOP"));
}

#[test]
fn of_events_that_come_too_fast_the_first_and_the_last_arrive() {
    let stage = Stage::new();
    let mut client = stage.client(0, Style::Line).ready();
    let events = stage.server.events();
    let change = |id: &str, open| {
        let id = id.to_owned();
        events.emit(Event::VserportChange(VserportChange { id, open }));
    };
    change("a", true);
    change("a", false);
    change("b", true);
    change("a", true);
    change("a", false);
    events.emit(Event::Stop);
    let lines: Vec<_> = (0..4).map(|_| client.line().expect("an event")).collect();
    let told = |line: &str| line.split_once("}, ").expect("a timestamp").1.to_owned();
    let told: Vec<_> = lines.iter().map(|line| told(line)).collect();
    let wanted = |id: &str, open: bool| {
        format!(
            "\"event\": \"VSERPORT_CHANGE\", \"data\": {{\"open\": {open}, \"id\": \"{id}\"}}}}"
        )
    };
    assert_eq!(
        told,
        [
            wanted("a", true),
            wanted("b", true),
            "\"event\": \"STOP\"}".to_owned(),
            wanted("a", false),
        ]
    );
}

#[test]
fn a_slow_reader_is_dropped_and_nobody_else_notices() {
    let stage = Stage::new();
    let slow = stage.client(0, Style::Line).ready();
    let mut quick = stage.client(1, Style::Line).ready();
    let server = stage.server.clone();
    let reader = std::thread::spawn(move || {
        let mut lines = 0;
        while quick.line().is_some() {
            lines += 1;
        }
        lines
    });
    let events = 200_000;
    for _ in 0..events / 1000 {
        for _ in 0..1000 {
            server.events().emit(Event::Stop);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut slow = slow;
    let mut got = 0;
    while let Ok(Some(_)) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| slow.line())) {
        got += 1;
    }
    assert!(got < events, "the slow one was cut off");
    server.shutdown();
    assert_eq!(reader.join().expect("a count"), events);
}

#[test]
fn a_client_that_does_not_read_its_answers_is_read_no_further() {
    let stage = Stage::new();
    let mut client = stage.client(0, Style::Line);
    stage.run();
    client = client.ready();
    let requests = 2_000;
    let mut writer = client.socket.try_clone().expect("a duplicate");
    let sender = std::thread::spawn(move || {
        for _ in 0..requests {
            writer
                .write_all(b"{'execute': 'query-commands'}")
                .expect("sent");
        }
    });
    for _ in 0..requests {
        assert!(
            client
                .line()
                .expect("an answer")
                .starts_with("{\"return\": [")
        );
    }
    sender.join().expect("all sent");
}

#[test]
fn a_client_that_ends_its_input_still_gets_its_answers() {
    let stage = Stage::new();
    let mut client = stage.client(0, Style::Line).ready();
    client.send("{'execute': 'stop', 'id': 1}{'execute': 'stop', 'id': 2}");
    client
        .socket
        .shutdown(std::net::Shutdown::Write)
        .expect("half closed");
    answer(&stage);
    answer(&stage);
    assert!(client.line().expect("an answer").contains("\"id\": 1"));
    assert!(client.line().expect("an answer").contains("\"id\": 2"));
    assert_eq!(client.line(), None);
}

#[test]
fn what_a_client_asked_before_it_went_is_still_done() {
    let stage = Stage::new();
    let mut client = stage.client(0, Style::Line);
    client.send("{'execute': 'qmp_capabilities'}{'execute': 'stop'}{'execute': 'query-status'}");
    drop(client);
    for command in ["stop", "query-status"] {
        let call = stage.next();
        assert_eq!(call.command.name, command);
        call.finish(Ok(Reply::EMPTY));
    }
}

#[test]
fn a_call_that_is_not_finished_holds_up_its_own_session_only() {
    let stage = Stage::new();
    let mut slow = stage.client(0, Style::Line).ready_with_oob();
    let mut other = stage.client(1, Style::Line).ready();
    slow.send("{'execute': 'stop', 'id': 1}{'execute': 'stop', 'id': 2}");
    let first = stage.next();
    other.send("{'execute': 'stop', 'id': 3}");
    answer(&stage);
    assert!(other.line().expect("an answer").contains("\"id\": 3"));
    assert!(stage.server.next_request().is_none());
    first.finish(Ok(Reply::EMPTY));
    answer(&stage);
    for id in 1..=2 {
        let line = slow.line().expect("an answer");
        assert!(line.contains(&format!("\"id\": {id}")), "{line}");
    }
}

#[test]
fn a_call_is_deserted_by_a_client_that_is_gone_but_not_by_one_that_only_ends_its_input() {
    let stage = Stage::new();
    let mut client = stage.client(0, Style::Line).ready();
    client.send("{'execute': 'stop'}");
    let call = stage.next();
    client
        .socket
        .shutdown(std::net::Shutdown::Write)
        .expect("a socket");
    // Whatever the end of the input does has happened once a later client is answered.
    let mut later = stage.client(1, Style::Line).ready();
    later.send("{'execute': 'stop'}");
    answer(&stage);
    assert!(later.line().is_some());
    assert!(!call.is_deserted());
    drop(client);
    while !call.is_deserted() {
        stage.wait_for_a_wake();
    }
}

#[test]
fn a_call_that_is_dropped_answers_with_an_error() {
    let stage = Stage::new();
    let mut client = stage.client(0, Style::Line).ready();
    client.send("{'execute': 'stop', 'id': 1}");
    drop(stage.next());
    let line = client.line().expect("an answer");
    assert!(
        line.contains("\"id\": 1") && line.contains("ended without an answer"),
        "{line}"
    );
}

#[test]
fn the_last_answer_and_event_arrive_before_the_end() {
    let stage = Stage::new();
    let mut client = stage.client(0, Style::Line).ready();
    client.send("{'execute': 'stop'}");
    let call = stage.next();
    stage.server.events().emit(Event::Stop);
    call.finish(Ok(Reply::EMPTY));
    stage.server.shutdown();
    assert!(client.line().expect("an event").contains("STOP"));
    assert_eq!(client.line().as_deref(), Some("{\"return\": {}}"));
    assert_eq!(client.line(), None);
    let (ours, _) = UnixStream::pair().expect("a socket pair");
    let late = stage.server.add_monitor(MonitorSpec::new(
        MonitorId(1),
        Endpoint::Stream(ours.into()),
    ));
    assert!(matches!(late, Err(MonitorError::Ended { .. })));
}

struct Listening {
    _folder: tempfile::TempDir,
    address: SocketAddress,
    door: Door,
}

impl Listening {
    fn new(stage: &Stage, wait: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let address = SocketAddress::Unix {
            path: folder.path().join("qmp"),
        };
        let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
        let listener = fdset::listen(&door, &address, Role::Monitor, "test").expect("a listener");
        let spec = MonitorSpec {
            wait,
            ..MonitorSpec::new(MonitorId(0), Endpoint::Listener(listener))
        };
        let listening = Self {
            _folder: folder,
            address,
            door,
        };
        if wait {
            let server = &stage.server;
            std::thread::scope(|scope| {
                let adding = scope.spawn(|| server.add_monitor(spec));
                drop(listening.connect());
                adding.join().expect("no panic").expect("a monitor");
            });
        } else {
            stage.server.add_monitor(spec).expect("a monitor");
        }
        listening
    }

    fn connect(&self) -> Client {
        let connection = fdset::connect(
            &self.door,
            &self.address,
            Wait::ForPeer,
            Role::Monitor,
            "test",
        );
        Client::new(connection.expect("a connection").fd.into_parts().0.into())
    }
}

#[test]
fn several_clients_of_one_socket_have_sessions_of_their_own() {
    let stage = Stage::new();
    let listening = Listening::new(&stage, false);
    stage.run();
    let mut clients: Vec<_> = (0..20).map(|_| listening.connect()).collect();
    let mut late = clients.pop().expect("a client");
    late.line().expect("a greeting");
    clients = clients.into_iter().map(Client::ready).collect();
    for (id, client) in clients.iter_mut().enumerate() {
        client.send(format!("{{'execute': 'query-status', 'id': {id}}}"));
    }
    for (id, client) in clients.iter_mut().enumerate() {
        let answer = client.line().expect("an answer");
        assert!(answer.ends_with(&format!("\"id\": {id}}}")), "{answer}");
    }
    assert_eq!(
        late.ask_in_vain("{'execute': 'query-status'}").0,
        "CommandNotFound"
    );
    drop(clients);
    listening.connect().ready();
}

#[test]
fn a_monitor_serves_a_limited_number_of_clients_and_turns_the_rest_away() {
    let stage = Stage::new();
    let listening = Listening::new(&stage, false);
    let mut served: Vec<_> = (0..256).map(|_| listening.connect().ready()).collect();
    let mut surplus = listening.connect();
    let told = surplus.line().expect("a reason");
    assert_eq!(
        told,
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"This monitor serves 256 clients at \
         once, and has them; close one connection first\"}}"
    );
    assert_eq!(surplus.line(), None);
    served.pop();
    let again = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        let first = listening.connect().line();
        first.is_some_and(|line| line.starts_with("{\"QMP\""))
    });
    assert!(again, "one that goes makes room");
}

#[test]
fn waiting_for_the_first_client_ends_when_it_comes() {
    let stage = Stage::new();
    Listening::new(&stage, true).connect().ready();
}

#[test]
fn a_pair_of_pipes_is_a_session_that_ends_with_its_input() {
    let stage = Stage::new();
    let (input, mut to) = std::io::pipe().expect("a pipe");
    let (from, output) = std::io::pipe().expect("a pipe");
    let spec = MonitorSpec::new(
        MonitorId(0),
        Endpoint::Pair {
            input: input.into(),
            output: output.into(),
        },
    );
    stage.server.add_monitor(spec).expect("a monitor");
    stage.run();
    to.write_all(b"{'execute': 'qmp_capabilities'}{'execute': 'query-status'}\n")
        .expect("sent");
    drop(to);
    let lines: Vec<_> = BufReader::new(from).lines().map_while(Result::ok).collect();
    assert_eq!(
        lines,
        [
            crate::stage::GREETING,
            "{\"return\": {}}",
            "{\"return\": {\"played\": true}}"
        ]
    );
}

#[test]
fn a_file_can_be_the_input_although_it_cannot_be_watched() {
    let stage = Stage::new();
    let mut script = tempfile::tempfile().expect("a file");
    let requests = "{'execute': 'qmp_capabilities'}{'execute': 'query-status'}".to_owned()
        + &"{'execute': 'query-status'}".repeat(5000);
    script.write_all(requests.as_bytes()).expect("written");
    std::io::Seek::rewind(&mut script).expect("rewound");
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let spec = MonitorSpec::new(
        MonitorId(0),
        Endpoint::Pair {
            input: script.into(),
            output: ours.into(),
        },
    );
    stage.server.add_monitor(spec).expect("a monitor");
    stage.run();
    let mut client = Client::new(theirs);
    let mut lines = 0;
    while client.line().is_some() {
        lines += 1;
    }
    assert_eq!(lines, 2 + 5001);
}

#[test]
fn a_pty_greets_whoever_opens_it() {
    let stage = Stage::new();
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let pty = fdset::pty(&door, Role::Monitor, "test").expect("a pty");
    let path = pty.path.to_str().expect("a plain path").to_owned();
    let spec = MonitorSpec::new(MonitorId(0), Endpoint::Pty(pty.master.into_parts().0));
    stage.server.add_monitor(spec).expect("a monitor");
    stage.run();
    let open = || {
        let request = Request::new(&path, Access::ReadWrite, Role::Monitor, "test");
        let opened = fdset::open(&door, &request).expect("the other end");
        opened.into_file().0
    };
    // The kernel does not tell of an end that is closed and opened again at once, so a client
    // that sees no greeting closes and tries once more.
    let greeted = || {
        (0..20).find_map(|_| {
            let terminal = open();
            let mut polled = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
            let readable = poll(&mut polled, PollTimeout::from(3000_u16)).expect("polled");
            let greeted = (readable > 0).then_some(terminal);
            std::thread::sleep(Duration::from_millis(50));
            greeted
        })
    };
    for _ in 0..2 {
        let mut terminal = greeted().expect("a greeting");
        let mut lines = BufReader::new(terminal.try_clone().expect("a duplicate")).lines();
        let mut next = || lines.next().expect("a line").expect("readable");
        assert_eq!(next(), crate::stage::GREETING);
        terminal
            .write_all(b"{'execute': 'qmp_capabilities'}")
            .expect("sent");
        assert_eq!(next(), "{\"return\": {}}");
    }
}
