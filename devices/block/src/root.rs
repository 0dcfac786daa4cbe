//! A user's hold on the graph: the node it has now, and the gate through which it asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::drain::{Drain, Gate};
use crate::error::BlockError;
use crate::node::NodeRef;
use crate::slot::ChildSlot;
use crate::throttle::Limiter;

/// What a user asks for that has said nothing of its blocks, in bytes.
const SECTOR: u32 = 512;

/// What a disk or a job is given. Clones are the same hold.
#[derive(Clone, Debug)]
pub struct Root {
    node: ChildSlot,
    gate: Gate,
    /// Closed while nobody is to wait for limits.
    hurry: Gate,
    limiter: Limiter,
    /// The smallest piece that the user asks for, in bytes; 0 until it has said so.
    block: Arc<AtomicU32>,
}

impl Root {
    /// A hold on `node`. While `hurry` is closed, requests wait for no limits.
    pub(crate) fn new(node: NodeRef, hurry: Gate) -> Self {
        Self {
            node: ChildSlot::from(node),
            gate: Gate::new(),
            hurry,
            limiter: Limiter::default(),
            block: Arc::default(),
        }
    }

    /// Whether the node can be a disk with logical blocks of `block` bytes, which the user will ask
    /// for from now on.
    ///
    /// # Errors
    /// As [`NodeRef::check_disk`].
    pub fn check_disk(&self, block: u32) -> Result<(), BlockError> {
        self.node().check_disk(block)?;
        self.block.store(block, Ordering::Relaxed);
        Ok(())
    }

    /// The smallest piece that the user asks for, in bytes.
    pub(crate) fn block(&self) -> u32 {
        match self.block.load(Ordering::Relaxed) {
            0 => SECTOR,
            block => block,
        }
    }

    /// The same hold, whose user asks `limiter` before its requests.
    #[must_use]
    pub fn limited_by(self, limiter: Limiter) -> Self {
        Self { limiter, ..self }
    }

    /// What the user asks before each read and write.
    #[must_use]
    pub fn limiter(&self) -> &Limiter {
        &self.limiter
    }

    /// Has requests wait for no limits until the end of what is given back: they are to end now.
    /// Never called on an io-thread.
    pub fn hurry(&self) -> Drain {
        Drain::begin(vec![self.hurry.clone()])
    }

    /// The node, now: it stays the same from the start of a request to its end, and may be another
    /// after the user was parked at the gate.
    #[must_use]
    pub fn node(&self) -> NodeRef {
        self.node.load()
    }

    /// Where the user takes a seat for each task that sends requests.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Gives the user, who is parked, another node; the old one comes back.
    #[must_use = "the old node may end where it is dropped"]
    pub fn replace(&self, node: NodeRef) -> NodeRef {
        self.node.replace(node)
    }
}

impl From<NodeRef> for Root {
    /// A hold on a node that is in no graph, or that nobody will exchange.
    fn from(node: NodeRef) -> Self {
        Self::new(node, Gate::new())
    }
}
