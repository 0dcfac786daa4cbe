//! Nodes with other options, or over other nodes: all that are named together, or none.
//!
//! ```text
//!   specs, as the nodes are to be ─► draft: compared with how they were made, what may change?
//!                                      │ drawn on a sketch: who would not agree?
//!                                      │ every file opened that is needed
//!                                      ▼
//!   prepared ── drop ──► nothing has changed
//!      └─ drain ─► settle what becomes read-only ─► options, then children ─► end: how long
//! ```
//!
//! What came inline with a node goes along with it: it becomes writable and read-only as its parent
//! does, unless it was said of it what it is. A job goes on over nodes that are made anew; what it
//! relies on stays as it is: the links between its nodes, and that those are writable.
//!
//! Read next: `draft` (what may change), `images` (another image in the place of one).

mod draft;
mod images;

use std::fmt;
use std::time::Duration;

use fdset::{Door, Wish};
use indexmap::IndexMap;

use self::draft::{Draft, Relink};
use self::images::NewImage;
use super::sketch::link_of;
use super::{BlockGraph, Entry};
use crate::drain::Drain;
use crate::error::BlockError;
use crate::format::raw;
use crate::node::NodeRef;
use crate::reopen::{Prepared, Reopening};
use crate::spec::{DriverSpec, NodeOptions, NodeSpec};

/// What only a node's driver has, about to be otherwise.
struct Driven {
    name: String,
    to: DriverSpec,
    body: Box<dyn Prepared>,
}

/// Changes of several nodes that were prepared together. Dropping it leaves them as they are.
#[must_use = "changes that are dropped have not happened"]
pub struct GraphReopening {
    changes: Vec<Reopening>,
    drivers: Vec<Driven>,
    links: Vec<Relink>,
    images: Vec<NewImage>,
    /// Where users had to be parked for the preparing already; goes last.
    parked: Option<Drain>,
}

