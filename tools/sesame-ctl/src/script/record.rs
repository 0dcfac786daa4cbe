//! Writing a session down.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;
use sesame_qmp::TimedEvent;

use super::{Outcome, event_line, outcome_line};
use crate::arguments::files::open_record;
use crate::clock;
use crate::failure::Failure;

/// A script that grows with the session. What happens is written at once, so that nothing is lost
/// with the program.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    file: File,
}

impl Record {
    /// Adds to the script at `path`, beginning with who speaks.
    pub(crate) fn begin(path: &Path, version: &str) -> Result<Self, Failure> {
        let file = open_record(path)?;
        let path = path.to_owned();
        let mut record = Self { path, file };
        let now = clock::since_epoch(SystemTime::now()).map_or_else(String::new, clock::utc);
        record.add(&format!("# {now} {version}"))?;
        Ok(record)
    }

    /// A command.
    pub(crate) fn command(&mut self, line: &str) -> Result<(), Failure> {
        self.add(&format!("> {}", line.replace('\n', " ")))
    }

    /// What came of it. What never reached the VM is no part of the session.
    pub(crate) fn outcome(&mut self, result: &Result<Value, Failure>) -> Result<(), Failure> {
        match outcome(result) {
            Some(outcome) => self.add(&outcome_line(&outcome)),
            None => Ok(()),
        }
    }

    /// An event.
    pub(crate) fn event(&mut self, event: &TimedEvent) -> Result<(), Failure> {
        self.add(&event_line(event.event.name(), &event.data))
    }

    fn add(&mut self, line: &str) -> Result<(), Failure> {
        writeln!(self.file, "{line}").map_err(|why| Failure::File {
            what: format!("cannot write to '{}'", self.path.display()),
            why,
        })
    }
}

/// What the VM said to a command.
pub(crate) fn outcome(result: &Result<Value, Failure>) -> Option<Outcome> {
    match result {
        Ok(reply) => Some(Outcome::Reply(reply.clone())),
        Err(Failure::Refused(refusal)) => Some(Outcome::Refusal {
            class: refusal.class.to_string(),
            words: refusal.desc.replace('\n', " "),
        }),
        Err(_) => None,
    }
}
