//! Lines of the prompt, of standard input and of scripts: each is run, answered and written down.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use sesame_qmp::TimedEvent;

use crate::arguments::files::read_script;
use crate::failure::Failure;
use crate::local::Local;
use crate::options::Line;
use crate::output::{self, Output};
use crate::script::compare::difference;
use crate::script::record::Record;
use crate::script::replay::{Rules, Stage, replay};
use crate::script::{event_line, parse};
use crate::session::Session;
use crate::{help, jobs, top};

/// How long a replay waits for a recorded event, unless `--timeout` says so.
const EVENT_PATIENCE: Duration = Duration::from_secs(10);

/// How lines are answered.
#[derive(Debug, Default)]
pub(crate) struct Console {
    /// How replies are written.
    pub(crate) output: Output,
    /// How long a job may take.
    pub(crate) timeout: Option<Duration>,
    /// The script that grows with the session.
    record: Option<Record>,
}

impl Console {
    /// A console that writes nothing down.
    pub(crate) fn new(output: Output, timeout: Option<Duration>) -> Self {
        Self {
            output,
            timeout,
            record: None,
        }
    }

    /// Adds all that is said from now on to the script at `path`.
    pub(crate) fn record(&mut self, session: &Session, path: &Path) -> Result<(), Failure> {
        self.record = Some(Record::begin(path, &session.version())?);
        Ok(())
    }

    /// Writes an event down that came between lines.
    pub(crate) fn heard(&mut self, event: &TimedEvent) -> Result<(), Failure> {
        self.record
            .as_mut()
            .map_or(Ok(()), |record| record.event(event))
    }

    /// Does what a line says, and writes the answer.
    pub(crate) fn line(&mut self, session: &mut Session, text: &str) -> Result<(), Failure> {
        let line = Line::read(text)?;
        match line.words.split_first() {
            Some((first, rest)) => match Local::of(first) {
                Some(local) => self.local(session, local, rest, text),
                None => self.command(session, &line),
            },
            None => self.command(session, &line),
        }
    }

    /// Runs a command of the VM, and waits for its job.
    pub(crate) fn command(&mut self, session: &mut Session, line: &Line) -> Result<(), Failure> {
        if let Some(record) = &mut self.record {
            record.command(&line.text())?;
        }
        if !line.words.is_empty() {
            let reply = session.run(line);
            if let Some(record) = &mut self.record {
                record.outcome(&reply)?;
            }
            self.output.json(&reply?)?;
        }
        if let Some(job) = &line.wait {
            let mut heard = Vec::new();
            let ended = jobs::wait(session, job, self.timeout, &mut |event| {
                heard.push(event.clone())
            });
            for event in &heard {
                self.heard(event)?;
            }
            self.output.json(&ended?)?;
        }
        Ok(())
    }

    fn local(
        &mut self,
        session: &mut Session,
        local: Local,
        words: &[String],
        text: &str,
    ) -> Result<(), Failure> {
        match (local, words) {
            (Local::Help, []) => output::line(&help::commands(&*session.schema()?)),
            (Local::Help, [command, words @ ..]) => {
                output::line(&help::command(&*session.schema()?, command, words)?)
            }
            (Local::Record, [path]) => self.record(session, Path::new(path)),
            (Local::Replay, [path]) => {
                let rules = Rules {
                    check: false,
                    keep_going: false,
                };
                self.replay(session, Path::new(path), rules)
            }
            (Local::Top, []) => top::look(session),
            (Local::Events | Local::Tail, _) => output::line(
                "Events are shown here as they come. `sesame-ctl tail` shows them alone.",
            ),
            _ => {
                let usage = local.usage();
                Err(Failure::Usage(format!(
                    "'{text}' is not understood: {usage}"
                )))
            }
        }
    }

    /// Runs a script.
    pub(crate) fn replay(
        &mut self,
        session: &mut Session,
        path: &Path,
        rules: Rules,
    ) -> Result<(), Failure> {
        let steps = parse(&read_script(path)?).map_err(Failure::Usage)?;
        let mut live = Live {
            patience: self.timeout.unwrap_or(EVENT_PATIENCE),
            console: self,
            session,
            events: Vec::new(),
        };
        replay(&steps, rules, &mut live)
    }
}

/// A script's commands, run by the live VM.
struct Live<'c> {
    console: &'c mut Console,
    session: &'c mut Session,
    patience: Duration,
    /// Events that the script has not asked for.
    events: Vec<TimedEvent>,
}

impl Live<'_> {
    fn heard(&mut self, event: TimedEvent) -> Result<(), Failure> {
        self.console.heard(&event)?;
        self.show(&event_line(event.event.name(), &event.data))?;
        self.events.push(event);
        Ok(())
    }

    /// Takes an event like the recorded one.
    fn take(&mut self, name: &str, data: &Value) -> bool {
        let fits = |event: &TimedEvent| {
            event.event.name() == name && difference(data, &event.data).is_none()
        };
        let found = self.events.iter().position(fits);
        found.map(|at| self.events.remove(at)).is_some()
    }
}

impl Stage for Live<'_> {
    fn run(&mut self, line: &str) -> Result<Value, Failure> {
        let line = Line::read(line)?;
        self.events.clear();
        if let Some(record) = &mut self.console.record {
            record.command(&line.text())?;
        }
        let mut reply = self.session.run(&line);
        if let Some(record) = &mut self.console.record {
            record.outcome(&reply)?;
        }
        let mut heard = Vec::new();
        if let (Ok(_), Some(job)) = (&reply, &line.wait) {
            let timeout = self.console.timeout;
            let ended = jobs::wait(self.session, job, timeout, &mut |event| {
                heard.push(event.clone())
            });
            reply = ended.and(reply);
        }
        // After its last command the VM may be gone.
        heard.extend(self.session.events().unwrap_or_default());
        for event in heard {
            self.heard(event)?;
        }
        reply
    }

    fn event(&mut self, name: &str, data: &Value) -> Result<(), Failure> {
        let deadline = Instant::now() + self.patience;
        while !self.take(name, data) {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.session.client().next_event(left);
            self.heard(event.map_err(|error| Failure::of("an event", error))?)?;
        }
        Ok(())
    }

    fn show(&mut self, line: &str) -> Result<(), Failure> {
        output::line(line)
    }
}

/// Whether a line says nothing.
pub(crate) fn is_comment(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}