impl fmt::Debug for GraphReopening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GraphReopening")
            .field("changes", &self.changes)
            .field("links", &self.links)
            .finish_non_exhaustive()
    }
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
        self.agree(&sketch).map_err(|error| match error {
            BlockError::ReadOnly { node } if draft.options.contains_key(&node) => {
                BlockError::Written { node }
            }
            other => other,
        })?;
        let prepared = self.prepare_draft(door, draft);
        if prepared.is_err() {
            self.settle_locks();
        }
        prepared
    }

    /// Opens and asks for everything that a draft wants, on which all agree.
    fn prepare_draft(&self, door: &Door, draft: Draft) -> Result<GraphReopening, BlockError> {
        draft.unfit.map_or(Ok(()), Err)?;
        let mut switched = Vec::new();
        for (name, to) in &draft.options {
            if self.entry(name)?.node.options().cache.direct != to.cache.direct {
                switched.push(name.as_str());
            }
        }
        let parked = (!switched.is_empty()).then(|| self.drain(&switched));
        let options = draft.options;
        let changes = self.open_anew(door, &options)?;
        for change in &changes {
            if let Some(alignment) = change.alignment() {
                self.check_movable(change.node().name(), alignment)?;
            }
        }
        let mut drivers = Vec::new();
        for (name, to) in draft.drivers {
            let mut links = draft.links.iter();
            let over = links.find(|link| link.parent == name && link.role != "backing");
            let over = over.and_then(|link| link.child.as_deref());
            let over = over.map(|child| self.entry(child)).transpose()?;
            let node = &self.entry(&name)?.node;
            let body = node.prepare_driver(&to, over.map(|entry| &entry.node))?;
            drivers.push(Driven { name, to, body });
        }
        let mut images = Vec::new();
        for (name, behind_said) in draft.images {
            let mut links = draft.links.iter();
            let link = links.find(|link| link.parent == name && link.role == "file");
            let file = link.and_then(|link| link.child.as_deref());
            if let (Some(file), Some(to)) = (file, options.get(&name)) {
                images.push(NewImage {
                    node: self.entry(&name)?.node.clone(),
                    file: self.entry(file)?.node.clone(),
                    read_only: to.read_only,
                    behind_said,
                });
            }
        }
        Ok(GraphReopening {
            changes,
            drivers,
            links: draft.links,
            images,
            parked,
        })
    }

    /// Whether whoever stands on a node asks only for what is aligned to so many bytes.
    fn check_movable(&self, name: &str, alignment: u32) -> Result<(), BlockError> {
        let refused = |user: &str, block| BlockError::DirectUnderUser {
            node: name.to_owned(),
            alignment,
            user: user.to_owned(),
            block,
        };
        let entry = self.entry(name)?;
        let mut devices = entry.devices.iter();
        if let Some(small) = devices.find(|device| device.root.block() < alignment) {
            return Err(refused(&small.id, small.root.block()));
        }
        for (role, parent) in self.parents(name) {
            // What is behind an image is read in whole blocks, whatever is asked for.
            if role == "backing" {
                continue;
            }
            if let DriverSpec::Raw(raw) = &self.entry(parent)?.made {
                raw::check_alignment(parent, raw.offset, raw.size, alignment)?;
            }
            self.check_movable(parent, alignment)?;
        }
        Ok(())
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
    /// What a node that becomes read-only or gets another image still had in memory could not be
    /// written down, or that image cannot be opened or has another length than the disk has: nothing
    /// has changed.
    pub fn make_anew(&mut self, prepared: GraphReopening) -> Result<Duration, BlockError> {
        let made = self.make_drained(prepared);
        self.settle_locks();
        made
    }

    fn make_drained(&mut self, prepared: GraphReopening) -> Result<Duration, BlockError> {
        let GraphReopening {
            changes,
            drivers,
            links,
            images,
            parked,
        } = prepared;
        let nodes = changes.iter().map(|change| change.node().name());
        let driven = drivers.iter().map(|driven| driven.name.as_str());
        let parents = links.iter().map(|link| link.parent.as_str());
        let names: Vec<&str> = nodes.chain(driven).chain(parents).collect();
        let drain = self.drain(&names);
        for change in changes.iter().filter(|change| change.options().read_only) {
            self.write_down(change.node())?;
        }
        for driven in &drivers {
            self.write_down(&self.entry(&driven.name)?.node)?;
        }
        let opened = self.open_images(images)?;
        changes.into_iter().for_each(Reopening::commit);
        for Driven { name, to, body } in drivers {
            body.commit();
            if let Some(entry) = self.nodes.get_mut(&name) {
                draft::adopt(&mut entry.made, to);
            }
        }
        let mut old = Vec::new();
        for link in &links {
            old.extend(self.relink(link));
        }
        for (node, image) in opened {
            node.take_image(image);
            self.take_up_bitmaps(&node);
        }
        for link in links.iter().filter(|link| link.role != "backing") {
            self.rename(&link.parent);
        }
        self.refresh_limits();
        let pause = drain.end();
        let pause = parked.map_or(pause, Drain::end);
        for node in old {
            let name = node.name().to_owned();
            drop(node);
            self.release_unused(&name);
        }
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
        if to.cache.direct != self.entry(name)?.node.options().cache.direct {
            return Err(BlockError::FixedOption {
                node: name.to_owned(),
                option: "cache.direct",
            });
        }
        let mut sketch = self.sketch();
        for (node, to) in &changes {
            if let Some(drawn) = sketch.node(node) {
                drawn.read_only = to.read_only;
            }
        }
        self.agree(&sketch)?;
        self.open_anew(door, &changes)
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
        changes: &IndexMap<String, NodeOptions>,
    ) -> Result<Vec<Reopening>, BlockError> {
        let changes = changes.iter();
        let opened: Result<Vec<_>, _> = changes
            .map(|(name, to)| self.entry(name)?.node.prepare_reopen(door, *to))
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

    /// A node is called by the file that it stands on by now, and so are those above.
    fn rename(&mut self, name: &str) {
        let mut open = vec![name.to_owned()];
        while let Some(name) = open.pop() {
            let first = |entry: &Entry| Some(entry.children.edges().next()?.child.clone());
            let below = self.nodes.get(&name).and_then(first);
            let below = below.and_then(|below| self.nodes.get(&below));
            let filename = below.map(|below| below.filename.clone());
            if let (Some(entry), Some(filename)) = (self.nodes.get_mut(&name), filename)
                && entry.filename != filename
            {
                entry.filename = filename;
                let above = self.parents(&name).filter(|(role, _)| *role != "backing");
                open.extend(above.map(|(_, parent)| parent.to_owned()));
            }
        }
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

    /// Writes down what the driver of a node still keeps in memory; its users are parked.
    pub(super) fn write_down(&self, node: &NodeRef) -> Result<(), BlockError> {
        let Some(thread) = self.thread.as_ref().filter(|_| node.is_writable()) else {
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

    /// Has every node ask what is below it what it can do and wants by now, the lowest first.
    pub(super) fn refresh_limits(&self) {
        let mut open: Vec<&str> = self.nodes.keys().map(String::as_str).collect();
        let mut order: Vec<&str> = Vec::new();
        while let Some(name) = open.pop() {
            // Whoever is found once more stands on something that comes later.
            order.retain(|known| *known != name);
            order.push(name);
            let edges = self.nodes.get(name).map(|entry| entry.children.edges());
            open.extend(edges.into_iter().flatten().map(|edge| edge.child.as_str()));
        }
        for entry in order.iter().rev().filter_map(|name| self.nodes.get(*name)) {
            entry.node.refresh_limits();
        }
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
