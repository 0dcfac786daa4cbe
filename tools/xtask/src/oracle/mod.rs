//! `cargo xtask oracle`: QEMU's own tests and schema tools judge us.
//!
//! ```text
//!   qtest   ─► tools/oracle/run-qtests ─► QEMU's test programs ─ qtest, QMP ─► our binary
//!   iotests ─► tools/oracle/run-iotests ─► QEMU's tests of images ─ options, QMP ─► our binary
//!   schema  ─► tools/oracle/check-schema ─► QEMU's generator reads qapi-schema/schema
//!                └ its introspection is ours?  and compare-schema: does it agree with QEMU's?
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
    /// Runs QEMU's tests of images and of the block layer with our binary as the emulator.
    Iotests(IotestsOptions),
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

#[derive(Args)]
struct IotestsOptions {
    /// Tests (`040`, `qcow2:040`) or sets (`@vmm`, `@all`). Without any: those that drive an
    /// emulator over QMP.
    tests: Vec<String>,
    /// The binary to be judged, instead of building ours.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Runs what is out of scope, too.
    #[arg(long)]
    everything: bool,
    /// Shows how the output of failing tests differs.
    #[arg(long)]
    diff: bool,
    /// Keeps what each failing test prints, there.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Fails only on what passes in that list and not here.
    #[arg(long)]
    baseline: Option<PathBuf>,
}

/// What is known not to pass, with its reason.
const ACCEPTED: &str = "tools/oracle/accepted-qtest-failures.txt";
/// The same for tests of images.
const ACCEPTED_IOTESTS: &str = "tools/oracle/accepted-iotest-failures.txt";

/// What is tested when nothing is named: the programs that have something to say about us.
const TESTS: [&str; 29] = [
    "qmp-test",
    "qmp-cmd-test",
    "machine-none-test",
    "qom-test",
    "cpu-plug-test",
    // Its other sub-tests want the machine `pc`, and libqtest waits 50 s for each.
    "device-plug-test:device-plug/q35-pci-unplug-request",
    "device-plug-test:device-plug/q35-pci-unplug-json-request",
    "numa-test",
    "test-x86-cpuid-compat",
    "tco-test",
    // The others want `pc`, drives without a medium, or the monitor for people to add and take
    // drives.
    "drive_del-test:device_del/empty",
    "drive_del-test:device_del/blockdev_q35",
    "drive_del-test:device_del/drive/cli_device_q35",
    "drive_del-test:device_del/drive/device_add_q35",
    "readconfig-test",
    "device-introspect-test",
    "test-hmp",
    "rtc-test",
    "fw_cfg-test",
    "pvpanic-test",
    "pvpanic-pci-test",
    "virtio-balloon-test",
    "vmcoreinfo-test",
    "tpm-crb-test",
    // The other one wants a machine's state over a socket.
    "tpm-crb-swtpm-test:tpm/crb-swtpm/test",
    "netdev-socket",
    "test-filter-mirror",
    "test-filter-redirector",
    "qos-test",
];

/// Runs a judge.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    install_missing(&[("python3", "python3"), ("flock", "util-linux")])?;
    match &options.judge {
        Judge::Qtest(options) => qtest(options),
        Judge::Iotests(options) => iotests(options),
        Judge::Schema => schema::run(),
    }
}

/// A script of `tools/oracle`.
fn script(name: &str) -> Command {
    let mut command = Command::new(root().join("tools/oracle").join(name));
    command.current_dir(root());
    command
}

/// The binary that was named, or ours.
fn binary(named: Option<&PathBuf>) -> Result<PathBuf> {
    named.map_or_else(|| project::sesame("dev"), |named| Ok(named.clone()))
}

fn qtest(options: &QtestOptions) -> Result<ExitCode> {
    let binary = binary(options.binary.as_ref())?;
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

fn iotests(options: &IotestsOptions) -> Result<ExitCode> {
    let binary = binary(options.binary.as_ref())?;
    step("running QEMU's tests of images (the first time its tools are built, for some minutes)");
    let mut command = script("run-iotests");
    if let Some(log) = &options.log {
        command.arg("--log").arg(log);
    }
    if options.everything {
        command.arg("--everything");
    }
    if options.diff {
        command.arg("--diff");
    }
    match &options.baseline {
        Some(baseline) => command.arg("--baseline").arg(baseline),
        None => command.arg("--accepted").arg(root().join(ACCEPTED_IOTESTS)),
    };
    command.arg(binary).args(&options.tests);
    exit_code(&mut command)
}
