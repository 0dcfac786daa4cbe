//! A drawing of the graph on which changes are tried before any is made: pure bookkeeping.
//!
//! ```text
//!   BlockGraph ──► Sketch ── edges, users and flags as they are to be ──► check ──► Ok: make them
//!                                                                            └────► the first
//!                                                                                   who disagrees
//! ```
//!
//! What a node's users do with it goes down to its children, changed on the way by how the child
//! is used:
//!
//! ```text
//!   Link      the child is used for                       and its other users may
//!   Passing   what the node's own users do                what the node's own users allow
//!   Storage   that, and metadata: read; if writable,      neither write nor resize
//!             also write and resize
//!   Kept      that; if there is any user, read too      neither write nor resize
//!   Target    write, if writable                        anything
//!   Snapshot  consistent reads, if there are any above  anything
//!   Backing   consistent reads, if there are any above    write only if the users above allow it
//! ```
//!
//! Of a node that is inactive all that is left is that it may read.

use indexmap::IndexMap;

use super::filters::is_filter;
use crate::error::BlockError;
use crate::permission::{Permissions, Usage};

/// How a node uses a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// The child's bytes are the node's own: `raw`, filters.
    Passing,
    /// The child holds the node's metadata and bytes: the `file` of a format.
    Storage,
    /// The same bytes, of which nobody else may change what the node's users see.
    Kept,
    /// What was in another child is copied there.
    Target,
    /// The child has the bytes, as they were.
    Snapshot,
    /// What the node does not hold shows through from the child.
    Backing,
}

/// How a driver uses its child of this role.
#[must_use]
pub(super) fn link_of(driver: &str, role: &str) -> Link {
    match (driver, role) {
        ("copy-before-write", "target") => Link::Target,
        ("copy-before-write", _) => Link::Kept,
        ("snapshot-access", _) => Link::Snapshot,
        ("raw", _) => Link::Passing,
        (filter, _) if is_filter(filter) => Link::Passing,
        (_, "backing") => Link::Backing,
        _ => Link::Storage,
    }
}

impl Usage {
    /// What a node that is used like this does with a child.
    #[must_use]
    pub fn through(self, link: Link, read_only: bool) -> Self {
        let changes = Permissions::WRITE | Permissions::RESIZE;
        match link {
            Link::Passing => self,
            Link::Kept if self.uses.is_empty() => self,
            Link::Kept => Self {
                uses: self.uses | Permissions::CONSISTENT_READ,
                shares: self.shares - changes,
            },
            Link::Target => Self {
                uses: match read_only {
                    true => Permissions::empty(),
                    false => Permissions::WRITE,
                },
                ..Self::NONE
            },
            Link::Snapshot => Self {
                uses: self.uses & Permissions::CONSISTENT_READ,
                ..Self::NONE
            },
            Link::Storage => {
                let metadata = if read_only {
                    Permissions::CONSISTENT_READ
                } else {
                    Permissions::CONSISTENT_READ | changes
                };
                Self {
                    uses: self.uses | metadata,
                    shares: self.shares - changes,
                }
            }
            Link::Backing => {
                let mut shares = Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED;
                if self.shares.contains(Permissions::WRITE) {
                    shares |= changes;
                }
                Self {
                    uses: self.uses & Permissions::CONSISTENT_READ,
                    shares,
                }
            }
        }
    }
}

/// A node as it is to be.
#[derive(Clone, Debug, Default)]
pub struct Drawn {
    /// Whether writes will be refused.
    pub read_only: bool,
    /// Whether its storage is left to another process: nobody does anything with it but read, and
    /// everybody else may do anything.
    pub inactive: bool,
    /// Whether its users let others do anything, as long as it is read-only.
    pub force_share: bool,
    /// Its children: role, how it uses them, name.
    pub children: Vec<(&'static str, Link, String)>,
    /// Its users that are no nodes, by id (empty if one has none), and what each does.
    pub users: Vec<(String, Usage)>,
}

impl Drawn {
    /// What it does with a child, if it is itself used like `sum`.
    fn does(&self, sum: Usage, link: Link) -> Usage {
        let usage = sum.through(link, self.read_only);
        self.is_let(usage)
    }

