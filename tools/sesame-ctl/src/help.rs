//! `help`: what commands there are, and what each takes.
//!
//! What there is, the live VM says; what it is good for, this version's documentation, as far as it
//! has words for it.

use std::fmt::Write;

use crate::arguments::sketch::{Sketch, Slot};
use crate::failure::Failure;
use crate::local::Local;
use crate::schema::docs::Docs;
use crate::schema::{Schema, meant};

/// How wide the first column is.
const COLUMN: usize = 30;

/// All commands, each with the first sentence about it.
pub(crate) fn commands(schema: &Schema) -> String {
    let docs = Docs::compiled_in();
    let mut text = "Commands of the VM (help COMMAND tells more):\n".to_owned();
    for name in schema.commands() {
        row(
            &mut text,
            name,
            docs.command(name).as_deref().map_or("", first_sentence),
        );
    }
    text.push_str("\nCommands of sesame-ctl:\n");
    for local in Local::ALL {
        row(&mut text, local.usage(), local.purpose());
    }
    text.trim_end().to_owned()
}

/// One command and its arguments; those that its `words` make possible are among them.
pub(crate) fn command(schema: &Schema, name: &str, words: &[String]) -> Result<String, Failure> {
    if let Some(local) = Local::of(name) {
        return Ok(format!("{}\n{}", local.usage(), local.purpose()));
    }
    let docs = Docs::compiled_in();
    let Some(sketch) = Sketch::of(schema, name, words) else {
        if let Some(about) = docs.event(name) {
            return Ok(format!("{name} (event)\n{about}"));
        }
        let hint = meant(name, schema.commands());
        return Err(Failure::NoSuchCommand(format!(
            "there is no command '{name}'{hint}"
        )));
    };
    let mut text = usage(&sketch, name);
    if let Some(about) = docs.command(name) {
        let _ = write!(text, "\n{about}");
    }
    text.push('\n');
    let documented = docs.arguments(name);
    let mut decides = None;
    for slot in sketch.slots(&[]) {
        let place = documented.and_then(|place| place.member(&slot.name));
        let about = place.and_then(|place| place.text()).unwrap_or_default();
        let about = if slot.decides || schema.words(&slot.kind).len() > 4 {
            format!("{about} {}", choice(schema, &slot))
        } else {
            about
        };
        row(&mut text, &typed(schema, &slot), about.trim());
        if slot.decides && sketch.text(&slot.name).is_none() {
            decides = Some(slot.name);
        }
    }
    if let Some(tag) = decides {
        let _ = write!(
            text,
            "\nhelp {name} {tag}=... tells what else goes with it."
        );
    }
    Ok(text.trim_end().to_owned())
}

/// `name MUST=TEXT [MAY=on|off]` in one line.
fn usage(sketch: &Sketch<'_>, name: &str) -> String {
    let mut text = name.to_owned();
    let slots = sketch.slots(&[]);
    let must = slots.iter().filter(|slot| !slot.optional);
    for slot in must {
        let _ = write!(text, " {}=...", slot.name);
    }
    if slots.iter().any(|slot| slot.optional) {
        text.push_str(" [KEY=VALUE]...");
    }
    text
}

fn typed(schema: &Schema, slot: &Slot) -> String {
    let kind = match schema.words(&slot.kind) {
        words if words.len() > 4 => "ONE".to_owned(),
        _ if slot.decides => "ONE".to_owned(),
        _ => schema.describe(&slot.kind),
    };
    if slot.optional {
        format!("[{}={kind}]", slot.name)
    } else {
        format!("{}={kind}", slot.name)
    }
}

fn choice(schema: &Schema, slot: &Slot) -> String {
    format!("One of {}.", schema.words(&slot.kind).join(", "))
}

/// A row of two columns; a long first one has its own line.
fn row(text: &mut String, left: &str, right: &str) {
    if left.len() > COLUMN {
        let _ = write!(text, "  {left}\n  {:COLUMN$}  {right}", "");
    } else {
        let _ = write!(text, "  {left:COLUMN$}  {right}");
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
}

fn first_sentence(text: &str) -> &str {
    text.split_once(". ")
        .map_or(text, |(first, _)| first)
        .trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_listed_with_what_it_does() {
        let text = commands(&Schema::compiled_in());
        assert!(text.contains("  query-status"), "{text}");
        assert!(text.contains("  replay FILE"), "{text}");
    }

    #[test]
    fn help_follows_what_was_chosen() {
        let schema = Schema::compiled_in();
        let text = command(&schema, "blockdev-add", &[]).expect("a command");
        assert!(
            text.starts_with("blockdev-add driver=... [KEY=VALUE]...\nMakes a block node."),
            "{text}"
        );
        assert!(!text.contains("filename="), "{text}");
        assert!(text.contains("host_device"), "{text}");
        let chosen = ["driver=file".to_owned()];
        let text = command(&schema, "blockdev-add", &chosen).expect("a command");
        assert!(text.contains("filename=TEXT"), "{text}");
        let text = command(&schema, "SHUTDOWN", &[]).expect("an event");
        assert!(text.contains("machine ends"), "{text}");
    }
}
