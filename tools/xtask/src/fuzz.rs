//! `cargo xtask fuzz`: the targets of `tests/fuzz`, built with coverage and driven by libFuzzer.
//!
//! ```text
//!   tests/fuzz/seeds/TARGET ──┐                             ┌─► runs, edges, "clean"
//!   target/fuzz/corpus/TARGET ┴─► fuzz (libFuzzer in front) ┤
//!            ▲                         │                    └─► target/fuzz/findings/TARGET/crash-*
//!            └── what reaches new code ┘                         and how to run it again
//! ```
//!
//! Rust's stable compiler has LLVM's coverage pass; it is only not told to use it by name. A test
//! run takes each target for a few seconds from its seeds alone.
use std::collections::VecDeque;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::project::{TARGET, cargo, target};
use crate::root;
use crate::shell::{install_missing, run as sh, step};

/// LLVM's sanitizer coverage, as cargo-fuzz asks for it, without a sanitizer.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// How the program is told which target it is; `list` has it list them.
const CHOICE: &str = "SESAME_FUZZ_TARGET";
/// How long each target has in a test run.
const SHORT: u32 = 4;
/// An input that takes longer is a finding, in seconds.
const INPUT_TIME: u32 = 25;
/// The longest input that is made: a boot header with its tables fits.
const INPUT_LEN: u32 = 4096;
/// How many lines of a finding's output are shown.
const SHOWN: usize = 12;

#[derive(Args)]
pub(crate) struct Options {
    /// Which target; all of them, one after the other, if none is named.
    target: Option<String>,
    /// How long each is run.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Runs these inputs once, and nothing else.
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Vec<PathBuf>,
    /// Only says which targets there are.
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let fuzzer = Fuzzer::build()?;
    let about = fuzzer.list()?;
    if options.list {
        print!("{about}");
        return Ok(ExitCode::SUCCESS);
    }
    let mut names = names(&about);
    if let Some(wanted) = &options.target {
        ensure!(
            names.contains(wanted),
            "there is no fuzz target '{wanted}'; there are:\n{about}"
        );
        names.retain(|name| name == wanted);
    }
    if let ([name], false) = (names.as_slice(), options.input.is_empty()) {
        return fuzzer.replay(name, &options.input);
    }
    let mut clean = true;
    for name in names {
        let outcome = fuzzer.fuzz(&name, options.seconds, Corpus::Kept)?;
        println!("{outcome}");
        clean &= outcome.finding.is_none();
    }
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Every target for a few seconds, as many at once as there are CPUs: how many were clean, and how
/// many were not.
pub(crate) fn short() -> Result<(u64, u64)> {
    step("fuzz targets");
    let fuzzer = Fuzzer::build()?;
    let waiting = Mutex::new(VecDeque::from(names(&fuzzer.list()?)));
    let next = || {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.pop_front()
    };
    let work = || -> Result<(u64, u64)> {
        let (mut clean, mut found) = (0, 0);
        while let Some(name) = next() {
            let outcome = fuzzer.fuzz(&name, SHORT, Corpus::SeedsOnly)?;
            println!("{outcome}");
            match outcome.finding {
                None => clean += 1,
                Some(_) => found += 1,
            }
        }
        Ok((clean, found))
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let mut total = (0, 0);
        for worker in workers {
            let Ok(part) = worker.join() else {
                bail!("a thread that ran fuzz targets has panicked");
            };
            let (clean, found) = part?;
            total = (total.0 + clean, total.1 + found);
        }
        Ok(total)
    })
}

/// The names in the list, each the first word of a line.
fn names(about: &str) -> Vec<String> {
    let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
    about.lines().filter_map(first).collect()
}

/// Where the inputs come from beside the seeds, and where new ones go.
#[derive(Clone, Copy, PartialEq)]
enum Corpus {
    /// A folder that grows from run to run.
    Kept,
    /// An empty one.
    SeedsOnly,
}

/// The program with all targets.
struct Fuzzer {
    program: PathBuf,
    /// Where corpora and findings are.
    folder: PathBuf,
}

impl Fuzzer {
    fn build() -> Result<Self> {
        install_missing(&[("c++", "g++")])?;
        step("building the fuzz targets");
        let folder = target()?.join("fuzz");
        // A folder of its own: other flags in the same one would rebuild everything each time.
        sh(cargo()
            .args(["build", "-q", "-p", "fuzz", "--profile", "fuzz"])
            .args(["--target", TARGET, "--target-dir"])
            .arg(&folder)
            .env("RUSTFLAGS", COVERAGE))?;
        Ok(Self {
            program: folder.join(TARGET).join("fuzz/fuzz"),
            folder,
        })
    }

