//! The order of members in what goes out.
//!
//! QEMU sends the members of an object in the order of the hash table that holds them, and
//! programs compare its replies byte for byte. So the order is part of the protocol: by bucket,
//! and within a bucket the last member first. The hash is that of QEMU's `qobject/qdict.c`.

use std::cmp::Reverse;
use std::ops::Range;

const BUCKETS: u32 = 512;

/// Where in QEMU's table a member stands.
fn bucket(name: &[u8]) -> u32 {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
    let sum = name
        .iter()
        .zip(0_u32..)
        .fold(0x238F_13AF_u32.wrapping_mul(length), |sum, (byte, at)| {
            sum.wrapping_add(u32::from(*byte) << (at.wrapping_mul(5) % 24))
        });
    sum.wrapping_mul(1_103_515_243).wrapping_add(12_345) % BUCKETS
}

/// A value in wire form with the members of all its objects in QEMU's order.
pub(crate) fn arrange(text: &[u8]) -> Vec<u8> {
    let mut arranged = Vec::with_capacity(text.len());
    let mut rest = text;
    value(&mut rest, &mut arranged);
    arranged
}

/// Moves one value from the front of `rest` to `out`.
fn value(rest: &mut &[u8], out: &mut Vec<u8>) {
    match rest.first() {
        Some(b'{') => object(rest, out),
        Some(b'[') => array(rest, out),
        Some(b'"') => string(rest, out),
        _ => {
            let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']');
            let length = rest.iter().position(ends).unwrap_or(rest.len());
            take(rest, length, out);
        }
    }
}

fn take(rest: &mut &[u8], length: usize, out: &mut Vec<u8>) {
    let (front, back) = rest.split_at(length.min(rest.len()));
    out.extend_from_slice(front);
    *rest = back;
}

fn string(rest: &mut &[u8], out: &mut Vec<u8>) {
    let mut escaped = false;
    let end = rest.iter().skip(1).position(|byte| {
        let is_end = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        is_end
    });
    take(rest, end.map_or(rest.len(), |end| end + 2), out);
}

fn array(rest: &mut &[u8], out: &mut Vec<u8>) {
    take(rest, 1, out);
    while let Some(next) = rest.first() {
        match next {
            b']' => return take(rest, 1, out),
            b',' | b' ' => take(rest, 1, out),
            _ => value(rest, out),
        }
    }
}

fn object(rest: &mut &[u8], out: &mut Vec<u8>) {
    take(rest, 1, out);
    let start = out.len();
    let mut members: Vec<(u32, Reverse<usize>, Range<usize>)> = Vec::new();
    while let Some(next) = rest.first() {
        match next {
            b'}' => break,
            b',' | b' ' => *rest = rest.get(1..).unwrap_or_default(),
            _ => {
                let from = out.len();
                string(rest, out);
                let name = out.get(from + 1..out.len() - 1).unwrap_or_default();
                let bucket = bucket(name);
                take(rest, 2, out);
                value(rest, out);
                members.push((bucket, Reverse(members.len()), from..out.len()));
            }
        }
    }
    let in_order = members.is_sorted_by_key(|(bucket, nth, _)| (*bucket, *nth));
    if !in_order {
        members.sort_by_key(|(bucket, nth, _)| (*bucket, *nth));
    }
    let unarranged = out.split_off(start);
    for (at, (_, _, range)) in members.iter().enumerate() {
        if at > 0 {
            out.extend_from_slice(b", ");
        }
        let range = range.start - start..range.end - start;
        out.extend_from_slice(unarranged.get(range).unwrap_or_default());
    }
    take(rest, 1, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::INTROSPECTION;

    fn arranged(text: &str) -> String {
        String::from_utf8(arrange(text.as_bytes())).expect("text")
    }

    #[test]
    fn members_stand_in_the_order_of_qemus_buckets() {
        // As the wire of QEMU 10.0.2 has them.
        for (given, sent) in [
            (r#"{"id": 1, "return": {}}"#, r#"{"return": {}, "id": 1}"#),
            (r#"{"error": {}, "id": 1}"#, r#"{"id": 1, "error": {}}"#),
            (
                r#"{"event": "STOP", "data": {"b": []}, "timestamp": 1}"#,
                r#"{"timestamp": 1, "event": "STOP", "data": {"b": []}}"#,
            ),
            (
                r#"[{"running": true, "status": "running"}]"#,
                r#"[{"status": "running", "running": true}]"#,
            ),
        ] {
            assert_eq!(arranged(given), sent);
        }
    }

    #[test]
    fn of_one_bucket_the_last_is_first() {
        let triple = r#"{"major": 10, "minor": 0, "micro": 2}"#;
        assert_eq!(arranged(triple), r#"{"micro": 2, "minor": 0, "major": 10}"#);
    }

    #[test]
    fn nothing_but_the_order_changes() {
        for text in [
            "{}",
            "[]",
            "-1.5e3",
            r#""a \" , } \\""#,
            r#"{"a \"}": [1, {}, [], null, "\\"], "b": {"c": {"d": "]}"}}}"#,
        ] {
            assert_eq!(arranged(text).len(), text.len());
            let same = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
            let (mut before, mut after) = (same(text), same(&arranged(text)));
            before.sort_all_objects();
            after.sort_all_objects();
            assert_eq!(before, after);
        }
    }

    #[test]
    fn the_introspection_is_written_in_order() {
        assert_eq!(arranged(INTROSPECTION), INTROSPECTION);
    }
}
