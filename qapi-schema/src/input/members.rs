//! An object being emptied: what is left when its type has taken its own is unexpected.

use serde_json::{Map, Value};

use super::{FromInput, Mode, Path, Size, wrong_type};
use crate::QmpError;
use crate::compat::{self, Marks};

/// How many members may lead to an object.
const DEEPEST: usize = 64;

/// The members of one object that nobody has taken yet.
#[derive(Debug)]
pub struct Members<'a> {
    left: Map<String, Value>,
    at: &'a Path<'a>,
    mode: Mode,
}

impl<'a> Members<'a> {
    /// Opens an object; anything else is the wrong type, and one that stands too deep is refused:
    /// types may contain themselves, and the stack is not the client's to fill.
    pub fn open(value: Value, at: &'a Path<'a>, mode: Mode) -> Result<Self, QmpError> {
        if at.depth() > DEEPEST {
            return Err(QmpError::generic(format!(
                "Parameter '{at}' is nested more than {DEEPEST} levels deep"
            )));
        }
        match value {
            Value::Object(left) => Ok(Self { left, at, mode }),
            _ => Err(wrong_type(at, "object")),
        }
    }

    /// Takes a member that must be there.
    pub fn required<T: FromInput>(&mut self, name: &str) -> Result<T, QmpError> {
        match self.optional(name)? {
            Some(value) => Ok(value),
            None => {
                let at = Path::Member(self.at, name);
                Err(QmpError::generic(format!("Parameter '{at}' is missing")))
            }
        }
    }

    /// Takes a member that may be absent.
    pub fn optional<T: FromInput>(&mut self, name: &str) -> Result<Option<T>, QmpError> {
        match self.left.shift_remove(name) {
            Some(value) => T::from_input(value, &Path::Member(self.at, name), self.mode).map(Some),
            None => Ok(None),
        }
    }

    /// The same members, if the one of that name, which has these marks, is not there or may be
    /// used.
    pub fn marked(&mut self, name: &str, marks: Marks) -> Result<&mut Self, QmpError> {
        if self.mode == Mode::Request && self.left.contains_key(name) {
            compat::admit_part(marks, "parameter", name)?;
        }
        Ok(self)
    }

    /// Takes a number of bytes that must be there.
    pub fn required_size(&mut self, name: &str) -> Result<u64, QmpError> {
        self.required(name).map(|Size(bytes)| bytes)
    }

    /// Takes a number of bytes that may be absent.
    pub fn optional_size(&mut self, name: &str) -> Result<Option<u64>, QmpError> {
        let size: Option<Size> = self.optional(name)?;
        Ok(size.map(|Size(bytes)| bytes))
    }

    /// Ends the object: a member still there was not expected.
    pub fn close(self) -> Result<(), QmpError> {
        match self.left.keys().next() {
            Some(name) if self.mode != Mode::Reply => {
                let at = Path::Member(self.at, name);
                Err(QmpError::generic(format!("Parameter '{at}' is unexpected")))
            }
            _ => Ok(()),
        }
    }
}
