//! Leaves: strings, booleans, numbers, sizes; each from its JSON type or, from a command line,
//! from a string.

use serde_json::Value;

use super::{FromInput, Mode, Path, wrong_type};
use crate::QmpError;

fn expects(at: &Path<'_>, what: &str) -> QmpError {
    QmpError::generic(format!("Parameter '{at}' expects {what}"))
}

impl FromInput for String {
    fn from_input(value: Value, at: &Path<'_>, _mode: Mode) -> Result<Self, QmpError> {
        match value {
            Value::String(text) => Ok(text),
            _ => Err(wrong_type(at, "string")),
        }
    }
}

impl FromInput for bool {
    fn from_input(value: Value, at: &Path<'_>, mode: Mode) -> Result<Self, QmpError> {
        match (value, mode) {
            (Value::Bool(value), _) => Ok(value),
            (Value::String(text), Mode::Keyval) => match text.as_str() {
                "on" | "yes" | "true" | "y" => Ok(true),
                "off" | "no" | "false" | "n" => Ok(false),
                _ => Err(expects(at, "'on' or 'off'")),
            },
            _ => Err(wrong_type(at, "boolean")),
        }
    }
}

impl FromInput for () {
    fn from_input(value: Value, at: &Path<'_>, _mode: Mode) -> Result<Self, QmpError> {
        match value {
            Value::Null => Ok(()),
            _ => Err(wrong_type(at, "null")),
        }
    }
}

impl FromInput for f64 {
    fn from_input(value: Value, at: &Path<'_>, mode: Mode) -> Result<Self, QmpError> {
        match (value, mode) {
            (Value::Number(number), _) => number.as_f64().ok_or_else(|| wrong_type(at, "number")),
            (Value::String(text), Mode::Keyval) => match text.parse::<Self>() {
                Ok(number) if number.is_finite() => Ok(number),
                _ => Err(expects(at, "a number")),
            },
            _ => Err(wrong_type(at, "number")),
        }
    }
}

/// The integer that a value stands for; wide enough for both i64 and u64.
fn integer(value: &Value, mode: Mode) -> Option<i128> {
    match (value, mode) {
        (Value::Number(number), _) => number
            .as_i64()
            .map(i128::from)
            .or_else(|| number.as_u64().map(i128::from)),
        (Value::String(text), Mode::Keyval) => parse_integer(text),
        _ => None,
    }
}

/// Decimal, `0x` hexadecimal, with an optional sign.
fn parse_integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let number = match digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
    {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse::<u64>().ok()?,
    };
    let number = i128::from(number);
    Some(if negative { -number } else { number })
}

macro_rules! integer_input {
    ($($ty:ty, $name:literal;)*) => {$(
        impl FromInput for $ty {
            fn from_input(value: Value, at: &Path<'_>, mode: Mode) -> Result<Self, QmpError> {
                match integer(&value, mode) {
                    Some(number) => Self::try_from(number).map_err(|_| expects(at, $name)),
                    None if mode == Mode::Keyval => Err(expects(at, $name)),
                    None => Err(wrong_type(at, "integer")),
                }
            }
        }
    )*};
}

integer_input! {
    i8, "int8_t";
    i16, "int16_t";
    i32, "int32_t";
    u8, "uint8_t";
    u16, "uint16_t";
    u32, "uint32_t";
}

impl FromInput for i64 {
    fn from_input(value: Value, at: &Path<'_>, mode: Mode) -> Result<Self, QmpError> {
        let number = integer(&value, mode).and_then(|number| Self::try_from(number).ok());
        match (number, mode) {
            (Some(number), _) => Ok(number),
            (None, Mode::Keyval) => Err(expects(at, "integer")),
            (None, _) => Err(wrong_type(at, "integer")),
        }
    }
}

impl FromInput for u64 {
    fn from_input(value: Value, at: &Path<'_>, mode: Mode) -> Result<Self, QmpError> {
        integer(&value, mode)
            .and_then(|number| Self::try_from(number).ok())
            .ok_or_else(|| expects(at, "uint64"))
    }
}

/// A number of bytes. On a command line it may end in `k`, `M`, `G`, `T`, `P` or `E`, each 1024
/// times the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

impl Size {
    /// Reads `512`, `0x200`, `4k`, `1.5G`.
    pub fn parse(text: &str) -> Option<Self> {
        let shift = match text.chars().last()? {
            'b' | 'B' => Some(0),
            'k' | 'K' => Some(10),
            'm' | 'M' => Some(20),
            'g' | 'G' => Some(30),
            't' | 'T' => Some(40),
            'p' | 'P' => Some(50),
            'e' | 'E' => Some(60),
            _ => None,
        };
        let hexadecimal = text.starts_with("0x") || text.starts_with("0X");
        let (number, shift) = match shift {
            Some(shift) if !hexadecimal => (&text[..text.len() - 1], shift),
            _ => (text, 0),
        };
        if let Some(whole) = parse_integer(number) {
            let bytes = u64::try_from(whole).ok()?.checked_mul(1 << shift)?;
            return Some(Self(bytes));
        }
        let (whole, fraction) = number.split_once('.')?;
        fractional(whole, fraction, 1 << shift)
    }
}

/// `whole.fraction` times `unit`, rounded down; at most 18 digits of fraction.
fn fractional(whole: &str, fraction: &str, unit: u64) -> Option<Size> {
    // Half a byte is no size.
    if unit == 1
        || fraction.is_empty()
        || fraction.len() > 18
        || !fraction.bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit) / scale;
    let bytes = u128::from(whole.parse::<u64>().ok()?) * u128::from(unit) + part;
    u64::try_from(bytes).ok().map(Size)
}

impl FromInput for Size {
    fn from_input(value: Value, at: &Path<'_>, mode: Mode) -> Result<Self, QmpError> {
        match (&value, mode) {
            (Value::String(text), Mode::Keyval) => Self::parse(text)
                .ok_or_else(|| expects(at, "a size: a number, perhaps with k, M, G, T, P or E")),
            _ => u64::from_input(value, at, mode).map(Self),
        }
    }
}
