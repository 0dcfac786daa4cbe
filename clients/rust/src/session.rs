//! One session without a socket: requests to bytes, bytes to replies and events.
//!
//! ```text
//!   Greeting ──► request qmp_capabilities ──► Reply ──► any requests, Replies by id, Events
//! ```

use std::collections::{BTreeMap, VecDeque};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::VersionInfo;
use crate::error::{Error, ErrorClass, Refusal};
use crate::event::{TimedEvent, WireEvent};

/// No message is longer, in bytes.
const LONGEST: usize = 64 << 20;

/// What the server says.
#[derive(Debug)]
pub enum Message {
    /// Its first words.
    Greeting {
        /// Who it is.
        version: VersionInfo,
        /// What may be agreed on.
        capabilities: Vec<String>,
    },
    /// The answer to the request of that id; none for a request that it could not read.
    Reply {
        /// From [`Session::request`].
        id: Option<u64>,
        /// What came.
        result: Result<Value, Refusal>,
    },
    /// Something happened.
    Event(TimedEvent),
}

/// The client's side of one session.
#[derive(Debug, Default)]
pub struct Session {
    received: VecDeque<u8>,
    lines: Lines,
    commands: BTreeMap<u64, String>,
    last_id: u64,
}

/// Where the message that is being received has got to.
#[derive(Debug, Default)]
struct Lines {
    /// Bytes that have been looked at.
    seen: usize,
    /// Where the last line of them begins.
    line: usize,
    /// Whether the message is of several lines.
    pretty: bool,
}

#[derive(Deserialize)]
struct WireGreeting {
    version: VersionInfo,
    capabilities: Vec<String>,
}

#[derive(Deserialize)]
struct WireError {
    class: ErrorClass,
    desc: String,
}

impl Session {
    /// A session that waits for its greeting.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes of a request, and the id that its reply will have. Arguments that are `null` are
    /// left out.
    pub fn request(&mut self, name: &str, arguments: Value, out_of_band: bool) -> (u64, Vec<u8>) {
        self.last_id += 1;
        let execute = if out_of_band { "exec-oob" } else { "execute" };
        let mut request = json!({ execute: name });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        request["id"] = self.last_id.into();
        self.commands.insert(self.last_id, name.to_owned());
        (self.last_id, format!("{request}\n").into_bytes())
    }

