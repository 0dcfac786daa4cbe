//! Changes of the graph's shape under running users: exchange, snapshot.
//!
//! ```text
//!   plan_*  on a Sketch: every rule checked, nothing touched
//!   drain   the users of what changes are parked
//!   then    the change itself, which cannot fail
//! ```

use std::time::Duration;

use super::sketch::{Drawn, Link, Sketch, link_of};
use super::{BlockGraph, Entry, Grip, Hold, Owner};
use crate::drain::{Drain, Gate};
use crate::error::BlockError;
use crate::node::NodeRef;
use crate::permission::Permissions;

/// A snapshot that was planned: `overlay` goes between `node` and its users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// What the users have now, and what will show through the overlay.
    pub node: String,
    /// What they will have.
    pub overlay: String,
}

impl BlockGraph {
    /// The graph as it is, to try changes on.
    #[must_use]
    pub fn sketch(&self) -> Sketch {
        let mut sketch = Sketch::default();
        for (name, entry) in &self.nodes {
            sketch.draw(name, drawn(entry));
        }
        sketch
    }

    /// Draws a node that came after the sketch was made, with what stands below it.
    pub fn draw_into(&self, sketch: &mut Sketch, name: &str) {
        let mut new = vec![name.to_owned()];
        while let Some(name) = new.pop() {
            if let (None, Some(entry)) = (sketch.node(&name), self.nodes.get(&name)) {
                sketch.draw(&name, drawn(entry));
                new.extend(entry.children.edges().map(|edge| edge.child.clone()));
            }
        }
    }

    /// Plans a snapshot on a sketch which may hold others of the same transaction.
    ///
    /// # Errors
    /// A node is missing, busy or in use, or somebody would not agree.
    pub fn plan_snapshot(
        &self,
        sketch: &mut Sketch,
        node: &str,
        overlay: &str,
    ) -> Result<Append, BlockError> {
        self.check_idle(node)?;
        self.check_idle(overlay)?;
        let entry = self.entry(overlay)?;
        // Who only stands on it does not see yet what it holds, and may go on.
        let used = sketch.used(overlay)?;
        if used.uses.contains(Permissions::CONSISTENT_READ) {
            return Err(BlockError::OverlayInUse);
        }
        if entry.children.edge("backing").is_some() {
            return Err(BlockError::OverlayBacked);
        }
        if !entry.children.can_be_backed() {
            return Err(BlockError::OverlayUnable);
        }
        let (len, had) = (entry.node.len(), self.entry(node)?.node.len());
        let is_read = sketch
            .used(node)?
            .uses
            .contains(Permissions::CONSISTENT_READ);
        if len < had && is_read {
            return Err(BlockError::ShortOverlay {
                overlay: overlay.to_owned(),
                len,
                node: node.to_owned(),
                had,
            });
        }
        if self.stands_on(node, overlay) {
            return Err(BlockError::Cycle {
                child: node.to_owned(),
                role: "backing",
                parent: overlay.to_owned(),
            });
        }
        sketch.link(overlay, "backing", Link::Backing, Some(node));
        sketch.move_users(node, overlay);
        self.agree(sketch)?;
        Ok(Append {
            node: node.to_owned(),
            overlay: overlay.to_owned(),
        })
    }

    /// Makes a planned snapshot so, while everyone above `node` is drained. What was exchanged
    /// comes back, to end outside the pause.
    pub fn append(&mut self, change: &Append) -> Vec<NodeRef> {
        let mut old = Vec::new();
        let (Ok(below), Ok(above)) = (self.entry(&change.node), self.entry(&change.overlay)) else {
            return old;
        };
        let (below, above) = (below.node.clone(), above.node.clone());
        old.extend(self.move_users(&change.node, &above));
        if let Some(entry) = self.nodes.get_mut(&change.overlay) {
            old.extend(entry.children.back(Some(below)));
        }
        old
    }

