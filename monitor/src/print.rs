//! Messages as bytes: the members that every reply and error has, the layout, and the CR LF at the
//! end of each message, without which some clients wait for ever.
//!
//! Values come here as text in wire form (`qapi_schema::to_wire`, [`Reply`]): one line, `", "` and
//! `": "` between things, ASCII only. So a message is put together without parsing anything, and
//! `pretty=on` only moves white space. Nor is a reply copied: the kernel gathers the pieces.

use std::borrow::Cow;
use std::io::IoSlice;

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

/// One message in the pieces that it is sent in.
#[derive(Clone, Debug)]
pub(crate) struct Message<'a>([Cow<'a, [u8]>; 3]);

impl Message<'_> {
    /// A message in one piece.
    pub(crate) fn whole(bytes: Vec<u8>) -> Self {
        Self([bytes.into(), Cow::default(), Cow::default()])
    }

    /// The pieces, for the kernel.
    pub(crate) fn slices(&self) -> [IoSlice<'_>; 3] {
        self.0.each_ref().map(|piece| IoSlice::new(piece))
    }
}

/// A command's reply as a message.
pub(crate) fn success<'a>(style: Style, id: Option<&Value>, reply: &'a Reply) -> Message<'a> {
    let begin = "{\"return\": ";
    let end: Cow<'_, str> = match id {
        Some(id) => format!(", \"id\": {}}}\r\n", wire(id)).into(),
        None => "}\r\n".into(),
    };
    match style {
        Style::Line => {
            let end = match end {
                Cow::Owned(text) => text.into_bytes().into(),
                Cow::Borrowed(text) => text.as_bytes().into(),
            };
            let piece = |text: &'a str| Cow::Borrowed(text.as_bytes());
            Message([piece(begin), piece(reply.as_str()), end])
        }
        Style::Pretty => message(style, &[begin, reply.as_str(), end.trim_ascii_end()]),
    }
}

/// A command's failure as a message.
pub(crate) fn failure(style: Style, id: Option<&Value>, error: &QmpError) -> Message<'static> {
    let id = id.map(|id| format!("\"id\": {}, ", wire(id)));
    let id = id.as_deref().unwrap_or_default();
    let body = wire(&ErrorBody {
        class: error.class,
        desc: &error.desc,
    });
    message(style, &["{", id, "\"error\": ", &body, "}"])
}

/// Text in wire form, in pieces, as a message.
pub(crate) fn message(style: Style, pieces: &[&str]) -> Message<'static> {
    let mut bytes = pieces.concat().into_bytes();
    if style == Style::Pretty {
        bytes = pretty(&bytes);
    }
    bytes.extend_from_slice(b"\r\n");
    Message::whole(bytes)
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

    fn text(message: Message<'_>) -> String {
        String::from_utf8(message.0.concat()).expect("ASCII")
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
    fn a_reply_is_sent_from_where_it_stands() {
        let reply = Reply::of(&json!([1, 2])).expect("a value");
        let message = success(Style::Line, Some(&json!(7)), &reply);
        let [_, sent, _] = message.slices();
        assert!(std::ptr::eq(&raw const *sent, reply.as_str().as_bytes()));
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
