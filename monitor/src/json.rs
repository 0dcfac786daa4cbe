//! A frame becomes a [`Value`]: JSON (RFC 8259) plus single-quoted strings and `\'`, and no key
//! twice in one object.
//!
//! The parser keeps its own stack, so that the 1024 levels the framer lets through cost no thread
//! stack. Integers stay `i64` or `u64` when they fit and become doubles when they do not.

use std::iter::Peekable;

use serde_json::{Map, Number, Value};

use crate::framer::{Frame, Framer, Kind, Step};

/// Why a frame is no value; the text is what clients know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("JSON parse error, {0}")]
pub struct ParseError(String);

fn error<T>(text: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError(text.into()))
}

/// The object or list that is the whole of `text`, which may be quoted as clients quote.
///
/// # Errors
/// It is something else.
pub fn read_json(text: &str) -> Result<Value, ParseError> {
    let (mut input, mut framer) = (text.as_bytes(), Framer::new());
    let value = match framer.advance(&mut input) {
        Step::Frame(frame) => parse(frame)?,
        Step::Malformed(text) => return error(text.replace("JSON parse error, ", "")),
        Step::Incomplete => return error("premature EOI"),
    };
    if !input.trim_ascii().is_empty() {
        return error("something comes after the value");
    }
    Ok(value)
}

/// A list or object whose end is still to come.
enum Open {
    List(Vec<Value>),
    /// The members so far and the key of the one being read.
    Object(Map<String, Value>, String),
}

/// The value that `frame` holds.
pub(crate) fn parse(frame: Frame<'_>) -> Result<Value, ParseError> {
    let mut tokens = frame.tokens().peekable();
    let mut open: Vec<Open> = Vec::new();
    loop {
        let mut done = match tokens.next() {
            None => return error("premature EOI"),
            Some((Kind::OpenBrace, _)) => {
                if next_is(&mut tokens, Kind::CloseBrace) {
                    Value::Object(Map::new())
                } else {
                    let key = key(&mut tokens)?;
                    open.push(Open::Object(Map::new(), key));
                    continue;
                }
            }
            Some((Kind::OpenBracket, _)) => {
                if next_is(&mut tokens, Kind::CloseBracket) {
                    Value::Array(Vec::new())
                } else {
                    open.push(Open::List(Vec::new()));
                    continue;
                }
            }
            Some((kind, text)) => scalar(kind, text)?,
        };
        // `done` completes the innermost open list or object as long as closing tokens follow.
        loop {
            let Some(innermost) = open.pop() else {
                return Ok(done);
            };
            match attach(innermost, done, &mut tokens)? {
                Attached::Closed(value) => done = value,
                Attached::Open(still) => {
                    open.push(still);
                    break;
                }
            }
        }
    }
}

enum Attached {
    Closed(Value),
    Open(Open),
}

/// Puts `value` where it belongs and reads the separator or the end after it.
fn attach<'a>(
    innermost: Open,
    value: Value,
    tokens: &mut Peekable<impl Iterator<Item = (Kind, &'a [u8])>>,
) -> Result<Attached, ParseError> {
    let after = tokens.next().map(|(kind, _)| kind);
    match innermost {
        Open::List(mut list) => {
            list.push(value);
            match after {
                Some(Kind::Comma) => Ok(Attached::Open(Open::List(list))),
                Some(Kind::CloseBracket) => Ok(Attached::Closed(Value::Array(list))),
                Some(_) => error("expected separator in list"),
                None => error("premature EOI"),
            }
        }
        Open::Object(mut members, name) => {
            if members.insert(name, value).is_some() {
                return error("duplicate key");
            }
            match after {
                Some(Kind::Comma) => Ok(Attached::Open(Open::Object(members, key(tokens)?))),
                Some(Kind::CloseBrace) => Ok(Attached::Closed(Value::Object(members))),
                Some(_) => error("expected separator in dict"),
                None => error("premature EOI"),
            }
        }
    }
}

/// True, and the token is gone, when the next one is a `kind`.
fn next_is<'a>(tokens: &mut Peekable<impl Iterator<Item = (Kind, &'a [u8])>>, kind: Kind) -> bool {
    tokens.next_if(|(next, _)| *next == kind).is_some()
}

/// A key and its colon.
fn key<'a>(tokens: &mut impl Iterator<Item = (Kind, &'a [u8])>) -> Result<String, ParseError> {
    let name = match tokens.next() {
        None => return error("premature EOI"),
        Some((Kind::String, text)) => string(text)?,
        Some((Kind::OpenBrace | Kind::OpenBracket, _)) => {
            return error("key is not a string in object");
        }
        Some((kind, text)) => {
            scalar(kind, text)?;
            return error("key is not a string in object");
        }
    };
    match tokens.next() {
        None => error("premature EOI"),
        Some((Kind::Colon, _)) => Ok(name),
        Some(_) => error("missing : in object pair"),
    }
}

