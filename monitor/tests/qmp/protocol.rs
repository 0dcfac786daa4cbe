//! What a client sees: greeting, negotiation, ids, mistakes, and how a session recovers from them.

use crate::stage::{Client, Stage};
use monitor::{Phase, Style};

const NO_SUCH: &str = "{'execute': 'no-such-cmd'}";

fn client() -> Client {
    let stage = Stage::new();
    let client = stage.client(0, Style::Line);
    stage.run();
    client
}

/// Inputs that are no requests, each followed by a request that must be understood.
fn malformed_series(client: &mut Client) {
    for bytes in [
        b"{]".as_slice(),
        b"{\xFF",
        b"{\x01",
        b"{'bad \xFF",
        b"{'execute': 'nonexistent', 'id':'\n",
        b"%p",
    ] {
        let (class, desc) = client.ask_in_vain(bytes);
        assert_eq!(class, "GenericError");
        assert!(desc.starts_with("JSON parse error, "), "{desc}");
        assert_eq!(client.ask_in_vain(NO_SUCH).0, "CommandNotFound");
    }
    for (bytes, text) in [
        ("null ", "QMP input must be a JSON object"),
        ("{}", "QMP input lacks member 'execute'"),
        (
            "{'execute': true}",
            "QMP input member 'execute' must be a string",
        ),
        (
            "{'execute': 'query-version', 'arguments': []}",
            "QMP input member 'arguments' must be an object",
        ),
        (
            "{'execute': 'query-version', 'extra': 1}",
            "QMP input member 'extra' is unexpected",
        ),
        (
            "{'exec-oob': 'query-version'}",
            "QMP input member 'exec-oob' is unexpected",
        ),
    ] {
        let wanted = ("GenericError".to_owned(), text.to_owned());
        assert_eq!(client.ask_in_vain(bytes), wanted);
    }
}

#[test]
fn a_session_recovers_from_every_mistake_before_and_after_negotiation() {
    let mut client = client();
    assert_eq!(client.line().as_deref(), Some(crate::stage::GREETING));
    assert_eq!(
        client.ask_in_vain("{'execute': 'query-version'}"),
        (
            "CommandNotFound".into(),
            "Expecting capabilities negotiation with 'qmp_capabilities'".into()
        )
    );
    malformed_series(&mut client);
    assert_eq!(
        client.ask("{'execute': 'qmp_capabilities'}"),
        "{\"return\": {}}"
    );
    assert_eq!(
        client.ask_in_vain("{'execute': 'qmp_capabilities'}"),
        (
            "CommandNotFound".into(),
            "Capabilities negotiation is already complete, command ignored".into()
        )
    );
    malformed_series(&mut client);
    assert_eq!(
        client.ask("{'execute': 'query-version'}"),
        "{\"return\": {\"qemu\": {\"micro\": 0, \"minor\": 0, \"major\": 10}, \"package\": \"sesame-0.1.0\"}}"
    );
}

#[test]
fn negotiation_takes_oob_and_nothing_unknown() {
    let mut client = client();
    client.line();
    let ask = |what: &str| format!("{{'execute': 'qmp_capabilities', 'arguments': {what}}}");
    assert_eq!(
        client.ask_in_vain(ask("{'enable': ['bad']}")).0,
        "GenericError"
    );
    assert_eq!(client.ask_in_vain(ask("{'x': 1}")).0, "GenericError");
    assert_eq!(
        client.ask_in_vain("{'execute': 'query-version'}").0,
        "CommandNotFound"
    );
    assert_eq!(client.ask(ask("{'enable': ['oob']}")), "{\"return\": {}}");
    assert_eq!(
        client.ask_in_vain("{'exec-oob': 'query-version'}").1,
        "The command query-version does not support OOB"
    );
}