    fn list(&self) -> Result<String> {
        // The engine's own words go to stderr.
        let output = Command::new(&self.program).env(CHOICE, "list").output()?;
        ensure!(output.status.success(), "the fuzz targets cannot be listed");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Where the inputs that were findings go.
    fn findings(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join("findings").join(name);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    fn replay(&self, name: &str, inputs: &[PathBuf]) -> Result<ExitCode> {
        // libFuzzer stops at the first that fails, and shows where.
        let status = Command::new(&self.program)
            .args(inputs)
            .env(CHOICE, name)
            .status()?;
        Ok(if status.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn fuzz(&self, name: &str, seconds: u32, corpus: Corpus) -> Result<Outcome> {
        let grown = self.folder.join("corpus").join(name);
        let scratch = tempfile::tempdir()?;
        let first = match corpus {
            Corpus::Kept => {
                fs::create_dir_all(&grown)?;
                grown.as_path()
            }
            Corpus::SeedsOnly => scratch.path(),
        };
        // Without a corpus the same inputs come in the same order: a test run finds nothing by luck.
        let order = match corpus {
            Corpus::Kept => 0,
            Corpus::SeedsOnly => 1,
        };
        let findings = self.findings(name)?;
        let output = Command::new(&self.program)
            .arg(format!("-seed={order}"))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={INPUT_TIME}"))
            .arg(format!("-max_len={INPUT_LEN}"))
            .arg(format!("-artifact_prefix={}/", findings.display()))
            .arg(first)
            .arg(root().join("tests/fuzz/seeds").join(name))
            .env(CHOICE, name)
            // The engine's own threads are not what is tested, and it prints its stack itself.
            .env("RUST_BACKTRACE", "0")
            .output()
            .with_context(|| format!("run {}", self.program.display()))?;
        let text = String::from_utf8_lossy(&output.stderr);
        Ok(Outcome::new(name, seconds, &text, output.status.success()))
    }
}

/// What came of one run.
struct Outcome {
    name: String,
    seconds: u32,
    runs: u64,
    edges: u64,
    finding: Option<String>,
}

impl Outcome {
    fn new(name: &str, seconds: u32, text: &str, success: bool) -> Self {
        let (runs, edges) = text.lines().rev().find_map(progress).unwrap_or_default();
        // A run that made none at all has tested nothing.
        let finding = (!success || runs == 0).then(|| finding(name, text));
        Self {
            name: name.to_owned(),
            seconds,
            runs,
            edges,
            finding,
        }
    }
}

/// The runs and the edges covered of a line such as `#1234 NEW cov: 56 ft: 78 ..`.
fn progress(line: &str) -> Option<(u64, u64)> {
    let mut words = line.strip_prefix('#')?.split_whitespace();
    let runs = words.next()?.parse().ok()?;
    let edges = words.skip_while(|word| *word != "cov:").nth(1)?;
    Some((runs, edges.parse().ok()?))
}

/// What went wrong, and how to see it again.
fn finding(name: &str, text: &str) -> String {
    let from = text
        .lines()
        .position(|line| line.contains("panicked at") || line.contains("ERROR: libFuzzer"));
    let told = text.lines().skip(from.unwrap_or(0)).take(SHOWN);
    let mut lines: Vec<String> = told.map(str::to_owned).collect();
    let marker = "Test unit written to ";
    if let Some((_, file)) = text.lines().find_map(|line| line.split_once(marker)) {
        let file = Path::new(file.trim());
        let shown = env::current_dir()
            .ok()
            .and_then(|here| file.strip_prefix(here).ok())
            .unwrap_or(file);
        lines.push(format!(
            "again: cargo xtask fuzz {name} --input {}",
            shown.display()
        ));
    }
    lines.join("\n")
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            seconds,
            runs,
            edges,
            finding,
        } = self;
        write!(
            f,
            "{name:10} {seconds:>4} s {runs:>10} runs {edges:>6} edges  "
        )?;
        match finding {
            None => write!(f, "clean"),
            Some(finding) => write!(f, "FOUND\n{finding}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = "#2\tINITED cov: 3 ft: 4 corp: 1/1b exec/s: 0 rss: 30Mb\n\
        #524288\tpulse  cov: 812 ft: 2000 corp: 9/9b exec/s: 9 rss: 30Mb\n\
        #600000\tDONE   cov: 813 ft: 2001 corp: 9/9b exec/s: 9 rss: 30Mb\n\
        Done 600000 runs in 5 second(s)\n";

    #[test]
    fn a_clean_run_tells_its_runs_and_edges() {
        let outcome = Outcome::new("json", 5, CLEAN, true);
        assert_eq!((outcome.runs, outcome.edges), (600_000, 813));
        assert!(outcome.finding.is_none());
    }

    #[test]
    fn a_finding_says_what_and_how_to_see_it_again() {
        let text = format!(
            "{CLEAN}\nthread 'x' panicked at src/a.rs:1:2:\nwhat\n==1== ERROR: libFuzzer: deadly \
             signal\nartifact_prefix='/f/'; Test unit written to /f/crash-1\n"
        );
        let finding = Outcome::new("json", 5, &text, false).finding;
        let finding = finding.expect("it failed");
        assert!(finding.starts_with("thread 'x' panicked at"), "{finding}");
        assert!(finding.ends_with("cargo xtask fuzz json --input /f/crash-1"));
    }

    #[test]
    fn a_program_that_runs_nothing_is_not_clean() {
        assert!(Outcome::new("json", 5, "", true).finding.is_some());
    }
}
