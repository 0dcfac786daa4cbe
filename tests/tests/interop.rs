//! Foreign clients: QEMU's Python package, its shell, the crate `qapi`, and a person with socat.
//!
//! `SESAME_PYTHON` is the Python of a virtual environment with `tests/interop/requirements.txt`;
//! `cargo xtask test` makes it, and builds `SESAME_QAPI_CLIENT`.
use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use tests::Vm;
use tests::clients::Listening;
use tests::vm::variable;

/// A monitor that listens on a socket in `folder`, besides the one of the harness.
fn listening(folder: &Path) -> Result<(Vm, PathBuf)> {
    let path = folder.join("qmp.sock");
    let option = format!("unix:{},server=on,wait=off", path.display());
    let vm = Vm::monitor().args(["-qmp", &option]).start()?;
    Ok((vm, path))
}

fn python() -> Result<PathBuf> {
    let python = env::var_os("SESAME_PYTHON").context("SESAME_PYTHON: cargo xtask test sets it")?;
    Ok(python.into())
}

/// Runs a program with `input` typed into it.
fn typed(command: &mut Command, input: &str) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut keyboard = child.stdin.take().context("a keyboard")?;
    keyboard.write_all(input.as_bytes())?;
    drop(keyboard);
    Ok(child.wait_with_output()?)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_python_client_holds_a_whole_session() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (vm, path) = listening(folder.path())?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/client.py");
    let output = Command::new(python()?).arg(script).arg(path).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success() && said.ends_with("done\n"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    vm.exit_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_crate_qapi_holds_a_whole_session() -> Result<()> {
    let mut client = Command::new(variable("SESAME_QAPI_CLIENT")?);
    Listening::start(Vm::monitor())?.session(&mut client)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn qmp_shell_runs_commands() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (vm, path) = listening(folder.path())?;
    let shell = python()?.with_file_name("qmp-shell");
    let output = typed(
        Command::new(shell).arg(path),
        "query-status\nobject-add qom-type=iothread id=io0\nquery-iothreads\n",
    )?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said.contains("\"running\""), "{said}");
    ensure!(said.contains("\"io0\""), "{said}");
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_person_with_socat_types_a_session() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (vm, path) = listening(folder.path())?;
    let address = format!("UNIX-CONNECT:{}", path.display());
    // -t: how long socat waits for answers after the last line was typed.
    let output = typed(
        Command::new("socat").args(["-t", "5", "-", &address]),
        "{\"execute\": \"qmp_capabilities\"}\r\n{\"execute\": \"query-status\"}\r\n",
    )?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<_> = said.lines().collect();
    ensure!(lines.len() == 3, "{said}");
    ensure!(lines[0].contains("\"QMP\""), "{said}");
    ensure!(lines[1].contains("\"return\": {}"), "{said}");
    ensure!(lines[2].contains("\"status\""), "{said}");
    vm.shutdown_clean()
}
