//! What goes out: events, replies, the introspection, the published documents.
#![expect(
    clippy::disallowed_methods,
    reason = "tests read the repository's own files"
)]

use std::collections::HashSet;

use qapi_schema::block_core::BlockInfo;
use qapi_schema::char::VserportChange;
use qapi_schema::qom::{IothreadProperties, ObjectOptions, ObjectOptionsVariant};
use qapi_schema::run_state::{RunState, Shutdown, ShutdownCause, StatusInfo};
use qapi_schema::{COMMANDS, Event, INTROSPECTION, Reply, to_wire};
use serde_json::{Value, json};

#[test]
fn an_event_without_data_has_no_data_member() {
    assert_eq!(Event::Stop.name(), "STOP");
    assert_eq!(
        to_wire(&Event::Stop).expect("writable"),
        r#"{"event": "STOP"}"#
    );
}

#[test]
fn an_event_with_data_carries_it_and_reads_back() {
    let reason = ShutdownCause::GuestShutdown;
    let event = Event::Shutdown(Shutdown {
        guest: true,
        reason,
    });
    let text = to_wire(&event).expect("writable");
    let wanted = r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#;
    assert_eq!(text, wanted);
    let back: Event = serde_json::from_str(&text).expect("readable");
    assert_eq!(back, event);
    let port = Event::VserportChange(VserportChange {
        id: "p".to_owned(),
        open: false,
    });
    assert_eq!(port.name(), "VSERPORT_CHANGE");
}

#[test]
fn absent_members_are_left_out_of_replies() {
    let reply = Reply::of(&vec![BlockInfo::default()]).expect("writable");
    let wanted = r#"[{"device": "", "locked": false, "removable": false, "type": ""}]"#;
    assert_eq!(reply.as_str(), wanted);
    let status = StatusInfo {
        running: false,
        status: RunState::InternalError,
    };
    let reply = Reply::of(&status).expect("writable");
    assert_eq!(
        reply.as_str(),
        r#"{"status": "internal-error", "running": false}"#
    );
}

#[test]
fn a_union_writes_its_tag_beside_its_members() {
    let properties = IothreadProperties {
        poll_max_ns: Some(0),
        ..Default::default()
    };
    let object = ObjectOptions {
        id: "io".to_owned(),
        qom_type: ObjectOptionsVariant::Iothread(properties),
    };
    let value = serde_json::to_value(&object).expect("writable");
    assert_eq!(
        value,
        json!({ "id": "io", "qom-type": "iothread", "poll-max-ns": 0 })
    );
    let builtin = ObjectOptions {
        id: "rng".to_owned(),
        qom_type: ObjectOptionsVariant::RngBuiltin,
    };
    let value = serde_json::to_value(&builtin).expect("writable");
    assert_eq!(value, json!({ "id": "rng", "qom-type": "rng-builtin" }));
}

#[test]
fn a_client_reads_replies_of_a_newer_server() {
    let text = r#"{"running": true, "status": "running", "since": 5}"#;
    let status: StatusInfo = serde_json::from_str(text).expect("unknown members are passed over");
    assert_eq!(status.status, RunState::Running);
}

#[test]
fn introspection_names_every_command_and_event_and_resolves_every_type() {
    let entities: Vec<Value> = serde_json::from_str(INTROSPECTION).expect("it is JSON");
    let of = |meta: &str| -> HashSet<String> {
        let hits = entities.iter().filter(|entity| entity["meta-type"] == meta);
        hits.filter_map(|entity| Some(entity["name"].as_str()?.to_owned()))
            .collect()
    };
    let commands: HashSet<String> = COMMANDS.iter().map(|one| one.name.to_owned()).collect();
    assert_eq!(of("command"), commands);
    let events: HashSet<String> = Event::NAMES.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(of("event"), events);

    let names: HashSet<&str> = entities
        .iter()
        .filter_map(|entity| entity["name"].as_str())
        .collect();
    assert_eq!(names.len(), entities.len(), "a name occurs twice");
    for entity in &entities {
        for used in types_used(entity) {
            assert!(
                names.contains(used.as_str()),
                "{used} of {entity} is not defined"
            );
        }
    }
}

fn types_used(entity: &Value) -> Vec<String> {
    let mut used = Vec::new();
    for key in ["arg-type", "ret-type", "element-type"] {
        used.extend(entity[key].as_str().map(str::to_owned));
    }
    for key in ["members", "variants"] {
        for member in entity[key].as_array().into_iter().flatten() {
            used.extend(member["type"].as_str().map(str::to_owned));
        }
    }
    used
}

#[test]
fn published_json_schema_is_what_the_types_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/export/schema.json");
    let published: Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("it is in the repository"))
            .expect("it is JSON");
    let fresh = qapi_schema::export::json_schema() == published;
    assert!(
        fresh,
        "export/schema.json is stale: run `cargo xtask codegen`"
    );
}
