//! Running other programs, and saying what goes on.
use std::io::{self, IsTerminal};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tests::artifacts::run_as_root;

/// Announces a step, so that a long one is seen to be at work.
pub(crate) fn step(text: &str) {
    if io::stderr().is_terminal() {
        eprintln!("\x1b[1m== {text}\x1b[0m");
    } else {
        eprintln!("== {text}");
    }
}

/// Runs a program with its output shown; a failure names it.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("run {shown}"))?;
    ensure!(status.success(), "failed ({status}): {shown}");
    Ok(())
}

/// Runs a program for what it prints.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run {shown}"))?;
    ensure!(
        output.status.success(),
        "failed ({}): {shown}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a program for what it prints, whatever its verdict.
pub(crate) fn unchecked_output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run {shown}"))?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a program with its output shown; its verdict is ours.
pub(crate) fn exit_code(command: &mut Command) -> Result<ExitCode> {
    let shown = shown(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("run {shown}"))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().display().to_string()];
    words.extend(
        command
            .get_args()
            .map(|argument| argument.display().to_string()),
    );
    words.join(" ")
}

/// Whether a program is on the path (or where administrators keep theirs).
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).exists())
}

/// Installs the Debian packages whose program is missing; `needs` are (program, package) pairs.
///
/// One package may drive another out, as QEMU's emulator of one release does with its tools of
/// another: what has gone with the first round is installed in the second.
pub(crate) fn install_missing(needs: &[(&str, &str)]) -> Result<()> {
    install(needs)?;
    install(needs)
}

fn install(needs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = needs
        .iter()
        .filter(|(program, _)| !has(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    step(&format!("installing {}", missing.join(" ")));
    if !has("apt-get") {
        bail!(
            "needed: {} (and there is no apt-get here)",
            missing.join(" ")
        );
    }
    let install = [
        &["apt-get", "install", "-y", "-qq", "--no-install-recommends"],
        missing.as_slice(),
    ]
    .concat();
    // Package lists may be absent or old: refresh them only when the install says so.
    run_as_root(&install).or_else(|_| {
        run_as_root(&["apt-get", "update", "-qq"]).and_then(|()| run_as_root(&install))
    })
}
