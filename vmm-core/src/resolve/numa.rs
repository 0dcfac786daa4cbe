//! NUMA, said piece by piece by `-numa` and `set-numa-node`: each piece is held against those
//! before it, and all of them against the machine at the end.
//!
//! Pure. The texts of refusals are those that QEMU's clients know.

mod speed;

use qapi_schema::QmpError;
use qapi_schema::numa::{
    NumaCpuOptions, NumaDistOptions, NumaNodeOptions, NumaOptions, NumaOptionsVariant,
};

use crate::kvm::cpuid::CpuTopology;
use crate::machine::numa::{LOCAL_DISTANCE, MemoryCache, NumaNode, NumaSpec};

use speed::Speeds;

/// The most nodes there can be.
pub const MAX_NODES: u16 = 128;
/// The distance of two nodes of which nobody said anything.
const REMOTE_DISTANCE: u8 = 20;

/// What the pieces are held against.
#[derive(Clone, Copy, Debug)]
pub struct NumaFacts {
    /// How the places for vCPUs are arranged.
    pub topology: CpuTopology,
    /// Whether there is a table of speeds and caches.
    pub hmat: bool,
}

/// A node as far as it has been told.
#[derive(Clone, Debug, Default)]
struct Node {
    memdev: Option<String>,
    initiator: Option<u16>,
}

/// What has been said.
#[derive(Clone, Debug)]
pub struct NumaDraft {
    facts: NumaFacts,
    /// By their numbers.
    nodes: Vec<Option<Node>>,
    /// The node of each place for a vCPU.
    cpus: Vec<Option<u16>>,
    distances: Vec<(u16, u16, u8)>,
    speeds: Speeds,
    caches: Vec<MemoryCache>,
}

fn refuse<T>(text: impl Into<String>) -> Result<T, QmpError> {
    Err(QmpError::generic(text))
}

impl Default for NumaDraft {
    /// Of a machine with one place for a vCPU.
    fn default() -> Self {
        Self::new(NumaFacts {
            topology: CpuTopology::flat(1),
            hmat: false,
        })
    }
}

impl NumaDraft {
    /// Nothing said yet of a machine.
    #[must_use]
    pub fn new(facts: NumaFacts) -> Self {
        let places = facts.topology.total().unwrap_or(1);
        Self {
            facts,
            nodes: Vec::new(),
            cpus: vec![None; places as usize],
            distances: Vec::new(),
            speeds: Speeds::default(),
            caches: Vec::new(),
        }
    }

