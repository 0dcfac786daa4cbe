//! `cargo xtask torture`: crashes, full disks and bad sectors under qcow2 images and block jobs, with
//! new dice in every round, until the time is up.
//!
//! ```text
//!   seed ─► each part, a test program told SESAME_TORTURE=seed ─┬─ passed ─► next seed
//!                                                               └─ failed ─► its output, its seed
//! ```
//!
//! The same tests run in `cargo xtask test` with dice that always fall alike.
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::project::{self, cargo};
use crate::shell::{install_missing, output, step};

/// What is done in each round.
const PARTS: &[Part] = &[
    Part {
        name: "killed",
        about: "the storage stops after any write",
        home: Home::Block,
        test: "crash::process_killed",
    },
    Part {
        name: "power",
        about: "the power is cut: what was not synced is there or not",
        home: Home::Block,
        test: "crash::power_cut",
    },
    Part {
        name: "errors",
        about: "ENOSPC and EIO at any write",
        home: Home::Block,
        test: "crash::any_write_that_fails",
    },
    Part {
        name: "states",
        about: "snapshots inside an image, interrupted",
        home: Home::Block,
        test: "kept::crash_while",
    },
    Part {
        name: "jobs",
        about: "commit and stream over storage that stops, is full, or is bad",
        home: Home::Block,
        test: "interrupted::",
    },
    Part {
        name: "process",
        about: "kill -9 of a sesame with jobs and transactions",
        home: Home::Tests,
        test: "",
    },
];
/// How many characters the bar has.
const BAR: u64 = 30;

struct Part {
    name: &'static str,
    about: &'static str,
    home: Home,
    /// What its tests' names contain.
    test: &'static str,
}

/// Which test program it is in.
#[derive(Clone, Copy, PartialEq)]
enum Home {
    Block,
    Tests,
}

#[derive(Args)]
pub(crate) struct Options {
    /// How long; the round that is under way is finished.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// The seed of the first round; by the clock if there is none. The next round has the next one.
    #[arg(long)]
    seed: Option<u64>,
    /// Only this part.
    #[arg(long)]
    part: Option<String>,
    /// Only says which parts there are.
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.list {
        for part in PARTS {
            println!("{:8} {}", part.name, part.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let wanted = |part: &&Part| options.part.as_ref().is_none_or(|name| part.name == name);
    let parts: Vec<&Part> = PARTS.iter().filter(wanted).collect();
    if parts.is_empty() {
        bail!("there is no such part: cargo xtask torture --list");
    }
    let mut rounds = Rounds::new(options, parts)?;
    while rounds.start.elapsed() < rounds.time || rounds.done == 0 {
        if let Some(failure) = rounds.one()? {
            rounds.wipe();
            println!("{failure}");
            return Ok(ExitCode::FAILURE);
        }
    }
    rounds.wipe();
    println!("{} rounds, {} s, clean", rounds.done, rounds.seconds());
    Ok(ExitCode::SUCCESS)
}

/// Rounds of one run.
struct Rounds<'a> {
    parts: Vec<&'a Part>,
    programs: Programs,
    seed: u64,
    done: u64,
    start: Instant,
    time: Duration,
}

/// What is run.
struct Programs {
    block: PathBuf,
    /// The program with `killed.rs`, and the VMM that it kills.
    tests: Option<(PathBuf, PathBuf)>,
}

impl<'a> Rounds<'a> {
    fn new(options: &Options, parts: Vec<&'a Part>) -> Result<Self> {
        install_missing(&[("qemu-img", "qemu-utils"), ("qemu-io", "qemu-utils")])?;
        let with_vmm = parts.iter().any(|part| part.home == Home::Tests);
        let programs = Programs::build(with_vmm)?;
        let clock = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(Self {
            parts,
            programs,
            seed: options.seed.unwrap_or(clock),
            done: 0,
            start: Instant::now(),
            time: Duration::from_secs(options.seconds),
        })
    }

    fn seconds(&self) -> u64 {
        self.start.elapsed().as_secs()
    }

    /// All parts with one seed; what failed, if anything did.
    fn one(&mut self) -> Result<Option<String>> {
        for part in &self.parts {
            self.show(part);
            let output = self
                .programs
                .command(part)?
                .env("SESAME_TORTURE", self.seed.to_string())
                .env("RUST_BACKTRACE", "0")
                .stdin(Stdio::null())
                .output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            ensure!(
                !text.contains("running 0 tests"),
                "part {} has no test: {}",
                part.name,
                part.test
            );
            if !output.status.success() {
                let errors = String::from_utf8_lossy(&output.stderr);
                return Ok(Some(format!(
                    "{text}{errors}\nFOUND with seed {}, again: cargo xtask torture --seconds 0 \
                     --seed {} --part {}",
                    self.seed, self.seed, part.name
                )));
            }
        }
        self.done += 1;
        self.seed += 1;
        Ok(None)
    }

    /// A bar on a terminal; elsewhere a line now and then would only fill logs.
    fn show(&self, part: &Part) {
        if !io::stderr().is_terminal() {
            return;
        }
        let all = self.time.as_secs().max(1);
        let full = usize::try_from((self.seconds() * BAR / all).min(BAR)).unwrap_or(0);
        let bar = "#".repeat(full);
        let width = usize::try_from(BAR).unwrap_or(0);
        eprint!(
            "\r[{bar:.<width$}] {:>4}/{all} s  {} rounds  seed {}  {:8}",
            self.seconds(),
            self.done,
            self.seed,
            part.name
        );
        // Progress that cannot be shown is no failure.
        let _ = io::stderr().flush();
    }

    fn wipe(&self) {
        if io::stderr().is_terminal() {
            eprint!("\r{:100}\r", "");
        }
    }
}

impl Programs {
    fn build(with_vmm: bool) -> Result<Self> {
        step("building what is tortured");
        let block = program(&["-p", "block", "--lib"])?;
        let tests = match with_vmm {
            false => None,
            true => Some((
                program(&["-p", "tests", "--test", "killed"])?,
                project::sesame("lab")?,
            )),
        };
        Ok(Self { block, tests })
    }

    fn command(&self, part: &Part) -> Result<Command> {
        if part.home == Home::Block {
            let mut command = Command::new(&self.block);
            command.arg(format!("qcow2::tests::{}", part.test));
            return Ok(command);
        }
        let (program, vmm) = self.tests.as_ref().context("built")?;
        let mut command = Command::new(program);
        command.arg("--ignored").env("SESAME_VMM", vmm);
        Ok(command)
    }
}

/// A test program, built.
fn program(which: &[&str]) -> Result<PathBuf> {
    let text = output(
        cargo()
            .args(["test", "-q", "--no-run", "--message-format=json"])
            .args(which),
    )?;
    let messages = text.lines().rev();
    let found = messages
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
    found.with_context(|| format!("cargo built no test program of {}", which.join(" ")))
}
