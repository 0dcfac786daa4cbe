//! The grey words behind the cursor: what is still to be said.

use crate::arguments::sketch::Sketch;
use crate::arguments::{KeyWord, key_word, words};
use crate::local::Local;
use crate::schema::Schema;

/// A hint is no longer, in letters.
const LONGEST: usize = 60;

/// What may come next.
pub(super) fn hint(schema: &Schema, line: &str) -> Option<String> {
    let words::Line { done, last, open } = words::parse(line);
    if open.is_some() {
        return None;
    }
    let done: Vec<String> = done.into_iter().map(|word| word.text).collect();
    let (command, arguments) = done.split_first()?;
    if let Some(local) = Local::of(command) {
        let rest = local.usage().split_once(' ')?.1;
        return (arguments.is_empty() && last.is_none()).then(|| rest.to_owned());
    }
    let sketch = Sketch::of(schema, command, arguments)?;
    let Some(last) = last else {
        return missing(schema, &sketch);
    };
    // The kind of a value that has not been begun.
    match key_word(&last.text) {
        KeyWord::Text(key, "") => Some(short(schema.describe(&sketch.kind(key)?))),
        KeyWord::File(_, "") => Some("<PATH, >PATH, <>PATH or NUMBER".to_owned()),
        _ => None,
    }
}

fn missing(schema: &Schema, sketch: &Sketch<'_>) -> Option<String> {
    let slots = sketch.slots(&[]);
    let must = slots.iter().filter(|slot| !slot.optional && !slot.given);
    let mut words: Vec<_> = must
        .map(|slot| match schema.object(&slot.kind) {
            Some(_) if schema.words(&slot.kind).is_empty() => format!("{}.KEY=...", slot.name),
            _ => format!("{}={}", slot.name, short(schema.describe(&slot.kind))),
        })
        .collect();
    if slots.iter().any(|slot| slot.optional && !slot.given) {
        words.push("[KEY=VALUE]...".to_owned());
    }
    (!words.is_empty()).then(|| short(words.join(" ")))
}

fn short(text: String) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_tells_what_must_still_be_given() {
        let schema = Schema::compiled_in();
        let hint = |line| hint(&schema, line).unwrap_or_default();
        assert_eq!(hint("device_del "), "id=TEXT");
        assert_eq!(hint("device_del d0 "), "");
        assert_eq!(
            hint("blockdev-add driver=file "),
            "filename=TEXT [KEY=VALUE]..."
        );
        assert!(
            hint("blockdev-add driver=raw ").starts_with("file.KEY=..."),
            "{}",
            hint("blockdev-add driver=raw ")
        );
        assert_eq!(hint("blockdev-add read-only="), "on|off");
        assert_eq!(
            hint("blockdev-add filename!"),
            "<PATH, >PATH, <>PATH or NUMBER"
        );
        assert_eq!(hint("replay "), "FILE [--check]");
        for silent in ["", "devi", "nonsense ", "device_del 'd", "query-status "] {
            assert_eq!(hint(silent), "", "{silent}");
        }
    }
}
