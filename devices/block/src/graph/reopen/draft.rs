//! What of nodes that are to be made anew differs from how they are, and whether it may.
//!
//! ```text
//!   a node:  a child said inline that is not its own? ─► an option that stays? ─► another name?
//!              └─► its options, what only its driver has, its children (each the same way)
//! ```

use indexmap::IndexMap;

use crate::error::BlockError;
use crate::graph::sketch::{Link, link_of};
use crate::graph::{BlockGraph, Entry, Owner};
use crate::spec::{BackingSpec, ChildSpec, DiscardMode, DriverSpec, NodeOptions, NodeSpec};

/// Another child for a node, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Relink {
    pub(super) parent: String,
    pub(super) role: &'static str,
    pub(super) child: Option<String>,
}

/// What is to change, before anything was opened.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) options: IndexMap<String, NodeOptions>,
    /// Nodes of which something changes that only their driver has.
    pub(super) drivers: IndexMap<String, DriverSpec>,
    pub(super) links: Vec<Relink>,
    /// Nodes that get another image, and whether what is behind it was said: the links to its file
    /// are among those above.
    pub(super) images: IndexMap<String, bool>,
    /// A child that a node cannot have whatever the others say: told where they agree.
    pub(super) unfit: Option<BlockError>,
}

impl BlockGraph {
    /// Adds the storage below what changes that goes along.
    pub(super) fn add_followers(
        &self,
        changes: &mut IndexMap<String, NodeOptions>,
    ) -> Result<(), BlockError> {
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

    pub(super) fn draft(&self, specs: &[NodeSpec]) -> Result<Draft, BlockError> {
        let mut draft = Draft::default();
        for spec in specs {
            let name = spec.name.as_deref().ok_or(BlockError::NodeNotNamed)?;
            self.draft_node(&mut draft, name, spec)?;
        }
        self.add_followers(&mut draft.options)?;
        for (name, to) in &draft.options {
            let entry = self.entry(name)?;
            if to.read_only && !entry.node.is_read_only() && !entry.jobs.is_empty() {
                let node = name.clone();
                return Err(BlockError::Written { node });
            }
        }
        Ok(draft)
    }

    fn draft_node(&self, draft: &mut Draft, name: &str, spec: &NodeSpec) -> Result<(), BlockError> {
        let entry = self.entry(name)?;
        self.check_inline(name, entry, spec)?;
        let mut to = spec.options;
        if to.auto_read_only && entry.node.is_read_only() {
            // It stays so until what stands on it wants to write.
            to.read_only = true;
        }
        let fixed = |option| BlockError::FixedOption {
            node: name.to_owned(),
            option,
        };
        if let Some(option) = fixed_option(&entry.made, &spec.driver) {
            return Err(fixed(option));
        }
        if spec.name.as_deref().is_some_and(|said| said != name) {
            return Err(fixed("node-name"));
        }
        if spec.force_share && !entry.force_share {
            return Err(fixed("force-share"));
        }
        if spec
            .active
            .is_some_and(|said| said != entry.node.is_active())
        {
            return Err(fixed("active"));
        }
        let now = entry.node.options();
        if let Some(driver) = other_driver((&entry.made, now), (&spec.driver, to)) {
            self.check_idle(name)?;
            self.check_length(name, &driver)?;
            draft.drivers.insert(name.to_owned(), driver);
        }
        draft.options.insert(name.to_owned(), to);
        for (role, child) in spec.driver.children() {
            self.draft_child(draft, name, role, child)?;
        }
        let DriverSpec::Qcow2(qcow2) = &spec.driver else {
            return Ok(());
        };
        let is_backed = entry.children.edge("backing").is_some();
        if let (BackingSpec::FromHeader(_), Some(said)) =
            (&qcow2.backing, draft.images.get_mut(name))
        {
            *said = false;
        }
        match qcow2.backing {
            BackingSpec::FromHeader(_) if is_backed || entry.node.backing_name().is_some() => {
                Err(BlockError::BackingNotGiven {
                    node: name.to_owned(),
                })
            }
            BackingSpec::Nothing if is_backed => self.draft_link(draft, name, "backing", None),
            _ => Ok(()),
        }
    }

    /// Whether what is said inline of a node's children is said of its own.
    fn check_inline(&self, name: &str, entry: &Entry, spec: &NodeSpec) -> Result<(), BlockError> {
        for (role, child) in spec.driver.children() {
            let now = entry.children.edge(role);
            let now = now.map(|edge| self.entry(&edge.child)).transpose()?;
            let is_own = now.is_some_and(|now| now.owner == Owner::Parent);
            if matches!(child, ChildSpec::Inline(_)) && !is_own {
                return Err(BlockError::FixedOption {
                    node: name.to_owned(),
                    option: inside(role),
                });
            }
        }
        Ok(())
    }

    /// Whether nobody relies on a part of another node being as long as it is, if its length changes.
    fn check_length(&self, name: &str, to: &DriverSpec) -> Result<(), BlockError> {
        let (DriverSpec::Raw(raw), entry) = (to, self.entry(name)?) else {
            return Ok(());
        };
        let child = entry.children.edge("file");
        let child = child.map(|edge| self.entry(&edge.child)).transpose()?;
        let below = child.map_or(0, |child| child.node.len());
        let len = raw.size.unwrap_or(below.saturating_sub(raw.offset));
        if len == entry.node.len() || !self.is_used(name) {
            return Ok(());
        }
        Err(BlockError::FixedOption {
            node: name.to_owned(),
            option: match raw.size {
                Some(_) => "size",
                None => "offset",
            },
        })
    }

    /// Another child, unless a job relies on the one that is there.
    fn draft_link(
        &self,
        draft: &mut Draft,
        parent: &str,
        role: &'static str,
        child: Option<&str>,
    ) -> Result<(), BlockError> {
        let entry = self.entry(parent)?;
        if let Some(now) = entry.children.edge(role) {
            let below = self.entry(&now.child)?;
            let holds = |job: &str| below.jobs.iter().any(|hold| hold.job == job);
            if entry.jobs.iter().any(|hold| holds(&hold.job)) {
                return Err(BlockError::Frozen {
                    parent: parent.to_owned(),
                    role,
                    child: now.child.clone(),
                });
            }
        }
        draft.links.push(Relink {
            parent: parent.to_owned(),
            role,
            child: child.map(str::to_owned),
        });
        Ok(())
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
                    // What is known of an image stays true where only filters come and go above it.
                    (Link::Storage, Some(now))
                        if self.below_filters(now) == self.below_filters(to) =>
                    {
                        fits(self.entry(now)?, next)
                    }
                    (Link::Storage, Some(_))
                        if role == "file" && entry.children.edge("data-file").is_none() =>
                    {
                        self.check_idle(parent)?;
                        draft.images.insert(parent.to_owned(), true);
                        true
                    }
                    (Link::Storage, Some(_)) => false,
                    // What was saved is of this node, and lies in that one.
                    (Link::Kept | Link::Target | Link::Snapshot, _)
                    | (Link::Storage | Link::Passing, None) => return Err(fixed(role)),
                };
                if !may {
                    draft.unfit.get_or_insert(fixed(role));
                }
                self.draft_link(draft, parent, role, Some(to))
            }
            (ChildSpec::Inline(spec), Some(now)) => self.draft_node(draft, now, spec),
            (ChildSpec::Inline(_), None) => Err(fixed(inside(role))),
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
fn fixed_option(was: &DriverSpec, to: &DriverSpec) -> Option<&'static str> {
    use DriverSpec as Kind;
    let pairs: Vec<(bool, &'static str)> = match (was, to) {
        (Kind::File(was), Kind::File(to)) | (Kind::HostDevice(was), Kind::HostDevice(to)) => {
            vec![
                (was.filename == to.filename, "filename"),
                (was.locking == to.locking, "locking"),
            ]
        }
        (Kind::NullCo(was), Kind::NullCo(to)) | (Kind::NullAio(was), Kind::NullAio(to)) => vec![
            (was.size == to.size, "size"),
            (was.read_zeroes == to.read_zeroes, "read-zeroes"),
        ],
        (Kind::Raw(_), Kind::Raw(_)) => Vec::new(),
        (Kind::Qcow2(was), Kind::Qcow2(to)) => vec![(
            was.tuning.lazy_refcounts == to.tuning.lazy_refcounts,
            "lazy-refcounts",
        )],
        (Kind::Blkdebug(was), Kind::Blkdebug(to)) => vec![
            (was.config == to.config, "config"),
            (was.rules == to.rules, "inject-error"),
            (was.limits == to.limits, "align"),
        ],
        (Kind::CopyOnRead(was), Kind::CopyOnRead(to)) => {
            vec![(was.bottom == to.bottom, "bottom")]
        }
        (Kind::Compress(_), Kind::Compress(_)) => Vec::new(),
        (Kind::Throttle(was), Kind::Throttle(to)) => {
            vec![(was.group == to.group, "throttle-group")]
        }
        (Kind::CopyBeforeWrite(was), Kind::CopyBeforeWrite(to)) => vec![
            (was.bitmap == to.bitmap, "bitmap"),
            (was.on_failure == to.on_failure, "on-cbw-error"),
            (was.timeout == to.timeout, "cbw-timeout"),
            (was.piece == to.piece, "min-cluster-size"),
        ],
        (Kind::SnapshotAccess(_), Kind::SnapshotAccess(_)) => Vec::new(),
        _ => vec![(false, "driver")],
    };
    let differs = pairs.into_iter().find(|(is_same, _)| !is_same);
    differs.map(|(_, option)| option)
}

