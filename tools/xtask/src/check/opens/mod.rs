//! Only `fdset` opens: proved from the call graph of the built program.
//!
//! ```text
//!   every function of ours, and every function in a vtable
//!        │ calls, or takes the address of, …
//!        ├─► fdset ─► nix, rustix, std ─► open, connect, bind, memfd_create, …     as it should be
//!        ├─► a function of EXEMPT ─► …                                             with its reason
//!        └─► … ─► anything that is not known to open nothing                       a complaint
//! ```
//!
//! What it proves: no path of calls leads from the product's code, around `fdset` and around the
//! list [`EXEMPT`], to a function of the C library that is not in [`HARMLESS`], to a system call
//! made by number that is not in [`BY_NUMBER`], or to the making of a ring. What it does not: that
//! `fdset` opens only what its policy allows (its tests do), or what the C library does inside a
//! function of [`HARMLESS`]. It reads the program of the dev profile, in which nothing is inlined,
//! so that each function still has its crate's name; the source is the released one's.
mod graph;
mod lists;

use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use self::graph::{Graph, Listing, Node};
use self::lists::{BY_NUMBER, EXEMPT, Exemption, HARMLESS};
use super::Complaints;
use crate::project;
use crate::shell::{install_missing, output};

/// The crates of the product, but for the one that opens.
const OURS: &[&str] = &[
    "block",
    "devices",
    "monitor",
    "qapi_schema",
    "sesame",
    "vmm_core",
];
/// The crate that opens.
const OPENER: &str = "fdset";

pub(super) fn check() -> Result<Complaints> {
    install_missing(&[("objdump", "binutils")])?;
    let program = project::sesame("dev")?;
    let graph = read(&program)?;
    let verdict = judge(&graph, EXEMPT);
    eprintln!(
        "   {} functions; {} ways to open, each of them through fdset or one of {} exemptions",
        graph.nodes.len(),
        verdict.ways,
        EXEMPT.len()
    );
    Ok(verdict.complaints)
}

fn read(program: &Path) -> Result<Graph> {
    let run = |tool: &str, options: &[&str]| output(Command::new(tool).args(options).arg(program));
    let sections = run("readelf", &["-SW"])?;
    ensure!(
        !sections.contains(" .relr.dyn "),
        "the relocations of {} are packed, which hides where its calls lead: link it without \
         pack-relative-relocs",
        program.display()
    );
    Ok(Graph::new(&Listing {
        disassembly: &run("objdump", &["-d", "-C", "--no-show-raw-insn"])?,
        relocations: &run("readelf", &["-rW"])?,
        sections: &sections,
    }))
}

struct Verdict {
    /// Functions of others that open, or may.
    ways: usize,
    complaints: Complaints,
}

/// Walks from everything that opens to its callers, and stops where opening is somebody's right.
fn judge(graph: &Graph, exempt: &[Exemption]) -> Verdict {
    let mut walk = Walk {
        graph,
        exempt,
        used: vec![false; exempt.len()],
        opener_is_used: false,
        next: vec![None; graph.nodes.len()],
        complaints: Vec::new(),
    };
    let openings = openings(graph);
    let ways = openings.len();
    let mut reached: VecDeque<usize> = openings
        .into_iter()
        .filter(|opening| walk.reaches(*opening, *opening))
        .collect();
    while let Some(node) = reached.pop_front() {
        let callers = graph.nodes[node].callers.iter().copied();
        reached.extend(callers.filter(|caller| walk.reaches(*caller, node)));
    }
    Verdict {
        ways,
        complaints: walk.finish(),
    }
}

struct Walk<'a> {
    graph: &'a Graph,
    exempt: &'a [Exemption],
    /// Which exemptions something needed.
    used: Vec<bool>,
    opener_is_used: bool,
    /// For each function that leads to an opening one: the next step there.
    next: Vec<Option<usize>>,
    complaints: Complaints,
}

impl Walk<'_> {
    /// Notes that `function` leads to what opens, by `step`; whether its callers now do too.
    fn reaches(&mut self, function: usize, step: usize) -> bool {
        let node = &self.graph.nodes[function];
        if belongs_to(&node.name, &[OPENER]) {
            self.opener_is_used = true;
            return false;
        }
        let is_exempt = |(part, _): &Exemption| node.name.contains(part);
        if let Some(rule) = self.exempt.iter().position(is_exempt) {
            self.used[rule] = true;
            return false;
        }
        if self.next[function].is_some() {
            return false;
        }
        self.next[function] = Some(step);
        // Who calls one that was told has the same way.
        let told = step != function && belongs_to(&self.graph.nodes[step].name, OURS);
        if !told && (node.is_in_a_table || belongs_to(&node.name, OURS)) {
            let path = self.path(function);
            self.complaints
                .push(format!("a way to open around fdset: {path}"));
        }
        true
    }

    /// From a function to what opens, step by step.
    fn path(&self, from: usize) -> String {
        let mut names = vec![self.graph.nodes[from].name.as_str()];
        let mut at = from;
        while let Some(step) = self.next[at].filter(|step| *step != at) {
            names.push(&self.graph.nodes[step].name);
            at = step;
        }
        names.join(" → ")
    }

    fn finish(mut self) -> Complaints {
        if !self.opener_is_used {
            let text = "fdset itself opens nothing: the call graph is not whole";
            self.complaints.push(text.to_owned());
        }
        let rules = self.exempt.iter().zip(self.used);
        for ((name, _), _) in rules.filter(|(_, used)| !used) {
            self.complaints
                .push(format!("{name} opens nothing any more: take it off EXEMPT"));
        }
        self.complaints
    }
}

