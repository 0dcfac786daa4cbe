//! The places of a node's children: the graph and the driver hold the same slots.

use crate::node::NodeRef;
use crate::slot::{BackingSlot, ChildSlot};

/// Where a parent finds its child.
#[derive(Debug)]
pub(super) enum Place {
    /// A child that is always there.
    Child(ChildSlot),
    /// A child that may be missing.
    Backing(BackingSlot),
}

impl Place {
    /// Puts another node there; the old one comes back. The parent's users are parked.
    fn put(&self, node: NodeRef) -> Option<NodeRef> {
        match self {
            Self::Child(slot) => Some(slot.replace(node)),
            Self::Backing(slot) => slot.replace(Some(node)),
        }
    }
}

/// One child of a node.
#[derive(Debug)]
pub(super) struct Edge {
    pub(super) role: &'static str,
    pub(super) child: String,
    place: Place,
}

impl Edge {
    /// Makes another node the child; the old one comes back. The parent's users are parked.
    pub(super) fn put(&mut self, node: NodeRef) -> Option<NodeRef> {
        node.name().clone_into(&mut self.child);
        self.place.put(node)
    }
}

/// The children of a node.
#[derive(Debug, Default)]
pub(super) struct Children {
    edges: Vec<Edge>,
    /// Of a driver that can have one, whether or not it has.
    backing: Option<BackingSlot>,
}

impl Children {
    pub(super) fn edges(&self) -> impl Iterator<Item = &Edge> {
        self.edges.iter()
    }

    pub(super) fn into_edges(self) -> impl Iterator<Item = Edge> {
        self.edges.into_iter()
    }

    pub(super) fn edge(&self, role: &str) -> Option<&Edge> {
        self.edges.iter().find(|edge| edge.role == role)
    }

    pub(super) fn edge_mut(&mut self, role: &str) -> Option<&mut Edge> {
        self.edges.iter_mut().find(|edge| edge.role == role)
    }

    pub(super) fn edges_to(&mut self, child: &str) -> impl Iterator<Item = &mut Edge> {
        self.edges
            .iter_mut()
            .filter(move |edge| edge.child == child)
    }

    pub(super) fn can_be_backed(&self) -> bool {
        self.backing.is_some()
    }

    /// Puts a node behind this one, or takes it away; the old one comes back. The users of the node
    /// are parked.
    pub(super) fn back(&mut self, node: Option<NodeRef>) -> Option<NodeRef> {
        let slot = self.backing.clone()?;
        self.edges.retain(|edge| edge.role != "backing");
        if let Some(node) = &node {
            self.edges.push(Edge {
                role: "backing",
                child: node.name().to_owned(),
                place: Place::Backing(slot.clone()),
            });
        }
        slot.replace(node)
    }
}

/// Enters a child among `children`, and gives the place where its parent will find it.
pub(super) fn place_child(
    children: &mut Children,
    role: &'static str,
    child: NodeRef,
) -> ChildSlot {
    let name = child.name().to_owned();
    let slot = ChildSlot::from(child);
    children.edges.push(Edge {
        role,
        child: name,
        place: Place::Child(slot.clone()),
    });
    slot
}

/// Enters what backs a node, if anything does, and gives the place where it is found.
pub(super) fn place_backing(children: &mut Children, backing: Option<NodeRef>) -> BackingSlot {
    let slot = BackingSlot::new(None);
    children.backing = Some(slot.clone());
    drop(children.back(backing));
    slot
}
