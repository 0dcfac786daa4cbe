//! Files that go along with a command.
//!
//! This is the manager's side of the product: the one that opens. All files of this program are
//! opened here.

#![expect(
    clippy::disallowed_methods,
    reason = "an operator's tool opens what it hands over; the VM opens nothing"
)]

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::inherited;
use crate::failure::Failure;

/// A file to hand over, and the name that it gets in the VM.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FileArg {
    /// The fd's name, or the number of an fd set.
    pub(crate) name: String,
    /// Where it comes from.
    pub(crate) source: Source,
}

/// Where a file comes from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    /// Opened.
    Path {
        /// The file.
        path: PathBuf,
        /// How.
        how: How,
    },
    /// Left open by whoever started this program.
    Number(u16),
    /// Standard input, as in `--fd disk= <>disk.raw`.
    Stdin,
}

/// How a file is opened: a shell's redirections, but that `<>` makes no file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum How {
    /// `<`: to read.
    Read,
    /// `>`: to write; made, or emptied.
    Write,
    /// `>>`: to write at the end; made if need be.
    Append,
    /// `<>`: to read and write. A slip of the pen must not make an empty disk.
    ReadWrite,
}

impl FileArg {
    /// Reads `NAME=<PATH`, `NAME=>PATH`, `NAME=>>PATH`, `NAME=<>PATH`, `NAME=NUMBER` or `NAME=`;
    /// before a sign the `=` may be missing.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let end = text.find(['=', '<', '>']).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        if name.is_empty() || rest.is_empty() {
            return Err(format!(
                "'{text}' is no NAME=<PATH, NAME=>PATH, NAME=<>PATH or NAME=NUMBER"
            ));
        }
        let source = match rest.strip_prefix('=') {
            Some("") => Source::Stdin,
            Some(rest) => Source::read(rest)?,
            None => Source::read(rest)?,
        };
        Ok(Self {
            name: name.to_owned(),
            source,
        })
    }
}

impl fmt::Display for FileArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.source {
            Source::Path { path, how } => write!(f, "{name}={}{}", how.sign(), path.display()),
            Source::Number(number) => write!(f, "{name}={number}"),
            Source::Stdin => write!(f, "{name}="),
        }
    }
}

impl Source {
    /// Reads `<PATH`, `>PATH`, `>>PATH`, `<>PATH` or `NUMBER`.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        for how in How::ALL {
            match text.strip_prefix(how.sign()) {
                Some("") => return Err(format!("'{text}' names no file")),
                Some(path) => {
                    let path = path.into();
                    return Ok(Self::Path { path, how });
                }
                None => {}
            }
        }
        let number = text.parse().map_err(|_| {
            format!("'{text}' is neither <PATH, >PATH, >>PATH or <>PATH nor the number of an fd")
        })?;
        Ok(Self::Number(number))
    }

    /// The file itself.
    pub(crate) fn open(&self) -> Result<OwnedFd, Failure> {
        match self {
            Self::Path { path, how } => how.open(path),
            Self::Number(number) => inherited::copy(*number).map_err(|why| Failure::File {
                what: format!("fd {number} was not left open for this program"),
                why,
            }),
            Self::Stdin => stdin(),
        }
    }
}

impl How {
    /// All of them, longer signs before those that begin like them.
    const ALL: [Self; 4] = [Self::ReadWrite, Self::Append, Self::Read, Self::Write];

    /// How it is typed.
    fn sign(self) -> &'static str {
        match self {
            Self::Read => "<",
            Self::Write => ">",
            Self::Append => ">>",
            Self::ReadWrite => "<>",
        }
    }

    fn open(self, path: &Path) -> Result<OwnedFd, Failure> {
        let mut options = OpenOptions::new();
        let what = match self {
            Self::Read => options.read(true),
            Self::Write => options.write(true).create(true).truncate(true),
            Self::Append => options.append(true).create(true),
            Self::ReadWrite => options.read(true).write(true),
        };
        let opened = what.open(path).map_err(|why| {
            let aim = match self {
                Self::Read => "read",
                Self::Write | Self::Append => "write",
                Self::ReadWrite => "read and write",
            };
            let what = format!("cannot open '{}' to {aim} it", path.display());
            Failure::File { what, why }
        });
        opened.map(OwnedFd::from)
    }
}

