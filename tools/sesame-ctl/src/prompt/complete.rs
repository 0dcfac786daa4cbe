//! Completion: what the word at the cursor may become.
//!
//! ```text
//!   line ─► words ─► which word is it? ─┬─ command        names of schema and program
//!                                       ├─ key            members at its path
//!                                       ├─ value          words of its type; names of the live VM
//!                                       └─ file           the file system
//! ```

use crate::arguments::files::entries;
use crate::arguments::sketch::Sketch;
use crate::arguments::{KeyWord, key_word, words};
use crate::local::Local;
use crate::schema::{Kind, Schema};

/// What a word may become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The whole word, quoted if need be.
    pub(crate) replacement: String,
    /// What a list of candidates shows.
    pub(crate) shown: String,
}

/// Names that only the live VM knows.
pub(crate) trait Names {
    /// Those that fit a member of a command's arguments; `other` tells what another member has.
    fn of(
        &mut self,
        command: &str,
        key: &str,
        typed: &str,
        other: &dyn Fn(&str) -> Option<String>,
    ) -> Vec<String>;
}

/// The options that a line may have.
const OPTIONS: [&str; 3] = ["--add-fd", "--fd", "--wait"];

/// Where the word at the end of `line` begins, and what it may become.
pub(crate) fn complete(
    schema: &Schema,
    line: &str,
    names: &mut dyn Names,
) -> (usize, Vec<Candidate>) {
    let parsed = words::parse(line);
    let start = parsed.last.as_ref().map_or(line.len(), |word| word.start);
    if parsed.open == Some("JSON") {
        return (start, Vec::new());
    }
    let word = parsed.last.map(|word| word.text).unwrap_or_default();
    let done: Vec<String> = parsed.done.into_iter().map(|word| word.text).collect();
    let mut found = match done.last().map(String::as_str) {
        Some("--fd" | "--add-fd") => file_option(&word),
        Some("--wait") => whole(names.of("job-dismiss", "id", &word, &|_| None), &word),
        _ if word.starts_with("--") => whole(OPTIONS.map(str::to_owned).into(), &word),
        _ => in_command(schema, &plain(done), &word, names),
    };
    found.sort_by(|one, other| one.shown.cmp(&other.shown));
    found.dedup();
    (start, found)
}

/// The words without options and their values.
fn plain(words: Vec<String>) -> Vec<String> {
    let mut words = words.into_iter();
    let mut plain = Vec::new();
    while let Some(word) = words.next() {
        if OPTIONS.contains(&word.as_str()) {
            words.next();
        } else if !word.starts_with("--") {
            plain.push(word);
        }
    }
    plain
}

fn in_command(
    schema: &Schema,
    done: &[String],
    word: &str,
    names: &mut dyn Names,
) -> Vec<Candidate> {
    let Some((command, arguments)) = done.split_first() else {
        let mut all: Vec<_> = schema.commands().map(str::to_owned).collect();
        all.extend(Local::ALL.map(|local| local.name().to_owned()));
        return whole(all, word);
    };
    let events = || schema.events().to_vec();
    match Local::of(command) {
        Some(Local::Help) if arguments.is_empty() => {
            let commands = schema.commands().map(str::to_owned);
            return whole(commands.chain(events()).collect(), word);
        }
        Some(Local::Help) => return in_command(schema, arguments, word, names),
        Some(Local::Events | Local::Tail) => return whole(events(), word),
        Some(Local::Record | Local::Replay) => return paths("", word),
        Some(Local::Top | Local::Exit) => return Vec::new(),
        None => {}
    }
    let Some(sketch) = Sketch::of(schema, command, arguments) else {
        return Vec::new();
    };
    let other = |name: &str| sketch.text(name).map(str::to_owned);
    match key_word(word) {
        KeyWord::Json(..) => Vec::new(),
        KeyWord::File(key, file) => paths(&format!("{key}!"), file),
        KeyWord::Text(key, typed) => {
            let found = values(schema, &sketch, command, key, typed, names);
            let with_key = |value: String| pair(&format!("{key}={value}"), value);
            found.into_iter().map(with_key).collect()
        }
        KeyWord::Bare(typed) => {
            let mut found = keys(schema, &sketch, typed);
            let slots = sketch.slots(&[]);
            let next = slots.iter().find(|slot| !slot.optional && !slot.given);
            if let Some(next) = next {
                let mut values: Vec<_> = schema
                    .words(&next.kind)
                    .into_iter()
                    .map(str::to_owned)
                    .collect();
                values.extend(names.of(command, &next.name, typed, &other));
                found.extend(whole(values, typed));
            }
            found
        }
    }
}

