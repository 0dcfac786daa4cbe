//! `x-debug-query-block-graph`: the graph as permissions see it.

use block::{Permissions, Usage};
use indexmap::IndexMap;
use qapi_schema::QmpError;
use qapi_schema::block_graph::{
    BlockPermission, XDbgBlockGraph, XDbgBlockGraphEdge, XDbgBlockGraphNode,
    XDbgBlockGraphNodeType as Kind,
};

use crate::vm::Vm;

/// The members of the graph, each with its number: kind and name.
#[derive(Default)]
struct Members(IndexMap<(&'static str, String), u64>);

impl Members {
    const DISK: &'static str = "disk";
    const JOB: &'static str = "job";
    const NODE: &'static str = "node";

    fn number(&mut self, kind: &'static str, name: &str) -> u64 {
        // 0 is nobody.
        let next = self.0.len() as u64 + 1;
        *self.0.entry((kind, name.to_owned())).or_insert(next)
    }

    fn shown(self) -> Vec<XDbgBlockGraphNode> {
        let members = self.0.into_iter();
        let members = members.map(|((kind, name), id)| XDbgBlockGraphNode {
            id,
            r#type: match kind {
                Self::DISK => Kind::BlockBackend,
                Self::JOB => Kind::BlockJob,
                _ => Kind::BlockDriver,
            },
            name,
        });
        members.collect()
    }
}

impl Vm {
    /// The block graph as permissions see it.
    ///
    /// # Errors
    /// It contradicts itself.
    pub(crate) fn draw_graph(&self) -> Result<XDbgBlockGraph, QmpError> {
        let mut members = Members::default();
        let mut edges = Vec::new();
        let sketch = self.graph.sketch();
        let uses = sketch.uses();
        let uses = uses.map_err(|error| QmpError::from_error(&error))?;
        for view in self.graph.nodes() {
            let node = view.node();
            let child = members.number(Members::NODE, node.name());
            for (user, usage) in view.users() {
                let is_job = self.jobs.views().any(|job| job.id == user);
                let kind = if is_job { Members::JOB } else { Members::DISK };
                let parent = members.number(kind, user);
                edges.push(edge(parent, child, "root", usage));
            }
            for job in view.jobs() {
                let parent = members.number(Members::JOB, job);
                edges.push(edge(parent, child, "held", Usage::NONE));
            }
        }
        for (parent, role, child, usage) in uses {
            let parent = members.number(Members::NODE, parent);
            let child = members.number(Members::NODE, child);
            edges.push(edge(parent, child, role, usage));
        }
        Ok(XDbgBlockGraph {
            nodes: members.shown(),
            edges,
        })
    }
}

fn edge(parent: u64, child: u64, role: &str, usage: Usage) -> XDbgBlockGraphEdge {
    XDbgBlockGraphEdge {
        parent,
        child,
        name: role.to_owned(),
        perm: shown(usage.uses),
        shared_perm: shown(usage.shares),
    }
}

fn shown(permissions: Permissions) -> Vec<BlockPermission> {
    let all = [
        (
            Permissions::CONSISTENT_READ,
            BlockPermission::ConsistentRead,
        ),
        (Permissions::WRITE, BlockPermission::Write),
        (
            Permissions::WRITE_UNCHANGED,
            BlockPermission::WriteUnchanged,
        ),
        (Permissions::RESIZE, BlockPermission::Resize),
    ];
    let had = all
        .into_iter()
        .filter(|(bit, _)| permissions.contains(*bit));
    had.map(|(_, name)| name).collect()
}
