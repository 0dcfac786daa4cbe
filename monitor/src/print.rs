//! Messages as bytes: the members that every reply and error has, the layout, and the CR LF at the
//! end of each message, without which some clients wait for ever.
//!
//! Values come here as text in wire form (`qapi_schema::to_wire`, [`Reply`]): one line, `", "` and
//! `": "` between things, ASCII only. So a message is put together without parsing anything, and
//! `pretty=on` only moves white space.

use qapi_schema::{ErrorClass, QmpError, Reply, to_wire};
use serde::Serialize;
use serde_json::Value;

/// How a monitor's messages are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// One message, one line.
    #[default]
    Line,
    /// `pretty=on`: one member per line, four spaces per level.
    Pretty,
}

/// An error's members in the order that clients know.
#[derive(Serialize)]
struct ErrorBody<'a> {
    class: ErrorClass,
    desc: &'a str,
}

/// A command's reply as a message.
pub(crate) fn success(style: Style, id: Option<&Value>, reply: &Reply) -> Vec<u8> {
    let id = id.map(|id| format!(", \"id\": {}", wire(id)));
    let id = id.as_deref().unwrap_or_default();
    message(style, &["{\"return\": ", reply.as_str(), id, "}"])
}

/// A command's failure as a message.
pub(crate) fn failure(style: Style, id: Option<&Value>, error: &QmpError) -> Vec<u8> {
    let id = id.map(|id| format!("\"id\": {}, ", wire(id)));
    let id = id.as_deref().unwrap_or_default();
    let body = wire(&ErrorBody {
        class: error.class,
        desc: &error.desc,
    });
    message(style, &["{", id, "\"error\": ", &body, "}"])
}

/// Text in wire form, in pieces, as a message.
pub(crate) fn message(style: Style, pieces: &[&str]) -> Vec<u8> {
    let size = pieces.iter().map(|piece| piece.len()).sum::<usize>();
    let mut bytes = Vec::with_capacity(size + 2);
    for piece in pieces {
        bytes.extend_from_slice(piece.as_bytes());
    }
    if style == Style::Pretty {
        bytes = pretty(&bytes);
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// Ids and errors are values and strings, which can always be written.
fn wire(value: &impl Serialize) -> String {
    to_wire(value).unwrap_or_else(|_| "null".to_owned())
}

/// The same value with a line for each member and element.
fn pretty(line: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(line.len() * 2);
    let mut level = 0_usize;
    let mut in_string = false;
    let mut rest = line.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            b'\\' if in_string => {
                bytes.push(byte);
                bytes.extend(rest.next());
            }
            b'"' => {
                in_string = !in_string;
                bytes.push(byte);
            }
            b'{' | b'[' if !in_string => {
                bytes.push(byte);
                match rest.next_if(|next| matches!(next, b'}' | b']')) {
                    // As QEMU, whose own tests compare it byte by byte.
                    Some(end) => {
                        new_line(&mut bytes, level);
                        bytes.push(end);
                    }
                    None => {
                        level += 1;
                        new_line(&mut bytes, level);
                    }
                }
            }
            b'}' | b']' if !in_string => {
                level = level.saturating_sub(1);
                new_line(&mut bytes, level);
                bytes.push(byte);
            }
            b',' if !in_string => {
                bytes.push(byte);
                rest.next_if_eq(&b' ');
                new_line(&mut bytes, level);
            }
            _ => bytes.push(byte),
        }
    }
    bytes
}

fn new_line(bytes: &mut Vec<u8>, level: usize) {
    bytes.push(b'\n');
    bytes.resize(bytes.len() + 4 * level, b' ');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).expect("ASCII")
    }

    #[test]
    fn replies_and_errors_carry_the_id_where_clients_look_for_it() {
        let id = json!({"n": [1, "é"]});
        assert_eq!(
            text(success(Style::Line, Some(&id), &Reply::EMPTY)),
            "{\"return\": {}, \"id\": {\"n\": [1, \"\\u00E9\"]}}\r\n"
        );
        let error = QmpError::generic("no \"x\"");
        assert_eq!(
            text(failure(Style::Line, Some(&json!(null)), &error)),
            "{\"id\": null, \"error\": {\"class\": \"GenericError\", \"desc\": \"no \\\"x\\\"\"}}\r\n"
        );
        assert_eq!(
            text(failure(Style::Line, None, &error)),
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no \\\"x\\\"\"}}\r\n"
        );
    }

    #[test]
    fn pretty_messages_have_four_spaces_per_level() {
        let reply = Reply::of(&json!({"a": [1, {}], "b, \"{": {"c": []}})).expect("a value");
        assert_eq!(
            text(success(Style::Pretty, None, &reply)),
            "{\n    \"return\": {\n        \"a\": [\n            1,\n            {\n            }\n        ],\n        \
             \"b, \\\"{\": {\n            \"c\": [\n            ]\n        }\n    }\n}\r\n"
        );
    }
}
