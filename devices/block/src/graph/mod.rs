//! The block graph: which nodes there are, who stands on whom, and who uses them.
//!
//! ```text
//!        device 'vda'          device 'vdb'          users: what each does and shares
//!             │                     │
//!        ┌────▼─────┐          ┌────▼─────┐
//!        │ raw disk │          │ raw part │          nodes, by name
//!        └────┬─────┘          └────┬─────┘
//!          file │                file │               edges, by role
//!        ┌────▼─────────────────────▼─────┐
//!        │ file  #block001 or its own name │
//!        └─────────────────────────────────┘
//! ```
//!
//! The graph belongs to the main loop: its shape changes there and nowhere else. A [`NodeRef`]
//! taken out of it works on any io-thread and outlives the node's removal from here.
//!
//! Every command checks first and changes last: a refused one has touched nothing, and what it
//! opened on the way is closed again.

mod activity;
pub(crate) mod change;
mod filters;
mod image;
mod locks;
mod naming;
mod new_file;
mod order;
mod place;
mod reopen;
pub mod sketch;
mod snapshots;
#[cfg(test)]
mod tests;
mod throttling;
mod users;
mod view;

use std::fs::File;
use std::io::Read;

use fdset::{Access, Door, Kind, Request, Role};
use indexmap::IndexMap;

pub use self::filters::JobFilter;
use self::image::Building;
pub use self::image::{Absent, HeaderPlace, circle, named_in_header};
use self::place::{Children, place_child};
pub use self::reopen::GraphReopening;
use self::throttling::Throttling;
pub use self::view::NodeView;
use crate::corruption::CorruptionSink;
use crate::drain::Gate;
use crate::engine::IoThread;
use crate::error::BlockError;
use crate::format::blkdebug::rules::Rules;
use crate::format::blkdebug::{BlkdebugNode, config};
use crate::format::compress::CompressNode;
use crate::format::copy_on_read::CopyOnReadNode;
use crate::format::raw::RawNode;
use crate::format::throttle::ThrottleNode;
use crate::node::{BlockNode, NodeRef};
use crate::permission::Usage;
use crate::protocol::file::{FileKind, FileNode};
use crate::protocol::null::NullNode;
use crate::root::Root;
use crate::spec::{BlkdebugSpec, ChildSpec, DriverSpec, FileSpec, NodeOptions, NodeSpec};

/// The longest node name, in bytes.
const MAX_NAME: usize = 31;
/// The deepest nesting of inline children in one command.
const MAX_DEPTH: usize = 64;

/// Who keeps a node in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// A command added it by name; a command removes it.
    Monitor,
    /// It came inline with a parent and goes with the last one.
    Parent,
    /// It is a drive's and goes with it.
    Drive,
}

#[derive(Debug)]
struct Device {
    id: String,
    usage: Usage,
    root: Root,
}

#[derive(Debug)]
struct Entry {
    node: NodeRef,
    filename: String,
    /// What it was made of; its children may be others by now.
    made: DriverSpec,
    owner: Owner,
    /// It does not follow the node it came inline with ([`NodeSpec::keeps_access`]).
    keeps_access: bool,
    /// While it is read-only, others may do with it what they want.
    force_share: bool,
    children: Children,
    devices: Vec<Device>,
    /// Jobs that work on it, and what each is: the node and its place stay as they are.
    jobs: Vec<Hold>,
}

/// A job's hold on a node.
#[derive(Clone, Debug)]
struct Hold {
    job: String,
    kind: &'static str,
    grip: Grip,
    /// Where the job's loop is parked.
    gate: Gate,
}

/// What a job holds a node for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grip {
    /// It works on it.
    Work,
    /// It gives it something else behind it at its end.
    Relink,
}

/// The nodes and how they hang together.
#[derive(Debug, Default)]
pub struct BlockGraph {
    nodes: IndexMap<String, Entry>,
    next_auto: u64,
    /// Where images are opened and settled.
    thread: Option<IoThread>,
    throttling: Throttling,
    /// Who is told of corrupt images.
    corruptions: CorruptionSink,
}

/// A node that was made but is not in the graph yet.
type Built = (String, Entry);

impl BlockGraph {
    /// A graph without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node, with the ones it brings inline. Names are checked before anything is opened.
    ///
    /// # Errors
    /// A bad, missing, taken or unknown name; storage that cannot be opened or does not fit. The
    /// graph is then unchanged.
    pub fn add(&mut self, door: &Door, spec: NodeSpec) -> Result<NodeRef, BlockError> {
        if spec.name.is_none() {
            return Err(BlockError::NameMissing);
        }
        self.add_owned(door, spec, Owner::Monitor)
    }

