//! Replies as text: a command's result is written once, in wire form, and never parsed again.

use std::borrow::Cow;
use std::io;

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

use crate::QmpError;
use crate::order::arrange;

/// One JSON value in wire form, ready to stand after `"return": `.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply(Cow<'static, str>);

impl Reply {
    /// The reply of a command that returns nothing.
    pub const EMPTY: Self = Self(Cow::Borrowed("{}"));

    /// A value that is already text, such as the introspection.
    pub const fn constant(json: &'static str) -> Self {
        Self(Cow::Borrowed(json))
    }

    /// Writes a value.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, QmpError> {
        to_wire(value).map(|json| Self(Cow::Owned(json)))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Writes a value as QMP does: one line, `", "` and `": "`, ASCII only, members in QEMU's order.
pub fn to_wire<T: Serialize + ?Sized>(value: &T) -> Result<String, QmpError> {
    let mut bytes = Vec::with_capacity(128);
    value
        .serialize(&mut Serializer::with_formatter(&mut bytes, WireFormat))
        .map_err(|error| QmpError::generic(format!("cannot write the reply: {error}")))?;
    String::from_utf8(arrange(&bytes))
        .map_err(|error| QmpError::generic(format!("cannot write the reply: {error}")))
}

/// The spacing and escaping of QMP's output.
struct WireFormat;

impl WireFormat {
    fn separate<W: io::Write + ?Sized>(writer: &mut W, first: bool) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }
}

/// The digits that tell any two doubles apart.
const DIGITS: usize = 17;

/// A number as C's `%.17g` writes it.
fn double(number: f64) -> String {
    let scientific = format!("{number:.*e}", DIGITS - 1);
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let shorter = |text: &str| {
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text.to_owned()
        }
    };
    match usize::try_from(16 - exponent) {
        Ok(decimals) if exponent >= -4 => shorter(&format!("{number:.decimals$}")),
        _ => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{}e{sign}{:02}", shorter(digits), exponent.unsigned_abs())
        }
    }
}

impl Formatter for WireFormat {
    fn write_f64<W: io::Write + ?Sized>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(double(value).as_bytes())
    }

    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        Self::separate(writer, first)
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        Self::separate(writer, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for c in fragment.chars() {
            if matches!(c, ' '..='~') {
                write!(writer, "{c}")?;
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04X}")?;
            }
        }
        Ok(())
    }

    fn write_char_escape<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        let short: &[u8] = match escape {
            CharEscape::Quote => b"\\\"",
            CharEscape::ReverseSolidus => b"\\\\",
            CharEscape::Solidus => b"/",
            CharEscape::Backspace => b"\\b",
            CharEscape::FormFeed => b"\\f",
            CharEscape::LineFeed => b"\\n",
            CharEscape::CarriageReturn => b"\\r",
            CharEscape::Tab => b"\\t",
            CharEscape::AsciiControl(byte) => return write!(writer, "\\u{byte:04X}"),
        };
        writer.write_all(short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn replies_are_ascii_with_qmp_separators() {
        let value = json!({ "a": [1, 2.5, true], "b": {}, "c": "\u{1F600}é\"\u{7f}\n" });
        let text = to_wire(&value).expect("a value is always writable");
        assert_eq!(
            text,
            r#"{"a": [1, 2.5, true], "b": {}, "c": "\uD83D\uDE00\u00E9\"\u007F\n"}"#
        );
    }

    #[test]
    fn doubles_have_seventeen_digits() {
        for (number, text) in [
            (0.1, "0.10000000000000001"),
            (1.0, "1"),
            (-2.5, "-2.5"),
            (1e17, "1e+17"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (12_345_678_901_234_568.0, "12345678901234568"),
            (0.000_1, "0.0001"),
            (0.000_01, "1.0000000000000001e-05"),
            (1e300, "1.0000000000000001e+300"),
            (0.0, "0"),
        ] {
            assert_eq!(double(number), text);
        }
    }
}
