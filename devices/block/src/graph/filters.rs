//! Filters: nodes that stand for the one below them. Chains go through them, and jobs put one above
//! the topmost of their nodes if it is to have a name.
//!
//! ```text
//!      overlay                      overlay
//!         │ backing                    │ backing
//!         ▼                            ▼
//!        top       insert_filter   commit-filter   held by the job; who comes to stand on it
//!         │        ────────────►       │           meanwhile is given another node at the end
//!         ▼                            ▼
//!        base      ◄────────────      top ─► base
//!                  remove_filter
//! ```

use std::time::Duration;

use super::image::beside;
use super::place::{Children, place_child};
use super::{BlockGraph, Entry, Owner, change, check_name};
use crate::error::BlockError;
use crate::format::copy_on_read::CopyOnReadNode;
use crate::format::pass::PassNode;
use crate::node::{BlockNode, NodeRef};
use crate::spec::{ChildSpec, CopyOnReadSpec, DriverSpec, RawSpec};

/// What a job's filter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobFilter {
    /// Nothing, above a commit of nodes that nobody writes to.
    Commit,
    /// Nothing, above a commit from the node that users write to.
    ActiveCommit,
    /// What is read through it is copied into the overlay that a stream fills, too.
    Stream,
}

impl JobFilter {
    /// The driver that lists show.
    #[must_use]
    pub fn driver(self) -> &'static str {
        match self {
            Self::Commit => "commit_top",
            Self::ActiveCommit => "mirror_top",
            Self::Stream => "copy-on-read",
        }
    }

    /// As what it has the node below.
    fn role(self) -> &'static str {
        match self {
            Self::Commit | Self::ActiveCommit => "backing",
            Self::Stream => "file",
        }
    }
}

/// Whether nodes of a driver stand for the one below them.
pub(super) fn is_filter(driver: &str) -> bool {
    let filters = [
        "blkdebug",
        "commit_top",
        "compress",
        "copy-before-write",
        "copy-on-read",
        "mirror_top",
        "throttle",
    ];
    filters.contains(&driver)
}

impl BlockGraph {
    /// Whether a node stands for the one below it.
    #[must_use]
    pub fn is_filter(&self, name: &str) -> bool {
        let entry = self.nodes.get(name);
        entry.is_some_and(|entry| is_filter(entry.node.driver()))
    }

    /// Whether a node is the filter of a commit, which goes when that ends.
    #[must_use]
    pub fn is_of_a_commit(&self, name: &str) -> bool {
        let driver = self.nodes.get(name).map(|entry| entry.node.driver());
        let commits = [JobFilter::Commit, JobFilter::ActiveCommit];
        commits.iter().any(|filter| driver == Some(filter.driver()))
    }

    /// The node under the filters of which `name` is the topmost; `name` if it is none.
    #[must_use]
    pub fn below_filters<'a>(&'a self, name: &'a str) -> &'a str {
        let mut name = name;
        while self.is_filter(name)
            && let Some(below) = self.next_in_chain(name)
        {
            name = below;
        }
        name
    }

    /// The node that shows through `name`, or for which it stands.
    #[must_use]
    pub fn next_in_chain(&self, name: &str) -> Option<&str> {
        let entry = self.nodes.get(name)?;
        let mut edges = entry.children.edges();
        let edge = match is_filter(entry.node.driver()) {
            true => edges.next(),
            false => edges.find(|edge| edge.role == "backing"),
        };
        edge.map(|edge| edge.child.as_str())
    }

    /// The chain of what shows through `name`, itself first, with the filters in it.
    #[must_use]
    pub fn chain(&self, name: &str) -> Vec<String> {
        let known = self.nodes.get_key_value(name);
        let first = known.map(|(name, _)| name.as_str());
        let chain = std::iter::successors(first, |name| self.next_in_chain(name));
        chain.map(str::to_owned).collect()
    }

