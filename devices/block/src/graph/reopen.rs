//! Nodes with other options, or over other nodes: all that are named together, or none.
//!
//! ```text
//!   specs, as the nodes are to be ─► compared with how they were made: what may change?
//!                                      │ drawn on a sketch: who would not agree?
//!                                      │ every file opened that is needed
//!                                      ▼
//!   prepared ── drop ──► nothing has changed
//!      └─ drain ─► settle what becomes read-only ─► options, then children ─► end: how long
//! ```
//!
//! What came inline with a node goes along with it: it becomes writable and read-only as its parent
//! does, unless it was said of it what it is.

use std::time::Duration;

use fdset::{Door, Wish};
use indexmap::IndexMap;

use super::sketch::{Link, link_of};
use super::{BlockGraph, Entry, Owner};
use crate::error::BlockError;
use crate::node::NodeRef;
use crate::reopen::Reopening;
use crate::spec::{BackingSpec, ChildSpec, DriverSpec, NodeOptions, NodeSpec};

/// Another child for a node, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Relink {
    parent: String,
    role: &'static str,
    child: Option<String>,
}

/// What is to change, before anything was opened.
#[derive(Debug, Default)]
struct Draft {
    options: IndexMap<String, NodeOptions>,
    links: Vec<Relink>,
    /// A child that a node cannot have whatever the others say: told where they agree.
    unfit: Option<BlockError>,
}

/// Changes of several nodes that were prepared together. Dropping it leaves them as they are.
#[must_use = "changes that are dropped have not happened"]
#[derive(Debug)]
pub struct GraphReopening {
    changes: Vec<Reopening>,
    links: Vec<Relink>,
}

impl BlockGraph {
    /// Prepares nodes to be as `specs` say: each has the name of a node that is there, and its
    /// driver. Which children they have, and most options of all nodes, may differ.
    ///
    /// # Errors
    /// A node is missing or busy, an option cannot change, a file cannot be opened that way, or
    /// somebody would not agree. Nothing has changed then.
    pub fn prepare_anew(
        &self,
        door: &Door,
        specs: &[NodeSpec],
    ) -> Result<GraphReopening, BlockError> {
        let draft = self.draft(specs)?;
        let mut sketch = self.sketch();
        for (name, to) in &draft.options {
            if let Some(drawn) = sketch.node(name) {
                drawn.read_only = to.read_only;
            }
        }
        for Relink {
            parent,
            role,
            child,
        } in &draft.links
        {
            let link = link_of(self.entry(parent)?.node.driver(), role);
            sketch.link(parent, role, link, child.as_deref());
        }
        self.agree(&sketch)?;
        draft.unfit.map_or(Ok(()), Err)?;
        Ok(GraphReopening {
            changes: self.open_anew(door, draft.options)?,
            links: draft.links,
        })
    }

    /// What [`prepare_anew`](Self::prepare_anew) will open, and cannot do without.
    ///
    /// # Errors
    /// As there, where nothing needs to be opened to know it.
    pub fn anew_opens(&self, specs: &[NodeSpec]) -> Result<Vec<Wish>, BlockError> {
        let draft = self.draft(specs)?;
        draft.unfit.map_or(Ok(()), Err)?;
        self.opens(&draft.options)
    }

    /// Makes what was prepared so. Returns how long users waited.
    ///
    /// # Errors
    /// What a node that becomes read-only still had in memory could not be written down: nothing
    /// has changed.
    pub fn make_anew(&mut self, prepared: GraphReopening) -> Result<Duration, BlockError> {
        let GraphReopening { changes, links } = prepared;
        let nodes = changes.iter().map(|change| change.node().name());
        let parents = links.iter().map(|link| link.parent.as_str());
        let names: Vec<&str> = nodes.chain(parents).collect();
        let drain = self.drain(&names);
        for change in changes.iter().filter(|change| change.options().read_only) {
            self.write_down(change.node())?;
        }
        changes.into_iter().for_each(Reopening::commit);
        let mut old = Vec::new();
        for link in &links {
            old.extend(self.relink(link));
        }
        let pause = drain.end();
        for node in old {
            let name = node.name().to_owned();
            drop(node);
            self.release_unused(&name);
        }
        self.settle_locks();
        Ok(pause)
    }

    /// Prepares a node for other options, with the storage below it that goes along: what came
    /// inline with it, or may change by itself.
    ///
    /// # Errors
    /// The storage cannot be opened that way, or somebody would not agree.
    pub fn prepare_reopen(
        &self,
        door: &Door,
        name: &str,
        to: NodeOptions,
    ) -> Result<Vec<Reopening>, BlockError> {
        self.check_idle(name)?;
        let changes = self.with_followers(name, to)?;
        let mut sketch = self.sketch();
        for (node, to) in &changes {
            if let Some(drawn) = sketch.node(node) {
                drawn.read_only = to.read_only;
            }
        }
        self.agree(&sketch)?;
        self.open_anew(door, changes)
    }