/// An unquoted `--fd disk=<path` is a redirection to the shell: what it opened is handed over. A
/// terminal there means that the shell opened something else.
fn stdin() -> Result<OwnedFd, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Failure::Usage(
            "standard input, which would be handed over, is a terminal: quote '--fd NAME=>PATH'"
                .to_owned(),
        ));
    }
    let copied = stdin.as_fd().try_clone_to_owned();
    copied.map_err(|why| Failure::File {
        what: "standard input cannot be handed over".to_owned(),
        why,
    })
}

/// The text of a script.
pub(crate) fn read_script(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|why| Failure::File {
        what: format!("cannot read the script '{}'", path.display()),
        why,
    })
}

/// A file to write a script to: what was there is kept, and what is new comes after it.
pub(crate) fn open_record(path: &Path) -> Result<File, Failure> {
    How::Append.open(path).map(File::from)
}

/// The files and folders that a path may become; folders end with a slash.
pub(crate) fn entries(path: &str) -> Vec<String> {
    let (folder, begun) = path.rsplit_once('/').map_or(("", path), |(_, begun)| {
        (
            path.get(..path.len() - begun.len()).unwrap_or_default(),
            begun,
        )
    });
    let place = if folder.is_empty() { "." } else { folder };
    let listed = std::fs::read_dir(place).into_iter().flatten().flatten();
    let names = listed.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let hidden = name.starts_with('.') && !begun.starts_with('.');
        let slash = if entry.path().is_dir() { "/" } else { "" };
        (name.starts_with(begun) && !hidden).then(|| format!("{folder}{name}{slash}"))
    });
    names.collect()
}

/// How much processor time a thread of this machine has had; none for a thread that is not here.
pub(crate) fn thread_time(id: i64) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may hold anything; behind it are numbers (proc_pid_stat(5)).
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system) = (fields.next()?, fields.next()?);
    let ticks = user.parse::<u64>().ok()? + system.parse::<u64>().ok()?;
    // Linux counts hundredths of a second for programs, whatever it does inside.
    Some(Duration::from_millis(ticks.saturating_mul(10)))
}

/// The folder of the history, made if need be; none where it cannot be made.
pub(crate) fn make_folder(path: &Path) -> Option<()> {
    std::fs::create_dir_all(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signs_are_those_of_a_shell() {
        let how = |text: &str| match FileArg::read(text).expect("a file").source {
            Source::Path { path, how } => {
                assert_eq!(path, Path::new("a=b<c"));
                how
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(how("d=<a=b<c"), How::Read);
        assert_eq!(how("d=>a=b<c"), How::Write);
        assert_eq!(how("d=>>a=b<c"), How::Append);
        assert_eq!(how("d=<>a=b<c"), How::ReadWrite);
        assert_eq!(how("d<a=b<c"), How::Read);
        let source = |text| FileArg::read(text).map(|file| file.source);
        assert_eq!(source("d=7"), Ok(Source::Number(7)));
        assert_eq!(source("d="), Ok(Source::Stdin));
        for text in ["d=<a", "d=>a", "d=>>a", "d=<>a", "d=7", "d="] {
            let file = FileArg::read(text).expect("a file");
            assert_eq!(file.to_string(), text);
        }
        for wrong in ["d", "d=-1", "d=x", "=<a", "d=<", ""] {
            assert!(source(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_missing_disk_is_not_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        let (read_write, write) = (How::ReadWrite, How::Write);
        let failure = read_write.open(&path).expect_err("missing");
        assert!(failure.line().contains("read and write"), "{failure}");
        assert!(!path.exists());
        write.open(&path).expect("made");
        assert!(path.exists());
    }
}
