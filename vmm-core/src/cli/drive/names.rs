//! The keys of a node as they are typed, and what a file's name among them can stand for.

use block::spec::{BackingSpec, Behind, ChildSpec};
use indexmap::IndexMap;
use serde_json::Value;

use super::Problem;

/// The deepest that one name may stand for another: each costs a level of nodes.
const DEEPEST: usize = 8;
/// The key of what is behind an image.
const BACKING: &str = "backing.";
/// The longest chain of images of which anything is said.
const DEEPEST_CHAIN: usize = 64;

/// Keys with their values; a later value wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Keys(IndexMap<String, String>);

impl Keys {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    pub(super) fn set(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), value);
    }

    pub(super) fn set_default(&mut self, key: &str, value: String) {
        self.0.entry(key.to_owned()).or_insert(value);
    }

    pub(super) fn take(&mut self, key: &str) -> Option<String> {
        self.0.shift_remove(key)
    }

    /// As an option's argument.
    pub(super) fn to_text(&self) -> String {
        let parts = self.0.iter();
        let parts = parts.map(|(key, value)| format!("{key}={}", value.replace(',', ",,")));
        parts.collect::<Vec<_>>().join(",")
    }

    /// `file=NAME`: the storage below a format, or the node itself where that is storage.
    /// `at` stands before the storage's keys.
    pub(super) fn name_file(&mut self, name: &str, at: &str) -> Result<(), Problem> {
        if let Some(text) = name.strip_prefix("json:") {
            return self.describe("", text);
        }
        self.stand_for(at, name, 0)
    }

    /// Takes what is said of images behind this one that only headers name: `backing.node-name`,
    /// `backing.backing.node-name` and so on, and the node behind the last of them. Keys that
    /// describe such a node in full stay.
    pub(super) fn take_behind(&mut self) -> Option<Behind> {
        let describes = |key: &str| {
            let rest = key.trim_start_matches(BACKING);
            rest != "node-name" && rest != "backing"
        };
        let mut said = self.0.keys().filter(|key| key.starts_with(BACKING));
        if said.any(|key| describes(key)) {
            return None;
        }
        let mut levels = Vec::new();
        while self.0.keys().any(|key| key.starts_with(BACKING)) && levels.len() < DEEPEST_CHAIN {
            let before = BACKING.repeat(levels.len() + 1);
            let name = self.take(&format!("{before}node-name"));
            levels.push((name, self.take(&format!("{before}backing"))));
        }
        let mut below = None;
        for (name, backing) in levels.into_iter().rev() {
            let backing = match backing {
                Some(node) => BackingSpec::Child(ChildSpec::Named(node)),
                None => BackingSpec::FromHeader(below),
            };
            below = Some(Box::new(Behind { name, backing }));
        }
        below.map(|behind| *behind)
    }

    /// `file.filename=NAME` without a driver: the name tells it.
    pub(super) fn expand_names(&mut self) -> Result<(), Problem> {
        let has_driver = self.0.contains_key("file.driver");
        let Some(name) = self.get("file.filename").map(str::to_owned) else {
            return Ok(());
        };
        if has_driver {
            return Ok(());
        }
        self.take("file.filename");
        match name.strip_prefix("json:") {
            Some(text) => self.describe("file.", text),
            None => self.stand_for("file.", &name, 0),
        }
    }

    /// Sets the keys of the node that a file's name stands for, below `at`.
    fn stand_for(&mut self, at: &str, name: &str, depth: usize) -> Result<(), Problem> {
        if depth > DEEPEST {
            return Err(Problem::new(format!(
                "a file's name stands for more than {DEEPEST} nodes"
            )));
        }
        let key = |last: &str| format!("{at}{last}");
        if let Some(null) = name
            .strip_suffix("://")
            .filter(|it| it.starts_with("null-"))
        {
            self.set_default(&key("driver"), null.to_owned());
            return Ok(());
        }
        if let Some(rest) = name.strip_prefix("blkdebug:") {
            let Some((rules, image)) = rest.split_once(':') else {
                return Err(Problem::new(format!(
                    "'{name}': wanted blkdebug:RULES:FILE; RULES may be empty"
                )));
            };
            self.set_default(&key("driver"), "blkdebug".to_owned());
            if !rules.is_empty() {
                self.set_default(&key("config"), rules.to_owned());
            }
            return self.stand_for(&key("image."), image, depth + 1);
        }
        let is_passed = name.starts_with("fd:") || name.starts_with("/dev/fdset/");
        let name = name.strip_prefix("file:").unwrap_or(name);
        let protocol = name
            .split('/')
            .next()
            .and_then(|start| start.split_once(':'));
        if let Some((protocol, _)) = protocol.filter(|_| !is_passed) {
            return Err(Problem::new(format!("Unknown protocol '{protocol}'")));
        }
        let is_device = name.starts_with("/dev/") && !is_passed;
        let driver = if is_device { "host_device" } else { "file" };
        self.set_default(&key("driver"), driver.to_owned());
        self.set_default(&key("filename"), name.to_owned());
        Ok(())
    }

    /// Sets the keys of the node that a JSON text describes, below `at`; those that are there stay.
    fn describe(&mut self, at: &str, text: &str) -> Result<(), Problem> {
        match monitor::read_json(text)? {
            Value::Object(members) => {
                for (name, value) in members {
                    self.flatten(&format!("{at}{name}"), value)?;
                }
                Ok(())
            }
            _ => Err(Problem::new("json: wanted an object that describes a node")),
        }
    }

    fn flatten(&mut self, key: &str, value: Value) -> Result<(), Problem> {
        match value {
            Value::Object(members) => members
                .into_iter()
                .try_for_each(|(name, value)| self.flatten(&format!("{key}.{name}"), value)),
            Value::Array(elements) => elements
                .into_iter()
                .enumerate()
                .try_for_each(|(at, value)| self.flatten(&format!("{key}.{at}"), value)),
            Value::Null => Err(Problem::new(format!("json: '{key}' is null"))),
            Value::Bool(on) => {
                self.set_default(key, if on { "on" } else { "off" }.to_owned());
                Ok(())
            }
            Value::String(text) => {
                self.set_default(key, text);
                Ok(())
            }
            Value::Number(number) => {
                self.set_default(key, number.to_string());
                Ok(())
            }
        }
    }
}