    /// What is left of a usage.
    fn is_let(&self, usage: Usage) -> Usage {
        match self.inactive {
            false => usage,
            true => Usage {
                uses: usage.uses & Permissions::CONSISTENT_READ,
                ..Usage::NONE
            },
        }
    }
}

/// Who uses a node.
#[derive(Clone, Copy, Debug)]
enum User<'a> {
    /// Its parent, and as what.
    Node(&'a str, &'static str),
    /// No node: a device.
    Device(&'a str),
}

/// A user, and what it does.
type Claim<'a> = (User<'a>, Usage);

impl User<'_> {
    /// In QEMU's words.
    fn on(self, node: &str) -> String {
        match self {
            Self::Node(parent, role) => {
                format!("node '{parent}' (uses node '{node}' as '{role}' child)")
            }
            Self::Device("") => {
                format!("an unnamed block device (uses node '{node}' as 'root' child)")
            }
            Self::Device(id) => {
                format!("block device '{id}' (uses node '{node}' as 'root' child)")
            }
        }
    }
}

/// The first two who cannot agree, as seen by the last who came: who does something, and who does
/// not allow it.
fn conflict<'a>(claims: &'a [Claim<'a>]) -> Option<(&'a Claim<'a>, &'a Claim<'a>, Permissions)> {
    for (at, other) in claims.iter().enumerate().rev() {
        let others = claims.iter().enumerate().rev();
        for (_, user) in others.filter(|(place, _)| *place != at) {
            let permissions = other.1.refuses(user.1);
            if !permissions.is_empty() {
                return Some((user, other, permissions));
            }
        }
    }
    None
}

/// The whole graph as it is to be.
#[derive(Clone, Debug, Default)]
pub struct Sketch {
    nodes: IndexMap<String, Drawn>,
}

impl Sketch {
    /// Draws a node, over the one of that name if there is one.
    pub fn draw(&mut self, name: &str, node: Drawn) {
        self.nodes.insert(name.to_owned(), node);
    }

    /// A node that is drawn.
    pub fn node(&mut self, name: &str) -> Option<&mut Drawn> {
        self.nodes.get_mut(name)
    }

    /// Gives the node another child in this role, or none.
    pub fn link(&mut self, parent: &str, role: &'static str, link: Link, child: Option<&str>) {
        // Who has a new child comes last: a conflict is told as its own.
        if let Some(mut node) = self.nodes.shift_remove(parent) {
            node.children.retain(|(other, ..)| *other != role);
            let child = child.map(|child| (role, link, child.to_owned()));
            node.children.extend(child);
            self.nodes.insert(parent.to_owned(), node);
        }
    }

    /// Moves every user and parent of `from` to `to`, except `to` itself and who stands between.
    pub fn move_users(&mut self, from: &str, to: &str) {
        let users = self
            .nodes
            .get_mut(from)
            .map(|node| std::mem::take(&mut node.users));
        let keep: Vec<String> = self.below(to);
        for (name, node) in &mut self.nodes {
            if keep.contains(name) {
                continue;
            }
            for (_, _, child) in &mut node.children {
                if child == from {
                    to.clone_into(child);
                }
            }
        }
        if let Some(node) = self.nodes.get_mut(to) {
            node.users.extend(users.unwrap_or_default());
        }
    }

    /// `name` and everything under it.
    fn below(&self, name: &str) -> Vec<String> {
        let mut found = vec![name.to_owned()];
        let mut at = 0;
        while let Some(node) = found.get(at).and_then(|name| self.nodes.get(name)) {
            for (_, _, child) in &node.children {
                if !found.contains(child) {
                    found.push(child.clone());
                }
            }
            at += 1;
        }
        found
    }

