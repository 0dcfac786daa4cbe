//! `cargo xtask bench`: ratios against the distribution's QEMU, never times alone.
//!
//! ```text
//!   qmp     here              qmp/      first answers · idle size · round trips · floods
//!   guest   where KVM works   guest.rs  start to the guest's init · size beyond the guest's RAM
//!           both: A B A B A B ..., one table
//!   net     where KVM works   net/      a guest's packets, by taps, vhost and passt
//!           here                        packets through rings in shared memory
//!   block   here              block/    requests to disks, first writes, block jobs
//!   door    here              door.rs   the one open and the open hook, which no peer has
//! ```
//!
//! The two programs take turns within one run, so that a busy machine slows both; the load is
//! printed beside the table all the same.
mod block;
mod door;
mod guest;
mod net;
mod qmp;
mod table;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;
use tests::artifacts::Flavour;
use tests::host_kvm::{self, Place};
use tests::vm::Vmm;

use crate::check::{MOST_CRATES, third_party_crates};
use crate::lab;
use crate::project;
use crate::shell::{install_missing, output, step};
use guest::Sample;
use table::{Row, print};

/// The peer, as the distribution has it.
const PEER: &str = "qemu-system-x86_64";
/// Many times what the runs in the lab take.
const INSIDE_TIME: Duration = Duration::from_secs(600);

/// What can be measured by itself.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Part {
    /// Monitors without a guest.
    Qmp,
    /// Boots, where KVM works.
    Guest,
    /// The one open and the open hook.
    Door,
    /// Disks and block jobs.
    Block,
    /// A guest's packets, where KVM works.
    Net,
}

#[derive(Args)]
pub(crate) struct Options {
    /// Measure only this.
    part: Option<Part>,
    /// Turns of each monitor measurement.
    #[arg(long, default_value_t = 15)]
    turns: usize,
    /// Boots of each program.
    #[arg(long, default_value_t = 5)]
    boots: usize,
    /// Another program in place of sesame.
    #[arg(long, value_name = "PROGRAM")]
    vmm: Option<PathBuf>,
    #[command(flatten)]
    block: block::BlockOptions,
}

#[derive(Args)]
pub(crate) struct InsideOptions {
    #[arg(long)]
    vmm: PathBuf,
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long)]
    initrd: PathBuf,
    /// Packets, and not the boot.
    #[arg(long)]
    net: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    install_missing(&[(PEER, "qemu-system-x86"), ("xz", "xz-utils")])?;
    let program = match &options.vmm {
        Some(program) => program.clone(),
        None => project::sesame("release")?,
    };
    let pair = [Vmm::at(&program), Vmm::at(on_path(PEER)?)];
    let wanted = |part| options.part.is_none_or(|only| only == part);
    let load = load()?;
    if wanted(Part::Qmp) {
        step("measuring monitors");
        print("QEMU", &qmp::measure(&pair, options.turns)?);
    }
    if wanted(Part::Guest) {
        print("QEMU", &guests(&pair, options.boots)?);
    }
    if wanted(Part::Net) {
        let only = &options.block.only;
        let wanted = |what: &str| only.is_empty() || only.iter().any(|one| one == what);
        if wanted("rings") {
            step("measuring packets through shared memory");
            print("QEMU", &net::rings::measure(&pair, options.turns)?);
        }
        if wanted("sizes") {
            step("measuring what cards and disks weigh");
            print("QEMU", &net::sizes::measure(&pair, options.boots)?);
        }
        if wanted("guests") {
            install_missing(&[("passt", "passt")])?;
            print("QEMU", &nets(&pair, options.boots)?);
        }
    }
    if wanted(Part::Door) {
        step("measuring the one open");
        print("without", &door::measure(&program)?);
    }
    if wanted(Part::Block) {
        block::run(&pair, &project::target()?, &options.block)?;
    }
    println!();
    println!(
        "third-party crates in the binary: {} (at most {MOST_CRATES})",
        third_party_crates()?
    );
    println!(
        "load of this machine: {load} before, {} after",
        self::load()?
    );
    Ok(ExitCode::SUCCESS)
}