    /// Gives every user and parent of `from` the node `to` instead, except `to` and what is below
    /// it. All of them are drained.
    pub(super) fn move_users(&mut self, from: &str, to: &NodeRef) -> Vec<NodeRef> {
        let mut old = Vec::new();
        let mut users = Vec::new();
        let owner = |name: &str| self.nodes.get(name).map(|entry| entry.owner);
        if (owner(from), owner(to.name())) == (Some(Owner::Drive), Some(Owner::Parent)) {
            // The drive goes along, and what it had belongs to whoever stands on it.
            for (name, owner) in [(from, Owner::Parent), (to.name(), Owner::Drive)] {
                if let Some(entry) = self.nodes.get_mut(name) {
                    entry.owner = owner;
                }
            }
        }
        if let Some(entry) = self.nodes.get_mut(from) {
            users = std::mem::take(&mut entry.devices);
        }
        for user in &users {
            old.push(user.root.replace(to.clone()));
        }
        let movable: Vec<String> = self
            .nodes
            .keys()
            .filter(|name| !self.stands_on(to.name(), name))
            .cloned()
            .collect();
        for name in movable {
            if let Some(entry) = self.nodes.get_mut(&name) {
                for edge in entry.children.edges_to(from) {
                    old.extend(edge.put(to.clone()));
                }
            }
        }
        if let Some(entry) = self.nodes.get_mut(to.name()) {
            entry.devices.append(&mut users);
        }
        old
    }

    /// Puts `to` into the place of `from`, for all users and parents of it, as a job does at its
    /// end. Returns how long users waited.
    ///
    /// # Errors
    /// There is no such node, or somebody would not agree.
    pub fn replace_node(&mut self, from: &str, to: &str) -> Result<Duration, BlockError> {
        let node = self.entry(to)?.node.clone();
        let mut sketch = self.sketch();
        sketch.move_users(from, to);
        self.agree(&sketch)?;
        let drain = self.drain(&[from, to]);
        let old = self.move_users(from, &node);
        let pause = drain.end();
        drop(old);
        self.release_unused(from);
        self.settle_locks();
        Ok(pause)
    }

    /// Gives a node something else behind it, or nothing; the image's header is not touched.
    ///
    /// # Errors
    /// There is no such node, it cannot have a backing node, or somebody would not agree.
    pub fn set_backing(
        &mut self,
        name: &str,
        backing: Option<&str>,
    ) -> Result<Duration, BlockError> {
        let entry = self.entry(name)?;
        if !entry.children.can_be_backed() {
            return Err(BlockError::NoSuchRole {
                node: name.to_owned(),
                role: "backing".to_owned(),
            });
        }
        let was = entry.children.edge("backing");
        let was = was.map(|edge| edge.child.clone());
        let node = backing.map(|name| self.entry(name)).transpose()?;
        let node = node.map(|entry| entry.node.clone());
        let mut sketch = self.sketch();
        sketch.link(name, "backing", Link::Backing, backing);
        self.agree(&sketch)?;
        let drain = self.drain(&[name]);
        let old = self
            .nodes
            .get_mut(name)
            .and_then(|entry| entry.children.back(node));
        let pause = drain.end();
        drop(old);
        if let Some(was) = was {
            self.release_unused(&was);
        }
        self.settle_locks();
        Ok(pause)
    }

    /// Gives the parent `parent` another node as its child `role`, and has everyone wait who
    /// could see both. Returns how long users waited.
    ///
    /// # Errors
    /// There is no such node, it has no such child, or somebody would not agree.
    pub fn replace_child(
        &mut self,
        parent: &str,
        role: &str,
        child: &str,
    ) -> Result<Duration, BlockError> {
        let node = self.entry(child)?.node.clone();
        let edge = self.entry(parent)?.children.edge(role);
        let edge = edge.ok_or_else(|| BlockError::NoSuchRole {
            node: parent.to_owned(),
            role: role.to_owned(),
        })?;
        let (role, was) = (edge.role, edge.child.clone());
        let mut sketch = self.sketch();
        let link = link_of(self.entry(parent)?.node.driver(), role);
        sketch.link(parent, role, link, Some(child));
        self.agree(&sketch)?;
        let drain = self.drain(&[parent]);
        let edge = self
            .nodes
            .get_mut(parent)
            .and_then(|entry| entry.children.edge_mut(role));
        let old = edge.and_then(|edge| edge.put(node));
        let pause = drain.end();
        drop(old);
        self.release_unused(&was);
        self.settle_locks();
        Ok(pause)
    }

