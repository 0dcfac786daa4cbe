//! `sesame-ctl` as an operator or a script runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::vm::variable;

/// The program, and the VM that it drives.
#[derive(Clone, Debug)]
pub struct Ctl {
    program: PathBuf,
    socket: PathBuf,
}

/// What it said.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    /// Its exit status.
    pub status: i32,
    /// What it wrote for programs.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Ctl {
    /// The program, for the VM at `socket`.
    ///
    /// # Errors
    /// `SESAME_CTL` is not set.
    pub fn at(socket: &Path) -> Result<Self> {
        Ok(Self {
            program: variable("SESAME_CTL")?,
            socket: socket.to_owned(),
        })
    }

    /// The program, with what every use has.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-s").arg(&self.socket).stdin(Stdio::null());
        command
    }

    /// The words that start it in a shell.
    pub fn shell_words(&self) -> String {
        format!("{} -s {}", self.program.display(), self.socket.display())
    }

    /// Runs it with these words.
    ///
    /// # Errors
    /// It does not start, or is killed.
    pub fn run<S: AsRef<str>>(&self, words: &[S]) -> Result<Said> {
        let words = words.iter().map(AsRef::as_ref);
        Said::of(&self.command().args(words).output()?)
    }

    /// Runs it with the words of a line, and wants it to succeed with one JSON value.
    ///
    /// # Errors
    /// It does not.
    pub fn reply(&self, line: &str) -> Result<Value> {
        let words: Vec<_> = line.split_whitespace().collect();
        let said = self.run(&words)?;
        ensure!(
            said.status == 0 && said.stderr.is_empty(),
            "{line}: {said:?}"
        );
        serde_json::from_str(&said.stdout).with_context(|| format!("{line}: {said:?}"))
    }

    /// Runs a line of a shell in which `$CTL` stands for the program.
    ///
    /// # Errors
    /// It does not start, or is killed.
    pub fn in_shell(&self, line: &str) -> Result<Said> {
        let line = line.replace("$CTL", &self.shell_words());
        Said::of(&Command::new("sh").arg("-c").arg(line).output()?)
    }
}

impl Said {
    /// What a program said.
    ///
    /// # Errors
    /// It was killed.
    pub fn of(output: &Output) -> Result<Self> {
        Ok(Self {
            status: output.status.code().context("it was killed")?,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
