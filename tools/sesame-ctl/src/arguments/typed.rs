//! A tree of texts to JSON, as the schema's types say.

use indexmap::IndexMap;
use serde_json::{Map, Number, Value};

use super::tree::{Branch, Leaf, text_at};
use crate::schema::{Kind, Member, Object, Schema, meant};

/// A command's arguments. A word without a key is the value of the first member that must be given
/// and is not.
pub(super) fn arguments(schema: &Schema, kind: &str, branch: Branch) -> Result<Value, String> {
    let nothing = Object::default();
    let object = schema.object(kind).unwrap_or(&nothing);
    let members = with_bare(schema, object, branch)?;
    members_of(schema, object, members, "")
}

/// The members that were typed, with the words without a key among them.
pub(super) fn with_bare(
    schema: &Schema,
    object: &Object,
    branch: Branch,
) -> Result<IndexMap<String, Leaf>, String> {
    let Branch { mut members, bare } = branch;
    for word in bare {
        let chosen = |tag: &str| text_at(&members, tag).map(str::to_owned);
        let known = schema.members(object, &chosen);
        let mut wanted = known.iter().filter(|member| !member.optional);
        let Some(member) = wanted.find(|member| !members.contains_key(&member.name)) else {
            return Err(format!("what is '{word}'? {}", wanted_words(&known)));
        };
        members.insert(member.name.clone(), Leaf::Text(word));
    }
    Ok(members)
}

fn wanted_words(known: &[&Member]) -> String {
    if known.is_empty() {
        return "It takes no arguments".to_owned();
    }
    let names: Vec<_> = known.iter().map(|member| member.name.as_str()).collect();
    format!(
        "KEY=VALUE is wanted, where KEY is one of {}",
        names.join(", ")
    )
}

fn members_of(
    schema: &Schema,
    object: &Object,
    given: IndexMap<String, Leaf>,
    path: &str,
) -> Result<Value, String> {
    let chosen = |tag: &str| text_at(&given, tag).map(str::to_owned);
    let known = schema.members(object, &chosen);
    let mut made = Map::new();
    let tag = object.tag();
    let untagged = tag
        .filter(|tag| !given.contains_key(*tag))
        .map(str::to_owned);
    // What may be said of a tag is said first: a wrong one makes the others unknown.
    let mut given: Vec<_> = given.into_iter().collect();
    given.sort_by_key(|(name, _)| Some(name.as_str()) != tag);
    for (name, leaf) in given {
        let at = join(path, &name);
        let Some(member) = known.iter().find(|member| member.name == name) else {
            let known = known.iter().map(|member| member.name.as_str());
            let first = untagged.as_ref().map_or_else(String::new, |tag| {
                format!(
                    "; give '{}' first, which tells what else there is",
                    join(path, tag)
                )
            });
            return Err(format!("no member '{at}'{}{first}", meant(&name, known)));
        };
        made.insert(name, value(schema, &member.kind, leaf, &at)?);
    }
    Ok(Value::Object(made))
}

fn value(schema: &Schema, kind: &str, leaf: Leaf, at: &str) -> Result<Value, String> {
    match leaf {
        Leaf::Json(value) => Ok(value),
        Leaf::Text(text) => from_text(schema, kind, &text, at),
        Leaf::Branch(members) => from_members(schema, kind, members, at),
    }
}

fn from_members(
    schema: &Schema,
    kind: &str,
    members: IndexMap<String, Leaf>,
    at: &str,
) -> Result<Value, String> {
    match schema.kind(kind) {
        Kind::Object(object) => members_of(schema, object, members, at),
        Kind::List(element) => elements(schema, element, members, at),
        Kind::Any => {
            let made = members.into_iter().map(|(name, leaf)| {
                let value = value(schema, kind, leaf, &join(at, &name))?;
                Ok((name, value))
            });
            made.collect::<Result<Map<_, _>, String>>()
                .map(Value::Object)
        }
        Kind::Either(kinds) => {
            let fits =
                |kind: &&String| matches!(schema.kind(kind), Kind::Object(_) | Kind::List(_));
            match kinds.iter().find(fits) {
                Some(kind) => from_members(schema, kind, members, at),
                None => Err(format!("'{at}' has no members")),
            }
        }
        _ => Err(format!(
            "'{at}' is {}, and has no members",
            schema.describe(kind)
        )),
    }
}

/// Elements must be numbered 0, 1, 2 and so on, in any order.
fn elements(
    schema: &Schema,
    kind: &str,
    mut given: IndexMap<String, Leaf>,
    at: &str,
) -> Result<Value, String> {
    let mut made = Vec::with_capacity(given.len());
    for index in 0..given.len() {
        let name = index.to_string();
        let leaf = given.swap_remove(&name).ok_or_else(|| {
            let others: Vec<_> = given.keys().map(String::as_str).collect();
            format!(
                "'{at}' is a list: '{at}.{name}' is missing beside {}",
                others.join(", ")
            )
        })?;
        made.push(value(schema, kind, leaf, &join(at, &name))?);
    }
    Ok(Value::Array(made))
}

