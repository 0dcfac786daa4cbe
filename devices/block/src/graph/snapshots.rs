//! Nodes that keep what a disk held at one moment: `copy-before-write`, and `snapshot-access` over
//! one.

use std::sync::Arc;

use fdset::Door;

use super::image::Building;
use super::place::{Children, place_child};
use super::{BlockGraph, may_pass_writes, no_such};
use crate::dirty::DirtyMap;
use crate::error::BlockError;
use crate::format::cbw::{CopyBeforeWriteNode, Snapshot, SnapshotAccessNode, SnapshotRules};
use crate::node::BlockNode;
use crate::spec::{CopyBeforeWriteSpec, NodeOptions, SnapshotAccessSpec};

/// A driver's body, the file name that it goes by, and its children.
type Parts = (Box<dyn BlockNode>, String, Children);

impl BlockGraph {
    /// A node that saves what is about to be overwritten.
    pub(super) fn build_copy_before_write(
        &self,
        door: &Door,
        name: &str,
        spec: CopyBeforeWriteSpec,
        options: &mut NodeOptions,
        building: &mut Building,
    ) -> Result<Parts, BlockError> {
        let (file, filename) = self.child(door, spec.file, building)?;
        let (target, _) = self.child(door, spec.target, building)?;
        may_pass_writes(&file, options);
        if target.len() < file.len() {
            return Err(BlockError::ShortTarget {
                node: name.to_owned(),
                target: target.name().to_owned(),
                len: target.len(),
                wanted: file.len(),
            });
        }
        let only = spec
            .bitmap
            .map(|(node, bitmap)| marked(self, building, &node, &bitmap));
        let only = only.transpose()?;
        let mut children = Children::default();
        let file = place_child(&mut children, "file", file);
        let target = place_child(&mut children, "target", target);
        let rules = SnapshotRules {
            on_failure: spec.on_failure,
            timeout: spec.timeout,
        };
        let snapshot = Snapshot::new(
            (file.clone(), target),
            spec.piece,
            only.as_deref(),
            rules,
            self.throttling.hurry.clone(),
        );
        let body = CopyBeforeWriteNode::new(file, Arc::new(snapshot));
        Ok((Box::new(body), filename, children))
    }

    /// A node that reads what another has saved.
    pub(super) fn build_snapshot_access(
        &self,
        door: &Door,
        spec: SnapshotAccessSpec,
        building: &mut Building,
    ) -> Result<Parts, BlockError> {
        let (file, filename) = self.child(door, spec.file, building)?;
        let snapshot = file.snapshot().ok_or_else(|| BlockError::NoSnapshot {
            node: file.name().to_owned(),
            driver: file.driver(),
        })?;
        let mut children = Children::default();
        drop(place_child(&mut children, "file", file));
        Ok((
            Box::new(SnapshotAccessNode::new(snapshot)),
            filename,
            children,
        ))
    }
}

/// What a bitmap of a node that is there, or comes along, marks.
fn marked(
    graph: &BlockGraph,
    building: &Building,
    node: &str,
    bitmap: &str,
) -> Result<Arc<DirtyMap>, BlockError> {
    let new = building.built.iter().find(|(name, _)| name == node);
    let entry = new.map(|(_, entry)| entry).or(graph.nodes.get(node));
    let entry = entry.ok_or_else(|| no_such(node))?;
    let found = entry.node.bitmaps().find(bitmap);
    let usable = found.and_then(|found| found.marks());
    usable.map_err(|source| BlockError::Bitmap { source })
}