/// Keys at the path of what was typed; `a.` is offered where there are members below.
fn keys(schema: &Schema, sketch: &Sketch<'_>, typed: &str) -> Vec<Candidate> {
    let (path, begun) = typed
        .rsplit_once('.')
        .map_or(("", typed), |(path, begun)| (path, begun));
    let segments: Vec<_> = path.split('.').filter(|part| !part.is_empty()).collect();
    let mut found = Vec::new();
    for slot in sketch.slots(&segments) {
        if !slot.name.starts_with(begun) {
            continue;
        }
        let key = if path.is_empty() {
            slot.name.clone()
        } else {
            format!("{path}.{}", slot.name)
        };
        let is_list = matches!(schema.kind(&slot.kind), Kind::List(_));
        let below = schema.object(&slot.kind).is_some() || is_list;
        let only_below = below && !matches!(schema.kind(&slot.kind), Kind::Either(_));
        if below {
            let open = if is_list {
                format!("{key}.0")
            } else {
                format!("{key}.")
            };
            found.push(open_ended(&open, format!("{}.", slot.name)));
        }
        if !only_below && !slot.given {
            found.push(open_ended(&format!("{key}="), format!("{}=", slot.name)));
        }
    }
    found
}

fn values(
    schema: &Schema,
    sketch: &Sketch<'_>,
    command: &str,
    key: &str,
    typed: &str,
    names: &mut dyn Names,
) -> Vec<String> {
    let kind = sketch.kind(key).unwrap_or_default();
    let mut found: Vec<String> = schema.words(&kind).into_iter().map(str::to_owned).collect();
    if found.is_empty() || matches!(schema.kind(&kind), Kind::Either(_)) {
        found.extend(names.of(command, key, typed, &|name| {
            sketch.text(name).map(str::to_owned)
        }));
    }
    found.retain(|value| value.starts_with(typed));
    found
}

/// Words that are whole once they are chosen.
fn whole(words: Vec<String>, typed: &str) -> Vec<Candidate> {
    let fitting = words.into_iter().filter(|word| word.starts_with(typed));
    fitting.map(|word| pair(&word.clone(), word)).collect()
}

/// A word with a space behind it. What names a folder, or an object with others below, goes on.
fn pair(word: &str, shown: String) -> Candidate {
    let mut candidate = open_ended(word, shown);
    if !word.ends_with('/') {
        candidate.replacement.push(' ');
    }
    candidate
}

fn open_ended(word: &str, shown: String) -> Candidate {
    Candidate {
        replacement: words::quote(word),
        shown,
    }
}

/// `NAME=<PATH` of an option.
fn file_option(word: &str) -> Vec<Candidate> {
    match word.split_once('=') {
        Some((name, file)) => paths(&format!("{name}="), file),
        None => Vec::new(),
    }
}