    /// What [`prepare_reopen`](Self::prepare_reopen) will open, and cannot do without.
    ///
    /// # Errors
    /// There is no such node.
    pub fn reopening_opens(&self, name: &str, to: NodeOptions) -> Result<Vec<Wish>, BlockError> {
        self.opens(&self.with_followers(name, to)?)
    }

    fn open_anew(
        &self,
        door: &Door,
        changes: IndexMap<String, NodeOptions>,
    ) -> Result<Vec<Reopening>, BlockError> {
        let changes = changes.into_iter();
        let opened: Result<Vec<_>, _> = changes
            .map(|(name, to)| self.entry(&name)?.node.prepare_reopen(door, to))
            .collect();
        if opened.is_err() {
            self.settle_locks();
        }
        opened
    }

    fn opens(&self, changes: &IndexMap<String, NodeOptions>) -> Result<Vec<Wish>, BlockError> {
        let mut wishes = Vec::new();
        for (name, to) in changes {
            wishes.extend(self.entry(name)?.node.reopening_opens(to));
        }
        Ok(wishes)
    }

    fn with_followers(
        &self,
        name: &str,
        to: NodeOptions,
    ) -> Result<IndexMap<String, NodeOptions>, BlockError> {
        self.entry(name)?;
        let mut changes = IndexMap::from([(name.to_owned(), to)]);
        self.add_followers(&mut changes)?;
        Ok(changes)
    }

    /// Adds the storage below what changes that goes along.
    fn add_followers(&self, changes: &mut IndexMap<String, NodeOptions>) -> Result<(), BlockError> {
        let mut at = 0;
        while let Some((name, to)) = changes.get_index(at) {
            at += 1;
            let (to, entry) = (*to, self.entry(name)?);
            let was = entry.node.options();
            let roles = entry.children.edges();
            let below: Vec<_> = roles.filter(|edge| edge.role != "backing").collect();
            for edge in below {
                let child = self.entry(&edge.child)?;
                let said = changes.get(&edge.child).copied();
                let now = said.unwrap_or(child.node.options());
                let inline = child.owner == Owner::Parent;
                if said.is_some_and(|said| !said.auto_read_only) || !(inline || now.auto_read_only)
                {
                    continue;
                }
                let keeps = said.is_none() && inline && child.keeps_access;
                if keeps && now.read_only && !to.read_only {
                    let node = edge.child.clone();
                    return Err(BlockError::FixedAccess { node });
                }
                let mut next = NodeOptions {
                    read_only: if keeps { now.read_only } else { to.read_only },
                    ..now
                };
                if inline && was.cache != to.cache {
                    next.cache = to.cache;
                }
                if said.is_some() || next != now {
                    changes.insert(edge.child.clone(), next);
                }
            }
        }
        Ok(())
    }

    fn draft(&self, specs: &[NodeSpec]) -> Result<Draft, BlockError> {
        let mut draft = Draft::default();
        for spec in specs {
            let name = spec.name.as_deref().ok_or(BlockError::NodeNotNamed)?;
            self.draft_node(&mut draft, name, spec)?;
        }
        self.add_followers(&mut draft.options)?;
        Ok(draft)
    }

