//! `cargo xtask oracle`: QEMU's own tests and schema tools judge us.
//!
//! ```text
//!   qtest  ─► tools/oracle/run-qtests ─► QEMU's test programs ─ qtest, QMP ─► our binary
//!   schema ─► tools/oracle/check-schema ─► QEMU's generator reads qapi-schema/schema
//!               └ its introspection is ours?  and compare-schema: does it agree with QEMU's?
//! ```
//!
//! QEMU's sources and what is built of them stay in a cache outside the repository
//! (`tools/oracle/oracle-setup`, `$ORACLE_CACHE`).

mod schema;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::project;
use crate::root;
use crate::shell::{exit_code, install_missing, step};

/// Options of `cargo xtask oracle`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    judge: Judge,
}

#[derive(Subcommand)]
enum Judge {
    /// Runs QEMU's test programs against our binary and counts what passes.
    Qtest(QtestOptions),
    /// Has QEMU's generator read our schema, and compares it with QEMU's.
    Schema,
}

#[derive(Args)]
struct QtestOptions {
    /// Test programs or sets (`@qmp`, `@vmm`, `@all`), each perhaps with `:PATH`.
    /// Without any: those for what exists.
    tests: Vec<String>,
    /// The binary to be judged, instead of building ours.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Keeps what each test program prints, there.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Fails only on what is ok in that list and not here.
    #[arg(long)]
    baseline: Option<PathBuf>,
}

/// What is known not to pass, with its reason.
const ACCEPTED: &str = "tools/oracle/accepted-qtest-failures.txt";

/// What is tested when nothing is named: the programs that have something to say about us.
const TESTS: [&str; 10] = [
    "qmp-test",
    "qmp-cmd-test",
    "machine-none-test",
    "qom-test",
    "readconfig-test",
    "device-introspect-test",
    "test-hmp",
    "fw_cfg-test",
    "pvpanic-test",
    "qos-test",
];

/// Runs a judge.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    install_missing(&[("python3", "python3"), ("flock", "util-linux")])?;
    match &options.judge {
        Judge::Qtest(options) => qtest(options),
        Judge::Schema => schema::run(),
    }
}

/// A script of `tools/oracle`.
fn script(name: &str) -> Command {
    let mut command = Command::new(root().join("tools/oracle").join(name));
    command.current_dir(root());
    command
}

fn qtest(options: &QtestOptions) -> Result<ExitCode> {
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => project::sesame("dev")?,
    };
    step("running QEMU's test programs (the first time they are built, for some minutes)");
    let mut command = script("run-qtests");
    if let Some(log) = &options.log {
        command.arg("--log").arg(log);
    }
    match &options.baseline {
        Some(baseline) => command.arg("--baseline").arg(baseline),
        None => command.arg("--accepted").arg(root().join(ACCEPTED)),
    };
    command.arg(binary);
    if options.tests.is_empty() {
        command.args(TESTS);
    } else {
        command.args(&options.tests);
    }
    exit_code(&mut command)
}
