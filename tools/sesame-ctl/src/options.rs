//! The command line, and the part of it that a line of the prompt or of a script has, too.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};
use serde_json::Value;

use crate::arguments::{files::FileArg, words};
use crate::failure::Failure;
use crate::session::Address;

/// Drives a VM over its QMP socket. Without COMMAND: a prompt on a terminal, else the lines of
/// standard input.
///
/// COMMAND is one of QMP (`sesame-ctl help` lists them) or of these: help, events, tail, top,
/// record, replay. ARGUMENT is KEY=VALUE with dotted KEYs for what is nested, KEY:=JSON, KEY!<PATH
/// for a file to hand over (also !>PATH, !<>PATH, !NUMBER), a JSON object, or the value of the first
/// argument that must be given.
#[derive(Debug, Parser)]
#[command(name = "sesame-ctl", version, max_term_width = 100)]
pub(crate) struct Options {
    /// The unix socket of the VM's monitor.
    #[arg(short, long, value_name = "PATH", env = "SESAME_SOCK")]
    pub(crate) socket: Option<PathBuf>,
    /// How long a command, an event or a job may take; for ever without it.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    /// Writes JSON in several lines.
    #[arg(long)]
    pub(crate) pretty: bool,
    /// Adds all that is said to a script for `replay`.
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    /// What a line has, too.
    #[command(flatten)]
    pub(crate) line: Line,
    /// `events`: goes on after the first.
    #[arg(long, help_heading = "For some commands")]
    pub(crate) follow: bool,
    /// `replay`: compares replies and events with those of the script.
    #[arg(long, help_heading = "For some commands")]
    pub(crate) check: bool,
    /// `replay`: goes on after a command that fails.
    #[arg(long, help_heading = "For some commands")]
    pub(crate) keep_going: bool,
    /// `top`: how many times it looks; for ever without it.
    #[arg(long, value_name = "N", help_heading = "For some commands")]
    pub(crate) count: Option<u64>,
    /// `top`: how long it waits before the next look.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "2",
          help_heading = "For some commands")]
    pub(crate) interval: Duration,
}

/// A command with its files.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub(crate) struct Line {
    /// Opens a file and hands it over under this name before the command (getfd): =<PATH to read,
    /// =>PATH to write, =>>PATH to append, =<>PATH to read and write, =NUMBER for an fd that was
    /// left open, = for standard input. Given up again if the command fails.
    #[arg(long = "fd", value_name = "NAME=<PATH", value_parser = FileArg::read)]
    pub(crate) files: Vec<FileArg>,
    /// The same, but the file joins an fd set (add-fd).
    #[arg(long = "add-fd", value_name = "SET=<PATH", value_parser = FileArg::read)]
    pub(crate) sets: Vec<FileArg>,
    /// Waits for the end of this job, behind the command if there is one.
    #[arg(long, value_name = "JOB")]
    pub(crate) wait: Option<String>,
    /// The command and its arguments.
    #[arg(value_name = "COMMAND [ARGUMENT]", num_args = 0..)]
    pub(crate) words: Vec<String>,
}

/// A line by itself.
#[derive(Debug, Parser)]
#[command(name = "", no_binary_name = true, disable_help_flag = true)]
struct OneLine {
    #[command(flatten)]
    line: Line,
}

impl Options {
    /// Where to connect to.
    pub(crate) fn address(&self) -> Result<Address, Failure> {
        let socket = self.socket.clone().ok_or_else(|| {
            Failure::Usage("which VM? Give its socket with -s PATH, or set SESAME_SOCK".to_owned())
        })?;
        Ok(Address {
            socket,
            timeout: self.timeout,
        })
    }
}

impl Line {
    /// Reads a line of the prompt or of a script. It may also be a request as it goes over the wire,
    /// pasted in.
    pub(crate) fn read(text: &str) -> Result<Self, Failure> {
        if text.starts_with('{') {
            return Self::request(text).map_err(Failure::Usage);
        }
        let words = words::split(text).map_err(Failure::Usage)?;
        let parsed = OneLine::try_parse_from(words).map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            Failure::Usage(first.trim_start_matches("error: ").to_owned())
        })?;
        Ok(parsed.line)
    }

    fn request(text: &str) -> Result<Self, String> {
        let request: Value =
            serde_json::from_str(text).map_err(|why| format!("this is no QMP request: {why}"))?;
        let command = request["execute"].as_str();
        let command = command.ok_or("this is no QMP request: it has no \"execute\"")?;
        let arguments = request.get("arguments").map(Value::to_string);
        let words = [command.to_owned()].into_iter().chain(arguments);
        Ok(Self {
            words: words.collect(),
            ..Self::default()
        })
    }

    /// The line as it is typed.
    pub(crate) fn text(&self) -> String {
        let mut words = self.words.clone();
        let files = self.files.iter().map(|file| ("--fd", file.to_string()));
        let sets = self.sets.iter().map(|set| ("--add-fd", set.to_string()));
        let wait = self.wait.iter().map(|job| ("--wait", job.clone()));
        for (option, value) in files.chain(sets).chain(wait) {
            words.extend([option.to_owned(), value]);
        }
        words::join(&words)
    }
}

/// A number of seconds, with a fraction if need be.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "a number of seconds is wanted".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::files::Source;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_made() {
        Options::command().debug_assert();
        OneLine::command().debug_assert();
    }

    #[test]
    fn options_may_stand_behind_the_command() {
        let line =
            Line::read("blockdev-add driver=file filename=fd:d --fd d=7 --wait j").expect("a line");
        assert_eq!(line.words, ["blockdev-add", "driver=file", "filename=fd:d"]);
        assert_eq!(
            line.files.first().map(|file| &file.source),
            Some(&Source::Number(7))
        );
        assert_eq!(line.wait.as_deref(), Some("j"));
        assert_eq!(Line::read(&line.text()).expect("the same"), line);
        let failure = Line::read("x --fd d").expect_err("wrong");
        assert!(failure.line().contains("'d' is no NAME"), "{failure}");
    }

    #[test]
    fn a_request_of_the_wire_is_a_line() {
        let text = r#"{"execute": "device_del", "arguments": {"id": "d 0"}, "id": 1}"#;
        let line = Line::read(text).expect("a request");
        assert_eq!(line.words, ["device_del", r#"{"id":"d 0"}"#]);
        assert_eq!(Line::read(&line.text()).expect("the same"), line);
        let line = Line::read(r#"{"execute": "query-name"}"#).expect("a request");
        assert_eq!(line.words, ["query-name"]);
        let failure = Line::read(r#"{"exec-oob": "x"}"#).expect_err("wrong");
        assert!(failure.line().contains("no \"execute\""), "{failure}");
    }
}
