//! How a value looks on the wire, to the byte: `", "` and `": "` between things, ASCII only,
//! doubles with 17 significant digits, CR LF at the end of every message.
//!
//! Everything is written straight from the typed reply into the bytes that are sent; there is no
//! tree in between.

use std::io;

use qapi_schema::QmpError;
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{CharEscape, Formatter};

/// How a monitor's messages are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// One message, one line.
    #[default]
    Line,
    /// `pretty=on`: one member per line, four spaces per level.
    Pretty,
}

#[derive(Serialize)]
struct Success<'a, T: ?Sized> {
    #[serde(rename = "return")]
    reply: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
}

#[derive(Serialize)]
struct Failure<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    error: ErrorBody<'a>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    class: qapi_schema::ErrorClass,
    desc: &'a str,
}

/// A command's reply as a message.
pub(crate) fn success(
    style: Style,
    id: Option<&Value>,
    reply: &(impl Serialize + ?Sized),
) -> Result<Vec<u8>, serde_json::Error> {
    message(style, &Success { reply, id })
}

/// A command's failure as a message.
pub(crate) fn failure(style: Style, id: Option<&Value>, error: &QmpError) -> Vec<u8> {
    let body = ErrorBody {
        class: error.class,
        desc: &error.desc,
    };
    // An id is a JSON value and a description a string: neither can fail to be written.
    message(style, &Failure { id, error: body }).unwrap_or_default()
}

/// Any value as a message, CR LF included.
///
/// # Errors
/// When `value` is not JSON: a map whose keys are no strings.
pub(crate) fn message(
    style: Style,
    value: &(impl Serialize + ?Sized),
) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = Vec::with_capacity(128);
    let layout = Layout {
        style,
        level: 0,
        empty: true,
    };
    value.serialize(&mut serde_json::Serializer::with_formatter(
        &mut bytes, layout,
    ))?;
    bytes.extend_from_slice(b"\r\n");
    Ok(bytes)
}

/// QMP's layout for serde_json.
struct Layout {
    style: Style,
    level: usize,
    /// Nothing has been written into the innermost list or object.
    empty: bool,
}

impl Layout {
    fn open<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level += 1;
        self.empty = true;
        out.write_all(bracket)
    }

    fn close<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level = self.level.saturating_sub(1);
        if !self.empty {
            self.new_line(out)?;
        }
        self.empty = false;
        out.write_all(bracket)
    }

    fn separate<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.empty = false;
        match (first, self.style) {
            (true, _) => {}
            (false, Style::Line) => out.write_all(b", ")?,
            (false, Style::Pretty) => out.write_all(b",")?,
        }
        self.new_line(out)
    }

    fn new_line<W: ?Sized + io::Write>(&self, out: &mut W) -> io::Result<()> {
        if self.style == Style::Pretty {
            out.write_all(b"\n")?;
            for _ in 0..self.level {
                out.write_all(b"    ")?;
            }
        }
        Ok(())
    }
}

impl Formatter for Layout {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.separate(out, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.separate(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, out: &mut W, number: f64) -> io::Result<()> {
        out.write_all(seventeen_digits(number).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> io::Result<()> {
        let plain = |byte: &u8| (0x20..0x7F).contains(byte);
        if text.as_bytes().iter().all(plain) {
            return out.write_all(text.as_bytes());
        }
        for unit in text.encode_utf16() {
            match u8::try_from(unit) {
                Ok(byte) if plain(&byte) => out.write_all(&[byte])?,
                _ => write!(out, "\\u{unit:04X}")?,
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        match escape {
            CharEscape::Quote => out.write_all(b"\\\""),
            CharEscape::ReverseSolidus => out.write_all(b"\\\\"),
            CharEscape::Solidus => out.write_all(b"/"),
            CharEscape::Backspace => out.write_all(b"\\b"),
            CharEscape::FormFeed => out.write_all(b"\\f"),
            CharEscape::LineFeed => out.write_all(b"\\n"),
            CharEscape::CarriageReturn => out.write_all(b"\\r"),
            CharEscape::Tab => out.write_all(b"\\t"),
            CharEscape::AsciiControl(byte) => write!(out, "\\u{byte:04X}"),
        }
    }
}

/// A double as C's `%.17g` writes it: clients read it back to the bit.
fn seventeen_digits(number: f64) -> String {
    let scientific = format!("{number:.16e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..17).contains(&exponent) {
        let places = usize::try_from(16 - exponent).unwrap_or(0);
        let fixed = format!("{number:.places$}");
        return without_trailing_zeros(&fixed).to_owned();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    let mantissa = without_trailing_zeros(mantissa);
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

fn without_trailing_zeros(number: &str) -> &str {
    if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        number
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(value: Value) -> String {
        let bytes = message(Style::Line, &value).expect("a value");
        String::from_utf8(bytes).expect("ASCII")
    }

    #[test]
    fn a_line_has_spaces_after_separators_and_none_in_empty_things() {
        assert_eq!(
            line(json!({"a": [1, {}, []], "b": null})),
            "{\"a\": [1, {}, []], \"b\": null}\r\n"
        );
    }

    #[test]
    fn pretty_messages_have_four_spaces_per_level() {
        let bytes = message(Style::Pretty, &json!({"a": [1, {}], "b": {"c": []}}));
        assert_eq!(
            String::from_utf8(bytes.expect("a value")).expect("ASCII"),
            "{\n    \"a\": [\n        1,\n        {}\n    ],\n    \"b\": {\n        \"c\": []\n    }\n}\r\n"
        );
    }

    #[test]
    fn everything_beyond_ascii_is_escaped_in_upper_case() {
        assert_eq!(
            line(json!("é😀\u{7f}\u{1f}\n\"\\/")),
            "\"\\u00E9\\uD83D\\uDE00\\u007F\\u001F\\n\\\"\\\\/\"\r\n"
        );
    }

    #[test]
    fn doubles_have_seventeen_digits() {
        for (number, written) in [
            (0.1, "0.10000000000000001"),
            (1.5, "1.5"),
            (1e3, "1000"),
            (1e16, "10000000000000000"),
            (1e17, "1e+17"),
            (18446744073709551616.0, "1.8446744073709552e+19"),
            (1e-4, "0.0001"),
            (1e-5, "1.0000000000000001e-05"),
            (-2.5e-7, "-2.4999999999999999e-07"),
            (0.0, "0"),
            (-0.0, "-0"),
        ] {
            assert_eq!(seventeen_digits(number), written);
        }
    }

    #[test]
    fn replies_and_errors_carry_the_id_where_clients_look_for_it() {
        let id = json!({"n": [1, "é"]});
        assert_eq!(
            success(Style::Line, Some(&id), &json!({})).expect("a value"),
            b"{\"return\": {}, \"id\": {\"n\": [1, \"\\u00E9\"]}}\r\n"
        );
        let error = QmpError::generic("no \"x\"");
        assert_eq!(
            failure(Style::Line, Some(&json!(null)), &error),
            b"{\"id\": null, \"error\": {\"class\": \"GenericError\", \"desc\": \"no \\\"x\\\"\"}}\r\n"
        );
        assert_eq!(
            failure(Style::Line, None, &error),
            b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no \\\"x\\\"\"}}\r\n"
        );
    }
}
