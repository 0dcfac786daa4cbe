//! What lists show of a node, and of who stands on it and uses it.

use super::{BlockGraph, Entry};
use crate::node::NodeRef;
use crate::permission::Usage;

/// One node as lists show it.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'a> {
    pub(super) graph: &'a BlockGraph,
    pub(super) entry: &'a Entry,
}

impl<'a> NodeView<'a> {
    /// The node itself: name, driver, options, length.
    pub fn node(&self) -> &'a NodeRef {
        &self.entry.node
    }

    /// What it was opened from, itself or its storage: a path, `/dev/fdset/N`, `null-co://`.
    pub fn filename(&self) -> &'a str {
        &self.entry.filename
    }

    /// Its children: role and name.
    pub fn children(&self) -> impl Iterator<Item = (&'static str, &'a str)> + use<'a> {
        self.entry
            .children
            .edges()
            .map(|edge| (edge.role, edge.child.as_str()))
    }

    /// Its children as views: role and node.
    pub fn below(&self) -> impl Iterator<Item = (&'static str, NodeView<'a>)> + use<'a> {
        let graph = self.graph;
        self.children()
            .filter_map(move |(role, name)| Some((role, graph.node(name).ok()?)))
    }

    /// Its parents: the role it has for them, and their names.
    pub fn parents(&self) -> impl Iterator<Item = (&'static str, &'a str)> + use<'a> {
        self.graph.parents(self.entry.node.name())
    }

    /// The ids of the devices that use it directly.
    pub fn devices(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.users().map(|(id, _)| id)
    }

    /// The devices that use it directly, and what each does.
    pub fn users(&self) -> impl Iterator<Item = (&'a str, Usage)> + use<'a> {
        let devices = self.entry.devices.iter();
        devices.map(|device| (device.id.as_str(), device.usage))
    }

    /// The ids of the jobs that work on it.
    pub fn jobs(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.entry.jobs.iter().map(|hold| hold.job.as_str())
    }
}
