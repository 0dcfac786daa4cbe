//! The hook's lines: JSON, in the types of `open-hook.json`.

use std::time::Duration;

use fdset::hook::WireAnswer;
use fdset::{Access, Existing, Expected, HookWire, Role, Wish};
use qapi_schema::open_hook::{
    OpenAccess, OpenExisting, OpenHookAnswer, OpenHookOpen, OpenHookRequest,
    OpenHookRequestVariant, OpenKind, OpenRole,
};
use qapi_schema::to_wire;

/// JSON, one object in each line.
#[derive(Debug)]
pub struct JsonLines;

impl HookWire for JsonLines {
    fn open(&self, id: u64, wish: &Wish, command: Option<&str>, patience: Duration) -> Vec<u8> {
        line(
            id,
            OpenHookRequestVariant::Open(OpenHookOpen {
                name: wish.name.clone(),
                role: wire_role(wish.role),
                kind: wire_kind(wish.expected),
                access: wire_access(wish.access),
                create: wish.create.map(|create| wire_existing(create.existing)),
                direct: wish.direct,
                reason: wish.reason.clone(),
                command: command.map(str::to_owned),
                deadline_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
            }),
        )
    }

    fn cancel(&self, id: u64) -> Vec<u8> {
        line(id, OpenHookRequestVariant::Cancel)
    }

    fn answer(&self, line: &[u8]) -> Result<WireAnswer, String> {
        let answer: OpenHookAnswer =
            serde_json::from_slice(line).map_err(|error| error.to_string())?;
        Ok(WireAnswer {
            id: answer.id,
            error: answer.error,
        })
    }
}

fn line(id: u64, request: OpenHookRequestVariant) -> Vec<u8> {
    // Text, numbers and names of enums: there is nothing in it that cannot be written.
    to_wire(&OpenHookRequest { id, request })
        .unwrap_or_default()
        .into_bytes()
}

/// The schema's name for a role.
#[must_use]
pub fn wire_role(role: Role) -> OpenRole {
    match role {
        Role::Image => OpenRole::Image,
        Role::Backing => OpenRole::Backing,
        Role::DataFile => OpenRole::DataFile,
        Role::Memory => OpenRole::Memory,
        Role::Kernel => OpenRole::Kernel,
        Role::Initrd => OpenRole::Initrd,
        Role::Firmware => OpenRole::Firmware,
        Role::Kvm => OpenRole::Kvm,
        Role::Chardev => OpenRole::Chardev,
        Role::ChardevLog => OpenRole::ChardevLog,
        Role::Monitor => OpenRole::Monitor,
        Role::Commands => OpenRole::Commands,
        Role::Entropy => OpenRole::Entropy,
        Role::Secret => OpenRole::Secret,
        Role::Net => OpenRole::Net,
        Role::NetDump => OpenRole::NetDump,
        Role::Tap => OpenRole::Tap,
        Role::Vhost => OpenRole::Vhost,
        Role::Snapshot => OpenRole::Snapshot,
        Role::PidFile => OpenRole::PidFile,
        Role::Log => OpenRole::Log,
        _ => OpenRole::Other,
    }
}

/// The schema's name for a kind.
#[must_use]
pub fn wire_kind(expected: Expected) -> OpenKind {
    match expected {
        Expected::RegularFile => OpenKind::RegularFile,
        Expected::Memory => OpenKind::Memory,
        Expected::BlockDevice => OpenKind::BlockDevice,
        Expected::Kvm => OpenKind::Kvm,
        Expected::Stream => OpenKind::Stream,
        Expected::Terminal => OpenKind::Terminal,
        Expected::ListeningSocket => OpenKind::ListeningSocket,
        Expected::ConnectedSocket => OpenKind::ConnectedSocket,
        Expected::DatagramSocket => OpenKind::DatagramSocket,
        Expected::Tap => OpenKind::Tap,
        Expected::VhostNet => OpenKind::VhostNet,
        Expected::VhostVsock => OpenKind::VhostVsock,
    }
}

/// The schema's name for an access mode.
#[must_use]
pub fn wire_access(access: Access) -> OpenAccess {
    match access {
        Access::ReadOnly => OpenAccess::ReadOnly,
        Access::WriteOnly => OpenAccess::WriteOnly,
        Access::ReadWrite => OpenAccess::ReadWrite,
    }
}

/// The schema's name for what becomes of a file that is there.
#[must_use]
pub fn wire_existing(existing: Existing) -> OpenExisting {
    match existing {
        Existing::Keep => OpenExisting::Keep,
        Existing::Truncate => OpenExisting::Truncate,
        Existing::Append => OpenExisting::Append,
        Existing::Refuse => OpenExisting::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use fdset::Request;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_one_line_that_says_what_for_whom_and_how_long() {
        let request = Request::new("/a\nb", Access::WriteOnly, Role::ChardevLog, "chardev 'c'")
            .create(0o600, Existing::Append);
        let wish = Wish::new(&request, Expected::Stream);
        let line = JsonLines.open(7, &wish, Some("chardev-add"), Duration::from_millis(1500));
        let text = String::from_utf8(line).expect("text");
        assert!(!text.contains('\n'), "{text}");
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        let wanted = serde_json::json!({"id": 7, "request": "open", "name": "/a\nb",
            "role": "chardev-log", "kind": "stream", "access": "write-only", "create": "append",
            "direct": false, "reason": "chardev 'c'", "command": "chardev-add",
            "deadline-ms": 1500});
        assert_eq!(read(&text), wanted);
        let cancel = String::from_utf8(JsonLines.cancel(7)).expect("text");
        assert_eq!(
            read(&cancel),
            serde_json::json!({"id": 7, "request": "cancel"})
        );
    }

    #[test]
    fn an_answer_may_say_more_than_it_must_but_not_less() {
        let answer = JsonLines.answer(b"{\"id\": 3, \"error\": \"no\", \"new\": []}");
        let wanted = WireAnswer {
            id: 3,
            error: Some("no".to_owned()),
        };
        assert_eq!(answer, Ok(wanted));
        for bad in [
            &b"{}"[..],
            b"{\"id\": \"3\"}",
            b"{\"id\": -1}",
            b"{\"id\": 1.5}",
            b"{\"id\": 18446744073709551616}",
            b"{\"id\": 3, \"error\": 7}",
            b"[3]",
            b"",
            b"{\"id\": 3} {\"id\": 4}",
        ] {
            assert!(JsonLines.answer(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_the_reader_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = JsonLines.answer(&line);
        }

        #[test]
        fn no_json_makes_the_reader_panic(
            line in "[\\[\\]{}:,\" a-z0-9\\\\-]{0,60}", depth in 0_usize..300
        ) {
            let _ = JsonLines.answer(line.as_bytes());
            let deep = format!("{{\"id\": {}1", "[".repeat(depth));
            let _ = JsonLines.answer(deep.as_bytes());
        }
    }
}
