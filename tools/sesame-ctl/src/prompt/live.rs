//! Names that the live VM knows: nodes, devices, chardevs, jobs, objects, fds.

use serde_json::{Value, json};

use super::complete::Names;
use crate::session::Session;

/// The VM, while there is one.
pub(super) struct Live<'s>(Option<&'s mut Session>);

/// What a member names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Nodes,
    Disks,
    Devices,
    Buses,
    Chardevs,
    Objects,
    Iothreads,
    Memory,
    Jobs,
    FdNames,
    FdSets,
    Files,
    Paths,
    Properties,
    Types,
    Models,
}

/// Which names a member takes. New nodes, devices and objects have no name to choose.
fn source(command: &str, key: &str) -> Option<Source> {
    let last = key.rsplit('.').next().unwrap_or(key);
    let source = match (command, last) {
        ("blockdev-add" | "chardev-add" | "object-add" | "device_add", "node-name" | "id") => {
            return None;
        }
        ("device_del", "id") => Source::Devices,
        ("chardev-remove" | "chardev-change" | "chardev-send-break", "id") => Source::Chardevs,
        ("object-del", "id") => Source::Objects,
        ("device-list-properties", "typename") => Source::Models,
        (job, "id") if job.starts_with("job-") => Source::Jobs,
        (job, "device") if job.starts_with("block-job-") => Source::Jobs,
        (_, "job-id") => return None,
        (
            _,
            "node-name" | "node" | "drive" | "file" | "backing" | "image" | "target" | "base-node",
        )
        | (_, "top-node" | "data-file" | "overlay" | "replaces") => Source::Nodes,
        (_, "device") => Source::Disks,
        (_, "chardev" | "rng-chardev") => Source::Chardevs,
        (_, "iothread") => Source::Iothreads,
        (_, "memdev") => Source::Memory,
        (_, "bus") => Source::Buses,
        ("closefd", "fdname") => Source::FdNames,
        (_, "fd") => Source::FdNames,
        (_, "fdset-id") => Source::FdSets,
        (_, "filename" | "mem-path" | "logfile" | "out" | "in") => Source::Files,
        (qom, "path") if qom.starts_with("qom-") => Source::Paths,
        (qom, "property") if qom.starts_with("qom-") => Source::Properties,
        (_, "typename") => Source::Types,
        _ => return None,
    };
    Some(source)
}

impl<'s> Live<'s> {
    pub(super) fn new(session: Option<&'s mut Session>) -> Self {
        Self(session)
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let session = self.0.as_mut();
        session
            .and_then(|session| session.ask(command, arguments))
            .unwrap_or_default()
    }

    /// A member of each element of a list.
    fn each(&mut self, command: &str, member: &str) -> Vec<String> {
        members(&self.ask(command, json!({})), member)
    }

    /// The objects below a place in the tree, with their types.
    fn below(&mut self, path: &str) -> Vec<(String, String)> {
        let list = self.ask("qom-list", json!({ "path": path }));
        let list = list.as_array().into_iter().flatten();
        let named = list.filter_map(|entry| {
            let kind = entry["type"].as_str()?.to_owned();
            Some((entry["name"].as_str()?.to_owned(), kind))
        });
        named.collect()
    }

    /// The children of a place whose type begins so.
    fn children(&mut self, path: &str, kind: &str) -> Vec<String> {
        let below = self.below(path).into_iter();
        let fitting = below.filter(|(_, is)| {
            is.strip_prefix("child<")
                .is_some_and(|is| is.starts_with(kind))
        });
        fitting.map(|(name, _)| name).collect()
    }

    fn waiting_fds(&mut self, member: &str) -> Vec<String> {
        members(&self.ask("query-fds", json!({}))["waiting"], member)
    }

    fn sets(&mut self) -> Vec<String> {
        self.each("query-fdsets", "fdset-id")
    }

    /// Objects and folders at what was typed of a path.
    fn paths(&mut self, typed: &str) -> Vec<String> {
        let (folder, _) = typed.rsplit_once('/').unwrap_or(("", ""));
        let place = if folder.is_empty() { "/" } else { folder };
        let found = self.below(place).into_iter();
        let children = found.filter(|(_, kind)| kind.starts_with("child<"));
        children
            .map(|(name, _)| format!("{folder}/{name}"))
            .collect()
    }
}

impl Names for Live<'_> {
    fn of(
        &mut self,
        command: &str,
        key: &str,
        typed: &str,
        other: &dyn Fn(&str) -> Option<String>,
    ) -> Vec<String> {
        let Some(source) = source(command, key) else {
            return Vec::new();
        };
        match source {
            Source::Nodes => self.each("query-named-block-nodes", "node-name"),
            Source::Disks => {
                let mut disks = self.each("query-block", "device");
                disks.retain(|name| !name.is_empty());
                disks.extend(self.each("query-named-block-nodes", "node-name"));
                disks
            }
            Source::Devices => self.children("/machine/peripheral", ""),
            Source::Buses => {
                let mut buses = self.children("/machine/peripheral", "pcie-root-port");
                buses.extend(self.children("/machine/peripheral", "pcie-pci-bridge"));
                buses
            }
            Source::Chardevs => self.each("query-chardev", "label"),
            Source::Objects => self.children("/objects", ""),
            Source::Iothreads => self.children("/objects", "iothread"),
            Source::Memory => self.children("/objects", "memory-backend"),
            Source::Jobs => {
                let mut jobs = self.each("query-jobs", "id");
                jobs.extend(self.each("query-block-jobs", "device"));
                jobs
            }
            Source::FdNames => self.waiting_fds("name"),
            Source::FdSets => self.sets(),
            Source::Files => {
                let names = self
                    .waiting_fds("name")
                    .into_iter()
                    .map(|name| format!("fd:{name}"));
                let names: Vec<_> = names.collect();
                let sets = self
                    .sets()
                    .into_iter()
                    .map(|set| format!("/dev/fdset/{set}"));
                names.into_iter().chain(sets).collect()
            }
            Source::Paths => self.paths(typed),
            Source::Properties => {
                let below = other("path").map(|path| self.below(&path));
                let own = below.unwrap_or_default().into_iter();
                own.filter(|(_, kind)| !kind.starts_with("child<"))
                    .map(|(name, _)| name)
                    .collect()
            }
            Source::Types => self.each("qom-list-types", "name"),
            Source::Models => {
                let devices = json!({"implements": "device", "abstract": false});
                members(&self.ask("qom-list-types", devices), "name")
            }
        }
    }
}

/// A member of each element, as text.
fn members(list: &Value, member: &str) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    let texts = list.filter_map(|element| match &element[member] {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    });
    texts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_made_has_no_name_to_choose() {
        assert_eq!(source("blockdev-add", "node-name"), None);
        assert_eq!(source("blockdev-del", "node-name"), Some(Source::Nodes));
        assert_eq!(source("device_add", "id"), None);
        assert_eq!(source("device_del", "id"), Some(Source::Devices));
        assert_eq!(source("blockdev-add", "file.filename"), Some(Source::Files));
        assert_eq!(source("job-cancel", "id"), Some(Source::Jobs));
    }

    #[test]
    fn without_a_vm_there_are_no_names() {
        let names = Live::new(None).of("device_del", "id", "", &|_| None);
        assert!(names.is_empty(), "{names:?}");
    }
}