    /// Takes bytes from the server.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.received.extend(bytes);
    }

    /// The next whole message, if one has come.
    ///
    /// # Errors
    /// What came is not QMP.
    pub fn next_message(&mut self) -> Result<Option<Message>, Error> {
        loop {
            let Some(length) = self.complete()? else {
                return Ok(None);
            };
            let message: Vec<u8> = self.received.drain(..length).collect();
            self.lines = Lines::default();
            if message.iter().any(|byte| !byte.is_ascii_whitespace()) {
                return self.read(&message).map(Some);
            }
        }
    }

    /// How long the first message is. It is one line; with `pretty=on` several, from one that is
    /// `{` to one that is `}`, both without indentation.
    fn complete(&mut self) -> Result<Option<usize>, Error> {
        let lines = &mut self.lines;
        while let Some(byte) = self.received.get(lines.seen) {
            lines.seen += 1;
            if *byte != b'\n' {
                continue;
            }
            let line = self.received.range(lines.line..lines.seen);
            let line: Vec<u8> = line
                .take(4)
                .copied()
                .filter(|byte| !byte.is_ascii_whitespace() || *byte == b' ')
                .collect();
            if lines.line == 0 {
                lines.pretty = line == b"{";
            }
            lines.line = lines.seen;
            if !lines.pretty || line == b"}" {
                return Ok(Some(lines.seen));
            }
        }
        if lines.seen > LONGEST {
            return Err(Error::protocol(b"a message without end", None));
        }
        Ok(None)
    }

    fn read(&mut self, message: &[u8]) -> Result<Message, Error> {
        let wrong = |why| Error::protocol(message, why);
        let mut value: Value = serde_json::from_slice(message).map_err(wrong)?;
        if !value["event"].is_null() {
            let event: WireEvent = serde_json::from_value(value).map_err(wrong)?;
            return Ok(Message::Event(event.read()));
        }
        if !value["QMP"].is_null() {
            let greeting = serde_json::from_value(value["QMP"].take());
            let WireGreeting {
                version,
                capabilities,
            } = greeting.map_err(wrong)?;
            return Ok(Message::Greeting {
                version,
                capabilities,
            });
        }
        let id = value["id"].as_u64();
        let command = id.and_then(|id| self.commands.remove(&id));
        let Some(members) = value.as_object_mut() else {
            return Err(Error::protocol(message, None));
        };
        if let Some(value) = members.remove("return") {
            let result = Ok(value);
            return Ok(Message::Reply { id, result });
        }
        let Some(error) = members.remove("error") else {
            return Err(Error::protocol(message, None));
        };
        let WireError { class, desc } = serde_json::from_value(error).map_err(wrong)?;
        let command = command.unwrap_or_default();
        let refusal = Refusal {
            command,
            class,
            desc,
        };
        Ok(Message::Reply {
            id,
            result: Err(refusal),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Event;

    fn told(text: &str) -> Vec<Message> {
        let mut session = Session::new();
        let mut messages = Vec::new();
        for byte in text.bytes() {
            session.receive(&[byte]);
            messages.extend(session.next_message().expect("QMP"));
        }
        messages
    }

    #[test]
    fn messages_in_one_line_and_in_several_are_the_same() {
        let plain = told("\r\n{\"event\": \"STOP\"}\r\n{\"return\": {\"a\": {}}}\r\n");
        let text = "{\r\n    \"event\": \"STOP\"\r\n}\r\n{\r\n    \"return\": {\r\n        \
                    \"a\": {\r\n        }\r\n    }\r\n}\r\n";
        assert_eq!(format!("{plain:?}"), format!("{:?}", told(text)));
        assert_eq!(plain.len(), 2);
    }

    #[test]
    fn an_unknown_event_keeps_its_name_and_its_data() {
        let [Message::Event(timed)] = &told("{\"event\": \"NEW\", \"data\": {\"a\": 1}}\n")[..]
        else {
            panic!("an event");
        };
        let Event::Unknown { name, data } = &timed.event else {
            panic!("unknown");
        };
        assert_eq!((name.as_str(), &data["a"]), ("NEW", &1.into()));
        assert_eq!(&timed.data, data);
    }

    #[test]
    fn a_known_event_with_foreign_data_is_an_unknown_one() {
        let [Message::Event(timed)] = &told("{\"event\": \"DEVICE_DELETED\", \"data\": 7}\n")[..]
        else {
            panic!("an event");
        };
        assert!(matches!(timed.event, Event::Unknown { .. }), "{timed:?}");
        assert_eq!(
            (timed.event.name(), &timed.data),
            ("DEVICE_DELETED", &7.into())
        );
    }

    #[test]
    fn a_refusal_names_its_command_and_class() {
        let mut session = Session::new();
        let (id, _) = session.request("device_del", json!({"id": "x"}), false);
        for (name, class) in [
            ("DeviceNotFound", ErrorClass::DeviceNotFound),
            ("KVMMissingCap", ErrorClass::KvmMissingCap),
            ("Newer", ErrorClass::Unknown("Newer".to_owned())),
        ] {
            let reply = json!({"id": id, "error": {"class": name, "desc": "no"}});
            session.receive(format!("{reply}\n").as_bytes());
            let Ok(Some(Message::Reply { result, .. })) = session.next_message() else {
                panic!("a reply");
            };
            let refusal = result.expect_err("refused");
            assert_eq!(
                (refusal.class.to_string().as_str(), &refusal.class),
                (name, &class)
            );
        }
    }

    #[test]
    fn what_is_not_qmp_is_an_error_that_shows_it() {
        for text in ["hello\n", "[1]\n", "{\"error\": 1}\n", "{}\n"] {
            let mut session = Session::new();
            session.receive(text.as_bytes());
            let error = session.next_message().expect_err("not QMP");
            assert!(error.to_string().contains(text.trim()), "{error}");
        }
    }
}
