//! Python text: lines with indentation, documentation, and what does not fit into one line.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::super::client::{lines, prose};
use crate::doc::DocText;
use crate::ir::TypeRef;

/// The width of this project's code.
const WIDTH: usize = 100;

/// `depth` levels in.
pub(super) fn line(out: &mut String, depth: usize, text: &str) {
    if text.is_empty() {
        out.push('\n');
        return;
    }
    let _ = writeln!(out, "{:indent$}{text}", "", indent = depth * 4);
}

/// A docstring of whole paragraphs.
pub(super) fn docstring(out: &mut String, depth: usize, paragraphs: &[String]) {
    let room = WIDTH - depth * 4;
    let mut all: Vec<String> = Vec::new();
    for paragraph in paragraphs {
        if !all.is_empty() {
            all.push(String::new());
        }
        // The quotes stand before the first line.
        let width = if all.is_empty() { room - 6 } else { room };
        for part in paragraph.split('\n') {
            let hanging = part.len() - part.trim_start().len();
            let more = if hanging > 0 { 4 } else { 0 };
            for (at, one) in lines(part, width - hanging - more).into_iter().enumerate() {
                let indent = hanging + if at > 0 { more } else { 0 };
                all.push(format!("{:indent$}{one}", ""));
            }
        }
    }
    let escaped = all.iter().map(|one| one.replace('\\', "\\\\"));
    let mut all: Vec<String> = escaped.collect();
    if let Some(first) = all.first_mut() {
        first.insert_str(0, "\"\"\"");
    }
    match all.as_mut_slice() {
        [one] => one.push_str("\"\"\""),
        _ => all.push("\"\"\"".to_owned()),
    }
    for one in &all {
        line(out, depth, one);
    }
}

/// The documentation, or the fallback where the schema has none.
pub(super) fn paragraphs(doc: &DocText, fallback: &str) -> Vec<String> {
    let found = prose(doc, "``");
    if found.is_empty() {
        return vec![fallback.to_owned()];
    }
    found
}

/// `head(items)tail`, with an item per line where one line is not enough.
pub(super) fn call(out: &mut String, depth: usize, head: &str, items: &[String], tail: &str) {
    let flat = format!("{head}{}{tail}", items.join(", "));
    if depth * 4 + flat.len() <= WIDTH {
        line(out, depth, &flat);
        return;
    }
    line(out, depth, head);
    for item in items {
        // A bare star takes its comma too.
        line(out, depth + 1, &format!("{item},"));
    }
    line(out, depth, tail);
}

/// The named types that an annotation mentions.
pub(super) fn mentions(ty: &TypeRef, found: &mut BTreeSet<String>) {
    match ty {
        TypeRef::Builtin(_) => {}
        TypeRef::Named(name) => {
            found.insert(super::class(name));
        }
        TypeRef::Array(element) => mentions(element, found),
    }
}

/// `from MODULE import ...` of those names of it that the text uses.
pub(super) fn import(out: &mut String, module: &str, names: &[&str], body: &str) {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words: BTreeSet<&str> = body.split(|c| !is_word(c)).collect();
    let used = names.iter().filter(|name| words.contains(*name));
    let items: Vec<String> = used.map(|name| (*name).to_owned()).collect();
    if items.is_empty() {
        return;
    }
    let flat = format!("from {module} import {}", items.join(", "));
    if flat.len() <= WIDTH {
        line(out, 0, &flat);
        return;
    }
    call(out, 0, &format!("from {module} import ("), &items, ")");
}
