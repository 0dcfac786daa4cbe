//! `cargo xtask`: everything a developer or CI does with the project beyond `cargo build`.
//!
//! ```text
//!   check  ─ what a reviewer should not have to look for      check/
//!   test   ─ unit tests here, guest tests where KVM works     test.rs
//!   demo   ─ the main job, shown as it goes                   demo/
//!   bench  ─ ratios against QEMU                              bench/
//!   soak   ─ a million rejected requests with fds              soak.rs
//!   fuzz   ─ the fuzz targets                                 fuzz.rs
//!   torture ─ crashes and failures under images and jobs       torture.rs
//!   lab    ─ a command in the lab                             lab.rs
//!   codegen ─ what the schema says, as Rust and documents      codegen.rs, guide.rs
//!   oracle ─ QEMU's tests and schema tools against us         oracle/
//!   prepush ─ check + test = CI
//! ```
//!
//! Tools know the product by its command line, its QMP and its sources' text, never its crates.
#![expect(
    clippy::disallowed_methods,
    reason = "tools play the manager: they open the files that they hand in"
)]

mod bench;
mod check;
mod codegen;
mod demo;
mod fuzz;
mod guide;
mod lab;
mod oracle;
mod project;
mod shell;
mod soak;
mod test;
mod torture;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Command {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Boots Debian's kernel from file descriptors over QMP, shown step by step.
    Demo(demo::Options),
    /// Runs all tests; the last line is their count.
    Test(test::Options),
    /// Format, lints, generated code, dependency direction, unsafe list, sizes.
    Check(check::Options),
    /// Writes what is generated from the schema and into the guide, or checks it.
    Codegen(codegen::Options),
    /// Start, size and round trips, as ratios against qemu-system-x86_64.
    Bench(bench::Options),
    /// A million rejected requests with fds, and what is left of them.
    Soak(soak::Options),
    /// Fuzzes every parser and protocol, or one of them.
    Fuzz(fuzz::Options),
    /// Crashes, full disks and bad sectors under images and block jobs.
    Torture(torture::Options),
    /// Runs a command in the lab, a machine with KVM made of software.
    Lab(lab::Options),
    /// QEMU's own tests and schema tools, run against us.
    Oracle(oracle::Options),
    /// What CI runs: check, then test.
    Prepush,
    /// The part of the demo that runs where KVM works.
    #[command(hide = true)]
    DemoInside(demo::InsideOptions),
    /// The part of the benchmark that runs where KVM works.
    #[command(hide = true)]
    BenchInside(bench::InsideOptions),
}

fn main() -> ExitCode {
    match run(Command::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Demo(options) => demo::run(&options),
        Task::DemoInside(options) => demo::run_inside(&options),
        Task::Test(options) => test::run(&options),
        Task::Check(options) => check::run(&options),
        Task::Codegen(options) => codegen::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::BenchInside(options) => bench::run_inside(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Torture(options) => torture::run(&options),
        Task::Lab(options) => lab::run(&options),
        Task::Oracle(options) => oracle::run(&options),
        Task::Prepush => match check::run(&check::Options::default())? {
            ExitCode::SUCCESS => test::run(&test::Options::default()),
            failed => Ok(failed),
        },
    }
}

/// The repository's top folder.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.join("../..").canonicalize().unwrap_or(here)
}
