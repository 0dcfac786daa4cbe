//! The node of a job's filter: another node, as it is.
//!
//! ```text
//!   users ─► filter ─► topmost node of the job      its name tells where the job works, and who
//!                                                   stands on it is given another node at the end
//! ```

use super::filter::Filter;
use crate::node::NodeRef;
use crate::slot::ChildSlot;

/// A node that does nothing of its own.
#[derive(Debug)]
pub(crate) struct PassNode {
    below: ChildSlot,
}

impl PassNode {
    /// Stands for the node in `below`.
    pub(crate) fn new(below: ChildSlot) -> Self {
        Self { below }
    }
}

impl Filter for PassNode {
    fn under(&self) -> NodeRef {
        self.below.load()
    }
}