/// Where the paths to the kernel's opening calls leave the program: functions of the C library, and
/// functions that call the kernel by number.
fn openings(graph: &Graph) -> Vec<usize> {
    let is_wrapper = |node: &Node| node.name.starts_with("rustix::backend::arch::asm::");
    let mut by_number: Vec<bool> = graph.nodes.iter().map(|node| node.has_syscall).collect();
    for (index, node) in graph.nodes.iter().enumerate() {
        if is_wrapper(node) {
            by_number[index] = false;
        }
        if is_wrapper(node) || (node.is_outside && node.name == "syscall") {
            for &caller in &node.callers {
                by_number[caller] = true;
            }
        }
    }
    let is_listed = |name: &str| {
        let name = name.trim_start_matches(['<', '&']);
        BY_NUMBER.iter().any(|(known, _)| name.starts_with(known))
    };
    let opens = |index: &usize| {
        let node = &graph.nodes[*index];
        if node.is_outside {
            return node.name != "syscall" && !HARMLESS.contains(&node.name.as_str());
        }
        by_number[*index] && !is_listed(&node.name)
    };
    (0..graph.nodes.len()).filter(opens).collect()
}

/// Whether a function is of one of these crates: by its path, or by the type or, for a foreign
/// type, the trait that it implements.
fn belongs_to(name: &str, crates: &[&str]) -> bool {
    let first = |text: &str| {
        let path = text.trim_start_matches(|c: char| !c.is_alphanumeric() && c != '_');
        let path = ["dyn ", "mut ", "const "]
            .iter()
            .fold(path, |path, word| path.strip_prefix(word).unwrap_or(path));
        crates.iter().any(|one| {
            path.strip_prefix(one)
                .is_some_and(|rest| rest.starts_with("::"))
        })
    };
    let foreign = ["core::", "alloc::", "std::"];
    first(name)
        || (foreign
            .iter()
            .any(|start| name.trim_start_matches(['<', '&']).starts_with(start))
            && name.split(" as ").skip(1).any(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of functions one after the other, each with those it calls by place.
    fn program(functions: &[(&str, &[&str])]) -> Graph {
        let place = |name: &str| {
            let own = functions.iter().position(|(other, _)| *other == name);
            own.map_or(0x9000, |index| 0x1000 + index * 0x10)
        };
        let listing: Vec<String> = functions
            .iter()
            .map(|(name, calls)| {
                let calls = calls
                    .iter()
                    .map(|called| format!("  1000:\tcall   {:x} <{called}>\n", place(called)));
                format!(
                    "{:016x} <{name}>:\n{}",
                    place(name),
                    calls.collect::<String>()
                )
            })
            .collect();
        Graph::new(&Listing {
            disassembly: &listing.concat(),
            relocations: "",
            sections: "",
        })
    }

    const THROUGH_FDSET: [(&str, &[&str]); 3] = [
        ("vmm_core::launch", &["fdset::open", "close@GLIBC_2.2.5"]),
        ("fdset::open", &["nix::fcntl::open"]),
        ("nix::fcntl::open", &["open64@GLIBC_2.2.5"]),
    ];

    #[test]
    fn a_way_through_fdset_is_as_it_should_be() {
        let verdict = judge(&program(&THROUGH_FDSET), &[]);
        assert_eq!(verdict.complaints, Vec::<String>::new());
        assert_eq!(verdict.ways, 1);
    }

    #[test]
    fn a_way_around_fdset_is_told_step_by_step() {
        let around: (&str, &[&str]) = (
            "<devices::Log as core::fmt::Write>::open",
            &["nix::fcntl::open"],
        );
        let functions = [&THROUGH_FDSET[..], &[around]].concat();
        let verdict = judge(&program(&functions), &[]);
        let [complaint] = &verdict.complaints[..] else {
            panic!("{:?}", verdict.complaints);
        };
        assert!(
            complaint
                .ends_with("<devices::Log as core::fmt::Write>::open → nix::fcntl::open → open64")
        );
        let exempt = judge(&program(&functions), &[("devices::Log", "a test")]);
        assert!(exempt.complaints.is_empty());
    }

    #[test]
    fn what_nobody_knows_is_taken_for_opening_and_a_call_by_number_too() {
        for called in ["shm_open@GLIBC_2.34", "syscall@GLIBC_2.2.5"] {
            let around: (&str, &[&str]) = ("block::engine::fast", &[called]);
            let functions = [&THROUGH_FDSET[..], &[around]].concat();
            let verdict = judge(&program(&functions), &[]);
            assert_eq!(verdict.complaints.len(), 1, "{called}");
        }
    }

    #[test]
    fn an_exemption_that_nothing_needs_is_refused_and_so_is_a_graph_without_fdset() {
        let idle = judge(&program(&THROUGH_FDSET), &[("vmm_core::gone", "a test")]);
        assert_eq!(idle.complaints.len(), 1);
        assert_eq!(judge(&program(&[]), &[]).complaints.len(), 1);
    }
}
