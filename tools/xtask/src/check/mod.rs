//! `cargo xtask check`: what a reviewer should not have to look for.
//!
//! ```text
//!   format ─ lints ─ generated code ─ compatibility ─ ladder (who may know whom) ─ opens (only fdset) ─ sources (unsafe list, sizes, paths) ─ crates
//! ```
//!
//! Every check runs; complaints are printed together at the end.
mod compat;
mod ladder;
mod opens;
mod sources;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::project::cargo;
use crate::shell::{has, run as sh, step};

/// What is wrong, one line each.
type Complaints = Vec<String>;

/// One thing to look at.
type Check = fn() -> Result<Complaints>;

/// Third-party crates in the product, procedural macros not counted.
pub(crate) const MOST_CRATES: usize = 90;

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only the checks whose name contains this.
    filter: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let checks: [(&str, Check); 13] = [
        ("format", || command(&["fmt", "--all", "--check"])),
        ("lints", lints),
        ("generated code", generated),
        ("compatibility", compat::check),
        ("who may know whom", ladder::check),
        ("unsafe list", sources::unsafe_list),
        ("lock list", sources::lock_list),
        ("who sets the list of calls aside", sources::openers),
        ("only fdset opens", opens::check),
        ("file sizes", sources::sizes),
        ("machine paths", sources::machine_paths),
        ("third-party crates", crates),
        ("licences and advisories", deny),
    ];
    let mut complaints = Vec::new();
    let filter = options.filter.as_deref().unwrap_or_default();
    for (name, check) in checks.iter().filter(|(name, _)| name.contains(filter)) {
        step(&format!("check: {name}"));
        complaints.extend(check()?.into_iter().map(|text| format!("{name}: {text}")));
    }
    for complaint in &complaints {
        eprintln!("check: {complaint}");
    }
    Ok(if complaints.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn lints() -> Result<Complaints> {
    command(&[
        "clippy",
        "-q",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])
}

fn generated() -> Result<Complaints> {
    let stale = crate::codegen::stale()?;
    let told = |path: &PathBuf| format!("{} is stale: run cargo xtask codegen", path.display());
    Ok(stale.iter().map(told).collect())
}

/// Runs cargo, which shows its own complaints.
fn command(arguments: &[&str]) -> Result<Complaints> {
    Ok(sh(cargo().args(arguments))
        .err()
        .map(|error| format!("{error:#}"))
        .into_iter()
        .collect())
}

fn crates() -> Result<Complaints> {
    let count = third_party_crates()?;
    eprintln!("   {count} of {MOST_CRATES}");
    Ok((count > MOST_CRATES)
        .then(|| format!("{count} in the product, at most {MOST_CRATES} wanted"))
        .into_iter()
        .collect())
}

/// How many crates of others are linked into `sesame`.
pub(crate) fn third_party_crates() -> Result<usize> {
    let text = crate::shell::output(cargo().args([
        "tree",
        "-p",
        "vmm-core",
        "-e",
        "normal,no-proc-macro",
        "--prefix",
        "none",
        "-f",
        "{p}",
    ]))?;
    // Our own crates are shown with their folder; repeats are marked with a star.
    let mut names: Vec<_> = text
        .lines()
        .filter(|line| !line.contains("(/"))
        .map(|line| line.trim_end_matches(" (*)"))
        .filter(|line| !line.is_empty())
        .collect();
    names.sort_unstable();
    names.dedup();
    Ok(names.len())
}

fn deny() -> Result<Complaints> {
    if !has("cargo-deny") {
        eprintln!("   cargo-deny is not installed: left out");
        return Ok(Vec::new());
    }
    // Advisories need a database from the network, which a closed machine does not reach.
    command(&["deny", "--offline", "check", "licenses", "bans", "sources"])
}