    /// Whether the graph can be like this: no loop, no write to a node that refuses it, and no two
    /// users of a node of which one does what the other does not allow.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn check(&self) -> Result<(), BlockError> {
        self.sums().map(drop)
    }

    /// As [`check`](Self::check): what the users of each node do with it together.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn sums(&self) -> Result<IndexMap<&str, Usage>, BlockError> {
        let order = self.parents_first()?;
        self.check_active()?;
        let mut sums: IndexMap<&str, Usage> = IndexMap::new();
        for name in order {
            let claims = self.claims(name, &sums);
            if let Some((user, other, permissions)) = conflict(&claims) {
                let used = |by: &Claim| by.0.on(name);
                return Err(BlockError::Conflict {
                    node: name.to_owned(),
                    user: used(user),
                    other: used(other),
                    permissions,
                });
            }
            let sum = claims
                .iter()
                .fold(Usage::NONE, |sum, (_, usage)| sum.and(*usage));
            let changes = Permissions::WRITE | Permissions::WRITE_UNCHANGED | Permissions::RESIZE;
            let read_only = self.nodes.get(name).is_some_and(|node| node.read_only);
            if read_only && sum.uses.intersects(changes) {
                return Err(BlockError::ReadOnly {
                    node: name.to_owned(),
                });
            }
            sums.insert(name, sum);
        }
        Ok(sums)
    }

    /// Whether nothing active stands on what is inactive.
    fn check_active(&self) -> Result<(), BlockError> {
        let active = self.nodes.iter().filter(|(_, node)| !node.inactive);
        for (parent, node) in active {
            let mut children = node.children.iter();
            let is_inactive = |child: &str| self.nodes.get(child).is_some_and(|node| node.inactive);
            if let Some((role, _, child)) = children.find(|(_, _, child)| is_inactive(child)) {
                return Err(BlockError::InactiveChild {
                    child: child.clone(),
                    role,
                    parent: parent.clone(),
                });
            }
        }
        Ok(())
    }

    /// What each node does with each of its children: parent, role, child, usage.
    ///
    /// # Errors
    /// The graph cannot be.
    pub fn uses(&self) -> Result<Vec<(&str, &'static str, &str, Usage)>, BlockError> {
        let sums = self.sums()?;
        let mut uses = Vec::new();
        for (parent, node) in &self.nodes {
            let sum = sums.get(parent.as_str()).copied().unwrap_or(Usage::NONE);
            for (role, link, child) in &node.children {
                let usage = node.does(sum, *link);
                uses.push((parent.as_str(), *role, child.as_str(), usage));
            }
        }
        Ok(uses)
    }

    /// What all users of a node do with it together.
    ///
    /// # Errors
    /// The graph cannot be.
    pub fn used(&self, name: &str) -> Result<Usage, BlockError> {
        let sums = self.sums()?;
        Ok(sums.get(name).copied().unwrap_or(Usage::NONE))
    }

    /// Who uses a node and how, parents before others; `sums` has all its parents.
    fn claims(&self, name: &str, sums: &IndexMap<&str, Usage>) -> Vec<Claim<'_>> {
        let mut claims = Vec::new();
        for (parent, node) in &self.nodes {
            for (role, link, child) in &node.children {
                if child == name {
                    let sum = sums.get(parent.as_str()).copied().unwrap_or(Usage::NONE);
                    let usage = node.does(sum, *link);
                    claims.push((User::Node(parent, role), usage));
                }
            }
        }
        if let Some(node) = self.nodes.get(name) {
            let own = node.users.iter();
            claims.extend(own.map(|(device, usage)| (User::Device(device), node.is_let(*usage))));
            if node.force_share && node.read_only {
                let all = claims.iter_mut();
                all.for_each(|(_, usage)| usage.shares = Permissions::all());
            }
        }
        claims
    }

    /// The names so that each comes after all its parents.
    pub(super) fn parents_first(&self) -> Result<Vec<&str>, BlockError> {
        let mut missing: IndexMap<&str, usize> =
            self.nodes.keys().map(|name| (name.as_str(), 0)).collect();
        for (_, _, child) in self.nodes.values().flat_map(|node| &node.children) {
            match missing.get_mut(child.as_str()) {
                Some(parents) => *parents += 1,
                None => {
                    return Err(BlockError::NoSuchNode {
                        name: child.clone(),
                    });
                }
            }
        }
        let mut order: Vec<&str> = missing
            .iter()
            .filter(|(_, parents)| **parents == 0)
            .map(|(name, _)| *name)
            .collect();
        let mut at = 0;
        while let Some(node) = order.get(at).and_then(|name| self.nodes.get(*name)) {
            at += 1;
            for (_, _, child) in &node.children {
                if let Some(parents) = missing.get_mut(child.as_str()) {
                    *parents -= 1;
                    if *parents == 0 {
                        order.push(child);
                    }
                }
            }
        }
        match missing.iter().find(|(_, parents)| **parents > 0) {
            None => Ok(order),
            Some((name, _)) => Err(BlockError::Loop {
                node: (*name).to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drawn(children: &[(&'static str, Link, &str)]) -> Drawn {
        let children = children.iter();
        Drawn {
            children: children
                .map(|(role, link, name)| (*role, *link, (*name).to_owned()))
                .collect(),
            ..Drawn::default()
        }
    }

    fn disk(id: &str) -> (String, Usage) {
        (id.to_owned(), Usage::disk(false, false))
    }

    /// A disk on an overlay over a base, each with a file of its own.
    fn chain() -> Sketch {
        let mut sketch = Sketch::default();
        let top = [
            ("file", Link::Storage, "top-file"),
            ("backing", Link::Backing, "base"),
        ];
        sketch.draw("top", drawn(&top));
        sketch.draw("base", drawn(&[("file", Link::Storage, "base-file")]));
        sketch.draw("top-file", Drawn::default());
        sketch.draw("base-file", Drawn::default());
        sketch.node("top").expect("drawn").users.push(disk("vda"));
        sketch
    }

    fn refusal(sketch: &Sketch) -> String {
        sketch.check().expect_err("refused").to_string()
    }

    #[test]
    fn backing_node_is_read_by_many_and_written_by_none() {
        let mut sketch = chain();
        sketch.check().expect("fits");
        let overlay = drawn(&[("backing", Link::Backing, "base")]);
        sketch.draw("other", overlay);
        sketch.node("other").expect("drawn").users.push(disk("vdb"));
        sketch.check().expect("two overlays over one base");
        sketch.node("base").expect("drawn").users.push(disk("vdc"));
        assert_eq!(
            refusal(&sketch),
            "Permission conflict on node 'base': permissions 'write' are both required by block \
             device 'vdc' (uses node 'base' as 'root' child) and unshared by node 'other' (uses \
             node 'base' as 'backing' child)."
        );
    }

    #[test]
    fn storage_of_a_format_is_its_own_even_without_a_user() {
        let mut sketch = chain();
        sketch.draw("thief", drawn(&[("file", Link::Storage, "base-file")]));
        let text = refusal(&sketch);
        assert!(text.contains("'base-file'"), "{text}");
        for reader in ["base", "thief"] {
            sketch.node(reader).expect("drawn").read_only = true;
        }
        sketch.check().expect("both only read");
    }

    #[test]
    fn read_only_node_under_a_writer_and_a_loop_are_refused() {
        let mut sketch = chain();
        sketch.node("base").expect("drawn").read_only = true;
        sketch.node("base-file").expect("drawn").read_only = true;
        sketch.check().expect("a base is only read");
        sketch.node("top-file").expect("drawn").read_only = true;
        assert_eq!(refusal(&sketch), "Block node is read-only: 'top-file'");
        let mut sketch = chain();
        sketch.link("base", "backing", Link::Backing, Some("top"));
        assert!(refusal(&sketch).contains("itself"), "{}", refusal(&sketch));
    }

    #[test]
    fn inactive_nodes_mind_nobody_and_stand_only_under_inactive_ones() {
        let mut sketch = chain();
        sketch.draw("thief", drawn(&[("file", Link::Storage, "top-file")]));
        sketch.check().expect_err("two formats in one file");
        for name in ["top", "base"] {
            sketch.node(name).expect("drawn").inactive = true;
        }
        sketch.check().expect("the thief is alone");
        let sum = sketch.used("base-file").expect("fits");
        assert_eq!(sum.uses, Permissions::CONSISTENT_READ);
        assert_eq!(sum.shares, Permissions::all());
        sketch.node("top").expect("drawn").inactive = false;
        assert_eq!(
            refusal(&sketch),
            "Inactive 'base' can't be a backing child of active 'top'"
        );
    }

    #[test]
    fn users_move_to_the_overlay_and_the_old_node_becomes_its_backing() {
        let mut sketch = chain();
        sketch.draw("new", Drawn::default());
        sketch.draw("above", drawn(&[("file", Link::Passing, "top")]));
        sketch.link("new", "backing", Link::Backing, Some("top"));
        sketch.move_users("top", "new");
        sketch.check().expect("fits");
        let above = sketch.node("above").expect("drawn").clone();
        assert_eq!(above.children[0].2, "new");
        assert_eq!(sketch.node("new").expect("drawn").users.len(), 1);
        assert!(sketch.node("top").expect("drawn").users.is_empty());
    }

    fn link() -> impl Strategy<Value = Link> {
        prop_oneof![
            Just(Link::Passing),
            Just(Link::Storage),
            Just(Link::Backing)
        ]
    }

    fn usage() -> impl Strategy<Value = Usage> {
        (0..16u8, 0..16u8).prop_map(|(uses, shares)| Usage {
            uses: Permissions::from_bits_truncate(uses),
            shares: Permissions::from_bits_truncate(shares),
        })
    }

    proptest! {
        /// What fits still fits when an edge or a user is taken away.
        #[test]
        fn taking_something_away_never_makes_a_conflict(
            edges in prop::collection::vec((0..6usize, 0..6usize, link()), 0..10),
            users in prop::collection::vec((0..6usize, usage()), 0..5),
            gone in 0..15usize,
        ) {
            let build = |skip: Option<usize>| {
                let mut sketch = Sketch::default();
                for node in 0..6 {
                    sketch.draw(&format!("n{node}"), Drawn { read_only: true, ..Drawn::default() });
                }
                for (at, (from, to, link)) in edges.iter().enumerate() {
                    if Some(at) != skip {
                        let child = ("child", *link, format!("n{to}"));
                        let node = sketch.node(&format!("n{from}")).expect("drawn");
                        node.children.push(child);
                    }
                }
                for (at, (node, usage)) in users.iter().enumerate() {
                    if Some(at + edges.len()) != skip {
                        let node = sketch.node(&format!("n{node}")).expect("drawn");
                        node.users.push((format!("user {at}"), *usage));
                    }
                }
                sketch
            };
            if build(None).check().is_ok() {
                prop_assert!(build(Some(gone)).check().is_ok());
            }
        }

        /// Going down a link, nobody does more to a backing node than read, and what is shared
        /// with others of a storage is never a change.
        #[test]
        fn links_keep_their_promises(usage in usage(), read_only in any::<bool>()) {
            let backing = usage.through(Link::Backing, read_only);
            prop_assert!(Permissions::CONSISTENT_READ.contains(backing.uses));
            let storage = usage.through(Link::Storage, read_only);
            prop_assert!(!storage.shares.intersects(Permissions::WRITE | Permissions::RESIZE));
            prop_assert!(storage.uses.contains(usage.uses));
            prop_assert_eq!(usage.through(Link::Passing, read_only), usage);
        }
    }
}