fn guests(pair: &[Vmm; 2], boots: usize) -> Result<Vec<Row>> {
    let inits = project::inits()?;
    let files = project::guest_files(&inits, Flavour::Cloud)?;
    let place = host_kvm::place()?;
    step(&format!("measuring guests; {place}"));
    guest::measure(pair, boots, |vmm| {
        let inside = InsideOptions::new(vmm, &files, false);
        match place {
            Place::Host => guest::sample(&inside),
            Place::Lab(_) => in_lab(&inits, &inside, Sample::find),
        }
    })
}

/// Builds a program of `devices/benches`, which measures without a guest; its path.
fn front(name: &str) -> Result<PathBuf> {
    let words = [
        "bench",
        "-q",
        "-p",
        "devices",
        "--no-run",
        "--message-format=json",
    ];
    let text = output(project::cargo().args(words).args(["--bench", name]))?;
    let found = text.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let named = message["target"]["name"] == name && message["executable"].is_string();
        named.then(|| PathBuf::from(message["executable"].as_str().unwrap_or_default()))
    });
    found.with_context(|| format!("cargo built no bench '{name}'"))
}

/// In the lab whatever there is: it makes interfaces, and a default route.
fn nets(pair: &[Vmm; 2], boots: usize) -> Result<Vec<Row>> {
    let inits = project::inits()?;
    let files = project::guest_files(&inits, Flavour::Cloud)?;
    step("measuring a guest's packets, in the lab");
    net::guests::measure(pair, boots, |vmm| {
        let inside = InsideOptions::new(vmm, &files, true);
        in_lab(&inits, &inside, net::guests::Sample::find)
    })
}

impl InsideOptions {
    fn new(vmm: &Vmm, files: &project::GuestFiles, net: bool) -> Self {
        Self {
            vmm: vmm.program.clone(),
            kernel: files.kernel.clone(),
            initrd: files.initrd.clone(),
            net,
        }
    }
}

/// How many threads wanted a CPU of this machine in the last minute, on average, of how many.
fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let minute = text.split(' ').next().unwrap_or_default();
    Ok(format!("{minute} on {} CPUs", available_parallelism()?))
}

/// Prints one sample as JSON for the program outside.
pub(crate) fn run_inside(options: &InsideOptions) -> Result<ExitCode> {
    let sample = if options.net {
        net::guests::sample(options)?.to_json()
    } else {
        guest::sample(options)?.to_json()
    };
    println!("{sample}");
    Ok(ExitCode::SUCCESS)
}

/// One sample in a lab of its own: a guest that gets memory from which another has run code is
/// slower by a third, because the emulator watches every write to such memory.
fn in_lab<S>(
    inits: &project::Inits,
    options: &InsideOptions,
    find: impl Fn(&str) -> Option<S>,
) -> Result<S> {
    let mut lab = lab::boot(&lab::spec(inits)?)?;
    let exe = env::current_exe()?;
    let mut argv = vec![exe.into_os_string(), "bench-inside".into()];
    for (option, path) in [
        ("--vmm", &options.vmm),
        ("--kernel", &options.kernel),
        ("--initrd", &options.initrd),
    ] {
        argv.extend([option.into(), path.clone().into_os_string()]);
    }
    argv.extend(options.net.then(|| "--net".into()));
    let mut output = Vec::new();
    let folder = env::current_dir()?;
    let environment = lab::environment();
    let status = lab.run(&argv, &folder, &environment, INSIDE_TIME, &mut output)?;
    let text = String::from_utf8_lossy(&output);
    ensure!(status == 0, "the measurement failed: {text}");
    find(&text).with_context(|| format!("no sample, but: {text}"))
}

fn on_path(program: &str) -> Result<PathBuf> {
    env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join(program))
        .find(|path| path.exists())
        .with_context(|| format!("{program} is not on the path"))
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[expect(clippy::cast_precision_loss, reason = "sizes of processes, for people")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
