//! One session with a VM: its schema, commands with their files, events.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sesame_qmp::control::QueryQmpSchema;
use sesame_qmp::fds::{AddFd, AddfdInfo, Closefd, Getfd, RemoveFd};
use sesame_qmp::{Client, Command, Error, TakesFd, TimedEvent};

use crate::arguments::{Request, files::FileArg, request};
use crate::failure::Failure;
use crate::options::Line;
use crate::schema::Schema;

/// Commands that take an fd themselves, so that none is handed over before them.
const TAKE_FD: [&str; 2] = [Getfd::NAME, AddFd::NAME];

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    schema: Option<Arc<Schema>>,
    /// How many names were made up for fds.
    names: u32,
}

/// Where a session is, and how patient it is.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    /// The monitor's socket.
    pub(crate) socket: PathBuf,
    /// How long a command may take.
    pub(crate) timeout: Option<Duration>,
}

/// What was handed over for one command.
#[derive(Debug, Default)]
struct HandedOver {
    names: Vec<String>,
    members: Vec<AddfdInfo>,
}

impl Address {
    /// Connects and negotiates.
    pub(crate) fn connect(&self) -> Result<Session, Failure> {
        let client = Client::connect(&self.socket).map_err(|why| Failure::Connect {
            socket: self.socket.display().to_string(),
            why,
        });
        let mut client = client?;
        client.set_timeout(self.timeout);
        Ok(Session {
            client,
            schema: None,
            names: 0,
        })
    }
}

impl Session {
    /// What the VM called itself: `sesame-0.1.0 (QMP of 10.0.0)`.
    pub(crate) fn version(&self) -> String {
        let version = self.client.version();
        let triple = &version.qemu;
        let (major, minor, micro) = (triple.major, triple.minor, triple.micro);
        format!("{} (QMP {major}.{minor}.{micro})", version.package)
    }

    /// What the VM takes; where it does not tell, what VMs of this version take.
    pub(crate) fn schema(&mut self) -> Result<Arc<Schema>, Failure> {
        if let Some(schema) = &self.schema {
            return Ok(schema.clone());
        }
        let schema = match self.client.execute(QueryQmpSchema) {
            Ok(entries) => Schema::read(entries),
            // It may not be asked everything; and what it tells may be of another time.
            Err(Error::Refused(_) | Error::Protocol { .. }) => Schema::compiled_in(),
            Err(error) => return Err(Failure::of(QueryQmpSchema::NAME, error)),
        };
        Ok(self.schema.insert(Arc::new(schema)).clone())
    }

    /// Runs a line: its files are handed over first, and given up again if the command fails.
    pub(crate) fn run(&mut self, line: &Line) -> Result<Value, Failure> {
        let schema = self.schema()?;
        let names = &mut self.names;
        let request = request(&schema, &line.words, &mut || {
            *names += 1;
            format!("ctl-{}-{names}", process::id())
        })?;
        if TAKE_FD.contains(&request.command.as_str()) && !line.files.is_empty() {
            return self.run_with_fd(request, &line.files);
        }
        let files: Vec<_> = line.files.iter().chain(&request.files).collect();
        // All are opened before the first is handed over: a slip leaves nothing behind.
        let named = files.iter().map(|file| file.source.open());
        let named: Vec<OwnedFd> = named.collect::<Result<_, _>>()?;
        let members = line
            .sets
            .iter()
            .map(|set| Ok((set_id(set)?, set.source.open()?)));
        let members: Vec<(i64, OwnedFd)> = members.collect::<Result<_, Failure>>()?;
        let names = files.iter().map(|file| file.name.as_str());
        let mut handed = HandedOver::default();
        let result = self
            .hand_over(names.zip(&named), &members, &mut handed)
            .and_then(|()| self.execute(&request.command, request.arguments, &[]));
        if result.is_err() {
            self.take_back(handed);
        }
        result
    }

    /// Runs a command as it is.
    pub(crate) fn execute(
        &mut self,
        command: &str,
        arguments: Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Value, Failure> {
        let result = self.client.execute_any(command, arguments, fds);
        result.map_err(|error| Failure::of(command, error))
    }

    /// Runs a command that asks, if the VM has it.
    pub(crate) fn ask(&mut self, command: &str, arguments: Value) -> Option<Value> {
        let known = self.schema().is_ok_and(|schema| schema.has(command));
        known.then(|| self.execute(command, arguments, &[]).ok())?
    }

    /// A command that takes an fd gets the file itself. `getfd` needs no other name for it.
    fn run_with_fd(&mut self, request: Request, files: &[FileArg]) -> Result<Value, Failure> {
        let Request {
            command,
            mut arguments,
            ..
        } = request;
        let [file] = files else {
            return Err(Failure::Usage(format!("{command}: takes one --fd")));
        };
        if command == Getfd::NAME && arguments["fdname"].is_null() {
            arguments["fdname"] = file.name.as_str().into();
        }
        let fd = file.source.open()?;
        self.execute(&command, arguments, &[fd.as_fd()])
    }

    fn hand_over<'f>(
        &mut self,
        named: impl Iterator<Item = (&'f str, &'f OwnedFd)>,
        members: &[(i64, OwnedFd)],
        handed: &mut HandedOver,
    ) -> Result<(), Failure> {
        for (name, fd) in named {
            let getfd = Getfd::new(name).with_fd(fd);
            let result = self.client.execute(getfd);
            result.map_err(|error| Failure::of(Getfd::NAME, error))?;
            handed.names.push(name.to_owned());
        }
        for (set, fd) in members {
            let add = AddFd {
                fdset_id: Some(*set),
                ..AddFd::default()
            };
            let result = self.client.execute(add.with_fd(fd));
            let member = result.map_err(|error| Failure::of(AddFd::NAME, error))?;
            handed.members.push(member);
        }
        Ok(())
    }

    /// Gives up what was handed over for a command that failed. What the command has used up all
    /// the same is gone already, and of a lost session nothing can be taken back.
    fn take_back(&mut self, handed: HandedOver) {
        for name in handed.names {
            let _ = self.client.execute(Closefd::new(name));
        }
        for member in handed.members {
            let mut remove = RemoveFd::new(member.fdset_id);
            remove.fd = Some(member.fd);
            let _ = self.client.execute(remove);
        }
    }

    /// The client, for commands with types and for events.
    pub(crate) fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// All events that have come, without waiting for more.
    pub(crate) fn events(&mut self) -> Result<Vec<TimedEvent>, Failure> {
        let received = self.client.receive_ready();
        let events: Vec<_> = std::iter::from_fn(|| self.client.take_event()).collect();
        match received {
            Err(error) if events.is_empty() => Err(Failure::Lost(error)),
            _ => Ok(events),
        }
    }
}

fn set_id(set: &FileArg) -> Result<i64, Failure> {
    set.name.parse().map_err(|_| {
        Failure::Usage(format!(
            "--add-fd: '{}' is no number of an fd set",
            set.name
        ))
    })
}