fn scalar(kind: Kind, text: &[u8]) -> Result<Value, ParseError> {
    match kind {
        Kind::String => string(text).map(Value::String),
        Kind::Integer | Kind::Float => number(text).map(Value::Number),
        Kind::Keyword => match text {
            b"true" => Ok(Value::Bool(true)),
            b"false" => Ok(Value::Bool(false)),
            b"null" => Ok(Value::Null),
            other => {
                let shown: String = String::from_utf8_lossy(other).chars().take(64).collect();
                error(format!("invalid keyword '{shown}'"))
            }
        },
        _ => error("expecting value"),
    }
}

fn number(text: &[u8]) -> Result<Number, ParseError> {
    let text = str::from_utf8(text).unwrap_or_default();
    if let Ok(number) = text.parse::<i64>() {
        return Ok(number.into());
    }
    if let Ok(number) = text.parse::<u64>() {
        return Ok(number.into());
    }
    match text.parse::<f64>().ok().and_then(Number::from_f64) {
        Some(number) => Ok(number),
        None => error("number out of range"),
    }
}

/// The meaning of a string token, quotes included.
fn string(token: &[u8]) -> Result<String, ParseError> {
    let inner = match token {
        [_, inner @ .., _] => inner,
        _ => return error("premature EOI"),
    };
    let inner = match str::from_utf8(inner) {
        Ok(inner) if inner.is_ascii() || !inner.contains(is_no_character) => inner,
        _ => return error("invalid UTF-8 sequence in string"),
    };
    let mut meaning = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        let (plain, escape) = rest.split_at(at);
        meaning.push_str(plain);
        let (meant, after) = unescape(escape)?;
        meaning.push(meant);
        rest = after;
    }
    meaning.push_str(rest);
    Ok(meaning)
}

/// The character that the escape at the start of `text` means, and what follows it.
fn unescape(text: &str) -> Result<(char, &str), ParseError> {
    let mut chars = text.chars();
    chars.next();
    let meant = match chars.next() {
        Some(same @ ('"' | '\'' | '\\' | '/')) => same,
        Some('b') => '\u{8}',
        Some('f') => '\u{C}',
        Some('n') => '\n',
        Some('r') => '\r',
        Some('t') => '\t',
        Some('u') => return unicode_escape(text),
        _ => return error("invalid escape sequence in string"),
    };
    Ok((meant, chars.as_str()))
}

/// Whether Unicode promises that this will never be a character; QMP takes none of them.
fn is_no_character(point: char) -> bool {
    let point = u32::from(point);
    (0xFDD0..=0xFDEF).contains(&point) || point & 0xFFFE == 0xFFFE
}

/// `\uXXXX`, or two of them that make a surrogate pair.
fn unicode_escape(text: &str) -> Result<(char, &str), ParseError> {
    let first = hex_escape(text);
    let high = first.filter(|(first, _)| (0xD800..0xDC00).contains(first));
    let pair = high.and_then(|(first, after)| {
        let (second, after) = hex_escape(after)?;
        let low = second.checked_sub(0xDC00).filter(|low| *low < 0x400)?;
        Some((0x10000 + ((first - 0xD800) << 10) + low, after))
    });
    let meant = pair.or(first).and_then(|(point, after)| {
        let meant = char::from_u32(point).filter(|point| !is_no_character(*point))?;
        Some((meant, after))
    });
    let shown = if pair.is_some() { 12 } else { 6 };
    meant.map_or_else(
        || {
            let shown: String = text.chars().take(shown).collect();
            error(format!("{shown} is not a valid Unicode character"))
        },
        Ok,
    )
}

