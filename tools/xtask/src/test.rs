//! `cargo xtask test`: unit tests here, guest tests where KVM works, one count for all.
//!
//! ```text
//!   cargo test --workspace  (nextest where it is installed)          on this machine
//!   the test programs of tests/, guest tests included      ──► in one boot of the lab,
//!                                                              or here when KVM is good
//!   "N passed, N failed, N skipped"                            the last line
//! ```
use std::collections::BTreeMap;
use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use ::tests::host_kvm::{self, Place};
use ::tests::lab::Lab;
use anyhow::{Context, Result};
use clap::Args;

use crate::lab;
use crate::project::{self, cargo};
use crate::shell::{has, output, step};

/// No test program takes longer, even in the lab on a busy machine.
const PROGRAM_TIME: Duration = Duration::from_secs(1500);

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only guest tests whose name contains this; no unit tests.
    filter: Option<String>,
    /// Tests another program instead of sesame, such as qemu-system-x86_64.
    #[arg(long, value_name = "PROGRAM")]
    vmm: Option<PathBuf>,
    /// Only the tests that need no guest.
    #[arg(long)]
    host_only: bool,
}

/// What test runners said at their end, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut total = Count::default();
    if options.filter.is_none() {
        total.add(unit_tests()?);
    }
    if !options.host_only {
        total.add(guest_tests(options)?);
    }
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    );
    Ok(if total.failed == 0 && total.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Everything that needs no guest. Guest tests count as ignored here; they have their turn.
fn unit_tests() -> Result<Count> {
    step("unit tests");
    let mut command = cargo();
    if has("cargo-nextest") {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
        command.args(["--status-level", "fail", "--final-status-level", "fail"]);
        command.args(["--show-progress", "none"]);
    } else {
        command.args([
            "test",
            "-q",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
        ]);
    }
    let (_, text) = watched(&mut command)?;
    let mut count = count(&text);
    count.skipped = 0;
    // A build that fails runs no test and must not pass for "none failed".
    if count.passed + count.failed == 0 {
        count.failed = 1;
    }
    Ok(count)
}

fn guest_tests(options: &Options) -> Result<Count> {
    let vmm = match &options.vmm {
        Some(program) => program.clone(),
        None => project::sesame("lab")?,
    };
    let inits = project::inits()?;
    let guest = project::guest_files(&inits)?;
    let programs = test_programs()?;
    let mut environment = lab::environment();
    for (key, path) in [
        ("SESAME_VMM", &vmm),
        ("SESAME_GUEST_KERNEL", &guest.kernel),
        ("SESAME_GUEST_INITRD", &guest.initrd),
    ] {
        environment.insert(key.to_owned(), path.display().to_string());
    }
    let place = host_kvm::place()?;
    step(&place.to_string());
    let mut lab = match place {
        Place::Host => None,
        Place::Lab(_) => Some(lab::boot(&lab::spec(&inits)?)?),
    };
    let mut total = Count::default();
    for program in programs {
        let name = program.file_name().unwrap_or_default().display();
        step(&format!("guest tests: {name}"));
        let mut argv = vec![program.display().to_string(), "--ignored".to_owned()];
        argv.extend(["--test-threads".to_owned(), "2".to_owned()]);
        argv.extend(options.filter.clone());
        let result = match &mut lab {
            Some(machine) => in_lab(machine, &argv, &environment),
            None => here(&argv, &environment),
        };
        total.add(result.unwrap_or_else(|error| {
            println!("{error:#}");
            lab = None;
            Count {
                failed: 1,
                ..Count::default()
            }
        }));
        if lab.is_none() && matches!(host_kvm::place()?, Place::Lab(_)) {
            lab = Some(lab::boot(&lab::spec(&inits)?)?);
        }
    }
    Ok(total)
}

fn in_lab(lab: &mut Lab, argv: &[String], environment: &BTreeMap<String, String>) -> Result<Count> {
    let mut tee = Tee::default();
    let status = lab.run(
        argv,
        &env::current_dir()?,
        environment,
        PROGRAM_TIME,
        &mut tee,
    )?;
    Ok(counted(status == 0, &tee.text()))
}

fn here(argv: &[String], environment: &BTreeMap<String, String>) -> Result<Count> {
    let (program, arguments) = argv.split_first().context("no command")?;
    let (success, text) = watched(Command::new(program).args(arguments).envs(environment))?;
    Ok(counted(success, &text))
}

/// A program that died without a count has failed.
fn counted(success: bool, text: &str) -> Count {
    let mut count = count(text);
    if !success && count.failed == 0 {
        count.failed = 1;
    }
    count
}

/// The programs with guest tests, built.
fn test_programs() -> Result<Vec<PathBuf>> {
    step("building the guest tests");
    let text = output(cargo().args([
        "test",
        "-q",
        "-p",
        "tests",
        "--tests",
        "--no-run",
        "--message-format=json",
    ]))?;
    let mut programs: Vec<_> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["kind"][0] == "test")
        .filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .collect();
    programs.sort();
    Ok(programs)
}

/// Runs a program, showing what it prints and keeping it.
fn watched(command: &mut Command) -> Result<(bool, String)> {
    let (mut reader, writer) = io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("run {}", command.get_program().display()))?;
    // The command keeps the writing ends; give it others, or the pipe never ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tee = Tee::default();
    io::copy(&mut reader, &mut tee)?;
    Ok((child.wait()?.success(), tee.text()))
}

/// Shows what is written to it, and keeps it.
#[derive(Default)]
struct Tee(Vec<u8>);

impl Tee {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        io::stdout().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// Adds up the closing lines of libtest and nextest.
fn count(text: &str) -> Count {
    let mut total = Count::default();
    for line in text.lines() {
        let line = strip_colour(line);
        let closing = line.trim_start();
        if !closing.starts_with("test result:") && !closing.starts_with("Summary [") {
            continue;
        }
        let mut words = closing
            .split(|c: char| c.is_whitespace() || ";,.():[]".contains(c))
            .filter(|word| !word.is_empty())
            .peekable();
        while let Some(word) = words.next() {
            let (Ok(number), Some(what)) = (word.parse::<u64>(), words.peek()) else {
                continue;
            };
            match *what {
                "passed" => total.passed += number,
                "failed" | "timed" => total.failed += number,
                "ignored" | "skipped" => total.skipped += number,
                _ => {}
            }
        }
    }
    total
}

fn strip_colour(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\x1b') {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_lines_of_both_runners_are_counted() {
        let text = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out\n\
            \x1b[32m     Summary\x1b[0m [   0.4s] 7 tests run: 6 passed (1 leaky), 1 failed, 4 skipped";
        let expected = Count {
            passed: 9,
            failed: 2,
            skipped: 6,
        };
        assert_eq!(count(text), expected);
    }

    #[test]
    fn a_test_that_talks_of_numbers_is_not_counted() {
        assert_eq!(count("hello 5 passed"), Count::default());
    }

    #[test]
    fn a_program_that_dies_without_a_count_has_failed() {
        assert_eq!(counted(false, "").failed, 1);
    }
}
