//! A place whose content is exchanged while nobody is on the way through it: a node's child, a
//! disk's node, a file node's file.
//!
//! ```text
//!   driver ── ChildSlot ──┐                     driver ── ChildSlot ──┐
//!                         ▼        replace                            ▼
//!                      node A    ─────────►                        node B
//!   graph ─── the same ───┘      users parked   graph ─── the same ───┘
//! ```
//!
//! Only the main loop exchanges, and only between [`Drain::begin`](crate::Drain::begin) and its
//! end, so a request sees one content from its start to its end. Looking takes a share of the
//! content and lets go of the slot at once: nothing is held across a request.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use crate::node::NodeRef;

/// A place with exchangeable content. Clones are the same place.
#[derive(Clone)]
pub struct Slot<T>(Arc<RwLock<T>>);

/// The place of a child that is always there: `file`, `image`, or what a disk stands on.
pub type ChildSlot = Slot<NodeRef>;

/// The place of a child that may be missing: `backing`.
pub type BackingSlot = Slot<Option<NodeRef>>;

impl<T: Clone> Slot<T> {
    /// A place with this in it.
    pub fn new(content: T) -> Self {
        Self(Arc::new(RwLock::new(content)))
    }

    /// What is in it now.
    #[must_use]
    pub fn load(&self) -> T {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Puts something else in and gives back what was there. Its users are parked.
    #[must_use = "the old content ends where it is dropped"]
    pub fn replace(&self, content: T) -> T {
        let mut place = self.0.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut place, content)
    }

    /// Whether both are the same place.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T: Clone + fmt::Debug> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.load()).finish()
    }
}

impl From<NodeRef> for ChildSlot {
    fn from(node: NodeRef) -> Self {
        Self::new(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clone_of_a_slot_sees_what_was_put_in_and_the_old_content_comes_back() {
        let slot = Slot::new(Arc::new(1));
        let other = slot.clone();
        let seen = other.load();
        assert!(slot.is(&other));
        let old = slot.replace(Arc::new(2));
        assert_eq!((*old, *seen, *other.load()), (1, 1, 2));
        assert!(!slot.is(&Slot::new(Arc::new(2))));
    }
}
