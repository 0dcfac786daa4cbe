//! Commands and what goes along with them.

use std::os::fd::{AsFd, BorrowedFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A command with its arguments.
pub trait Command: Serialize {
    /// Its name on the wire.
    const NAME: &'static str;

    /// What it returns.
    type Reply: DeserializeOwned;

    /// Reads what it returned.
    ///
    /// # Errors
    /// It is not what the schema says.
    fn read_reply(value: Value) -> Result<Self::Reply, serde_json::Error> {
        serde_json::from_value(value)
    }
}

/// A command that no fd goes along with: it is a [`Request`] as it is.
pub trait Plain: Command {}

/// A command that hands an fd over. It is a [`Request`] only with that fd:
///
/// ```compile_fail
/// # fn f(qmp: &mut sesame_qmp::Client) {
/// qmp.execute(sesame_qmp::fds::Getfd::new("disk"));
/// # }
/// ```
pub trait TakesFd: Command + Sized {
    /// The command with the fd, which stays the caller's: the server gets a copy.
    fn with_fd<'fd>(self, fd: &'fd impl AsFd) -> Request<'fd, Self> {
        Request {
            command: self,
            fds: vec![fd.as_fd()],
            out_of_band: false,
        }
    }
}

/// A command on its way.
#[derive(Debug)]
pub struct Request<'fd, C> {
    pub(crate) command: C,
    pub(crate) fds: Vec<BorrowedFd<'fd>>,
    pub(crate) out_of_band: bool,
}

impl<C: Command> Request<'_, C> {
    /// Lets it overtake the commands before it, where the schema allows that.
    #[must_use]
    pub fn out_of_band(mut self) -> Self {
        self.out_of_band = true;
        self
    }
}

/// What a client can execute: a command without fds, or a [`Request`].
pub trait IntoRequest<'fd> {
    /// The command.
    type Command: Command;

    /// The request.
    fn into_request(self) -> Request<'fd, Self::Command>;
}

impl<'fd, C: Plain> IntoRequest<'fd> for C {
    type Command = C;

    fn into_request(self) -> Request<'fd, C> {
        Request {
            command: self,
            fds: Vec::new(),
            out_of_band: false,
        }
    }
}

impl<'fd, C: Command> IntoRequest<'fd> for Request<'fd, C> {
    type Command = C;

    fn into_request(self) -> Self {
        self
    }
}

/// Reads an optional member that is there: null is its value, and not its absence.
pub(crate) fn present<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    T::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::control::SchemaInfoObjectMember;

    #[test]
    fn a_member_that_is_null_is_there() {
        let read = |member: Value| -> SchemaInfoObjectMember {
            serde_json::from_value(member).expect("a member")
        };
        let optional = json!({"name": "a", "type": "str", "default": null});
        assert_eq!(read(optional.clone()).default, Some(Value::Null));
        assert_eq!(
            serde_json::to_value(read(optional.clone())).ok(),
            Some(optional)
        );
        assert_eq!(read(json!({"name": "a", "type": "str"})).default, None);
    }
}
