//! `query-open-plan` for any command with any arguments. The input is a command's name, a line
//! end, and JSON.
//!
//! What must hold: nothing is opened and nothing is written down; the same question has the same
//! answer; every name in the plan stands in the arguments, or is a default that the documentation
//! names.

use std::sync::Arc;

use fdset::{Door, FdRegistry, Scope, look};
use serde_json::Value;
use vmm_core::plan::{self, Step};

use crate::fds::Watch;

/// What is opened although nobody named it.
const DEFAULTS: [&str; 2] = [fdset::PTY_NAME, "/dev/urandom"];

pub(super) fn run(input: &[u8]) {
    let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
        return;
    };
    let (name, arguments) = input.split_at(end);
    let (Ok(name), Ok(arguments)) = (str::from_utf8(name), serde_json::from_slice(arguments))
    else {
        return;
    };
    let arguments: Value = arguments;
    let watch = Watch::new();
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let planned = plan::command(name, arguments.clone());
    assert_eq!(planned, plan::command(name, arguments.clone()));
    for step in planned.into_iter().flatten() {
        let Step::Open(open) = step else {
            continue;
        };
        let wanted = open.wish.name.as_str();
        assert!(
            mentions(&arguments, wanted) || DEFAULTS.contains(&wanted),
            "{wanted}?"
        );
        assert!(!look(&door, &open.wish.request()).present);
    }
    assert!(door.registry().uses().is_empty() && door.registry().waiting().is_empty());
    watch.assert_nothing_is_left();
}

/// How the names begin that are put together from what was given: addresses.
const SCHEMES: [&str; 3] = ["fd:", "tcp:", "unix:@"];

/// Whether `text` stands in `value`, as a whole or as a part of an address.
fn mentions(value: &Value, text: &str) -> bool {
    match value {
        Value::String(found) => {
            let address = SCHEMES.iter().any(|scheme| text.starts_with(scheme));
            found == text || (address && text.contains(found.as_str()))
        }
        Value::Array(items) => items.iter().any(|item| mentions(item, text)),
        Value::Object(members) => members.values().any(|item| mentions(item, text)),
        _ => false,
    }
}
