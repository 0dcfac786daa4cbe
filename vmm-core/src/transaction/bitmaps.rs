//! Bitmaps in a transaction.
//!
//! ```text
//!   claim: what can fail, and the images are told       guest runs
//!     ▼ drained
//!   make each, in order ─► settle ─► done
//!     └ refused  └ the storage fails ─► put back what was kept
//! ```

use block::{Bitmap, BitmapChange, IoThread, NodeRef};
use qapi_schema::QmpError;
use qapi_schema::block_bitmaps::{
    BlockDirtyBitmap, BlockDirtyBitmapAdd, BlockDirtyBitmapMerge, BlockDirtyBitmapOrStr,
};

use crate::vm::Vm;

/// What an action does to a bitmap.
#[derive(Clone, Debug)]
pub(crate) enum BitmapAction {
    /// One more.
    Add(BlockDirtyBitmapAdd),
    /// One less.
    Remove(BlockDirtyBitmap),
    /// It forgets.
    Clear(BlockDirtyBitmap),
    /// It records.
    Enable(BlockDirtyBitmap),
    /// It records no more.
    Disable(BlockDirtyBitmap),
    /// It takes over from others.
    Merge(BlockDirtyBitmapMerge),
}

/// One change of a bitmap whose nodes were found.
#[derive(Debug)]
struct Wanted {
    node: NodeRef,
    change: BitmapChange,
    /// What a merge merges: found when its turn comes.
    sources: Vec<(NodeRef, String)>,
}

/// The changes of bitmaps of a transaction, and what there was before them.
#[derive(Debug, Default)]
pub(super) struct BitmapWork {
    wanted: Vec<Wanted>,
    kept: Vec<(NodeRef, Vec<Bitmap>)>,
}

fn refused(error: &block::BitmapError) -> QmpError {
    QmpError::from_error(error)
}

impl BitmapWork {
    /// Finds the nodes of one more action.
    ///
    /// # Errors
    /// One is not there.
    pub(super) fn want(&mut self, vm: &Vm, action: BitmapAction) -> Result<(), QmpError> {
        let mut sources = Vec::new();
        let (node, change) = match action {
            BitmapAction::Add(args) => {
                let change = BitmapChange::Add {
                    name: args.name,
                    granularity: args.granularity.map(u64::from),
                    persistent: args.persistent.unwrap_or(false),
                    enabled: !args.disabled.unwrap_or(false),
                };
                let node = vm.named_node(&args.node)?;
                (vm.node_with_bitmaps(&node)?, change)
            }
            BitmapAction::Remove(args) => {
                let node = vm.node_with_bitmaps(&args.node)?;
                (node, BitmapChange::Remove(args.name))
            }
            BitmapAction::Clear(args) => {
                let node = vm.node_with_bitmaps(&args.node)?;
                (node, BitmapChange::Clear(args.name))
            }
            BitmapAction::Enable(args) => {
                let node = vm.node_with_bitmaps(&args.node)?;
                (node, BitmapChange::Enable(args.name))
            }
            BitmapAction::Disable(args) => {
                let node = vm.node_with_bitmaps(&args.node)?;
                (node, BitmapChange::Disable(args.name))
            }
            BitmapAction::Merge(args) => {
                let node = vm.node_with_bitmaps(&args.node)?;
                for source in args.bitmaps {
                    sources.push(match source {
                        BlockDirtyBitmapOrStr::Local(name) => (node.clone(), name),
                        BlockDirtyBitmapOrStr::External(other) => {
                            (vm.node_with_bitmaps(&other.node)?, other.name)
                        }
                    });
                }
                let change = BitmapChange::Merge {
                    target: args.target,
                    sources: Vec::new(),
                };
                (node, change)
            }
        };
        self.wanted.push(Wanted {
            node,
            change,
            sources,
        });
        Ok(())
    }

    /// The nodes whose bitmaps change.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeRef> {
        self.wanted.iter().map(|wanted| &wanted.node)
    }

    /// The nodes of which a bitmap goes: what is removed is to be gone from the image at once.
    pub(super) fn losing(&self) -> Vec<NodeRef> {
        let mut nodes: Vec<NodeRef> = Vec::new();
        for wanted in &self.wanted {
            let BitmapChange::Remove(name) = &wanted.change else {
                continue;
            };
            let found = wanted.node.bitmaps().find(name);
            let stored = found.is_ok_and(|bitmap| bitmap.persistent);
            if stored && !nodes.iter().any(|node| node.is(&wanted.node)) {
                nodes.push(wanted.node.clone());
            }
        }
        nodes
    }

    /// Has the images know that their bitmaps change.
    ///
    /// # Errors
    /// An image cannot keep what is to be stored, or its storage failed.
    pub(super) fn claim(&self, iothread: &IoThread) -> Result<(), QmpError> {
        for wanted in &self.wanted {
            let (node, change) = (wanted.node.clone(), wanted.change.clone());
            let claimed =
                iothread.run(move |io| async move { node.claim_bitmaps(&io, &change).await });
            claimed
                .map_err(|error| QmpError::from_error(&error))?
                .map_err(|error| QmpError::generic(error.to_string()))?;
        }
        Ok(())
    }

    /// Makes the changes; the nodes are drained.
    ///
    /// # Errors
    /// One cannot be made: [`put_back`](Self::put_back) takes back the others.
    pub(super) fn make(&mut self) -> Result<(), QmpError> {
        for wanted in &self.wanted {
            if !self.kept.iter().any(|(node, _)| node.is(&wanted.node)) {
                let list = wanted.node.bitmaps().list();
                self.kept.push((wanted.node.clone(), list));
            }
            let mut change = wanted.change.clone();
            if let BitmapChange::Merge { sources, .. } = &mut change {
                for (node, name) in &wanted.sources {
                    let source = node.bitmaps().find(name);
                    sources.push(source.map_err(|error| refused(&error))?);
                }
            }
            let changed = wanted.node.change_bitmap(change);
            changed.map_err(|error| refused(&error))?;
        }
        Ok(())
    }

    /// Takes back what was made; the nodes are still drained.
    pub(super) fn put_back(&mut self, iothread: &IoThread) {
        for (node, list) in self.kept.drain(..) {
            node.bitmaps().exchange(list);
        }
        // Some may have been stored as they were meant to be.
        if let Err(error) = self.claim(iothread) {
            tracing::debug!(?error, "bitmaps were put back in memory only");
        }
    }
}

impl Vm {
    /// The node of this name, as the commands for bitmaps look for it.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn node_with_bitmaps(&self, name: &str) -> Result<NodeRef, QmpError> {
        let found = self.find_node(Some(name), Some(name)).ok();
        let found = found.and_then(|name| self.graph.node(&name).ok());
        let view = found.ok_or_else(|| QmpError::generic(format!("Node '{name}' not found")))?;
        Ok(view.node().clone())
    }
}
