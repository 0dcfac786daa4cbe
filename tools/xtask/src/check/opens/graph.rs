//! Who calls whom in a program, read from its disassembly.
//!
//! ```text
//!   objdump -d -C    functions, direct calls, addresses taken by code ─┐
//!   readelf -r       what the loader fills in: calls through the       ├─► Graph: callers of each
//!                    global offset table; addresses in vtables         ┘
//! ```
//!
//! A function that takes another's address counts as its caller: it may call it, or hand it on.
use std::collections::HashMap;
use std::ops::Range;

/// One function, or one symbol of a shared library.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Demangled.
    pub(super) name: String,
    /// Where it is called from, or its address is taken.
    pub(super) callers: Vec<usize>,
    /// It is in a shared library.
    pub(super) is_outside: bool,
    /// It enters the kernel itself.
    pub(super) has_syscall: bool,
    /// Its address stands in a table: anybody may call it.
    pub(super) is_in_a_table: bool,
}

/// A program's functions.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    by_address: HashMap<u64, usize>,
    outside: HashMap<String, usize>,
}

/// What the tools say about a program.
pub(super) struct Listing<'a> {
    /// `objdump -d -C --no-show-raw-insn`
    pub(super) disassembly: &'a str,
    /// `readelf -rW`
    pub(super) relocations: &'a str,
    /// `readelf -SW`
    pub(super) sections: &'a str,
}

impl Graph {
    pub(super) fn new(listing: &Listing<'_>) -> Self {
        let mut graph = Self::default();
        for (address, name) in listing.disassembly.lines().filter_map(function) {
            graph.by_address.insert(address, graph.nodes.len());
            graph.nodes.push(Node {
                name: name.to_owned(),
                ..Node::default()
            });
        }
        let table = global_offset_table(listing.sections).unwrap_or_default();
        let relocations: HashMap<u64, u64> =
            listing.relocations.lines().filter_map(relocation).collect();
        for (place, target) in &relocations {
            if let Some(&node) = graph.by_address.get(target)
                && !table.contains(place)
            {
                graph.nodes[node].is_in_a_table = true;
            }
        }
        graph.add_calls(listing.disassembly, &relocations);
        for node in &mut graph.nodes {
            node.callers.sort_unstable();
            node.callers.dedup();
        }
        graph
    }

    fn add_calls(&mut self, disassembly: &str, relocations: &HashMap<u64, u64>) {
        let mut caller = None;
        for line in disassembly.lines() {
            if let Some((address, _)) = function(line) {
                caller = self.by_address.get(&address).copied();
                continue;
            }
            let Some(caller) = caller else { continue };
            if line.trim_end().ends_with("\tsyscall") {
                self.nodes[caller].has_syscall = true;
            }
            let Some((address, name)) = reference(line) else {
                continue;
            };
            let address = relocations.get(&address).copied().unwrap_or(address);
            let called = match self.by_address.get(&address) {
                Some(&own) => own,
                None => match name.split_once('@') {
                    // In the linkage table a jump has the name that it leads to.
                    Some((name, _)) => self.outside(name),
                    None => continue,
                },
            };
            if called != caller {
                self.nodes[called].callers.push(caller);
            }
        }
    }

    fn outside(&mut self, name: &str) -> usize {
        let next = self.nodes.len();
        let index = *self.outside.entry(name.to_owned()).or_insert(next);
        if index == next {
            self.nodes.push(Node {
                name: name.to_owned(),
                is_outside: true,
                ..Node::default()
            });
        }
        index
    }
}

/// `00000000002e8e40 <name>:`
fn function(line: &str) -> Option<(u64, &str)> {
    let (address, name) = line.strip_suffix(">:")?.split_once(" <")?;
    Some((u64::from_str_radix(address, 16).ok()?, name))
}

