//! Words to arguments, over the schema of this version.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::schema::{Kind, Object};
use files::{How, Source};

fn made(line: &str) -> Result<Request, String> {
    let words = words::split(line).expect("whole");
    let mut count = 0;
    let mut fresh = || {
        count += 1;
        format!("f{count}")
    };
    request(&Schema::compiled_in(), &words, &mut fresh).map_err(|why| why.to_string())
}

fn arguments(line: &str) -> Value {
    made(line).expect("understood").arguments
}

fn complaint(line: &str) -> String {
    made(line).expect_err("wrong")
}

#[test]
fn dotted_keys_are_nested_and_typed_by_their_driver() {
    assert_eq!(
        arguments(
            "blockdev-add driver=raw node-name=n read-only=on size=1M file.driver=file file.filename=5"
        ),
        json!({"driver": "raw", "node-name": "n", "read-only": true, "size": 1 << 20,
               "file": {"driver": "file", "filename": "5"}})
    );
    assert_eq!(
        arguments("blockdev-add file=disk driver=raw"),
        json!({"file": "disk", "driver": "raw"})
    );
}

#[test]
fn json_may_stand_for_all_or_for_a_member() {
    assert_eq!(
        arguments(r#"blockdev-add {"driver": "raw", "file": {"driver": "null-co"}} file.size=4K"#),
        json!({"driver": "raw", "file": {"driver": "null-co", "size": 4096}})
    );
    assert_eq!(
        arguments(r#"qom-set /machine name value:={"a": [1, null]}"#),
        json!({"path": "/machine", "property": "name", "value": {"a": [1, null]}})
    );
}

#[test]
fn words_without_a_key_are_what_must_be_given_in_the_order_of_the_schema() {
    assert_eq!(arguments("device_del d0"), json!({"id": "d0"}));
    assert_eq!(
        arguments("device_add virtio-blk-pci id=d0 drive=disk"),
        json!({"id": "d0", "drive": "disk", "driver": "virtio-blk-pci"})
    );
    assert_eq!(
        arguments("human-monitor-command 'info status'"),
        json!({"command-line": "info status"})
    );
    let why = complaint("query-status now");
    assert!(
        why.contains("what is 'now'? It takes no arguments"),
        "{why}"
    );
}

#[test]
fn lists_are_numbered() {
    let line = "migrate-set-capabilities capabilities.1.capability=events \
                capabilities.1.state=off capabilities.0.capability=events capabilities.0.state=on";
    assert_eq!(
        arguments(line)["capabilities"],
        json!([{"capability": "events", "state": true}, {"capability": "events", "state": false}])
    );
    let why = complaint("migrate-set-capabilities capabilities.1.state=on");
    assert!(
        why.contains("'capabilities.0' is missing beside 1"),
        "{why}"
    );
}

#[test]
fn a_file_is_named_where_its_value_would_stand() {
    let request = made("blockdev-add driver=file filename!<>disk.raw").expect("understood");
    assert_eq!(request.arguments["filename"], "fd:f1");
    let source = Source::Path {
        path: "disk.raw".into(),
        how: How::ReadWrite,
    };
    let name = "f1".to_owned();
    assert_eq!(request.files, [FileArg { name, source }]);
    let request = made("open-hook-set fd!7").expect("understood");
    assert_eq!(request.arguments["fd"], "f1");
}

#[test]
fn complaints_say_what_is_wrong_and_what_was_meant() {
    let wanted = [
        (
            "blockdev-ad",
            "no command 'blockdev-ad' (did you mean 'blockdev-add'?)",
        ),
        ("blockdev-add driver=fil", "(did you mean 'file'?)"),
        (
            "blockdev-add driver=file filname=x",
            "no member 'filname' (did you mean 'filename'?)",
        ),
        ("blockdev-add filename=x", "give 'driver' first"),
        (
            "blockdev-add driver=raw file.a=x",
            "no member 'file.a'; give 'file.driver' first",
        ),
        (
            "blockdev-add driver=raw size=much",
            "'size' takes a whole number",
        ),
        (
            "blockdev-add driver=raw read-only=1",
            "'read-only' takes on or off, and not '1'",
        ),
        (
            "blockdev-add driver=raw driver=raw",
            "'driver' is given twice",
        ),
        (
            "blockdev-add driver=raw file=x file.driver=file",
            "'file' in 'file.driver' is given as a value",
        ),
        ("blockdev-add driver.x=1", "'driver' is "),
        ("blockdev-add driver:=raw", "'raw' is no JSON"),
        (
            "blockdev-add driver=file filename!disk",
            "'disk' is neither <PATH",
        ),
        ("blockdev-add ..=1", "a part without a name"),
    ];
    for (line, wanted) in wanted {
        let why = complaint(line);
        assert!(why.contains(wanted), "{line}: {why}");
    }
}

/// Makes a value of a type out of random bytes.
fn sample(schema: &Schema, kind: &str, dice: &mut impl Iterator<Item = u8>, depth: u8) -> Value {
    let roll = dice.next().unwrap_or_default();
    let pick = |count: usize| usize::from(roll) % count.max(1);
    match schema.kind(kind) {
        Kind::Text => ["a", "disk one", "f,d", "x=y", "'q'"][pick(5)].into(),
        Kind::Integer => i64::from(roll).pow(7).into(),
        Kind::Number => (f64::from(roll) + 0.5).into(),
        Kind::Boolean => roll.is_multiple_of(2).into(),
        Kind::Null => Value::Null,
        Kind::Any => [json!(null), json!(1), json!("x"), json!({"a": []})][pick(4)].clone(),
        Kind::Word(words) => words[pick(words.len())].as_str().into(),
        Kind::List(element) if depth > 0 => {
            let count = 0..pick(3);
            count
                .map(|_| sample(schema, element, dice, depth - 1))
                .collect()
        }
        Kind::List(_) => json!([]),
        Kind::Object(object) => sample_object(schema, object, dice, depth),
        Kind::Either(kinds) => {
            let flat: Vec<_> = kinds
                .iter()
                .filter(|kind| schema.object(kind).is_none())
                .collect();
            let kind = if depth > 0 {
                &kinds[pick(kinds.len())]
            } else {
                flat[0]
            };
            sample(schema, kind, dice, depth.saturating_sub(1))
        }
    }
}

fn sample_object(
    schema: &Schema,
    object: &Object,
    dice: &mut impl Iterator<Item = u8>,
    depth: u8,
) -> Value {
    let mut made = serde_json::Map::new();
    loop {
        let chosen = |tag: &str| made.get(tag)?.as_str().map(str::to_owned);
        let members = schema.members(object, &chosen);
        let next = members.into_iter().find(|member| {
            let wanted = !member.optional || dice.next().unwrap_or_default().is_multiple_of(4);
            wanted && !made.contains_key(&member.name) && (depth > 0 || !member.optional)
        });
        let Some(member) = next else {
            return made.into();
        };
        let value = sample(schema, &member.kind, dice, depth.saturating_sub(1));
        made.insert(member.name.clone(), value);
    }
}

/// The words that an operator would type for a value.
fn typed_out(key: &str, value: &Value, words: &mut Vec<String>) {
    let at = |name: &str| {
        if key.is_empty() {
            name.to_owned()
        } else {
            format!("{key}.{name}")
        }
    };
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, value) in members {
                typed_out(&at(name), value, words);
            }
        }
        Value::Array(elements) if !elements.is_empty() => {
            for (index, value) in elements.iter().enumerate() {
                typed_out(&at(&index.to_string()), value, words);
            }
        }
        Value::String(text) => words.push(format!("{key}={text}")),
        Value::Bool(on) => words.push(format!("{key}={}", if *on { "on" } else { "off" })),
        Value::Number(number) => words.push(format!("{key}={number}")),
        other if key.is_empty() => words.push(other.to_string()),
        other => words.push(format!("{key}:={other}")),
    }
}

proptest! {
    /// Whatever arguments a command can have can be typed with dotted keys.
    #[test]
    fn what_is_typed_out_is_read_back(
        command in any::<prop::sample::Index>(),
        dice in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let schema = Schema::compiled_in();
        let commands: Vec<_> = schema.commands().collect();
        let command = commands[command.index(commands.len())];
        let kind = schema.arguments(command).expect("its arguments");
        let wanted = sample(&schema, kind, &mut dice.into_iter(), 4);
        let mut words = vec![command.to_owned()];
        typed_out("", &wanted, &mut words);
        let line = words::join(&words);
        prop_assert_eq!(made(&line).map(|request| request.arguments), Ok(wanted), "{}", line);
    }
}
