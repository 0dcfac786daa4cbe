//! The order in which lists show nodes.

use indexmap::IndexMap;

use super::{BlockGraph, Entry, NodeView, Owner};

impl BlockGraph {
    /// All nodes in the order in which clients of QEMU know them to be made: what an image stores
    /// its bytes in, the image, and then what came along behind it.
    pub fn nodes_as_made(&self) -> Vec<NodeView<'_>> {
        let mut made = IndexMap::new();
        for (name, entry) in &self.nodes {
            if entry.owner != Owner::Parent {
                self.make_known(name, entry, &mut made);
            }
        }
        // Those whose parent has gone.
        for (name, entry) in &self.nodes {
            self.make_known(name, entry, &mut made);
        }
        made.into_values().collect()
    }

    fn make_known<'a>(
        &'a self,
        name: &'a str,
        entry: &'a Entry,
        made: &mut IndexMap<&'a str, NodeView<'a>>,
    ) {
        if made.contains_key(name) {
            return;
        }
        let (behind, storage): (Vec<_>, Vec<_>) = entry
            .children
            .edges()
            .filter_map(|edge| Some((edge.role, self.nodes.get_key_value(&edge.child)?)))
            .filter(|(_, (_, child))| child.owner == Owner::Parent)
            .partition(|(role, _)| *role == "backing");
        for (_, (name, child)) in storage {
            self.make_known(name, child, made);
        }
        made.insert(name, NodeView { graph: self, entry });
        for (_, (name, child)) in behind {
            self.make_known(name, child, made);
        }
    }
}
