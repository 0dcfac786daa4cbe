//! What nodes are called in lists: by a plain name where that alone would bring back what is there,
//! and otherwise by all of their options, `json:{..}`.
//!
//! ```text
//!   top.qcow2, whose header names base.qcow2
//!     over base.qcow2 ────────────────► /dir/top.qcow2
//!     over anything else, or nothing ─► json:{"backing": {..}, "driver": "qcow2", "file": {..}}
//! ```
//!
//! The names and their shape are QEMU's, with members in the order of the alphabet. What was handed in
//! as an fd is called by that: nobody can compare it with what a header says.

use serde_json::{Map, Value};

use super::filters::is_filter;
use super::image::beside;
use super::view::NodeView;
use crate::spec::DriverSpec;

/// What precedes options that stand for a name.
const OPTIONS: &str = "json:";

/// A node as lists call it.
struct Called {
    name: String,
    /// The node as `blockdev-add` would take it, without names of nodes.
    options: Value,
}

impl<'a> NodeView<'a> {
    /// The name under which lists show the node.
    #[must_use]
    pub fn full_name(&self) -> String {
        self.called().name
    }

    /// Asks each node below once: chains are long.
    fn called(&self) -> Called {
        let below = self.below();
        let below = below.map(|(role, view)| (role, view, view.called()));
        let below: Vec<_> = below.collect();
        let behind = below.iter().find(|(role, ..)| *role == "backing");
        let driver = self.node().driver();
        let otherwise =
            !is_filter(driver) && self.is_backed_otherwise(behind.map(|(_, view, it)| (view, it)));
        let mut options = self.own_options();
        for (role, _, called) in &below {
            if *role != "backing" || otherwise || is_filter(driver) {
                options.insert((*role).to_owned(), called.options.clone());
            }
        }
        if otherwise && behind.is_none() {
            options.insert("backing".to_owned(), Value::Null);
        }
        let options = Value::Object(options);
        let stands_on_options = below
            .iter()
            .any(|(role, view, _)| *role == "file" && is_more_than_a_file(view));
        let name = match (driver, &self.entry.made) {
            // Those have no options of their own.
            ("commit_top" | "mirror_top", _) => below.into_iter().next().map(|(.., it)| it.name),
            (
                "throttle" | "copy-on-read" | "compress" | "copy-before-write" | "snapshot-access",
                _,
            ) => None,
            (_, DriverSpec::Raw(raw)) if raw.offset != 0 || raw.size.is_some() => None,
            ("raw" | "qcow2", _) if stands_on_options || otherwise => None,
            _ => Some(self.filename().to_owned()),
        };
        let name = name.unwrap_or_else(|| format!("{OPTIONS}{}", text(&options)));
        Called { name, options }
    }

    /// Whether something else is behind it than its header says.
    fn is_backed_otherwise(&self, behind: Option<(&NodeView<'a>, &Called)>) -> bool {
        let is_passed = |name: &str| name.starts_with("fd:") || name.starts_with("/dev/fdset/");
        let handed_in = behind.is_some_and(|(view, _)| is_passed(view.filename()));
        if handed_in || is_passed(self.filename()) {
            return false;
        }
        match (self.node().backing_name(), behind) {
            (None, behind) => behind.is_some(),
            (Some(_), None) => true,
            (Some((named, _)), Some((view, called))) => {
                let plain = beside(self.filename(), &named).ok();
                // Rules of a tester stand in headers, and not in names.
                let is_same = plain.is_some_and(|plain| plain == called.name);
                !is_same && called.name != named && !named.ends_with(&called.name)
                    || called.name != view.filename()
            }
        }
    }

    /// What was said of it alone.
    fn own_options(&self) -> Map<String, Value> {
        let driver = self.node().driver();
        let mut options = Map::new();
        let mut put = |name: &str, value: Value| drop(options.insert(name.to_owned(), value));
        put("driver", driver.into());
        match &self.entry.made {
            DriverSpec::File(file) | DriverSpec::HostDevice(file) => {
                put("filename", file.filename.as_str().into());
            }
            DriverSpec::Raw(raw) if !is_filter(driver) => {
                if raw.offset != 0 {
                    put("offset", raw.offset.into());
                }
                if let Some(size) = raw.size {
                    put("size", size.into());
                }
            }
            DriverSpec::Throttle(throttle) => put("throttle-group", throttle.group.as_str().into()),
            _ => {}
        }
        options
    }
}

/// Whether there is more to a node's storage than a file, or what a tester lays over it.
fn is_more_than_a_file(storage: &NodeView<'_>) -> bool {
    let driver = storage.node().driver();
    matches!(driver, "raw" | "qcow2") || (is_filter(driver) && driver != "blkdebug")
}

/// A value as QEMU writes it: on one line, with a space behind each comma and colon.
fn text(value: &Value) -> String {
    let Value::Object(members) = value else {
        return value.to_string();
    };
    let mut members: Vec<_> = members.iter().collect();
    members.sort_unstable_by_key(|(name, _)| *name);
    let members = members.into_iter();
    let members = members.map(|(name, value)| format!("\"{name}\": {}", text(value)));
    format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_are_written_on_one_line_in_the_order_of_the_alphabet() {
        let options = json!({ "file": { "filename": "a\"b", "driver": "file" }, "backing": null });
        assert_eq!(
            text(&options),
            r#"{"backing": null, "file": {"driver": "file", "filename": "a\"b"}}"#
        );
    }
}
