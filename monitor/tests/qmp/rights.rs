//! Whom a monitor serves, and what they may ask: over real sockets.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use fdset::{Door, FdRegistry, Role, Scope, SocketAddress, Wait};
use monitor::{ClientPolicy, CommandPolicy, Endpoint, MonitorError, MonitorSpec, Style};
use qapi_schema::{COMMANDS, Context, MonitorId};
use serde_json::Value;

use crate::stage::{Client, GREETING, Stage, error};

fn rules(text: &str) -> CommandPolicy {
    CommandPolicy::from_rules("rules", text).expect("rules")
}

fn only(uids: &[u32], gids: &[u32]) -> ClientPolicy {
    ClientPolicy {
        uids: uids.to_vec(),
        gids: gids.to_vec(),
    }
}

fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn names(line: &str) -> Vec<String> {
    let value: Value = serde_json::from_str(line).expect("JSON");
    let all = value["return"].as_array().expect("a list").iter();
    all.map(|one| one["name"].as_str().expect("a name").to_owned())
        .collect()
}

#[test]
fn an_agent_asks_and_does_nothing_more_while_another_monitor_does_everything() {
    let stage = Stage::new();
    let agent = stage.client_of(0, |spec| {
        spec.name = "agent".into();
        spec.commands = CommandPolicy::everything().read_only();
    });
    let master = stage.client(1, Style::Line);
    stage.run();
    let (mut agent, mut master) = (agent.ready(), master.ready());
    assert!(agent.ask("{'execute': 'query-version'}").contains("return"));
    assert_eq!(
        agent.ask_in_vain("{'execute': 'stop', 'id': 1}"),
        (
            "CommandNotFound".into(),
            "The command stop is not allowed on monitor 'agent': it may change something, and this \
             monitor is read-only; change read-only= of its -mon, or send it over another monitor"
                .into()
        )
    );
    master.send("{'execute': 'stop'}");
    for client in [&mut master, &mut agent] {
        let event = client.line().expect("an event");
        assert!(event.contains("STOP"), "{event}");
    }
    assert_eq!(
        master.line().as_deref(),
        Some("{\"return\": {\"played\": true}}")
    );
}

#[test]
fn each_command_is_answered_as_the_policy_says_and_listed_if_it_may_be_sent() {
    let stage = Stage::new();
    let policy = || rules("read-only\nallow stop getfd\ndeny query-fd* query-version");
    let client = stage.client_of(0, |spec| spec.commands = policy());
    stage.run();
    let mut client = client.ready();
    let listed = names(&client.ask("{'execute': 'query-commands'}"));
    for command in COMMANDS {
        let may = match command.name {
            "stop" | "getfd" => true,
            "query-version" => false,
            name => command.is_read_only() && !name.starts_with("query-fd"),
        };
        assert_eq!(
            listed.iter().any(|name| name == command.name),
            may,
            "{}",
            command.name
        );
        if !may && command.name != "qmp_capabilities" {
            let (class, text) = client.ask_in_vain(format!("{{'execute': '{}'}}", command.name));
            assert_eq!(class, "CommandNotFound", "{text}");
            assert!(text.contains("'monitor0'"), "{text}");
        }
    }
}

#[test]
fn the_schema_is_the_same_on_every_monitor() {
    let stage = Stage::new();
    let narrow = stage.client_of(0, |spec| spec.commands = rules("allow query-qmp-schema"));
    let wide = stage.client(1, Style::Line);
    stage.run();
    let ask = "{'execute': 'query-qmp-schema'}";
    assert!(narrow.ready().ask(ask) == wide.ready().ask(ask));
}

#[test]
fn fds_of_a_command_that_is_not_allowed_are_closed_and_the_next_one_is_not_confused() {
    let stage = Stage::new();
    let registry = Arc::clone(&stage.registry);
    let client = stage.client_of(0, |spec| spec.commands = rules("deny add-fd"));
    stage.run();
    let mut client = client.ready();
    let (reader, writer) = nix::unistd::pipe().expect("a pipe");
    client.send_with("{'execute': 'add-fd'}", &[writer.as_fd()]);
    let (class, _) = error(&client.line().expect("a line"));
    assert_eq!(class, "CommandNotFound");
    drop(writer);
    let read = File::from(reader).read(&mut [0; 1]).expect("the end");
    assert_eq!(read, 0, "nobody holds the other end");
    assert!(registry.query().is_empty());
    assert_eq!(
        client
            .ask_in_vain("{'execute': 'getfd', 'arguments': {'fdname': 'x'}}")
            .1,
        "No file descriptor supplied via SCM_RIGHTS"
    );
}