    fn draft_node(&self, draft: &mut Draft, name: &str, spec: &NodeSpec) -> Result<(), BlockError> {
        let entry = self.entry(name)?;
        self.check_idle(name)?;
        let mut to = spec.options;
        if to.auto_read_only && entry.node.is_read_only() {
            // It stays so until what stands on it wants to write.
            to.read_only = true;
        }
        if let Some(option) = fixed_option(entry, spec) {
            let node = name.to_owned();
            return Err(BlockError::FixedOption { node, option });
        }
        draft.options.insert(name.to_owned(), to);
        for (role, child) in spec.driver.children() {
            self.draft_child(draft, name, role, child)?;
        }
        let DriverSpec::Qcow2(qcow2) = &spec.driver else {
            return Ok(());
        };
        let is_backed = entry.children.edge("backing").is_some();
        match qcow2.backing {
            BackingSpec::FromHeader(_) if is_backed || entry.node.backing_name().is_some() => {
                Err(BlockError::BackingNotGiven {
                    node: name.to_owned(),
                })
            }
            BackingSpec::Nothing if is_backed => {
                draft.links.push(Relink {
                    parent: name.to_owned(),
                    role: "backing",
                    child: None,
                });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn draft_child(
        &self,
        draft: &mut Draft,
        parent: &str,
        role: &'static str,
        child: &ChildSpec,
    ) -> Result<(), BlockError> {
        let entry = self.entry(parent)?;
        let now = entry.children.edge(role).map(|edge| edge.child.as_str());
        let fixed = |option| BlockError::FixedOption {
            node: parent.to_owned(),
            option,
        };
        match (child, now) {
            (ChildSpec::Named(to), Some(now)) if to == now => Ok(()),
            (ChildSpec::Named(to), now) => {
                let missing = || BlockError::NoSuchReference { name: to.clone() };
                let next = self.entry(to).map_err(|_| missing())?;
                if self.stands_on(to, parent) {
                    return Err(BlockError::Cycle {
                        child: to.clone(),
                        role,
                        parent: parent.to_owned(),
                    });
                }
                let link = link_of(entry.node.driver(), role);
                let may = match (link, now) {
                    (Link::Backing, _) => true,
                    (Link::Passing, Some(now)) => fits(self.entry(now)?, next),
                    // What is known of an image stays true: only filters come and go above it.
                    (Link::Storage, Some(now)) => {
                        let is_same = self.below_filters(now) == self.below_filters(to);
                        is_same && fits(self.entry(now)?, next)
                    }
                    (Link::Storage | Link::Passing, None) => return Err(fixed(role)),
                };
                if !may {
                    draft.unfit.get_or_insert(fixed(role));
                }
                draft.links.push(Relink {
                    parent: parent.to_owned(),
                    role,
                    child: Some(to.clone()),
                });
                Ok(())
            }
            (ChildSpec::Inline(spec), Some(now)) => {
                let is_own = self.entry(now)?.owner == Owner::Parent;
                let is_meant = spec.name.as_deref().is_none_or(|name| name == now);
                if !is_own {
                    return Err(fixed(inside(role)));
                }
                if !is_meant {
                    return Err(fixed(role));
                }
                self.draft_node(draft, now, spec)
            }
            (ChildSpec::Inline(_), None) => Err(fixed(inside(role))),
        }
    }

    /// Writes down what the driver of a node still keeps in memory; its users are parked.
    fn write_down(&self, node: &NodeRef) -> Result<(), BlockError> {
        let Some(thread) = self.thread.as_ref().filter(|_| !node.is_read_only()) else {
            return Ok(());
        };
        let going = node.clone();
        let settled = thread.run(move |io| async move { going.settle(&io).await });
        let settled = settled.map_err(|source| BlockError::Thread { source })?;
        settled.map_err(|source| BlockError::Unsettled {
            node: node.name().to_owned(),
            source,
        })
    }

    /// Makes another node the child; the old one comes back. The parent's users are parked.
    fn relink(&mut self, link: &Relink) -> Option<NodeRef> {
        let child = link.child.as_deref().and_then(|name| self.entry(name).ok());
        let child = child.map(|entry| entry.node.clone());
        let children = &mut self.nodes.get_mut(&link.parent)?.children;
        match (link.role, child) {
            ("backing", child) => children.back(child),
            (role, Some(child)) => children.edge_mut(role)?.put(child),
            (_, None) => None,
        }
    }
}

/// What an inline child of this role says first, in the words of QEMU.
fn inside(role: &'static str) -> &'static str {
    match role {
        "backing" => "backing.driver",
        "file" => "file.driver",
        other => other,
    }
}

/// Whether a node whose bytes are its child's can have this child in place of the other.
fn fits(now: &Entry, next: &Entry) -> bool {
    now.node.limits() == next.node.limits() && now.node.len() == next.node.len()
}

/// The first option that would have to change and cannot.
fn fixed_option(entry: &Entry, spec: &NodeSpec) -> Option<&'static str> {
    use DriverSpec as Kind;
    let pairs: Vec<(bool, &'static str)> = match (&entry.made, &spec.driver) {
        (Kind::File(was), Kind::File(to)) | (Kind::HostDevice(was), Kind::HostDevice(to)) => {
            vec![(was.filename == to.filename, "filename")]
        }
        (Kind::NullCo(was), Kind::NullCo(to)) | (Kind::NullAio(was), Kind::NullAio(to)) => vec![
            (was.size == to.size, "size"),
            (was.read_zeroes == to.read_zeroes, "read-zeroes"),
        ],
        (Kind::Raw(was), Kind::Raw(to)) => vec![
            (was.offset == to.offset, "offset"),
            (was.size == to.size, "size"),
        ],
        (Kind::Qcow2(was), Kind::Qcow2(to)) => {
            let (was_passed, passed) = (was.pass_discard, to.pass_discard);
            let discards = entry.node.options().discard == spec.options.discard;
            let (was, to) = (was.tuning, to.tuning);
            vec![
                (was_passed == passed, "pass-discard-request"),
                (passed.is_some() || discards, "discard"),
                (was.lazy_refcounts == to.lazy_refcounts, "lazy-refcounts"),
                (was.l2_cache == to.l2_cache, "l2-cache-size"),
                (was.l2_slice == to.l2_slice, "l2-cache-entry-size"),
            ]
        }
        (Kind::Blkdebug(was), Kind::Blkdebug(to)) => vec![
            (was.config == to.config, "config"),
            (was.rules == to.rules, "inject-error"),
        ],
        (Kind::Throttle(was), Kind::Throttle(to)) => {
            vec![(was.group == to.group, "throttle-group")]
        }
        _ => vec![(false, "driver")],
    };
    let differs = pairs.into_iter().find(|(is_same, _)| !is_same);
    differs.map(|(_, option)| option)
}