#[test]
fn ids_of_every_type_come_back_as_they_were() {
    let mut client = client().ready();
    for id in [
        "\"cookie#1\"",
        "2",
        "-9223372036854775808",
        "18446744073709551615",
        "1.5",
        "true",
        "null",
        "[]",
        "[1, [{}]]",
        "{\"a\": \"\\u00E9\\uD83D\\uDE00\\n\", \"b\": {\"a\": [null], \"z\": 1}}",
    ] {
        assert_eq!(
            client.ask(format!("{{\"id\": {id}, \"execute\": \"query-status\"}}")),
            format!("{{\"return\": {{\"played\": true}}, \"id\": {id}}}")
        );
        assert_eq!(
            client.ask(format!("{{\"execute\": \"nope\", \"id\": {id}}}")),
            format!(
                "{{\"id\": {id}, \"error\": {{\"class\": \"CommandNotFound\", \"desc\": \
                 \"The command nope has not been found\"}}}}"
            )
        );
    }
}

#[test]
fn a_thousand_levels_of_id_go_there_and_back() {
    let mut client = client().ready();
    let id = format!("{}{}", "[".repeat(1023), "]".repeat(1023));
    let answer = client.ask(format!("{{'execute': 'query-status', 'id': {id}}}"));
    assert!(answer.ends_with(&format!("\"id\": {id}}}")));
    let too_deep = "[".repeat(1025);
    assert_eq!(
        client.ask_in_vain(too_deep).1,
        "JSON nesting depth limit exceeded"
    );
}

#[test]
fn requests_need_no_newlines_and_may_come_in_pieces() {
    let mut client = client().ready();
    client.send("{'execute':'query-status','id':1}{'execute':'query-status','id':2}\n{'execute'");
    for id in [1, 2] {
        let line = client.line().expect("an answer");
        assert!(line.ends_with(&format!("\"id\": {id}}}")), "{line}");
    }
    client.send(":'query-status'");
    assert!(client.ask(",'id':3}").ends_with("\"id\": 3}"));
}

#[test]
fn the_reset_byte_answers_once_and_leaves_a_clean_session() {
    let mut client = client().ready();
    client.send("{'execute': ['half a");
    assert_eq!(
        client.ask_in_vain(b"\xFF").1,
        "JSON parse error, stray ''half a\u{FFFD}'"
    );
    assert_eq!(
        client.ask_in_vain(b"\xFF").1,
        "JSON parse error, stray '\u{FFFD}'"
    );
    assert_eq!(
        client.ask("{'execute': 'query-status'}"),
        "{\"return\": {\"played\": true}}"
    );
}

#[test]
fn pretty_monitors_get_four_spaces_per_level() {
    let stage = Stage::new();
    let mut client = stage.client(0, Style::Pretty);
    stage.run();
    let greeting = client.line().expect("the greeting");
    assert!(
        greeting
            .starts_with("{\n    \"QMP\": {\n        \"version\": {\n            \"qemu\": {\n")
    );
    assert_eq!(
        client.ask("{'execute': 'qmp_capabilities', 'id': []}"),
        "{\n    \"return\": {\n    },\n    \"id\": [\n    ]\n}"
    );
}

#[test]
fn the_schema_is_served_and_names_what_query_commands_lists() {
    let mut client = client().ready();
    let schema = client.ask("{'execute': 'query-qmp-schema'}");
    assert_eq!(
        schema,
        format!("{{\"return\": {}}}", qapi_schema::INTROSPECTION)
    );
    let commands = client.ask("{'execute': 'query-commands'}");
    for command in qapi_schema::COMMANDS {
        assert!(commands.contains(&format!("\"{}\"", command.name)));
    }
}

#[test]
fn preconfig_refuses_in_band_commands_when_their_turn_comes() {
    let stage = Stage::new();
    let mut client = stage.client(0, Style::Line);
    let server = stage.run();
    server.set_phase(Phase::Preconfig);
    client = client.ready();
    assert_eq!(
        client.ask_in_vain("{'execute': 'stop'}").1,
        "The command 'stop' is permitted only after machine initialization has completed"
    );
    server.set_phase(Phase::Ready);
    client.send("{'execute': 'stop'}");
    assert!(
        client
            .line()
            .expect("an event")
            .contains("\"event\": \"STOP\"")
    );
    assert_eq!(
        client.line().as_deref(),
        Some("{\"return\": {\"played\": true}}")
    );
}