/// The number of a `\uXXXX` at the start of `text`, and what follows it.
fn hex_escape(text: &str) -> Option<(u32, &str)> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    Some((u32::from_str_radix(digits, 16).ok()?, text.get(6..)?))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::framer::NESTING_LIMIT;

    /// The first value or error in `text`.
    pub(crate) fn value(text: impl AsRef<[u8]>) -> Result<Value, String> {
        let mut input = text.as_ref();
        match Framer::new().advance(&mut input) {
            Step::Frame(frame) => parse(frame).map_err(|error| error.to_string()),
            Step::Malformed(error) => Err(error),
            Step::Incomplete => Err("incomplete".into()),
        }
    }

    fn complaint(text: impl AsRef<[u8]>) -> String {
        let error = value(text).expect_err("must not parse");
        error.replace("JSON parse error, ", "")
    }

    #[test]
    fn a_text_is_one_value_and_nothing_behind_it() {
        assert_eq!(read_json(" {'a': [1]} "), Ok(json!({"a": [1]})));
        for (text, told) in [
            ("{'a': 1", "premature EOI"),
            ("{'a': 1} x", "something comes after the value"),
            ("{'a' 1}", "missing : in object pair"),
        ] {
            let error = read_json(text).expect_err(text).to_string();
            assert_eq!(error, format!("JSON parse error, {told}"));
        }
    }

    #[test]
    fn single_and_double_quotes_mean_the_same() {
        assert_eq!(value("{'a': ['b', \"c\"]}"), Ok(json!({"a": ["b", "c"]})));
        assert_eq!(value(r#"'it\'s "x"'"#), Ok(json!("it's \"x\"")));
        assert_eq!(
            value(r#""\"\\\/\b\f\n\r\t\u00e9\uD83D\ude00""#),
            Ok(json!("\"\\/\u{8}\u{c}\n\r\té😀"))
        );
    }

    #[test]
    fn integers_keep_their_value_and_others_become_doubles() {
        assert_eq!(value("-9223372036854775808 "), Ok(json!(i64::MIN)));
        assert_eq!(value("18446744073709551615 "), Ok(json!(u64::MAX)));
        assert_eq!(
            value("18446744073709551616 "),
            Ok(json!(18446744073709551616.0))
        );
        assert_eq!(value("1.5e3 "), Ok(json!(1500.0)));
        assert_eq!(complaint("1e999 "), "number out of range");
    }

    #[test]
    fn each_mistake_has_the_text_that_clients_know() {
        for (text, told) in [
            ("{]", "expecting value"),
            ("[}", "expecting value"),
            ("[1,]", "expecting value"),
            ("{'a':1,}", "expecting value"),
            (":", "expecting value"),
            ("{'a'}", "missing : in object pair"),
            ("{'a' 1}", "missing : in object pair"),
            ("{1: 2}", "key is not a string in object"),
            ("{{}: 2}", "key is not a string in object"),
            ("{foo: 2}", "invalid keyword 'foo'"),
            ("{'a': 1 'b': 2}", "expected separator in dict"),
            ("[1 2]", "expected separator in list"),
            ("{'a': 1, 'a': 2}", "duplicate key"),
            ("nil ", "invalid keyword 'nil'"),
            (r"'\x'", "invalid escape sequence in string"),
            (r"'\u12'", r"\u12 is not a valid Unicode character"),
            (r"'\u+123'", r"\u+123 is not a valid Unicode character"),
            (r"'\u12g456'", r"\u12g4 is not a valid Unicode character"),
            (r"'\uFFFE'", r"\uFFFE is not a valid Unicode character"),
            (r"'\ufdd0'", r"\ufdd0 is not a valid Unicode character"),
            (
                r"'\ud83f\udfff'",
                r"\ud83f\udfff is not a valid Unicode character",
            ),
            ("'\u{1FFFE}'", "invalid UTF-8 sequence in string"),
            (r"'\ud800'", r"\ud800 is not a valid Unicode character"),
            (
                r"'\udc00\ud800'",
                r"\udc00 is not a valid Unicode character",
            ),
            (
                r"'\ud800\u0041'",
                r"\ud800 is not a valid Unicode character",
            ),
        ] {
            assert_eq!(complaint(text), told, "{text}");
        }
        assert_eq!(complaint(b"'\xC3'"), "invalid UTF-8 sequence in string");
    }

    #[test]
    fn a_thousand_levels_need_no_thread_stack() {
        let deep = format!("{}{}", "[".repeat(NESTING_LIMIT), "]".repeat(NESTING_LIMIT));
        let parsed = std::thread::Builder::new()
            .stack_size(256 << 10)
            .spawn(move || value(deep).map(|value| value.is_array()))
            .expect("a thread")
            .join();
        assert_eq!(parsed.expect("no overflow"), Ok(true));
    }

    proptest! {
        #[test]
        fn what_serde_writes_is_read_back(text in ".*".prop_filter("no characters", |text| !text.contains(is_no_character)), number in any::<i64>(), keys in proptest::collection::btree_set("[a-z]{0,5}", 0..5)) {
            let mut object = Map::new();
            for key in keys {
                object.insert(key, json!([text, number, null, {}]));
            }
            let wanted = Value::Object(object);
            prop_assert_eq!(value(wanted.to_string()), Ok(wanted));
        }

        #[test]
        fn token_soup_never_panics(soup in proptest::collection::vec(proptest::sample::select(vec!["{", "}", "[", "]", ":", ",", "'a'", "1 ", "true ", r"'\u'", " "]), 0..40)) {
            let _ = value(soup.concat());
        }
    }
}
