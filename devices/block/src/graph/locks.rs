//! What the graph agrees on is agreed with other processes, too: each node over a file takes the
//! locks of what its users do ([`crate::protocol::lock`]).
//!
//! ```text
//!   sketch ─► fits here? ─► wider locks, does anybody mind? ─► the change ─► settle_locks
//!                 └──────────────── refused ──────────────────────────────► settle_locks
//! ```

use super::sketch::Sketch;
use super::{BlockGraph, Built};
use crate::error::BlockError;
use crate::node::Claim;
use crate::permission::Usage;

impl BlockGraph {
    /// Whether the graph can be as drawn, here and beside other processes; until
    /// [`settle_locks`](Self::settle_locks) these see both what is and what is to be.
    ///
    /// # Errors
    /// Somebody would not agree; the locks are as before then.
    pub(super) fn agree(&self, sketch: &Sketch) -> Result<(), BlockError> {
        self.agree_with(sketch, &[])
    }

    /// As [`agree`](Self::agree), with nodes that are drawn and not in the graph yet.
    pub(super) fn agree_with(&self, sketch: &Sketch, new: &[Built]) -> Result<(), BlockError> {
        let sums = sketch.sums()?;
        let new = new.iter().map(|(name, entry)| (name, entry));
        let claimed = self.nodes.iter().chain(new).try_for_each(|(name, entry)| {
            let sum = sums.get(name.as_str()).copied();
            entry.node.claim(Claim::Widen(sum.unwrap_or(Usage::NONE)))
        });
        if claimed.is_err() {
            self.settle_locks();
        }
        claimed
    }

    /// The locks become what the graph is now. All give back before any takes: nodes may have
    /// copies of one fd, whose locks are one.
    pub fn settle_locks(&self) {
        let sketch = self.sketch();
        let Ok(sums) = sketch.sums() else {
            return;
        };
        for claim in [Claim::Narrow, Claim::Assert] {
            for (name, entry) in &self.nodes {
                let sum = sums.get(name.as_str()).copied();
                // Neither of the two can be refused.
                let _ = entry.node.claim(claim(sum.unwrap_or(Usage::NONE)));
            }
        }
    }
}