    /// Adds the node of a drive, which may be without a name: only
    /// [`remove_drive`](Self::remove_drive) removes it.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_drive(&mut self, door: &Door, spec: NodeSpec) -> Result<NodeRef, BlockError> {
        self.add_owned(door, spec, Owner::Drive)
    }

    /// Adds a node that nobody removes by name, as the overlay of a snapshot: it goes with its
    /// last user. Until it has one, [`abandon`](Self::abandon) removes it.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_overlay(&mut self, door: &Door, spec: NodeSpec) -> Result<NodeRef, BlockError> {
        self.add_owned(door, spec, Owner::Parent)
    }

    fn add_owned(
        &mut self,
        door: &Door,
        spec: NodeSpec,
        owner: Owner,
    ) -> Result<NodeRef, BlockError> {
        self.check_names(&spec)?;
        let mut building = Building::from(self.next_auto);
        let node = self.build(door, spec, owner, &mut building)?;
        self.check_built(&building)?;
        let Building {
            next_auto, built, ..
        } = building;
        // Not before nobody else can be using the images.
        for (_, entry) in &built {
            self.take_up_bitmaps(&entry.node);
        }
        self.next_auto = next_auto;
        self.nodes.extend(built);
        Ok(node)
    }

    fn check_built(&self, building: &Building) -> Result<(), BlockError> {
        let mut sketch = self.sketch();
        for (name, entry) in &building.built {
            sketch.draw(name, change::drawn(entry));
        }
        self.agree_with(&sketch, &building.built)
    }

    fn check_names(&self, spec: &NodeSpec) -> Result<(), BlockError> {
        let outermost = || spec.name.clone().unwrap_or_default();
        let mut new: Vec<&str> = Vec::new();
        let mut open = vec![(spec, 0)];
        while let Some((spec, depth)) = open.pop() {
            if depth > MAX_DEPTH {
                return Err(BlockError::TooDeep {
                    name: outermost(),
                    limit: MAX_DEPTH,
                });
            }
            if let Some(name) = spec.name.as_deref() {
                check_name(name)?;
                if new.contains(&name) || self.nodes.contains_key(name) {
                    return Err(BlockError::DuplicateName {
                        name: name.to_owned(),
                    });
                }
                new.push(name);
            }
            for (_, child) in spec.driver.children() {
                match child {
                    ChildSpec::Named(name) if self.nodes.contains_key(name) => {}
                    ChildSpec::Named(name) => {
                        return Err(BlockError::NoSuchChild { name: name.clone() });
                    }
                    ChildSpec::Inline(child) => open.push((child, depth + 1)),
                }
            }
        }
        Ok(())
    }

    fn build(
        &self,
        door: &Door,
        spec: NodeSpec,
        owner: Owner,
        building: &mut Building,
    ) -> Result<NodeRef, BlockError> {
        let name = match spec.name {
            Some(name) => name,
            None => auto_name(&mut building.next_auto),
        };
        let driver = spec.driver.name();
        let made = spec.driver.clone();
        let above = building.active;
        building.active &= spec.active.unwrap_or(true);
        let shared_above = building.force_share;
        building.force_share |= spec.force_share;
        let mut options = spec.options;
        let mut children = Children::default();
        let (body, filename): (Box<dyn BlockNode>, String) = match spec.driver {
            DriverSpec::File(file) => {
                let node = open_file(door, &name, &file, FileKind::Regular, &mut options)?;
                (node, file.filename)
            }
            DriverSpec::HostDevice(file) => {
                let node = open_file(door, &name, &file, FileKind::BlockDevice, &mut options)?;
                (node, file.filename)
            }
            DriverSpec::NullCo(null) | DriverSpec::NullAio(null) => {
                (Box::new(NullNode::new(null)), format!("{driver}://"))
            }
            DriverSpec::Raw(raw) => {
                let (child, filename) = self.child(door, raw.file, building)?;
                agree_on_access(&child, &mut options)?;
                let slot = place_child(&mut children, "file", child);
                let node = RawNode::new(&name, slot, raw.offset, raw.size)?;
                (Box::new(node), filename)
            }
            DriverSpec::Qcow2(qcow2) => {
                let image = self.build_image(door, &name, *qcow2, &mut options, building)?;
                children = image.2;
                (image.0, image.1)
            }
            DriverSpec::Blkdebug(blkdebug) => {
                // The file first: whoever writes its rules may take a while.
                let rules = rules(door, &name, &blkdebug)?;
                let (child, filename) = self.child(door, blkdebug.image, building)?;
                agree_on_access(&child, &mut options)?;
                let limits = blkdebug.limits;
                let checked = limits.check(child.limits().request_alignment);
                checked.map_err(|source| BlockError::BadRequestLimits {
                    node: name.clone(),
                    source,
                })?;
                let slot = place_child(&mut children, "image", child);
                let hurry = self.throttling.hurry.clone();
                let node = BlkdebugNode::new(slot, rules, limits, hurry);
                (Box::new(node), filename)
            }
            DriverSpec::CopyOnRead(filter) => {
                let (child, filename) = self.child(door, filter.file, building)?;
                agree_on_access(&child, &mut options)?;
                let span = match filter.bottom {
                    Some(bottom) => self.span(&child, &bottom, building)?,
                    None => Vec::new(),
                };
                let slot = place_child(&mut children, "file", child);
                (Box::new(CopyOnReadNode::new(slot, span)), filename)
            }
            DriverSpec::Compress(filter) => {
                let (child, filename) = self.child(door, filter.file, building)?;
                CompressNode::check(&child)?;
                may_pass_writes(&child, &mut options);
                let slot = place_child(&mut children, "file", child);
                (Box::new(CompressNode::new(slot)), filename)
            }
            DriverSpec::Throttle(throttle) => {
                let member = self.throttling.find(&throttle.group)?.join(&name);
                let (child, filename) = self.child(door, throttle.file, building)?;
                may_pass_writes(&child, &mut options);
                let slot = place_child(&mut children, "file", child);
                (Box::new(ThrottleNode::new(slot, member)), filename)
            }
            DriverSpec::CopyBeforeWrite(filter) => {
                let parts =
                    self.build_copy_before_write(door, &name, *filter, &mut options, building)?;
                children = parts.2;
                (parts.0, parts.1)
            }
            DriverSpec::SnapshotAccess(access) => {
                let parts = self.build_snapshot_access(door, access, building)?;
                children = parts.2;
                (parts.0, parts.1)
            }
        };
        let node = NodeRef::new(name.clone(), driver, options, body)?;
        node.set_active(std::mem::replace(&mut building.active, above));
        let devices = Vec::new();
        building.built.push((
            name,
            Entry {
                node: node.clone(),
                filename,
                made,
                owner,
                keeps_access: spec.keeps_access,
                force_share: std::mem::replace(&mut building.force_share, shared_above),
                children,
                devices,
                jobs: Vec::new(),
            },
        ));
        Ok(node)
    }

    /// The node below, which is in the graph or built first, and the file name it goes by.
    fn child(
        &self,
        door: &Door,
        spec: ChildSpec,
        building: &mut Building,
    ) -> Result<(NodeRef, String), BlockError> {
        match spec {
            ChildSpec::Named(name) => {
                let entry = self.entry(&name)?;
                Ok((entry.node.clone(), entry.filename.clone()))
            }
            ChildSpec::Inline(spec) => {
                let node = self.build(door, *spec, Owner::Parent, building)?;
                let filename = building
                    .built
                    .last()
                    .map(|(_, entry)| entry.filename.clone());
                Ok((node, filename.unwrap_or_default()))
            }
        }
    }

    /// The nodes from `top` down to `bottom`, one behind the other.
    fn span(
        &self,
        top: &NodeRef,
        bottom: &str,
        building: &Building,
    ) -> Result<Vec<NodeRef>, BlockError> {
        let entry = |name: &str| {
            let built = building.built.iter().find(|(built, _)| built == name);
            built.map(|(_, entry)| entry).or(self.nodes.get(name))
        };
        if entry(bottom).is_none() {
            return Err(BlockError::NoBottom {
                name: bottom.to_owned(),
            });
        }
        let mut span = Vec::new();
        let mut next = entry(top.name());
        while let Some(entry_of) = next {
            let is_filter = filters::is_filter(entry_of.node.driver());
            if !is_filter {
                span.push(entry_of.node.clone());
            }
            if entry_of.node.name() == bottom {
                return Ok(span);
            }
            let mut edges = entry_of.children.edges();
            let edge = edges.find(|edge| is_filter || edge.role == "backing");
            next = edge.and_then(|edge| entry(&edge.child));
        }
        Err(BlockError::BottomElsewhere {
            name: bottom.to_owned(),
            top: top.name().to_owned(),
        })
    }

    /// Removes a node that a command added, with the inline children nobody else uses.
    ///
    /// # Errors
    /// There is no such node, it came with a parent, or a device or another node uses it.
    pub fn remove(&mut self, name: &str) -> Result<(), BlockError> {
        let entry = self.entry(name)?;
        if entry.owner != Owner::Monitor {
            return Err(BlockError::NotOwned {
                name: name.to_owned(),
            });
        }
        self.take_out(name)
    }

    /// Removes the node of a drive, with the inline children nobody else uses.
    ///
    /// # Errors
    /// There is no such node, or a device or another node uses it.
    pub fn remove_drive(&mut self, name: &str) -> Result<(), BlockError> {
        let gone = self.take_out(name);
        if gone.is_err()
            && let Some(entry) = self.nodes.get_mut(name)
        {
            // It goes with the last who has it.
            entry.owner = Owner::Parent;
        }
        gone
    }

    fn take_out(&mut self, name: &str) -> Result<(), BlockError> {
        self.check_idle(name)?;
        self.check_free(name)?;
        let mut gone = vec![name.to_owned()];
        while let Some(name) = gone.pop() {
            if let Ok(entry) = self.entry(&name) {
                self.settle(&entry.node);
            }
            let Some(entry) = self.nodes.shift_remove(&name) else {
                continue;
            };
            for edge in entry.children.into_edges() {
                let inline = self
                    .nodes
                    .get(&edge.child)
                    .is_some_and(|child| child.owner == Owner::Parent);
                if inline && !self.is_used(&edge.child) {
                    gone.push(edge.child);
                }
            }
        }
        // What stays below has a user less.
        self.settle_locks();
        Ok(())
    }

    /// Whether `upper` is `lower`, or stands on it through whatever lies between.
    pub fn stands_on(&self, upper: &str, lower: &str) -> bool {
        upper == lower
            || self.nodes.get(upper).is_some_and(|entry| {
                let mut children = entry.children.edges();
                children.any(|edge| self.stands_on(&edge.child, lower))
            })
    }

    /// One node.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn node(&self, name: &str) -> Result<NodeView<'_>, BlockError> {
        Ok(NodeView {
            graph: self,
            entry: self.entry(name)?,
        })
    }

    /// All nodes, oldest first.
    pub fn nodes(&self) -> impl Iterator<Item = NodeView<'_>> {
        self.nodes
            .values()
            .map(|entry| NodeView { graph: self, entry })
    }

    fn entry(&self, name: &str) -> Result<&Entry, BlockError> {
        self.nodes.get(name).ok_or_else(|| no_such(name))
    }

    fn parents<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'static str, &'a str)> {
        self.nodes.iter().flat_map(move |(parent, entry)| {
            let edges = entry
                .children
                .edges()
                .filter(move |edge| edge.child == name);
            edges.map(|edge| (edge.role, parent.as_str()))
        })
    }
}

