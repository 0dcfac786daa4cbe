//! QMP's JSON against serde_json: what is JSON must be read, and as the same value; what is not
//! must be refused, but for what QMP adds: text in single quotes, and `\'`. On purpose refused
//! here: a key twice in one object, a number beyond all doubles, what Unicode says is no character,
//! and more than 1024 levels (of which serde_json takes 128).

use serde_json::Value;

pub(super) fn run(input: &[u8]) {
    // A number or a keyword ends only where something else begins, and that something is a value
    // of its own if nothing was left open.
    let mut ours = monitor::fuzz::values(&[input, b"\nnull\n"].concat());
    let whole = ours.pop_if(|last| *last == Ok(Value::Null)).is_some();
    let theirs: Result<Value, _> = serde_json::from_slice(input);
    assert!(
        whole || theirs.is_err(),
        "a whole value was not the end of it"
    );
    match (ours.as_slice(), theirs) {
        _ if !whole => {}
        ([Ok(ours)], Ok(theirs)) => assert!(same(ours, &theirs), "{ours} is not {theirs}"),
        ([Ok(ours)], Err(error)) => {
            let more = input.contains(&b'\'') || depth(ours) > 100;
            assert!(more, "{ours} is not JSON: {error}");
        }
        ([Err(error)], Ok(theirs)) if error != DUPLICATE => {
            let character = error.ends_with("is not a valid Unicode character")
                || error.ends_with("invalid UTF-8 sequence in string");
            let seen = has_no_character(&theirs) || strings_in(&theirs) < strings_of(input);
            assert!(character && seen, "{error}: {theirs}");
        }
        ([Err(error)], Ok(theirs)) => {
            assert_eq!(error, DUPLICATE, "{theirs}");
            assert!(strings_in(&theirs) < strings_of(input), "{theirs}");
        }
        (ours, Ok(theirs)) => panic!("one value, {theirs}, was read as {ours:?}"),
        (_, Err(_)) => {}
    }
}

const DUPLICATE: &str = "JSON parse error, duplicate key";

/// Whether some text has what is no character. Of keys that came twice serde_json keeps one value,
/// so that of the other cannot be seen.
fn has_no_character(value: &Value) -> bool {
    let none = |point: char| {
        let point = u32::from(point);
        (0xFDD0..=0xFDEF).contains(&point) || point & 0xFFFE == 0xFFFE
    };
    match value {
        Value::String(text) => text.contains(none),
        Value::Array(items) => items.iter().any(has_no_character),
        Value::Object(members) => members
            .iter()
            .any(|(key, value)| key.contains(none) || has_no_character(value)),
        _ => false,
    }
}

/// Equal but for how a double is rounded, which serde_json does in a quicker and rougher way, and
/// but for `-0`, which is an integer here.
pub(super) fn same(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Number(ours), Value::Number(theirs)) => {
            let (Some(a), Some(b)) = (ours.as_f64(), theirs.as_f64()) else {
                return false;
            };
            let doubles = (ours.is_f64() || a == 0.0) && theirs.is_f64();
            ours == theirs || (doubles && (a - b).abs() <= a.abs() * 1e-15)
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| same(a, b))
        }
        (Value::Object(ours), Value::Object(theirs)) => {
            ours.len() == theirs.len()
                && ours
                    .iter()
                    .zip(theirs)
                    .all(|((ka, a), (kb, b))| ka == kb && same(a, b))
        }
        (ours, theirs) => ours == theirs,
    }
}

fn depth(value: &Value) -> usize {
    let below = match value {
        Value::Array(items) => items.iter().map(depth).max(),
        Value::Object(members) => members.values().map(depth).max(),
        _ => return 0,
    };
    below.unwrap_or(0) + 1
}

/// How many keys and texts there are in a value.
fn strings_in(value: &Value) -> usize {
    match value {
        Value::String(_) => 1,
        Value::Array(items) => items.iter().map(strings_in).sum(),
        Value::Object(members) => members.values().map(|value| 1 + strings_in(value)).sum(),
        _ => 0,
    }
}

/// How many keys and texts were written in what is JSON.
fn strings_of(text: &[u8]) -> usize {
    let (mut quotes, mut escaped) = (0, false);
    for byte in text {
        match byte {
            b'\\' => escaped = !escaped,
            b'"' if !escaped => quotes += 1,
            _ => escaped = false,
        }
        if *byte == b'"' {
            escaped = false;
        }
    }
    quotes / 2
}