    /// Takes one piece.
    ///
    /// # Errors
    /// It contradicts the machine or an earlier piece; nothing has changed.
    pub fn take(&mut self, options: NumaOptions) -> Result<(), QmpError> {
        match options.r#type {
            NumaOptionsVariant::Node(node) => self.take_node(node),
            NumaOptionsVariant::Dist(distance) => self.take_distance(&distance),
            NumaOptionsVariant::Cpu(cpu) => self.take_cpu(&cpu),
            NumaOptionsVariant::HmatLb(speed) => {
                self.want_hmat()?;
                self.check_speed_nodes(speed.initiator, speed.target)?;
                self.speeds.take(&speed)
            }
            NumaOptionsVariant::HmatCache(cache) => {
                self.want_hmat()?;
                self.take_cache(MemoryCache {
                    node: cache.node_id,
                    size: cache.size,
                    level: cache.level,
                    associativity: cache.associativity as u8,
                    policy: cache.policy as u8,
                    line: cache.line,
                })
            }
        }
    }

    /// The memory backends of the nodes, in their order; empty without NUMA.
    #[must_use]
    pub fn memory(&self) -> Vec<String> {
        let nodes = self.nodes.iter().flatten();
        nodes.filter_map(|node| node.memdev.clone()).collect()
    }

    /// Whether nothing has been said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The whole, for a machine with `ram` bytes; `size_of` tells the bytes of a memory backend.
    ///
    /// # Errors
    /// A piece is missing.
    pub fn finish(
        &self,
        ram: u64,
        size_of: impl Fn(&str) -> Option<u64>,
    ) -> Result<Option<NumaSpec>, QmpError> {
        if self.nodes.is_empty() {
            return Ok(None);
        }
        let mut nodes = Vec::new();
        for (number, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else {
                return refuse(format!("numa: Node ID missing: {number}"));
            };
            let size = node.memdev.as_deref().map(|id| {
                let text = format!("memory backend '{id}' not found");
                size_of(id).ok_or_else(|| QmpError::generic(text))
            });
            nodes.push(NumaNode {
                memory: size.transpose()?.unwrap_or(0),
                initiator: None,
            });
        }
        let total = nodes
            .iter()
            .map(|node| node.memory)
            .fold(0, u64::saturating_add);
        if total != ram {
            return refuse(format!(
                "total memory for NUMA nodes (0x{total:x}) should equal RAM size (0x{ram:x})"
            ));
        }
        let mut spec = NumaSpec {
            cpus: self.cpus_by_node(),
            distances: self.distances()?,
            speeds: self.speeds.finish(),
            caches: self.caches.clone(),
            hmat: self.facts.hmat,
            nodes,
        };
        if self.facts.hmat {
            self.set_initiators(&mut spec)?;
        }
        Ok(Some(spec))
    }

    fn want_hmat(&self) -> Result<(), QmpError> {
        if self.facts.hmat {
            return Ok(());
        }
        refuse(
            "ACPI Heterogeneous Memory Attribute Table (HMAT) is disabled, enable it with -machine \
             hmat=on before using any of hmat specific options",
        )
    }

    fn node(&self, number: i64) -> Option<&Node> {
        let index = usize::try_from(number).ok()?;
        self.nodes.get(index)?.as_ref()
    }

    fn take_node(&mut self, options: NumaNodeOptions) -> Result<(), QmpError> {
        let count = u16::try_from(self.nodes.iter().flatten().count()).unwrap_or(u16::MAX);
        let number = options.nodeid.unwrap_or(count);
        if number >= MAX_NODES {
            return refuse(format!("Max number of NUMA nodes reached: {number}"));
        }
        if self.node(i64::from(number)).is_some() {
            return refuse(format!("Duplicate NUMA nodeid: {number}"));
        }
        if let Some(initiator) = options.initiator {
            self.want_hmat()?;
            if initiator >= MAX_NODES {
                return refuse(format!(
                    "The initiator id {initiator} expects an integer between 0 and {}",
                    MAX_NODES - 1
                ));
            }
        }
        let memdev = options.memdev.as_ref();
        if let Some(memdev) = memdev.filter(|id| self.memory().contains(id)) {
            return refuse(format!("memory backend '{memdev}' is used by another node"));
        }
        let listed = options.cpus.unwrap_or_default();
        for cpu in &listed {
            match self.cpus.get(usize::from(*cpu)) {
                None => {
                    return refuse(format!(
                        "CPU index ({cpu}) should be smaller than maxcpus ({})",
                        self.cpus.len()
                    ));
                }
                Some(Some(other)) => {
                    return refuse(format!("CPU is already assigned to node-id: {other}"));
                }
                Some(None) => {}
            }
        }
        for cpu in listed {
            if let Some(place) = self.cpus.get_mut(usize::from(cpu)) {
                *place = Some(number);
            }
        }
        let index = usize::from(number);
        self.nodes.resize(self.nodes.len().max(index + 1), None);
        self.nodes[index] = Some(Node {
            memdev: options.memdev,
            initiator: options.initiator,
        });
        Ok(())
    }

    fn take_distance(&mut self, options: &NumaDistOptions) -> Result<(), QmpError> {
        let (from, to, distance) = (options.src, options.dst, options.val);
        for (name, number) in [("src", from), ("dst", to)] {
            if number >= MAX_NODES {
                return refuse(format!(
                    "Parameter '{name}' expects an integer between 0 and {}",
                    MAX_NODES - 1
                ));
            }
        }
        if [from, to]
            .iter()
            .any(|node| self.node(i64::from(*node)).is_none())
        {
            return refuse(
                "Source/Destination NUMA node is missing. Please use '-numa node' option to \
                 declare it first.",
            );
        }
        if distance < LOCAL_DISTANCE {
            return refuse(format!(
                "NUMA distance ({distance}) is invalid, it shouldn't be less than {LOCAL_DISTANCE}."
            ));
        }
        if from == to && distance != LOCAL_DISTANCE {
            return refuse(format!(
                "Local distance of node {from} should be {LOCAL_DISTANCE}."
            ));
        }
        self.distances.retain(|one| (one.0, one.1) != (from, to));
        self.distances.push((from, to, distance));
        Ok(())
    }

    fn take_cpu(&mut self, options: &NumaCpuOptions) -> Result<(), QmpError> {
        let Some(number) = options.node_id else {
            return refuse("Missing mandatory node-id property");
        };
        let Some(node) = u16::try_from(number)
            .ok()
            .filter(|_| self.node(number).is_some())
        else {
            return refuse(format!(
                "Invalid node-id={number}, NUMA node must be defined with -numa node,nodeid=ID \
                 before it's used with -numa cpu,node-id=ID"
            ));
        };
        if options.cluster_id.is_some() {
            return refuse("cluster-id is not supported");
        }
        if options.module_id.is_some() {
            return refuse("module-id is not supported");
        }
        let topology = self.facts.topology;
        let sits_there = |index: usize| {
            let place = topology.place(u32::try_from(index).unwrap_or(u32::MAX));
            [
                (options.socket_id, place.socket),
                (options.die_id, place.die),
                (options.core_id, place.core),
                (options.thread_id, place.thread),
            ]
            .iter()
            .all(|(wanted, is)| wanted.is_none_or(|wanted| wanted == i64::from(*is)))
        };
        let found: Vec<usize> = (0..self.cpus.len()).filter(|at| sits_there(*at)).collect();
        if found.is_empty() {
            return refuse("no match found");
        }
        let of_others = found
            .iter()
            .find_map(|at| self.cpus[*at].filter(|other| *other != node));
        if let Some(other) = of_others {
            return refuse(format!("CPU is already assigned to node-id: {other}"));
        }
        for at in found {
            self.cpus[at] = Some(node);
        }
        Ok(())
    }

    fn check_speed_nodes(&self, initiator: u16, target: u16) -> Result<(), QmpError> {
        let count = self.nodes.len();
        for (name, number) in [("initiator", initiator), ("target", target)] {
            if self.node(i64::from(number)).is_none() {
                return refuse(format!(
                    "Invalid {name}={number}, it should be less than {count}."
                ));
            }
        }
        if !self.cpus.contains(&Some(initiator)) {
            return refuse(format!(
                "Invalid initiator={initiator}, it isn't an initiator proximity domain."
            ));
        }
        Ok(())
    }

    fn take_cache(&mut self, cache: MemoryCache) -> Result<(), QmpError> {
        let (node, level, size) = (cache.node, cache.level, cache.size);
        if self.node(i64::from(node)).is_none() {
            return refuse(format!(
                "Invalid node-id={node}, it should be less than {}.",
                self.nodes.len()
            ));
        }
        if !self.speeds.is_told_of(node) {
            return refuse(format!(
                "The latency and bandwidth information of node-id={node} should be provided before \
                 memory side cache attributes."
            ));
        }
        if !(1..=3).contains(&level) {
            return refuse(format!(
                "Invalid level={level}, it should be larger than 0 and less than or equal to 3."
            ));
        }
        for other in self.caches.iter().filter(|other| other.node == node) {
            let relation = match level.cmp(&other.level) {
                std::cmp::Ordering::Equal => {
                    return refuse(format!(
                        "Duplicate configuration of the side cache for node-id={node} and \
                         level={level}."
                    ));
                }
                std::cmp::Ordering::Greater if size >= other.size => "less",
                std::cmp::Ordering::Less if size <= other.size => "larger",
                _ => continue,
            };
            return refuse(format!(
                "Invalid size={size}, the size of level={level} should be {relation} than the \
                 size({}) of level={}.",
                other.size, other.level
            ));
        }
        self.caches.push(cache);
        Ok(())
    }

    /// The node of each place: as told, or in turns by sockets where nothing is told.
    fn cpus_by_node(&self) -> Vec<u32> {
        let is_told = self.cpus.iter().any(Option::is_some);
        let count = u32::try_from(self.nodes.len()).unwrap_or(1).max(1);
        let topology = self.facts.topology;
        let node = |(index, told): (u32, &Option<u16>)| match told {
            Some(node) => u32::from(*node),
            None if is_told => 0,
            None => topology.place(index).socket % count,
        };
        (0..).zip(&self.cpus).map(node).collect()
    }

    fn distances(&self) -> Result<Vec<u8>, QmpError> {
        if self.distances.is_empty() {
            return Ok(Vec::new());
        }
        let numbers = || 0..u16::try_from(self.nodes.len()).unwrap_or(0);
        let told = |from, to| {
            let mut distances = self.distances.iter();
            let found = distances.find(|one| (one.0, one.1) == (from, to));
            found.map(|one| one.2)
        };
        let pairs = || numbers().flat_map(|a| (a + 1..numbers().end).map(move |b| (a, b)));
        let both = |a, b| (told(a, b), told(b, a));
        if let Some((a, b)) = pairs().find(|(a, b)| both(*a, *b) == (None, None)) {
            return refuse(format!(
                "The distance between node {a} and {b} is missing, at least one distance value \
                 between each nodes should be provided."
            ));
        }
        let is_asymmetric =
            pairs().any(|(a, b)| matches!(both(a, b), (Some(there), Some(back)) if there != back));
        let is_half_told = pairs().any(|(a, b)| told(a, b).is_none() || told(b, a).is_none());
        if is_asymmetric && is_half_told {
            return refuse(
                "At least one asymmetrical pair of distances is given, please provide distances \
                 for both directions of all node pairs.",
            );
        }
        let distance = |from, to| match told(from, to).or_else(|| told(to, from)) {
            Some(distance) => distance,
            None if from == to => LOCAL_DISTANCE,
            None => REMOTE_DISTANCE,
        };
        let rows = numbers().flat_map(|from| numbers().map(move |to| (from, to)));
        Ok(rows.map(|(from, to)| distance(from, to)).collect())
    }

    fn set_initiators(&self, spec: &mut NumaSpec) -> Result<(), QmpError> {
        for (index, node) in self.nodes.iter().enumerate() {
            let number = u32::try_from(index).unwrap_or(u32::MAX);
            let told = node.as_ref().and_then(|node| node.initiator).map(u32::from);
            let own = spec.has_cpu(number);
            let initiator = match told {
                Some(other) if own && other != number => {
                    return refuse(format!(
                        "The initiator of CPU NUMA node {number} should be itself."
                    ));
                }
                None if own => number,
                None => {
                    return refuse(format!(
                        "The initiator of NUMA node {number} is missing, use '-numa \
                         node,initiator' option to declare it."
                    ));
                }
                Some(other) if !spec.has_cpu(other) => {
                    return refuse(format!("The initiator of NUMA node {number} is invalid."));
                }
                Some(other) => other,
            };
            if let Some(node) = spec.nodes.get_mut(index) {
                node.initiator = Some(initiator);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