fn from_text(schema: &Schema, kind: &str, text: &str, at: &str) -> Result<Value, String> {
    let wrong = |wanted: &str| Err(format!("'{at}' takes {wanted}, and not '{text}'"));
    match schema.kind(kind) {
        Kind::Text => Ok(text.into()),
        Kind::Integer => match integer(text) {
            Some(number) => Ok(Value::Number(number)),
            None => wrong("a whole number such as 4096, 0x1000, 4K or 1.5G"),
        },
        Kind::Number => match text.parse().ok().and_then(Number::from_f64) {
            Some(number) => Ok(Value::Number(number)),
            None => wrong("a number"),
        },
        Kind::Boolean => match text {
            "on" | "yes" | "true" | "y" => Ok(true.into()),
            "off" | "no" | "false" | "n" => Ok(false.into()),
            _ => wrong("on or off"),
        },
        Kind::Null if text == "null" => Ok(Value::Null),
        Kind::Null => wrong("null"),
        // Text that is JSON by itself is meant as such: numbers, true, null.
        Kind::Any => Ok(serde_json::from_str(text).unwrap_or_else(|_| text.into())),
        Kind::Word(words) if words.iter().any(|word| word == text) => Ok(text.into()),
        Kind::Word(words) => {
            let hint = meant(text, words.iter().map(String::as_str));
            Err(format!(
                "'{at}' is one of {}, and not '{text}'{hint}",
                words.join(", ")
            ))
        }
        // One element may stand for a list of one.
        Kind::List(element) => {
            let element = from_text(schema, element, text, &join(at, "0"))?;
            Ok(Value::Array(vec![element]))
        }
        Kind::Object(_) => {
            let wanted = format!("members, as in {at}.KEY=VALUE or {at}:=JSON");
            wrong(&wanted)
        }
        Kind::Either(kinds) => either(schema, kinds, text, at),
    }
}

/// The first of several types that takes the text: words and numbers before any text.
fn either(schema: &Schema, kinds: &[String], text: &str, at: &str) -> Result<Value, String> {
    let mut kinds: Vec<_> = kinds.iter().collect();
    kinds.sort_by_key(|kind| match schema.kind(kind) {
        Kind::Null | Kind::Boolean | Kind::Word(_) => 0,
        Kind::Integer | Kind::Number => 1,
        Kind::Text => 2,
        _ => 3,
    });
    let mut tried = kinds.iter().map(|kind| from_text(schema, kind, text, at));
    let first = tried.next().unwrap_or_else(|| Ok(text.into()));
    first.or_else(|why| tried.find_map(Result::ok).ok_or(why))
}

/// A whole number: decimal or hexadecimal, or with one of QAPI's suffixes for sizes (powers of
/// 1024), before which there may be a fraction.
fn integer(text: &str) -> Option<Number> {
    let negative = text.strip_prefix('-');
    let digits = negative.unwrap_or(text);
    let amount = match digits.strip_prefix("0x") {
        Some(hex) if !hex.starts_with('+') => i128::from(u64::from_str_radix(hex, 16).ok()?),
        _ => decimal(digits)?,
    };
    let amount = if negative.is_some() { -amount } else { amount };
    let signed = i64::try_from(amount).ok().map(Number::from);
    signed.or_else(|| u64::try_from(amount).ok().map(Number::from))
}

fn decimal(text: &str) -> Option<i128> {
    let letters = ['B', 'K', 'M', 'G', 'T', 'P', 'E'];
    let suffix = text.chars().last()?.to_ascii_uppercase();
    let power = letters.iter().position(|letter| *letter == suffix);
    let digits = match power {
        Some(_) => text.get(..text.len() - 1)?,
        None => text,
    };
    let unit = 1_i128 << (10 * power.unwrap_or(0));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |part: &str| {
        (1..=20).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !all_digits(whole)
        || !all_digits(fraction)
        || (digits.contains('.') && power.unwrap_or(0) == 0)
    {
        return None;
    }
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = fraction.parse::<i128>().ok()?.checked_mul(unit)? / scale;
    whole
        .parse::<i128>()
        .ok()?
        .checked_mul(unit)?
        .checked_add(part)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        return name.to_owned();
    }
    format!("{path}.{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number(text: &str) -> Option<String> {
        integer(text).map(|number| number.to_string())
    }

    #[test]
    fn whole_numbers_may_be_sizes() {
        let wanted = [
            ("4096", "4096"),
            ("-1", "-1"),
            ("0x10", "16"),
            ("4K", "4096"),
            ("4k", "4096"),
            ("7B", "7"),
            ("1.5G", "1610612736"),
            ("7E", "8070450532247928832"),
            ("18446744073709551615", "18446744073709551615"),
        ];
        for (text, wanted) in wanted {
            assert_eq!(number(text).as_deref(), Some(wanted), "{text}");
        }
        for wrong in [
            "",
            "-",
            "K",
            "1.5",
            "1..5K",
            "4KB",
            "0x",
            "0x+1",
            "+1",
            "16E",
            "99999999999999999999",
            "a",
        ] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn every_number_of_64_bits_is_read_as_itself(signed: i64, unsigned: u64) {
            prop_assert_eq!(number(&signed.to_string()), Some(signed.to_string()));
            prop_assert_eq!(number(&unsigned.to_string()), Some(unsigned.to_string()));
            prop_assert_eq!(number(&format!("{unsigned:#x}")), Some(unsigned.to_string()));
        }

        #[test]
        fn no_text_is_a_panic(text in "[-+.0-9a-zA-Z]{0,30}") {
            let _ = number(&text);
        }
    }
}