/// A node of a file, which may turn out to be read-only where `options` allow that.
fn open_file(
    door: &Door,
    name: &str,
    file: &FileSpec,
    kind: FileKind,
    options: &mut NodeOptions,
) -> Result<Box<dyn BlockNode>, BlockError> {
    let (node, read_only) = FileNode::open(door, name, file, kind, options)?;
    options.read_only = read_only;
    Ok(Box::new(node))
}

/// The rules of a node: those of its file, then its own.
fn rules(door: &Door, name: &str, spec: &BlkdebugSpec) -> Result<Rules, BlockError> {
    let Some(file) = &spec.config else {
        return Ok(spec.rules.clone());
    };
    let reason = format!("the rules of node '{name}'");
    // It is read here and now: what could keep the reader waiting is refused.
    let kinds = &[Kind::File, Kind::Memfd];
    let request = Request::new(file, Access::ReadOnly, Role::Image, &reason).kinds(kinds);
    let (fd, _lease) = fdset::open(door, &request)?.into_parts();
    let mut text = String::new();
    let read = File::from(fd)
        .take(config::LONGEST)
        .read_to_string(&mut text);
    read.map_err(|source| BlockError::RulesUnread {
        node: name.to_owned(),
        source,
    })?;
    let mut rules = config::parse(&text).map_err(|source| BlockError::BadRules {
        node: name.to_owned(),
        source,
    })?;
    rules.extend(spec.rules.clone());
    Ok(rules)
}

/// What stands on a read-only node is read-only itself, where it may be.
fn agree_on_access(child: &NodeRef, options: &mut NodeOptions) -> Result<(), BlockError> {
    if child.is_read_only() && !options.read_only {
        if !options.auto_read_only {
            return Err(BlockError::ReadOnly {
                node: child.name().to_owned(),
            });
        }
        options.read_only = true;
    }
    Ok(())
}

/// As [`agree_on_access`], for what writes nothing of its own: whether its users may write is seen
/// when they come, and the node below may become writable by then.
fn may_pass_writes(child: &NodeRef, options: &mut NodeOptions) {
    options.read_only |= options.auto_read_only && child.is_read_only();
}

/// A name no client can choose, because it begins with `#`.
fn auto_name(next_auto: &mut u64) -> String {
    *next_auto += 1;
    format!("#block{next_auto:03}")
}

fn no_such(name: &str) -> BlockError {
    BlockError::NoSuchNode {
        name: name.to_owned(),
    }
}

fn check_name(name: &str) -> Result<(), BlockError> {
    let well_formed = name.len() <= MAX_NAME
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if well_formed {
        Ok(())
    } else {
        Err(BlockError::InvalidName {
            name: name.to_owned(),
        })
    }
}
