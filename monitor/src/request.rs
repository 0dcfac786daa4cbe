//! What a client asks: one JSON object with `execute` or `exec-oob`, and perhaps `arguments` and
//! `id`. Everything else is refused by name.

use qapi_schema::QmpError;
use serde_json::{Map, Value};

use crate::line::Line;
use crate::print::failure;
use crate::session::LostFds;

/// A well-formed request. Whether the command exists is not decided here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    /// The client's mark for this request, given back with the answer.
    pub(crate) id: Option<Value>,
    /// The command's name.
    pub(crate) command: String,
    /// Whether it is to run out of band (`exec-oob`).
    pub(crate) out_of_band: bool,
    /// The arguments; an empty object when the client sent none.
    pub(crate) arguments: Value,
}

/// An input that gets an error instead of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refusal {
    /// The request's mark, when the input was an object that had one.
    pub(crate) id: Option<Value>,
    /// Why.
    pub(crate) error: QmpError,
}

impl Refusal {
    /// A refusal of something that is no request.
    pub(crate) fn anonymous(desc: impl Into<String>) -> Self {
        Self {
            id: None,
            error: QmpError::generic(desc),
        }
    }

    /// Tells the client.
    pub(crate) fn answer(&self, line: &Line) {
        line.send(&failure(line.style, self.id.as_ref(), &self.error));
    }

    /// A refusal of a request whose fds are gone.
    pub(crate) fn without_fds(request: Request, lost: LostFds) -> Self {
        Self {
            error: QmpError::generic(format!("Command '{}' {lost}", request.command)),
            id: request.id,
        }
    }
}

impl Request {
    /// Reads a request; `oob` says whether this session may use `exec-oob`.
    pub(crate) fn new(value: Value, oob: bool) -> Result<Self, Refusal> {
        let Value::Object(mut members) = value else {
            return Err(Refusal::anonymous("QMP input must be a JSON object"));
        };
        let id = members.shift_remove("id");
        match Self::from_members(members, oob) {
            Ok(request) => Ok(Self { id, ..request }),
            Err(desc) => Err(Refusal {
                id,
                error: QmpError::generic(desc),
            }),
        }
    }

    fn from_members(members: Map<String, Value>, oob: bool) -> Result<Self, String> {
        let mut command = None;
        let mut arguments = Value::Object(Map::new());
        for (name, value) in members {
            match (name.as_str(), value) {
                ("execute", Value::String(_)) | ("exec-oob", Value::String(_))
                    if command.is_some() && (oob || name == "execute") =>
                {
                    return Err("QMP input member 'execute' clashes with 'exec-oob'".to_owned());
                }
                ("execute", Value::String(text)) => command = Some((text, false)),
                ("exec-oob", Value::String(text)) if oob => command = Some((text, true)),
                ("execute", _) => return Err(must_be("execute", "a string")),
                ("exec-oob", _) if oob => return Err(must_be("exec-oob", "a string")),
                ("arguments", object @ Value::Object(_)) => arguments = object,
                ("arguments", _) => return Err(must_be("arguments", "an object")),
                _ => return Err(format!("QMP input member '{name}' is unexpected")),
            }
        }
        let Some((command, out_of_band)) = command else {
            return Err("QMP input lacks member 'execute'".to_owned());
        };
        Ok(Self {
            id: None,
            command,
            out_of_band,
            arguments,
        })
    }
}

fn must_be(member: &str, wanted: &str) -> String {
    format!("QMP input member '{member}' must be {wanted}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(value: Value, oob: bool) -> String {
        Request::new(value, oob)
            .expect_err("must be refused")
            .error
            .desc
    }

    #[test]
    fn a_request_has_a_command_and_perhaps_arguments_and_an_id() {
        let request = Request::new(
            json!({"id": [1], "execute": "stop", "arguments": {"a": 1}}),
            false,
        );
        assert_eq!(
            request,
            Ok(Request {
                id: Some(json!([1])),
                command: "stop".into(),
                out_of_band: false,
                arguments: json!({"a": 1}),
            })
        );
        let request = Request::new(json!({"exec-oob": "yank"}), true).expect("a request");
        assert!(request.out_of_band && request.arguments == json!({}));
    }

    #[test]
    fn each_bad_member_is_named() {
        for (value, text) in [
            (json!(null), "QMP input must be a JSON object"),
            (json!({}), "QMP input lacks member 'execute'"),
            (
                json!({"execute": true}),
                "QMP input member 'execute' must be a string",
            ),
            (
                json!({"exec-oob": 1}),
                "QMP input member 'exec-oob' must be a string",
            ),
            (
                json!({"execute": "x", "arguments": []}),
                "QMP input member 'arguments' must be an object",
            ),
            (
                json!({"execute": "x", "extra": 1}),
                "QMP input member 'extra' is unexpected",
            ),
            (
                json!({"execute": "x", "exec-oob": "x"}),
                "QMP input member 'execute' clashes with 'exec-oob'",
            ),
            (
                json!({"exec-oob": "x", "execute": "x"}),
                "QMP input member 'execute' clashes with 'exec-oob'",
            ),
        ] {
            assert_eq!(told(value, true), text);
        }
    }

    #[test]
    fn exec_oob_is_unexpected_until_it_is_negotiated() {
        for value in [
            json!({"exec-oob": "x"}),
            json!({"execute": "x", "exec-oob": "x"}),
        ] {
            assert_eq!(
                told(value, false),
                "QMP input member 'exec-oob' is unexpected"
            );
        }
    }

    #[test]
    fn a_refusal_keeps_the_id_of_any_type() {
        for id in [
            json!(null),
            json!(1.5),
            json!("x"),
            json!({"a": []}),
            json!(true),
        ] {
            let refusal = Request::new(json!({"id": id.clone()}), false).expect_err("refused");
            assert_eq!(refusal.id, Some(id));
        }
    }
}