/// `2e8f02:  call 8e0040 <name>`, or `... 0x5f9352(%rip)  # 9390f0 <name>`
fn reference(line: &str) -> Option<(u64, &str)> {
    let instruction = line.split_once(":\t")?.1;
    let operand = match instruction.split_once("# ") {
        Some((_, comment)) => comment,
        None => instruction.split_once(' ')?.1.trim_start(),
    };
    let (address, name) = operand.trim_end().strip_suffix('>')?.split_once(" <")?;
    Some((u64::from_str_radix(address, 16).ok()?, name))
}

/// `0000000000934c30  0000000000000008 R_X86_64_RELATIVE  3bb907`: the place, and what it holds.
fn relocation(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_whitespace();
    let place = words.next()?;
    let kind = words.nth(1)?;
    let value = words.next()?;
    (kind == "R_X86_64_RELATIVE").then_some(())?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(place)?, number(value)?))
}

/// `[26] .got  PROGBITS  0000000000934bc0 932bc0 034080 00  WA ...`
fn global_offset_table(sections: &str) -> Option<Range<u64>> {
    let rest = sections
        .lines()
        .find_map(|line| line.split_once(" .got "))?
        .1;
    let mut words = rest.split_whitespace().skip(1);
    let number = |text| u64::from_str_radix(text, 16).ok();
    let start = number(words.next()?)?;
    let size = number(words.nth(1)?)?;
    Some(start..start + size)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISASSEMBLY: &str = "
0000000000001000 <main>:
    1000:\tcall   2000 <ours::work>
    1005:\tlea    0x10(%rip),%rax        # 3000 <ours::later>

0000000000002000 <ours::work>:
    2000:\tcall   *0x619446(%rip)        # 9000 <open64@GLIBC_2.2.5>
    2006:\tcall   *0x619446(%rip)        # 9008 <_DYNAMIC+0x240>
    200c:\tjne    2000 <ours::work>

0000000000003000 <ours::later>:
    3000:\tsyscall

0000000000004000 <ours::dynamic>:
    4000:\tcall   8000 <close@plt>
";
    const RELOCATIONS: &str = "
0000000000009000  0000004800000006 R_X86_64_GLOB_DAT      0000000000000000 open64@GLIBC_2.2.5 + 0
0000000000009008  0000000000000008 R_X86_64_RELATIVE                         3000
0000000000007000  0000000000000008 R_X86_64_RELATIVE                         4000
";
    const SECTIONS: &str =
        "  [26] .got              PROGBITS        0000000000009000 009000 000080 00  WA  0   0  8";

    fn graph() -> Graph {
        Graph::new(&Listing {
            disassembly: DISASSEMBLY,
            relocations: RELOCATIONS,
            sections: SECTIONS,
        })
    }

    fn callers(graph: &Graph, name: &str) -> Vec<String> {
        let node = graph.nodes.iter().find(|node| node.name == name).unwrap();
        let callers = node.callers.iter();
        callers
            .map(|caller| graph.nodes[*caller].name.clone())
            .collect()
    }

    #[test]
    fn calls_addresses_and_the_loaders_table_are_all_edges() {
        let graph = graph();
        assert_eq!(callers(&graph, "ours::work"), ["main"]);
        assert_eq!(callers(&graph, "ours::later"), ["main", "ours::work"]);
        assert_eq!(callers(&graph, "open64"), ["ours::work"]);
        assert_eq!(callers(&graph, "close"), ["ours::dynamic"]);
    }

    #[test]
    fn a_vtables_entry_and_a_system_call_are_marked() {
        let marks: Vec<_> = graph()
            .nodes
            .iter()
            .map(|node| (node.is_in_a_table, node.has_syscall, node.is_outside))
            .collect();
        let (inside, outside) = marks.split_at(4);
        let no = (false, false, false);
        assert_eq!(inside, [no, no, (false, true, false), (true, false, false)]);
        assert_eq!(outside, [(false, false, true); 2]);
    }
}
