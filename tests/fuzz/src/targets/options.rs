//! The command line: any words. The input is one word in each line.
//!
//! What must hold: nothing is opened; an error is one line; the same words mean the same twice;
//! what `-blockdev` and `-object` take as `key=value` means the same as JSON; an address that was
//! read means the same as the text that it is shown as.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use devices::chardev::BackendSpec;
use fdset::SocketAddress;
use qapi_schema::input::keyval::parse_keyval;
use qapi_schema::to_wire;
use serde_json::Value;
use vmm_core::cli::{Config, Outcome, parse};
use vmm_core::{plan, resolve};

use crate::fds::Watch;

pub(super) fn run(input: &[u8]) {
    let words: Vec<OsString> = input
        .split(|byte| *byte == b'\n')
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect();
    for word in &words {
        if let Some(text) = word.to_str() {
            keyval_round_trip(text);
        }
    }
    let watch = Watch::new();
    let outcome = parse(words.clone(), file);
    let again = parse(words, file);
    match (outcome, again) {
        (Ok(Outcome::Run(config)), Ok(Outcome::Run(again))) => {
            assert_eq!(format!("{config:?}"), format!("{again:?}"));
            assert_eq!(plan::config(&config), plan::config(&again));
            same_as_json(&config);
            addresses_round_trip(&config);
        }
        (Ok(Outcome::Print(text)), Ok(Outcome::Print(again))) => assert_eq!(text, again),
        (Err(error), Err(again)) => {
            let text = error.to_string();
            assert_eq!(text, again.to_string());
            assert_eq!(text.lines().count(), 1, "{text:?}");
        }
        (outcome, again) => panic!("{outcome:?}, and then {again:?}"),
    }
    watch.assert_nothing_is_left();
}

/// The text of a file: its own name.
#[expect(
    clippy::unnecessary_wraps,
    reason = "the reader of a command line wants one that may fail"
)]
fn file(name: &str) -> Result<String, String> {
    Ok(name.to_owned())
}

fn config(words: &[&str]) -> Config {
    match parse(words.iter().map(OsString::from), file) {
        Ok(Outcome::Run(config)) => *config,
        other => panic!("{words:?} is {other:?}"),
    }
}

/// What was read, written as JSON, is read as the same.
fn same_as_json(given: &Config) {
    for node in &given.blockdevs {
        let json = to_wire(node).expect("it can be written");
        let again = config(&["-blockdev", &json]);
        assert_eq!(again.blockdevs, std::slice::from_ref(node), "{json}");
    }
    for object in &given.objects {
        let json = to_wire(object).expect("it can be written");
        let again = config(&["-object", &json]);
        assert_eq!(again.objects, std::slice::from_ref(object), "{json}");
    }
}

fn addresses(config: &Config) -> impl Iterator<Item = SocketAddress> {
    config.chardevs.iter().filter_map(|chardev| {
        let spec = resolve::chardev::chardev(chardev.backend.clone()).ok()?;
        match spec.backend {
            BackendSpec::Socket(socket) => Some(socket.address),
            _ => None,
        }
    })
}

fn addresses_round_trip(given: &Config) {
    for address in addresses(given) {
        // The other kinds have no short form.
        if !matches!(
            address,
            SocketAddress::Unix { .. } | SocketAddress::Inet { .. }
        ) {
            continue;
        }
        let shown = address.to_string();
        let word = format!("{},server=on,wait=off", shown.replace(',', ",,"));
        let again = config(&["-serial", &word]);
        assert_eq!(addresses(&again).collect::<Vec<_>>(), [address], "{shown}");
    }
}

/// A text of keys and values, written out again from its meaning, has the same meaning.
fn keyval_round_trip(text: &str) {
    let Ok(parsed) = parse_keyval(text, Some("implied")) else {
        return;
    };
    let mut parts = Vec::new();
    flatten(&parsed.value, "", &mut parts);
    let again = parse_keyval(&parts.join(","), None).expect("it was good before");
    assert_eq!(again.value, parsed.value, "{parts:?}");
}

fn flatten(value: &Value, at: &str, parts: &mut Vec<String>) {
    let below = |name: &str| match at {
        "" => name.to_owned(),
        at => format!("{at}.{name}"),
    };
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                flatten(value, &below(name), parts);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                flatten(value, &below(&index.to_string()), parts);
            }
        }
        Value::String(text) => parts.push(format!("{at}={}", text.replace(',', ",,"))),
        other => panic!("a leaf that is no text: {other}"),
    }
}
