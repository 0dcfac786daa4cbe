//! JSON values and `key=value` text into the generated types: strict, with the path of the member
//! that is wrong, in the words that QMP clients know.
//!
//! ```text
//!   QMP arguments ─────────────► Value ─┐
//!   -blockdev driver=file,... ─► keyval ┴─► T::from_input(value, path, mode) ─► T
//!                                              │ object: Members, emptied member by member
//!                                              │ left over: "Parameter 'x' is unexpected"
//!                                              ▼ leaf: scalar, by Mode
//! ```
//!
//! This room knows no command and no type of the schema. Read next: [`keyval`].

pub mod keyval;
mod members;
mod path;
mod scalar;

use serde_json::Value;

use crate::QmpError;

pub use members::Members;
pub use path::Path;
pub use scalar::Size;

/// Who wrote the value, and so how its leaves look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Leaves have their JSON types, unknown members are errors.
    Json,
    /// The same, from a client: what is marked deprecated or unstable is subject to `-compat`.
    Request,
    /// A command line: leaves may also be strings, to be read as the type wants.
    Keyval,
    /// A server, perhaps a newer one: unknown members are passed over.
    Reply,
}

/// A type that can be read from a value.
pub trait FromInput: Sized {
    /// Reads the whole value or says which member is wrong. `at` is where the value stands.
    fn from_input(value: Value, at: &Path<'_>, mode: Mode) -> Result<Self, QmpError>;
}

/// A type that takes its members out of an object, perhaps leaving others for another type.
pub trait FromMembers: Sized {
    /// Takes what is its own.
    fn take(members: &mut Members<'_>) -> Result<Self, QmpError>;
}

/// Reads an object that must hold the members of `T` and no others.
pub fn object<T: FromMembers>(value: Value, at: &Path<'_>, mode: Mode) -> Result<T, QmpError> {
    let mut members = Members::open(value, at, mode)?;
    let taken = T::take(&mut members)?;
    members.close()?;
    Ok(taken)
}

/// Reads a command's arguments.
pub fn arguments<T: FromInput>(value: Value) -> Result<T, QmpError> {
    T::from_input(value, &Path::Root, Mode::Request)
}

/// Checks that a command that takes no arguments got none.
pub fn no_arguments(value: Value) -> Result<(), QmpError> {
    Members::open(value, &Path::Root, Mode::Request)?.close()
}

/// The error for a value of the wrong JSON type.
pub fn wrong_type(at: &Path<'_>, wanted: &str) -> QmpError {
    QmpError::generic(format!(
        "Invalid parameter type for '{at}', expected: {wanted}"
    ))
}

/// The error for a value that is of none of an alternate's types. As QEMU's, it has the last name on
/// the way only.
pub fn wrong_alternate(at: &Path<'_>, wanted: &str) -> QmpError {
    let leaf = at.leaf().unwrap_or("null");
    QmpError::generic(format!(
        "Invalid parameter type for '{leaf}', expected: {wanted}"
    ))
}

impl<T: FromInput> FromInput for Vec<T> {
    fn from_input(value: Value, at: &Path<'_>, mode: Mode) -> Result<Self, QmpError> {
        let Value::Array(items) = value else {
            return Err(wrong_type(at, "array"));
        };
        let items = items.into_iter().enumerate();
        items
            .map(|(index, item)| T::from_input(item, &Path::Index(at, index), mode))
            .collect()
    }
}

impl<T: FromInput> FromInput for Box<T> {
    fn from_input(value: Value, at: &Path<'_>, mode: Mode) -> Result<Self, QmpError> {
        T::from_input(value, at, mode).map(Self::new)
    }
}

impl FromInput for Value {
    fn from_input(value: Value, _at: &Path<'_>, _mode: Mode) -> Result<Self, QmpError> {
        Ok(value)
    }
}

/// Lets serde read a type by way of [`FromInput`], as a client reads replies.
macro_rules! deserialize_through_input {
    ($name:ident) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let value = serde_json::Value::deserialize(from)?;
                let (at, mode) = (crate::input::Path::Root, crate::input::Mode::Reply);
                <Self as crate::input::FromInput>::from_input(value, &at, mode)
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use deserialize_through_input;

/// Reading a type of which [`FromMembers`] is known.
macro_rules! object_type {
    ($name:ident) => {
        impl crate::input::FromInput for $name {
            fn from_input(
                value: serde_json::Value,
                at: &crate::input::Path<'_>,
                mode: crate::input::Mode,
            ) -> Result<Self, crate::QmpError> {
                crate::input::object(value, at, mode)
            }
        }

        crate::input::deserialize_through_input!($name);
    };
}
pub(crate) use object_type;

/// A name that is none of an enum's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{found}' is none of {}", .known.join(", "))]
pub struct UnknownName {
    /// The name that came.
    pub found: String,
    /// The names that there are.
    pub known: Vec<&'static str>,
}

/// Reading and showing an enum by its names on the wire.
macro_rules! named_values {
    ($name:ident) => {
        crate::input::named_values!($name, |_| 0);
    };
    ($name:ident, marked) => {
        crate::input::named_values!($name, $name::marks);
    };
    ($name:ident, $marks:expr) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::input::UnknownName;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                let found = Self::ALL.iter().find(|value| value.as_str() == name);
                found.copied().ok_or_else(|| crate::input::UnknownName {
                    found: name.to_owned(),
                    known: Self::ALL.iter().map(|value| value.as_str()).collect(),
                })
            }
        }

        impl crate::input::FromInput for $name {
            fn from_input(
                value: serde_json::Value,
                at: &crate::input::Path<'_>,
                mode: crate::input::Mode,
            ) -> Result<Self, crate::QmpError> {
                let serde_json::Value::String(name) = value else {
                    return Err(crate::input::wrong_type(at, "string"));
                };
                let value: Self = name.parse().map_err(|_| {
                    // QEMU names the member alone here, and the element of a list not at all.
                    let leaf = at.leaf().unwrap_or("null");
                    crate::QmpError::generic(format!(
                        "Parameter '{leaf}' does not accept value '{name}'"
                    ))
                })?;
                let marks: fn(Self) -> crate::compat::Marks = $marks;
                if mode == crate::input::Mode::Request {
                    crate::compat::admit_part(marks(value), "value", &name)?;
                }
                Ok(value)
            }
        }

        crate::input::deserialize_through_input!($name);
    };
}
pub(crate) use named_values;
