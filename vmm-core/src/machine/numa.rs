//! NUMA, resolved: which node each vCPU and each piece of RAM belongs to, and how far apart the
//! nodes are. [`crate::resolve::numa`] makes it from options.

use std::ops::Range;

use crate::memory::Layout;

/// The distance of a node to itself (ACPI 6.5, 5.2.17).
pub const LOCAL_DISTANCE: u8 = 10;

/// All nodes, by their numbers from 0 on without a hole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumaSpec {
    /// The nodes.
    pub nodes: Vec<NumaNode>,
    /// The node of each place for a vCPU.
    pub cpus: Vec<u32>,
    /// Distances from each node to each, row by row; empty where nobody gave any.
    pub distances: Vec<u8>,
    /// How fast memory is; empty without a table of it.
    pub speeds: Vec<MemorySpeed>,
    /// Caches between vCPUs and memory.
    pub caches: Vec<MemoryCache>,
    /// Whether there is a table of speeds and caches.
    pub hmat: bool,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumaNode {
    /// Its RAM in bytes; a node may have none.
    pub memory: u64,
    /// The node whose vCPUs are nearest to its memory.
    pub initiator: Option<u32>,
}

/// What is said of the speed of memory: a table of initiators and targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemorySpeed {
    /// 0 for memory, 1 to 3 for its caches.
    pub hierarchy: u8,
    /// 0 to 2: latency of access, reads, writes; 3 to 5: their bandwidth.
    pub kind: u8,
    /// The unit: picoseconds or MB/s.
    pub base: u64,
    /// Initiator, target, and how many units.
    pub entries: Vec<(u32, u32, u16)>,
}

/// A cache on the side of a node's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryCache {
    /// Whose memory.
    pub node: u32,
    /// Bytes.
    pub size: u64,
    /// From 1, the largest, to 3.
    pub level: u8,
    /// 0 for none, 1 for direct, 2 for complex.
    pub associativity: u8,
    /// 0 for none, 1 for write-back, 2 for write-through.
    pub policy: u8,
    /// Bytes of a line.
    pub line: u16,
}

impl NumaSpec {
    /// One node with all `memory` bytes of RAM and all `places` for vCPUs. A guest learns from its
    /// table that more memory may come.
    #[must_use]
    pub fn single(memory: u64, places: u32) -> Self {
        Self {
            nodes: vec![NumaNode {
                memory,
                initiator: None,
            }],
            cpus: vec![0; places as usize],
            ..Self::default()
        }
    }

    /// The node of the place `index` for a vCPU.
    #[must_use]
    pub fn node_of_cpu(&self, index: u32) -> Option<u32> {
        self.cpus.get(index as usize).copied()
    }

    /// Whether a place for a vCPU belongs to the node.
    #[must_use]
    pub fn has_cpu(&self, node: u32) -> bool {
        self.cpus.contains(&node)
    }

    /// Which guest addresses are the RAM of which node: one node after the other.
    #[must_use]
    pub fn ram(&self, layout: &Layout) -> Vec<(u32, Range<u64>)> {
        let sizes: Vec<u64> = self.nodes.iter().map(|node| node.memory).collect();
        let of_node = |(number, pieces): (u32, Vec<(u64, u64)>)| {
            let range = move |(start, len): (u64, u64)| (number, start..start.saturating_add(len));
            pieces.into_iter().map(range)
        };
        (0..).zip(layout.deal(&sizes)).flat_map(of_node).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_whose_ram_crosses_the_hole_has_two_ranges() {
        const GIB: u64 = 1 << 30;
        let node = |memory| NumaNode {
            memory,
            initiator: None,
        };
        let numa = NumaSpec {
            nodes: vec![node(GIB), node(0), node(3 * GIB)],
            ..NumaSpec::default()
        };
        let layout = Layout::new(4 * GIB, 40).unwrap();
        assert_eq!(
            numa.ram(&layout),
            [(0, 0..GIB), (2, GIB..2 * GIB), (2, 4 * GIB..6 * GIB)]
        );
    }
}
