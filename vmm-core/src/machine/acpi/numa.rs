//! The tables of NUMA (ACPI 6.5): SRAT (5.2.16, who belongs to which node), SLIT (5.2.17, how far
//! nodes are apart), HMAT (5.2.28, how fast memory is).

use std::ops::Range;

use acpi_tables::sdt::Sdt;

use super::{AcpiSpec, OEM, OEM_REVISION, OEM_TABLE};
use crate::machine::numa::{MemoryCache, MemorySpeed, NumaSpec};

const ENABLED: u32 = 1;
const HOT_PLUGGABLE: u32 = 2;
/// HMAT: the initiator is told.
const INITIATOR_VALID: u16 = 1;

/// The tables that the machine has, in the order in which they are found.
pub(super) fn build(spec: &AcpiSpec) -> Vec<Vec<u8>> {
    let Some(numa) = &spec.numa else {
        return Vec::new();
    };
    let mut tables = vec![srat(spec, numa)];
    if !numa.distances.is_empty() {
        tables.push(slit(numa));
    }
    if numa.hmat {
        tables.push(hmat(numa));
    }
    tables
}

fn finished(mut table: Sdt) -> Vec<u8> {
    table.update_checksum();
    table.as_slice().to_vec()
}

fn srat(spec: &AcpiSpec, numa: &NumaSpec) -> Vec<u8> {
    let mut table = Sdt::new(*b"SRAT", 36, 3, OEM, OEM_TABLE, OEM_REVISION);
    // Both are reserved; the first is always 1.
    table.append(1u32);
    table.append(0u64);
    for (cpu, node) in spec.cpus.iter().zip(&numa.cpus) {
        processor(&mut table, cpu.apic_id, *node);
    }
    for (node, range) in numa.ram(&spec.layout) {
        memory(&mut table, node, &range, ENABLED);
    }
    let room = &spec.layout.devices;
    if !room.is_empty() {
        // Whose it is is told when it comes; until then it is the last one's.
        let last = u32::try_from(numa.nodes.len()).map_or(0, |count| count.saturating_sub(1));
        memory(&mut table, last, room, ENABLED | HOT_PLUGGABLE);
    }
    finished(table)
}

fn processor(table: &mut Sdt, apic_id: u32, node: u32) {
    match u8::try_from(apic_id) {
        Ok(id) if id < u8::MAX => {
            let [low, high @ ..] = node.to_le_bytes();
            table.append_slice(&[0, 16, low, id]);
            table.append(ENABLED);
            table.append_slice(&[0]);
            table.append_slice(&high);
            table.append(0u32);
        }
        _ => {
            table.append_slice(&[2, 24, 0, 0]);
            for word in [node, apic_id, ENABLED, 0, 0] {
                table.append(word);
            }
        }
    }
}

fn memory(table: &mut Sdt, node: u32, range: &Range<u64>, flags: u32) {
    table.append_slice(&[1, 40]);
    table.append(node);
    table.append(0u16);
    table.append(range.start);
    table.append(range.end - range.start);
    table.append(0u32);
    table.append(flags);
    table.append(0u64);
}

fn slit(numa: &NumaSpec) -> Vec<u8> {
    let mut table = Sdt::new(*b"SLIT", 36, 1, OEM, OEM_TABLE, OEM_REVISION);
    table.append(numa.nodes.len() as u64);
    table.append_slice(&numa.distances);
    finished(table)
}

