//! What the graph agrees on is agreed with other processes, too: each node over a file takes the
//! locks of what its users do ([`crate::protocol::lock`]).
//!
//! ```text
//!   sketch ─► fits here? ─► wider locks, does anybody mind? ─► the change ─► settle_locks
//!                 └──────────────── refused ──────────────────────────────► settle_locks
//! ```

use fdset::Identity;
use indexmap::IndexMap;

use super::sketch::Sketch;
use super::{BlockGraph, Built, Entry};
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
        self.agree_on_files(&sums, new.clone())?;
        let claimed = self.nodes.iter().chain(new).try_for_each(|(name, entry)| {
            let sum = sums.get(name.as_str()).copied();
            entry.node.claim(Claim::Widen(sum.unwrap_or(Usage::NONE)))
        });
        if claimed.is_err() {
            self.settle_locks();
        }
        claimed
    }

    /// Whether the users of nodes over one file agree. Its locks would not tell: nodes may have copies
    /// of one fd, whose locks are one.
    fn agree_on_files<'a>(
        &'a self,
        sums: &IndexMap<&str, Usage>,
        new: impl Iterator<Item = (&'a String, &'a Entry)>,
    ) -> Result<(), BlockError> {
        let mut users: Vec<(Identity, &Entry, Usage)> = Vec::new();
        for (name, entry) in self.nodes.iter().chain(new) {
            let Some(file) = entry.node.shared_file() else {
                continue;
            };
            let usage = sums.get(name.as_str()).copied().unwrap_or(Usage::NONE);
            for (_, other, had) in users.iter().filter(|(other, ..)| *other == file) {
                let refused = had.refuses(usage) | usage.refuses(*had);
                if let Some(permission) = refused.iter().next() {
                    return Err(BlockError::SameFile {
                        node: name.clone(),
                        filename: entry.filename.clone(),
                        other: other.node.name().to_owned(),
                        permission,
                    });
                }
            }
            users.push((file, entry, usage));
        }
        Ok(())
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
