//! A part of a backing chain: what its nodes hold together above a base.

use std::io;

use crate::engine::Io;
use crate::node::{NodeRef, Place};

/// Nodes from the top down, without the base they stand on.
#[derive(Clone, Debug)]
pub struct Chain(Vec<NodeRef>);

/// What the first bytes of a range are in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// How many bytes are alike.
    pub len: u64,
    /// What.
    pub kind: HeldKind,
}

/// What some bytes of a chain are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldKind {
    /// Stored in one of the nodes.
    Data,
    /// Zeros by the word of one of the nodes, or beyond the end of one.
    Zero,
    /// In none of the nodes: the base shows through.
    Below,
}

impl Chain {
    /// A chain of these nodes, the top first.
    #[must_use]
    pub fn new(nodes: Vec<NodeRef>) -> Self {
        Self(nodes)
    }

    /// What the first bytes of a range are.
    ///
    /// # Errors
    /// What the storage said.
    pub async fn held(&self, io: &Io, offset: u64, len: u64) -> io::Result<Held> {
        let mut len = len;
        for node in &self.0 {
            let end = node.len();
            if offset >= end {
                // What backs a longer node reads as zeros beyond its end.
                let kind = HeldKind::Zero;
                return Ok(Held { len, kind });
            }
            let status = node.status(io, offset, len.min(end - offset)).await?;
            len = status.len;
            let kind = match status.place {
                Place::Data { .. } => HeldKind::Data,
                Place::Zero => HeldKind::Zero,
                Place::Below => continue,
            };
            return Ok(Held { len, kind });
        }
        let kind = HeldKind::Below;
        Ok(Held { len, kind })
    }
}
