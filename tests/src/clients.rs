//! Our own clients under test: programs in other languages that hold a session with the VMM.
//!
//! ```text
//!   clients/LANGUAGE ◄── uses ── interop/sesame_LANGUAGE.* ◄── is run by ── tests/clients*.rs
//! ```
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::vm::{Builder, Vm, variable};

/// The folder of one client.
pub fn folder(language: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../clients")
        .join(language)
}

/// A program of `tests/interop`.
pub fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("interop")
        .join(name)
}

/// The Python of `cargo xtask test`, with our package to import. What is never awaited or closed
/// is an error.
///
/// # Errors
/// `SESAME_PYTHON` is not set.
pub fn python() -> Result<Command> {
    let mut command = Command::new(variable("SESAME_PYTHON")?);
    command
        .env("PYTHONPATH", folder("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args(["-X", "dev", "-W", "error"]);
    Ok(command)
}

/// A session by the built TypeScript client of `cargo xtask test`, with a disk that the VMM has.
///
/// # Errors
/// `SESAME_TYPESCRIPT` is not set.
pub fn node(how: &str, disk: &str) -> Result<Command> {
    let mut command = Command::new("node");
    command.arg(program("sesame_node.mjs"));
    command
        .arg(variable("SESAME_TYPESCRIPT")?)
        .args([how, disk]);
    Ok(command)
}

/// A session by the Go client, in the program that `cargo xtask test` built.
///
/// # Errors
/// `SESAME_GO` is not set.
pub fn go(how: &str) -> Result<Command> {
    let mut command = Command::new(variable("SESAME_GO")?);
    command.arg(how);
    Ok(command)
}

/// Runs a program that must be content, and returns what it said.
///
/// # Errors
/// It was not; with what it said.
pub fn said(command: &mut Command) -> Result<String> {
    content(&command.output()?)
}

fn content(output: &Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}{complaints}");
    Ok(said)
}

/// A VMM with a second monitor on a socket, for a client to come to.
#[derive(Debug)]
pub struct Listening {
    /// The VMM.
    pub vm: Vm,
    /// The socket.
    pub socket: PathBuf,
    _folder: TempDir,
}

impl Listening {
    /// Starts what `builder` says.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(builder: Builder) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("qmp.sock");
        let option = format!("unix:{},server=on,wait=off", socket.display());
        Ok(Self {
            vm: builder.args(["-qmp", &option]).start()?,
            socket,
            _folder: folder,
        })
    }

    /// Lets a program hold a session that ends in `quit`.
    ///
    /// # Errors
    /// The program or the VMM complains.
    pub fn session(self, client: &mut Command) -> Result<()> {
        let said = said(client.arg(&self.socket))?;
        ensure!(said.ends_with("done\n"), "{said}");
        self.vm.exit_clean()
    }

    /// Starts a program whose session goes on beside the test, and waits until it says "running".
    ///
    /// # Errors
    /// It does not start, or says something else.
    pub fn begin(&self, client: &mut Command) -> Result<Child> {
        let client = client.arg(&self.socket);
        let client = client.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = client.spawn()?;
        let mut first = [0; b"running\n".len()];
        let stdout = child.stdout.as_mut().context("its output")?;
        if stdout.read_exact(&mut first).is_err() || &first != b"running\n" {
            let _ = child.kill();
            ended(child)?;
            bail!("the client ended before the machine ran");
        }
        Ok(child)
    }
}

/// Waits for the end of a program that [`Listening::begin`] started.
///
/// # Errors
/// It complains.
pub fn ended(client: Child) -> Result<()> {
    let said = content(&client.wait_with_output()?)?;
    ensure!(said.ends_with("done\n"), "{said}");
    Ok(())
}