/// What of a driver's own changes, with nothing left open that the node's options say.
fn other_driver(
    was: (&DriverSpec, NodeOptions),
    to: (&DriverSpec, NodeOptions),
) -> Option<DriverSpec> {
    let unmaps = |options: NodeOptions| options.discard == DiscardMode::Unmap;
    match (was.0, to.0) {
        (DriverSpec::Raw(had), DriverSpec::Raw(raw)) => {
            let is_same = (had.offset, had.size) == (raw.offset, raw.size);
            (!is_same).then(|| to.0.clone())
        }
        (DriverSpec::Qcow2(had), DriverSpec::Qcow2(qcow2)) => {
            let passed = had.pass_discard.unwrap_or(unmaps(was.1));
            let passes = qcow2.pass_discard.unwrap_or(unmaps(to.1));
            let is_same = had.tuning == qcow2.tuning && passed == passes;
            (!is_same).then(|| {
                let mut qcow2 = qcow2.clone();
                qcow2.pass_discard = Some(passes);
                DriverSpec::Qcow2(qcow2)
            })
        }
        _ => None,
    }
}

/// Enters what a driver has by now where it stands how its node was made.
pub(super) fn adopt(made: &mut DriverSpec, to: DriverSpec) {
    match (made, to) {
        (DriverSpec::Raw(made), DriverSpec::Raw(to)) => {
            (made.offset, made.size) = (to.offset, to.size);
        }
        (DriverSpec::Qcow2(made), DriverSpec::Qcow2(to)) => {
            (made.tuning, made.pass_discard) = (to.tuning, to.pass_discard);
        }
        _ => {}
    }
}
