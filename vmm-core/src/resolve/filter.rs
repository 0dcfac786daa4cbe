//! Filters on netdevs: objects `filter-*`.

use std::time::Duration;

use devices::net::filter::{Position, Queue};
use devices::net::framing::Frames;
use devices::net::{FilterKind, FilterSpec};
use qapi_schema::QmpError;
use qapi_schema::qom::{
    FilterBufferProperties, FilterDumpProperties, FilterMirrorProperties,
    FilterRedirectorProperties, NetFilterDirection, NetfilterInsert, ObjectOptions,
    ObjectOptionsVariant,
};

/// How much of a packet a dump has where the client does not say, in bytes.
const MAXLEN: u32 = 65536;

/// Whether an object is a filter, which comes after its netdev.
#[must_use]
pub fn is_filter(options: &ObjectOptions) -> bool {
    use ObjectOptionsVariant as Kind;
    matches!(
        options.qom_type,
        Kind::FilterBuffer(_)
            | Kind::FilterDump(_)
            | Kind::FilterMirror(_)
            | Kind::FilterRedirector(_)
    )
}

/// What filters of all kinds are told.
macro_rules! common {
    ($id:expr, $options:expr, $kind:expr) => {
        Ok(FilterSpec {
            id: $id.to_owned(),
            queue: queue($options.queue),
            on: $options.status.as_deref().map_or(Ok(true), status)?,
            position: position($options.position.as_deref(), $options.insert)?,
            netdev: $options.netdev,
            kind: $kind,
        })
    };
}

pub(super) fn buffer(id: &str, options: FilterBufferProperties) -> Result<FilterSpec, QmpError> {
    if options.interval == 0 {
        return Err(QmpError::generic(
            "Property 'filter-buffer.interval' requires a positive value",
        ));
    }
    let interval = Duration::from_micros(options.interval.into());
    common!(id, options, FilterKind::Buffer { interval })
}

pub(super) fn dump(id: &str, options: FilterDumpProperties) -> Result<FilterSpec, QmpError> {
    let longest = options.maxlen.unwrap_or(MAXLEN);
    if longest == 0 {
        return Err(QmpError::generic(
            "Property 'filter-dump.maxlen' doesn't take value '0'",
        ));
    }
    let kind = FilterKind::Dump {
        file: options.file,
        longest: usize::try_from(longest).unwrap_or(usize::MAX),
    };
    common!(id, options, kind)
}

pub(super) fn mirror(id: &str, options: FilterMirrorProperties) -> Result<FilterSpec, QmpError> {
    let kind = FilterKind::Mirror {
        outdev: options.outdev,
        frames: frames(options.vnet_hdr_support),
    };
    common!(id, options, kind)
}

pub(super) fn redirector(
    id: &str,
    options: FilterRedirectorProperties,
) -> Result<FilterSpec, QmpError> {
    match (&options.indev, &options.outdev) {
        (None, None) => {
            return Err(QmpError::generic(
                "filter redirector needs 'indev' or 'outdev' at least one property set",
            ));
        }
        (Some(indev), Some(outdev)) if indev == outdev => {
            return Err(QmpError::generic(
                "'indev' and 'outdev' could not be same for filter redirector",
            ));
        }
        _ => {}
    }
    let kind = FilterKind::Redirector {
        indev: options.indev,
        outdev: options.outdev,
        frames: frames(options.vnet_hdr_support),
    };
    common!(id, options, kind)
}

/// Whether a filter with this status is on.
///
/// # Errors
/// It is neither on nor off.
pub fn status(text: &str) -> Result<bool, QmpError> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(QmpError::generic(format!(
            "Invalid value for netfilter status, should be 'on' or 'off', not '{other}'"
        ))),
    }
}

fn queue(wanted: Option<NetFilterDirection>) -> Queue {
    match wanted {
        None | Some(NetFilterDirection::All) => Queue::All,
        Some(NetFilterDirection::Rx) => Queue::Rx,
        Some(NetFilterDirection::Tx) => Queue::Tx,
    }
}

fn frames(headed: Option<bool>) -> Frames {
    if headed == Some(true) {
        Frames::Headed
    } else {
        Frames::Plain
    }
}

fn position(text: Option<&str>, insert: Option<NetfilterInsert>) -> Result<Position, QmpError> {
    match text.unwrap_or("tail") {
        "head" => Ok(Position::Head),
        "tail" => Ok(Position::Tail),
        other => match (other.strip_prefix("id="), insert) {
            (Some(id), Some(NetfilterInsert::Before)) => Ok(Position::Before(id.to_owned())),
            (Some(id), None | Some(NetfilterInsert::Behind)) => Ok(Position::Behind(id.to_owned())),
            (None, _) => Err(QmpError::generic(format!(
                "Parameter 'position' expects 'head', 'tail' or 'id=<id>', not '{other}'"
            ))),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::resolve::object::{ObjectSpec, object};

    fn filter(kind: &str, more: &Value) -> Result<FilterSpec, String> {
        let mut options = json!({"qom-type": kind, "id": "f", "netdev": "n"});
        for (key, value) in more.as_object().expect("an object") {
            options[key] = value.clone();
        }
        let options = qapi_schema::input::arguments(options).expect("of the schema");
        match object(options) {
            Ok((_, ObjectSpec::Filter(spec))) => Ok(spec),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.desc),
        }
    }

    #[test]
    fn a_filter_sees_everything_and_stands_at_the_end_unless_told_otherwise() {
        let spec = filter("filter-dump", &json!({"file": "x"})).expect("a filter");
        assert_eq!((spec.queue, spec.on), (Queue::All, true));
        assert_eq!(spec.position, Position::Tail);
        let longest = 65536;
        let file = "x".to_owned();
        assert_eq!(spec.kind, FilterKind::Dump { file, longest });
    }

    #[test]
    fn a_place_is_an_end_or_a_side_of_another_filter() {
        let at = |more: Value| {
            let mut more = more;
            more["outdev"] = json!("c");
            filter("filter-mirror", &more).map(|spec| spec.position)
        };
        assert_eq!(at(json!({"position": "head"})), Ok(Position::Head));
        let id = || "g".to_owned();
        assert_eq!(at(json!({"position": "id=g"})), Ok(Position::Behind(id())));
        let before = json!({"position": "id=g", "insert": "before"});
        assert_eq!(at(before), Ok(Position::Before(id())));
        assert!(at(json!({"position": "g"})).is_err());
    }

    #[test]
    fn what_makes_no_filter_is_refused_by_its_name() {
        for (kind, more, word) in [
            ("filter-buffer", json!({"interval": 0}), "interval"),
            ("filter-dump", json!({"file": "x", "maxlen": 0}), "maxlen"),
            ("filter-redirector", json!({}), "'indev' or 'outdev'"),
            (
                "filter-redirector",
                json!({"indev": "c", "outdev": "c"}),
                "could not be same",
            ),
            (
                "filter-mirror",
                json!({"outdev": "c", "status": "maybe"}),
                "'on' or 'off'",
            ),
        ] {
            let error = filter(kind, &more).expect_err(kind);
            assert!(error.contains(word), "{error}");
        }
    }
}