    /// Stops everyone who reaches one of `names`, through whatever lies between; returns when
    /// nothing of theirs is in flight.
    pub fn drain(&self, names: &[&str]) -> Drain {
        // Nobody waits for limits while others wait for them.
        let mut gates: Vec<Gate> = vec![self.throttling.hurry.clone()];
        let mut open: Vec<&str> = names.to_vec();
        let mut seen: Vec<&str> = Vec::new();
        while let Some(name) = open.pop() {
            if seen.contains(&name) {
                continue;
            }
            seen.push(name);
            let Some((name, entry)) = self.nodes.get_key_value(name) else {
                continue;
            };
            gates.extend(entry.devices.iter().map(|user| user.root.gate().clone()));
            for hold in &entry.jobs {
                if !gates.iter().any(|gate| gate.is(&hold.gate)) {
                    gates.push(hold.gate.clone());
                }
            }
            open.extend(self.parents(name).map(|(_, parent)| parent));
        }
        Drain::begin(gates)
    }

    /// Whether a job leaves the node alone.
    ///
    /// # Errors
    /// There is no such node, or a job works on it.
    pub fn check_idle(&self, name: &str) -> Result<(), BlockError> {
        match self.entry(name)?.jobs.first() {
            None => Ok(()),
            Some(hold) => Err(busy(name, hold)),
        }
    }

    /// Whether all jobs leave these nodes alone. If not, the error names the first on which one
    /// works, before one that it only gives something else behind it. What the job `but` only gives
    /// something else does not count.
    ///
    /// # Errors
    /// There is no such node, or a job holds it.
    pub fn check_all_idle(&self, names: &[String], but: Option<&str>) -> Result<(), BlockError> {
        for grip in [Grip::Work, Grip::Relink] {
            for name in names {
                let mut holds = self.entry(name)?.jobs.iter();
                let counts = |hold: &&Hold| {
                    hold.grip == grip && (grip == Grip::Work || Some(hold.job.as_str()) != but)
                };
                if let Some(hold) = holds.find(counts) {
                    return Err(busy(name, hold));
                }
            }
        }
        Ok(())
    }

    /// Keeps nodes as they are for a job that [may have](Self::check_all_idle) them.
    pub fn hold(&mut self, names: &[(String, Grip)], job: &str, kind: &'static str, gate: &Gate) {
        for (name, grip) in names {
            if let Some(entry) = self.nodes.get_mut(name) {
                entry.jobs.push(Hold {
                    job: job.to_owned(),
                    kind,
                    grip: *grip,
                    gate: gate.clone(),
                });
            }
        }
    }

    /// Gives back what a job held. What came with a parent and has none any more goes.
    pub fn let_go(&mut self, job: &str) {
        let mut held = Vec::new();
        for (name, entry) in &mut self.nodes {
            let before = entry.jobs.len();
            entry.jobs.retain(|hold| hold.job != job);
            if entry.jobs.len() != before {
                held.push(name.clone());
            }
        }
        for name in held {
            self.release_unused(&name);
        }
    }

    /// Removes a node that came with a parent once nobody uses it any more, and what it leaves
    /// behind.
    pub(super) fn release_unused(&mut self, name: &str) {
        let mut gone = vec![name.to_owned()];
        while let Some(name) = gone.pop() {
            let unused = self
                .nodes
                .get(&name)
                .is_some_and(|entry| entry.owner == Owner::Parent && entry.jobs.is_empty())
                && !self.is_used(&name);
            if let Some(entry) = self.nodes.get(&name).filter(|_| unused) {
                self.settle(&entry.node);
            }
            if unused && let Some(entry) = self.nodes.shift_remove(&name) {
                gone.extend(entry.children.into_edges().map(|edge| edge.child));
            }
        }
    }

    /// Removes an overlay that was added for nothing.
    pub fn abandon(&mut self, name: &str) {
        self.release_unused(name);
    }

    /// The node that shows through `name`, if there is one.
    ///
    /// # Errors
    /// There is no such node.
    pub fn backing_of(&self, name: &str) -> Result<Option<&str>, BlockError> {
        let edge = self.entry(name)?.children.edge("backing");
        Ok(edge.map(|edge| edge.child.as_str()))
    }
}

fn busy(name: &str, hold: &Hold) -> BlockError {
    BlockError::Busy {
        node: name.to_owned(),
        kind: hold.kind,
    }
}

pub(super) fn drawn(entry: &Entry) -> Drawn {
    let driver = entry.node.driver();
    let children = entry.children.edges();
    let users = entry.devices.iter();
    Drawn {
        read_only: entry.node.is_read_only(),
        inactive: !entry.node.is_active(),
        force_share: entry.force_share,
        children: children
            .map(|edge| (edge.role, link_of(driver, edge.role), edge.child.clone()))
            .collect(),
        users: users.map(|user| (user.id.clone(), user.usage)).collect(),
    }
}