    /// Where in `chain` the image is whose file is called `file`, of those behind its first image: as
    /// it was opened, or as the image above it would name it.
    #[must_use]
    pub fn find_behind(&self, chain: &[String], file: &str) -> Option<usize> {
        let images = chain.iter().enumerate();
        let images: Vec<_> = images.filter(|(_, name)| !self.is_filter(name)).collect();
        images.windows(2).find_map(|pair| {
            let [(_, above), (at, below)] = pair else {
                return None;
            };
            let (above, below) = (self.node(above).ok()?, self.node(below).ok()?);
            let beside = beside(above.filename(), file);
            let named = [below.filename(), &below.full_name()].contains(&file)
                || beside.is_ok_and(|beside| beside == below.filename());
            named.then_some(*at)
        })
    }

    /// The images that `name` backs, through filters or directly.
    #[must_use]
    pub fn overlays_of(&self, name: &str) -> Vec<String> {
        let mut overlays = Vec::new();
        let mut open = vec![name];
        while let Some(name) = open.pop() {
            for (role, parent) in self.parents(name) {
                if self.is_filter(parent) {
                    open.push(parent);
                } else if role == "backing" {
                    overlays.push(parent.to_owned());
                }
            }
        }
        overlays
    }

    /// Whether a node of this name can be added.
    ///
    /// # Errors
    /// The name breaks the rules or is taken.
    pub fn check_new_name(&self, name: &str) -> Result<(), BlockError> {
        check_name(name)?;
        match self.nodes.contains_key(name) {
            true => Err(BlockError::DuplicateName {
                name: name.to_owned(),
            }),
            false => Ok(()),
        }
    }

    /// Puts a job's filter between a node and whoever uses it or stands on it. `span` are the nodes
    /// from which a stream copies, `below` first. Returns how long users waited.
    ///
    /// # Errors
    /// The name breaks the rules or is taken, or somebody would not agree.
    pub fn insert_filter(
        &mut self,
        name: &str,
        filter: JobFilter,
        below: &str,
        span: Vec<NodeRef>,
    ) -> Result<Duration, BlockError> {
        self.check_new_name(name)?;
        let entry = self.filter_entry(name, filter, below, span)?;
        let mut sketch = self.sketch();
        sketch.draw(name, change::drawn(&entry));
        sketch.move_users(below, name);
        self.agree(&sketch)?;
        let node = entry.node.clone();
        self.nodes.insert(name.to_owned(), entry);
        let drain = self.drain(&[below]);
        let old = self.move_users(below, &node);
        let pause = drain.end();
        drop(old);
        self.settle_locks();
        Ok(pause)
    }

    fn filter_entry(
        &self,
        name: &str,
        filter: JobFilter,
        below: &str,
        span: Vec<NodeRef>,
    ) -> Result<Entry, BlockError> {
        let under = self.entry(below)?;
        let (node, options) = (under.node.clone(), under.node.options());
        let named = ChildSpec::Named(below.to_owned());
        let mut children = Children::default();
        let slot = place_child(&mut children, filter.role(), node);
        let (body, made): (Box<dyn BlockNode>, _) = match filter {
            JobFilter::Commit | JobFilter::ActiveCommit => (
                Box::new(PassNode::new(slot)),
                DriverSpec::Raw(RawSpec {
                    file: named,
                    offset: 0,
                    size: None,
                }),
            ),
            JobFilter::Stream => (
                Box::new(CopyOnReadNode::new(slot, span)),
                DriverSpec::CopyOnRead(CopyOnReadSpec {
                    file: named,
                    bottom: None,
                }),
            ),
        };
        Ok(Entry {
            node: NodeRef::new(name.to_owned(), filter.driver(), options, body)?,
            filename: under.filename.clone(),
            made,
            owner: Owner::Parent,
            keeps_access: false,
            force_share: false,
            children,
            devices: Vec::new(),
            jobs: Vec::new(),
        })
    }

    /// Takes a job's filter out again: whoever has it has what is below it. It goes when the job
    /// [lets go](Self::let_go) of it.
    ///
    /// # Errors
    /// There is no such node, or somebody would not agree.
    pub fn remove_filter(&mut self, name: &str) -> Result<(), BlockError> {
        let below = self.next_in_chain(name).map(str::to_owned);
        let below = below.ok_or_else(|| BlockError::NoSuchNode {
            name: name.to_owned(),
        })?;
        self.replace_node(name, &below).map(drop)
    }
}
