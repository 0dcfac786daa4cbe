//! `cargo xtask`: everything a developer or CI does with the project beyond `cargo build`.
//!
//! ```text
//!   check  ─ what a reviewer should not have to look for      check/
//!   test   ─ unit tests here, guest tests where KVM works     test.rs
//!   demo   ─ the main job, shown as it goes                   demo/
//!   bench  ─ ratios against QEMU                              bench/
//!   lab    ─ a command in the lab                             lab.rs
//!   codegen, prepush (= check + test = CI)
//! ```
//!
//! Tools know the product by its command line, its QMP and its sources' text, never its crates.
#![expect(
    clippy::disallowed_methods,
    reason = "tools play the manager: they open the files that they hand in"
)]

mod lab;
mod project;
mod shell;

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
    /// Runs a command in the lab, a machine with KVM made of software.
    Lab(lab::Options),
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
        Task::Lab(options) => lab::run(&options),
    }
}

/// The repository's top folder.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.join("../..").canonicalize().unwrap_or(here)
}
