//! Each policy on a schema of its own (`gen/tests/marked`), with a command, parameters, values,
//! members and events that are marked.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::events::Event;
use super::marked::{self, Commands, Dry, Paint, Wall};
use super::*;
use crate::control::SchemaInfo;
use crate::input::{FromInput, Mode, Path};
use crate::{COMMANDS, Context, INTROSPECTION, MonitorId, SessionPeer, to_wire};

/// The policy is the process's, and tests run side by side.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A policy for the length of a test.
struct Policy(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Policy {
    fn of(policy: &Value) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let policy = CompatPolicy::from_input(policy.clone(), &Path::Root, Mode::Json);
        set(&policy.expect("a policy"));
        Self(turn)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        set(&CompatPolicy::default());
    }
}

struct Painter;

impl Commands for Painter {
    fn paint(&mut self, _cx: &mut dyn Context, args: Paint) -> Result<Wall, QmpError> {
        let coats = if args.tin.is_some() { 2 } else { 1 };
        Ok(Wall {
            coats,
            layers: coats,
        })
    }

    fn whitewash(&mut self, _cx: &mut dyn Context) -> Result<(), QmpError> {
        Ok(())
    }
}

impl Context for Painter {
    fn take_fd(&mut self) -> Option<OwnedFd> {
        None
    }

    fn monitor(&self) -> MonitorId {
        MonitorId(0)
    }

    fn peer(&self) -> Option<SessionPeer> {
        None
    }
}

fn paint(arguments: Value) -> Result<String, String> {
    let reply = marked::dispatch(&mut Painter, "paint", &mut Painter, arguments);
    reply
        .map(|reply| reply.as_str().to_owned())
        .map_err(|error| {
            assert_eq!(error.class, ErrorClass::GenericError);
            error.desc
        })
}

fn told(what: &impl serde::Serialize) -> String {
    to_wire(what).expect("it can be written")
}

const WALL: &str = "{\"coats\": 1, \"layers\": 1}";

#[test]
fn without_a_policy_everything_is_taken_and_told() {
    let _policy = Policy::of(&json!({}));
    let all = json!({"shade": "neon", "tint": "x", "gloss": 1});
    assert_eq!(paint(all).as_deref(), Ok(WALL));
    assert!(!hides(DEPRECATED) && !hides(UNSTABLE));
    for command in COMMANDS {
        assert_eq!(admit_command(command), Ok(()));
    }
}

#[test]
fn what_is_rejected_is_named_by_its_mark_its_kind_and_its_name() {
    for (policy, arguments, told) in [
        (
            "deprecated-input",
            json!({"tint": "x"}),
            "Deprecated parameter tint disabled by policy",
        ),
        (
            "deprecated-input",
            json!({"shade": "pale"}),
            "Deprecated value pale disabled by policy",
        ),
        (
            "deprecated-input",
            json!({"shade": "neon"}),
            "Deprecated value neon disabled by policy",
        ),
        (
            "deprecated-input",
            json!({"tin": {"tin": {"tint": "x"}}}),
            "Deprecated parameter tint disabled by policy",
        ),
        (
            "unstable-input",
            json!({"gloss": 1}),
            "Unstable parameter gloss disabled by policy",
        ),
        (
            "unstable-input",
            json!({"shade": "neon"}),
            "Unstable value neon disabled by policy",
        ),
    ] {
        let _policy = Policy::of(&json!({policy: "reject"}));
        assert_eq!(paint(arguments), Err(told.to_owned()));
        assert_eq!(paint(json!({"shade": "light"})).as_deref(), Ok(WALL));
    }
}

#[test]
fn one_policy_leaves_the_other_mark_alone() {
    let _policy = Policy::of(&json!({"deprecated-input": "reject"}));
    assert_eq!(paint(json!({"gloss": 1})).as_deref(), Ok(WALL));
    drop(_policy);
    let _policy = Policy::of(&json!({"unstable-input": "reject", "deprecated-output": "hide"}));
    assert_eq!(paint(json!({"tint": "x"})).as_deref(), Ok("{\"coats\": 1}"));
}

#[test]
fn a_command_line_and_a_reply_are_read_whatever_the_policy_says() {
    let _policy = Policy::of(&json!({"deprecated-input": "reject", "unstable-input": "reject"}));
    for mode in [Mode::Json, Mode::Keyval, Mode::Reply] {
        let value = json!({"shade": "pale", "tint": "x"});
        assert!(
            Paint::from_input(value, &Path::Root, mode).is_ok(),
            "{mode:?}"
        );
    }
}

#[test]
fn commands_are_rejected_as_not_found() {
    let unstable = crate::find_command("x-exit-preconfig").expect("it is there");
    let _policy = Policy::of(&json!({"unstable-input": "reject"}));
    let refusal = admit_command(unstable).expect_err("unstable");
    assert_eq!(refusal.class, ErrorClass::CommandNotFound);
    assert_eq!(
        refusal.desc,
        "Unstable command x-exit-preconfig disabled by policy"
    );
    for command in COMMANDS {
        let is_marked = command.features.contains(&"unstable");
        assert_eq!(
            admit_command(command).is_err(),
            is_marked,
            "{}",
            command.name
        );
    }
}

#[test]
fn what_is_hidden_is_in_no_reply_and_no_event() {
    let wall = Wall {
        coats: 1,
        layers: 1,
    };
    let dry = Event::Dry(Dry {
        after: 1,
        hours: Some(2),
    });
    let _policy = Policy::of(&json!({"deprecated-output": "hide"}));
    assert_eq!(told(&wall), "{\"coats\": 1}");
    assert!(told(&dry).contains("hours"));
    assert!(hides(Event::Peeled.marks()) && !hides(dry.marks()));
    drop(_policy);
    let _policy = Policy::of(&json!({"unstable-output": "hide"}));
    assert_eq!(told(&wall), WALL);
    assert!(!told(&dry).contains("hours"));
    assert!(!hides(Event::Peeled.marks()));
}

#[test]
fn the_introspection_is_the_same_when_it_goes_through_its_types() {
    let _policy = Policy::of(&json!({}));
    let value: Value = serde_json::from_str(INTROSPECTION).expect("JSON");
    let typed = Vec::<SchemaInfo>::from_input(value, &Path::Root, Mode::Reply).expect("typed");
    assert!(to_wire(&typed).expect("text") == INTROSPECTION);
}