/// Files, behind a sign such as `<` if there must be one.
fn paths(before: &str, typed: &str) -> Vec<Candidate> {
    let path = typed.trim_start_matches(['<', '>']);
    let sign = typed.get(..typed.len() - path.len()).unwrap_or_default();
    let found = entries(path).into_iter().map(|entry| {
        let shown = entry
            .trim_end_matches('/')
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        pair(&format!("{before}{sign}{entry}"), shown)
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A VM with two nodes and a device.
    struct Fake;

    impl Names for Fake {
        fn of(
            &mut self,
            command: &str,
            key: &str,
            _: &str,
            _: &dyn Fn(&str) -> Option<String>,
        ) -> Vec<String> {
            let found: &[&str] = match (command, key) {
                (_, "drive" | "file") => &["disk", "two words"],
                ("device_del", "id") => &["d0"],
                _ => &[],
            };
            found.iter().map(|name| (*name).to_owned()).collect()
        }
    }

    fn found(line: &str) -> Vec<String> {
        let (start, found) = complete(&Schema::compiled_in(), line, &mut Fake);
        let lines = found
            .into_iter()
            .map(|found| format!("{}{}", &line[..start], found.replacement));
        lines.collect()
    }

    #[test]
    fn commands_of_the_vm_and_of_the_program_are_completed() {
        assert_eq!(found("blockdev-a"), ["blockdev-add "]);
        assert_eq!(found("repl"), ["replay "]);
        assert!(found("").len() > 50);
        assert_eq!(found("help blockdev-a"), ["help blockdev-add "]);
        assert_eq!(found("events SHUT"), ["events SHUTDOWN "]);
    }

    #[test]
    fn keys_follow_the_driver_that_was_chosen() {
        assert_eq!(found("blockdev-add filen"), [""; 0]);
        assert_eq!(
            found("blockdev-add driver=file filen"),
            ["blockdev-add driver=file filename="]
        );
        let line = "blockdev-add driver=raw file.driver=file file.filen";
        assert_eq!(
            found(line),
            ["blockdev-add driver=raw file.driver=file file.filename="]
        );
        let line = "blockdev-add driver=raw fi";
        assert_eq!(
            found(line),
            [
                "blockdev-add driver=raw file.",
                "blockdev-add driver=raw file="
            ]
        );
        assert_eq!(found("blockdev-add driver=file driv"), [""; 0]);
        assert_eq!(
            found("help blockdev-add driver=file filen"),
            ["help blockdev-add driver=file filename="]
        );
    }

    #[test]
    fn values_come_from_the_schema_and_from_the_vm() {
        assert_eq!(
            found("blockdev-add driver=host"),
            ["blockdev-add driver=host_device "]
        );
        assert_eq!(found("blockdev-add host"), ["blockdev-add host_device "]);
        assert_eq!(found("blockdev-add read-only=o").len(), 2);
        assert_eq!(found("device_del "), ["device_del d0 ", "device_del id="]);
        assert_eq!(
            found("device_add virtio-blk-pci drive=di"),
            ["device_add virtio-blk-pci drive=disk "]
        );
        assert_eq!(
            found("blockdev-add driver=raw file=t"),
            ["blockdev-add driver=raw 'file=two words' "]
        );
        assert_eq!(found("blockdev-add driver=raw file.0.x=t"), [""; 0]);
    }

    #[test]
    fn files_are_completed_behind_their_sign() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().display();
        make_folder(&folder.path().join("disks")).expect("a folder in it");
        let line = format!("blockdev-add driver=file filename!<>{root}/di");
        assert_eq!(found(&line), [format!("{line}sks/")]);
        let line = format!("query-status --fd d=<{root}/di");
        assert_eq!(found(&line), [format!("{line}sks/")]);
        assert_eq!(found("query-status --f"), ["query-status --fd "]);
    }

    use crate::arguments::files::make_folder;

    proptest! {
        #[test]
        fn any_line_is_completed_without_a_panic(line in "(blockdev-add |qom-set |help )?\\PC{0,30}") {
            let (start, _) = complete(&Schema::compiled_in(), &line, &mut Fake);
            prop_assert!(line.is_char_boundary(start));
        }
    }
}