#[test]
fn a_denied_command_is_denied_out_of_band_too_and_answered_in_its_place_in_band() {
    let stage = Stage::new();
    let client = stage.client_of(0, |spec| spec.commands = rules("deny quit"));
    let mut client = client.ready_with_oob();
    let (class, text) = client.ask_in_vain("{'exec-oob': 'quit', 'id': 1}");
    assert_eq!(class, "CommandNotFound");
    assert!(text.contains("line 1 of 'rules'"), "{text}");
    client.send("{'execute': 'query-status', 'id': 2} {'execute': 'quit', 'id': 3}");
    let call = stage.next();
    call.finish(Ok(qapi_schema::Reply::EMPTY));
    assert!(client.line().expect("a line").ends_with("\"id\": 2}"));
    stage.run();
    assert!(client.line().expect("a line").contains("\"id\": 3"));
}

#[test]
fn what_is_done_inside_a_command_is_asked_for_by_its_own_name() {
    let stage = Stage::new();
    let policy = || rules("allow human-monitor-command stop");
    let client = stage.client_of(0, |spec| spec.commands = policy());
    let mut client = client.ready();
    client.send("{'execute': 'human-monitor-command', 'arguments': {'command-line': 'x'}}");
    let call = stage.next();
    assert!(call.permits("stop").is_ok());
    for name in ["cont", "qemu-io"] {
        let refusal = call.permits(name).expect_err(name);
        assert!(refusal.desc.contains(name) && refusal.desc.contains("'monitor0'"));
    }
    drop(call);
}

#[test]
fn a_connection_is_served_for_its_user_its_group_or_not_at_all() {
    let gid = nix::unistd::getegid().as_raw();
    let stranger = me().wrapping_add(1);
    for (clients, served) in [
        (only(&[me()], &[]), true),
        (only(&[stranger, me()], &[]), true),
        (only(&[], &[gid]), true),
        (only(&[stranger], &[gid]), true),
        (only(&[stranger], &[]), false),
        (only(&[], &[gid.wrapping_add(1)]), false),
    ] {
        let stage = Stage::new();
        let mut client = stage.client_of(0, |spec| spec.clients = clients.clone());
        let first = client.line().expect("a line");
        if served {
            assert_eq!(first, GREETING);
            continue;
        }
        let (class, text) = error(&first);
        assert_eq!(class, "GenericError");
        assert_eq!(
            text,
            format!(
                "Monitor 'monitor0' does not serve user {} of group {gid}: allow-uid= and \
                 allow-gid= of its -mon list whom it serves",
                me()
            )
        );
        assert_eq!(client.line(), None, "{clients:?}");
    }
}

#[test]
fn a_listener_turns_strangers_away_and_serves_the_next_one_it_knows() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("qmp");
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let address = SocketAddress::Unix { path };
    let listen = fdset::listen(&door, &address, Role::Monitor, "a test");
    let stage = Stage::new();
    let mut spec = MonitorSpec::new(
        MonitorId(0),
        Endpoint::Listener(listen.expect("a listener")),
    );
    spec.clients = only(&[me().wrapping_add(1)], &[]);
    stage.server.add_monitor(spec).expect("a monitor");
    for _ in 0..100 {
        let called = fdset::connect(&door, &address, Wait::ForPeer, Role::Monitor, "a test");
        let (fd, _lease) = called.expect("a connection").fd.into_parts();
        let mut client = Client::new(fd.into());
        // A client that speaks first is told as well.
        let _ = client.socket.write_all(b"{'execute': 'qmp_capabilities'}");
        assert!(client.line().expect("a line").contains("does not serve"));
    }
}

#[test]
fn a_monitor_for_some_users_must_be_able_to_know_who_calls() {
    let stage = Stage::new();
    let (input, output) = nix::unistd::pipe().expect("a pipe");
    let door = Door::new(Arc::clone(&stage.registry), Scope::Process);
    let pty = fdset::pty(&door, Role::Monitor, "a test").expect("a pty");
    let nameless = input.try_clone().expect("a copy");
    for (endpoint, way) in [
        (
            Endpoint::Pair { input, output },
            "standard input and output",
        ),
        (Endpoint::Pty(pty.master.into_parts().0), "a pty"),
        (Endpoint::Stream(nameless), "this connection"),
    ] {
        let mut spec = MonitorSpec::new(MonitorId(0), endpoint);
        spec.clients = only(&[0], &[]);
        match stage.server.add_monitor(spec) {
            Err(MonitorError::Faceless { way: told, .. }) => assert_eq!(told, way),
            other => panic!("{way}: {other:?}"),
        }
    }
}
