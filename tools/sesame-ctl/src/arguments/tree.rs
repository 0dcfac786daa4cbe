//! Words with dotted keys to a tree. What each leaf means is decided later, by the schema.

use indexmap::IndexMap;
use indexmap::map::Entry;
use serde_json::Value;

use super::files::{FileArg, Source};

/// A value that was typed.
#[derive(Debug, PartialEq)]
pub(super) enum Leaf {
    /// `key=text`.
    Text(String),
    /// `key:=JSON`.
    Json(Value),
    /// Members, or elements by their number.
    Branch(IndexMap<String, Leaf>),
}

/// All that was typed for one command.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Branch {
    /// Values with a key.
    pub(super) members: IndexMap<String, Leaf>,
    /// Words without one.
    pub(super) bare: Vec<String>,
}

/// A word with a key, taken apart.
#[derive(Debug, PartialEq)]
pub(crate) enum KeyWord<'w> {
    /// `key=text`.
    Text(&'w str, &'w str),
    /// `key:=JSON`.
    Json(&'w str, &'w str),
    /// `key!<path` and its siblings.
    File(&'w str, &'w str),
    /// A word without a key.
    Bare(&'w str),
}

/// Takes a word apart. Keys are letters, digits and `-_.`.
pub(crate) fn key_word(word: &str) -> KeyWord<'_> {
    let in_key = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let end = word.find(|letter| !in_key(letter)).unwrap_or(word.len());
    let (key, rest) = word.split_at(end);
    if key.is_empty() {
        return KeyWord::Bare(word);
    }
    if let Some(json) = rest.strip_prefix(":=") {
        return KeyWord::Json(key, json);
    }
    if let Some(text) = rest.strip_prefix('=') {
        return KeyWord::Text(key, text);
    }
    match rest.strip_prefix('!') {
        Some(file) => KeyWord::File(key, file),
        None => KeyWord::Bare(word),
    }
}

impl Branch {
    /// Takes a word in. `fresh` names a file that comes with it; the file is added to `files`.
    pub(super) fn add(
        &mut self,
        word: &str,
        fresh: &mut dyn FnMut() -> String,
        files: &mut Vec<FileArg>,
    ) -> Result<(), String> {
        let (key, leaf) = match key_word(word) {
            KeyWord::Bare(text) if text.starts_with('{') => return self.merge(text),
            KeyWord::Bare(text) => {
                self.bare.push(text.to_owned());
                return Ok(());
            }
            KeyWord::Text(key, text) => (key, Leaf::Text(text.to_owned())),
            KeyWord::Json(key, json) => (key, Leaf::Json(read_json(key, json)?)),
            KeyWord::File(key, file) => {
                let source = Source::read(file).map_err(|why| format!("{key}: {why}"))?;
                let name = fresh();
                let text = if takes_bare_name(key) {
                    name.clone()
                } else {
                    format!("fd:{name}")
                };
                files.push(FileArg { name, source });
                (key, Leaf::Text(text))
            }
        };
        let path: Vec<_> = key.split('.').collect();
        insert(&mut self.members, &path, leaf, key)
    }

    /// Takes all members of a JSON object in.
    fn merge(&mut self, json: &str) -> Result<(), String> {
        let Value::Object(members) = read_json("the object", json)? else {
            return Err(format!("'{json}' is no JSON object"));
        };
        for (key, value) in members {
            insert(&mut self.members, &[&key], Leaf::Json(value), &key)?;
        }
        Ok(())
    }
}

fn read_json(key: &str, json: &str) -> Result<Value, String> {
    serde_json::from_str(json).map_err(|why| format!("{key}: '{json}' is no JSON: {why}"))
}

/// Members that name an fd take its name as it is; every other text that can name a file takes
/// `fd:NAME`. (`str` is that of a wrapped socket address.)
fn takes_bare_name(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    matches!(last, "fd" | "fdname" | "str") || last.ends_with("-fd")
}

fn insert(
    members: &mut IndexMap<String, Leaf>,
    path: &[&str],
    leaf: Leaf,
    key: &str,
) -> Result<(), String> {
    let Some((first, rest)) = path.split_first() else {
        return Ok(());
    };
    if first.is_empty() {
        return Err(format!("'{key}' has a part without a name"));
    }
    if rest.is_empty() {
        return match members.entry((*first).to_owned()) {
            Entry::Vacant(free) => {
                free.insert(leaf);
                Ok(())
            }
            Entry::Occupied(_) => Err(format!("'{key}' is given twice")),
        };
    }
    let below = members
        .entry((*first).to_owned())
        .or_insert_with(|| Leaf::Branch(IndexMap::new()));
    // Members may be added to an object that came as JSON.
    if let Leaf::Json(Value::Object(object)) = below {
        let object = std::mem::take(object).into_iter();
        *below = Leaf::Branch(
            object
                .map(|(name, value)| (name, Leaf::Json(value)))
                .collect(),
        );
    }
    match below {
        Leaf::Branch(members) => insert(members, rest, leaf, key),
        _ => Err(format!("'{first}' in '{key}' is given as a value, too")),
    }
}

/// The text of a member, such as a tag's.
pub(super) fn text_at<'b>(members: &'b IndexMap<String, Leaf>, name: &str) -> Option<&'b str> {
    match members.get(name)? {
        Leaf::Text(text) => Some(text),
        Leaf::Json(value) => value.as_str(),
        Leaf::Branch(_) => None,
    }
}