fn hmat(numa: &NumaSpec) -> Vec<u8> {
    let mut table = Sdt::new(*b"HMAT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    table.append(0u32);
    for (number, node) in (0u32..).zip(&numa.nodes) {
        table.append(0u32);
        table.append(40u32);
        let valid = node.initiator.map_or(0, |_| INITIATOR_VALID);
        table.append(u32::from(valid));
        table.append(node.initiator.unwrap_or(0));
        table.append(number);
        table.append(0u32);
        table.append_slice(&[0; 16]);
    }
    for speed in &numa.speeds {
        speeds(&mut table, numa, speed);
    }
    for side in &numa.caches {
        cache(&mut table, numa, side);
    }
    finished(table)
}

fn speeds(table: &mut Sdt, numa: &NumaSpec, speed: &MemorySpeed) {
    let nodes = || (0u32..).zip(&numa.nodes);
    let initiators = nodes().filter(|(number, _)| numa.has_cpu(*number));
    let initiators: Vec<u32> = initiators.map(|(number, _)| number).collect();
    let targets = nodes().filter(|(_, node)| node.memory > 0);
    let targets: Vec<u32> = targets.map(|(number, _)| number).collect();
    let count = |list: &[u32]| u32::try_from(list.len()).unwrap_or(0);
    let (rows, columns) = (count(&initiators), count(&targets));
    table.append(1u32);
    table.append(32 + 4 * (rows + columns) + 2 * rows * columns);
    table.append_slice(&[speed.hierarchy, speed.kind, 0, 0]);
    table.append(rows);
    table.append(columns);
    table.append(0u32);
    table.append(speed.base);
    for number in initiators.iter().chain(&targets) {
        table.append(*number);
    }
    for initiator in &initiators {
        for target in &targets {
            let of_both = |entry: &&(u32, u32, u16)| entry.0 == *initiator && entry.1 == *target;
            let value = speed.entries.iter().find(of_both);
            table.append(value.map_or(0, |(.., value)| *value));
        }
    }
}

fn cache(table: &mut Sdt, numa: &NumaSpec, cache: &MemoryCache) {
    let of_node = numa.caches.iter().filter(|other| other.node == cache.node);
    let levels = u32::try_from(of_node.count()).unwrap_or(0);
    let attributes = levels & 0xf
        | u32::from(cache.level & 0xf) << 4
        | u32::from(cache.associativity & 0xf) << 8
        | u32::from(cache.policy & 0xf) << 12
        | u32::from(cache.line) << 16;
    table.append(2u32);
    table.append(32u32);
    table.append(cache.node);
    table.append(0u32);
    table.append(cache.size);
    table.append(attributes);
    table.append(0u32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::numa::NumaNode;

    fn numa() -> NumaSpec {
        let node = |memory, initiator| NumaNode {
            memory,
            initiator: Some(initiator),
        };
        NumaSpec {
            nodes: vec![node(1 << 29, 0), node(1 << 29, 0)],
            cpus: vec![0, 0],
            distances: vec![10, 20, 20, 10],
            speeds: vec![MemorySpeed {
                hierarchy: 0,
                kind: 0,
                base: 1000,
                entries: vec![(0, 0, 5), (0, 1, 9)],
            }],
            caches: vec![MemoryCache {
                node: 1,
                size: 10240,
                level: 1,
                associativity: 1,
                policy: 1,
                line: 8,
            }],
            hmat: true,
        }
    }

    #[test]
    fn lengths_are_what_the_structures_say() {
        let hmat = hmat(&numa());
        let mut at = 40;
        let mut lengths = Vec::new();
        while at < hmat.len() {
            let len = u32::from_le_bytes(hmat[at + 4..at + 8].try_into().unwrap());
            lengths.push(len);
            at += len as usize;
        }
        assert_eq!(at, hmat.len());
        assert_eq!(lengths, [40, 40, 32 + 4 * 3 + 2 * 2, 32]);
        let slit = slit(&numa());
        assert_eq!((slit.len(), &slit[44..]), (48, &[10, 20, 20, 10][..]));
    }

    #[test]
    fn the_table_of_speeds_has_a_row_for_each_node_with_cpus() {
        let hmat = hmat(&numa());
        let entries = &hmat[hmat.len() - 36..hmat.len() - 32];
        assert_eq!(entries, [5, 0, 9, 0]);
    }
}
