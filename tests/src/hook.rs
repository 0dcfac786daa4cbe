//! The manager's end of the open hook, and a VM that asks it.
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::fds;
use crate::qmp::{Client, outcome};
use crate::vm::Vm;

/// No request and no end of the connection takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A path that no file has: what comes of it comes from the manager.
pub const NOWHERE: &str = "/nowhere/disk";

/// A manager that does what a test says.
#[derive(Debug)]
pub struct Manager(Client);

impl Manager {
    /// A manager, and the connection to hand in.
    pub fn pair() -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self::new(ours)?, theirs.into()))
    }

    /// A manager at this end of a connection.
    pub fn new(stream: UnixStream) -> Result<Self> {
        Ok(Self(Client::new(stream)?))
    }

    /// The next request.
    pub fn request(&mut self) -> Result<Value> {
        self.0.receive(PATIENCE)
    }

    /// Answers everything until the VM ends: what is asked for in `role` with `fd`, all else with a
    /// refusal.
    pub fn serve(mut self, role: &str, fd: &OwnedFd) -> Result<()> {
        loop {
            let Ok(request) = self.request() else {
                return Ok(());
            };
            if request["role"] == role {
                self.give(&request, fd)?;
            } else {
                self.refuse(&request, "not here")?;
            }
        }
    }

    /// The same, each time with the next of `fds`, and with refusals when there are no more.
    pub fn serve_all(mut self, role: &str, fds: Vec<OwnedFd>) -> Result<()> {
        let mut fds = fds.into_iter();
        loop {
            let Ok(request) = self.request() else {
                return Ok(());
            };
            match fds.as_slice().first() {
                Some(fd) if request["role"] == role => {
                    self.give(&request, fd)?;
                    fds.next();
                }
                _ => self.refuse(&request, "not here")?,
            }
        }
    }

    /// Answers a request with an fd.
    pub fn give(&mut self, request: &Value, fd: impl AsFd) -> Result<()> {
        self.answer(&json!({"id": request["id"]}), &[fd.as_fd()])
    }

    /// Answers a request with a refusal.
    pub fn refuse(&mut self, request: &Value, error: &str) -> Result<()> {
        self.answer(&json!({"id": request["id"], "error": error}), &[])
    }

    /// Sends any line with any fds.
    pub fn answer(&mut self, line: &Value, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.send(format!("{line}\n").as_bytes(), fds)
    }

    /// Sends anything.
    pub fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.0.send_raw(bytes, fds)
    }
}

/// A VM with two sessions and a hook.
#[derive(Debug)]
pub struct Stage {
    /// The VM, with the session that waits for the hook.
    pub vm: Vm,
    /// A session that does not.
    pub other: Client,
    /// The manager at the other end of the hook.
    pub manager: Manager,
}

impl Stage {
    /// A monitor whose hook has so much time.
    pub fn new(timeout_ms: u32) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut builder = Vm::monitor();
        let number = builder.pass(theirs);
        let vm = builder
            .args([
                "-chardev",
                &format!("socket,id=other,fd={number}"),
                "-mon",
                "chardev=other,mode=control",
            ])
            .start()?;
        let mut other = Client::new(ours)?;
        other.negotiate()?;
        let (manager, connection) = Manager::pair()?;
        let mut stage = Self { vm, other, manager };
        stage.set(connection.as_fd(), timeout_ms)?;
        Ok(stage)
    }

    /// Sets another hook.
    pub fn set(&mut self, connection: BorrowedFd<'_>, timeout_ms: u32) -> Result<()> {
        let name = json!({"fdname": "hook"});
        self.vm.qmp.execute_with("getfd", name, &[connection])?;
        let hook = json!({"fd": "hook", "timeout-ms": timeout_ms});
        self.vm.execute("open-hook-set", hook)?;
        Ok(())
    }

    /// Sends a command that will wait for the manager.
    pub fn send(&mut self, command: &str, arguments: &Value) -> Result<()> {
        let request = json!({"execute": command, "arguments": arguments});
        self.vm.qmp.send_raw(format!("{request}\n").as_bytes(), &[])
    }

    /// Sends the adding of a node whose file nobody has passed.
    pub fn add_node(&mut self, name: &str) -> Result<()> {
        self.send("blockdev-add", &node(name))
    }

    /// The reply to what was sent, which must be an error with these words.
    pub fn refused(&mut self, words: &str) -> Result<()> {
        let reply = self.vm.qmp.reply(PATIENCE)?;
        let desc = match outcome(&reply) {
            Err(refusal) => refusal.desc,
            Ok(value) => bail!("not refused: {value}"),
        };
        ensure!(desc.contains(words), "{desc}");
        Ok(())
    }

    /// The reply to what was sent, which must be a success.
    pub fn done(&mut self) -> Result<Value> {
        let reply = self.vm.qmp.reply(PATIENCE)?;
        outcome(&reply).context("the command that waited")
    }

    /// How the hook does.
    pub fn state(&mut self) -> Result<Value> {
        self.other.execute("query-open-hook", json!({}))
    }

    /// Ends, with as many fds as `before`.
    pub fn end(self, before: fds::Usage) -> Result<()> {
        let after = self.vm.settled_usage(before)?;
        ensure!(after.fds <= before.fds, "leaked: {before}, then {after}");
        ensure!(
            after.threads <= before.threads,
            "leaked: {before}, then {after}"
        );
        self.vm.shutdown_clean()
    }
}

/// A node whose file is nowhere.
pub fn node(name: &str) -> Value {
    json!({"driver": "file", "node-name": name, "filename": NOWHERE})
}
