//! `events` and `tail`: what happens in a VM, for programs and for people.

use std::time::{Duration, Instant};

use sesame_qmp::{Error, TimedEvent};

use crate::failure::Failure;
use crate::output::{self, Output};
use crate::schema::meant;
use crate::session::Session;

/// Events of these names; of all where none is given.
#[derive(Debug)]
pub(crate) struct Wanted(Vec<String>);

impl Wanted {
    /// Checks the names: one that the VM does not have would never come.
    pub(crate) fn new(session: &mut Session, names: &[String]) -> Result<Self, Failure> {
        let schema = session.schema()?;
        let known = schema.events();
        for name in names {
            if !known.contains(name) {
                let hint = meant(name, known.iter().map(String::as_str));
                return Err(Failure::Usage(format!(
                    "the VM has no event '{name}'{hint}"
                )));
            }
        }
        Ok(Self(names.to_vec()))
    }

    fn has(&self, event: &TimedEvent) -> bool {
        self.0.is_empty() || self.0.iter().any(|name| name == event.event.name())
    }
}

/// Writes wanted events as they come over the wire: one, or all until the VM ends.
pub(crate) fn write(
    session: &mut Session,
    wanted: &Wanted,
    follow: bool,
    timeout: Option<Duration>,
    output: Output,
) -> Result<(), Failure> {
    loop {
        match next(session, wanted, timeout) {
            Ok(event) => output.json(&output::wire(&event))?,
            Err(Failure::Lost(Error::Closed)) if follow => return Ok(()),
            Err(failure) => return Err(failure),
        }
        if !follow {
            return Ok(());
        }
    }
}

/// Writes wanted events for people, until the VM ends.
pub(crate) fn tail(
    session: &mut Session,
    wanted: &Wanted,
    timeout: Option<Duration>,
) -> Result<(), Failure> {
    loop {
        match next(session, wanted, timeout) {
            Ok(event) => output::line(&output::told(&event))?,
            Err(Failure::Lost(Error::Closed)) => return Ok(()),
            Err(failure) => return Err(failure),
        }
    }
}

fn next(
    session: &mut Session,
    wanted: &Wanted,
    timeout: Option<Duration>,
) -> Result<TimedEvent, Failure> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let event = session.client().next_event(left);
        let event = event.map_err(|error| Failure::of("an event", error))?;
        if wanted.has(&event) {
            return Ok(event);
        }
    }
}
