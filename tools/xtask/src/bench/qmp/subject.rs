//! A program under measurement and its clients, which do nothing but send ready-made bytes and wait
//! for the end of the answer: what is measured is the other side.

use std::fs;
use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ::tests::vm::Vmm;
use anyhow::{Context, Result, ensure};
use command_fds::{CommandFdExt, FdMapping};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;

use super::REST;

/// More than the longest answer.
const ROOM: usize = 1 << 20;
/// Where the clients' sockets are in the child, above everything a program opens by itself.
const FIRST_FD: i32 = 100;

/// A program that runs without a guest, each client at a monitor of its own: QEMU's serve one at a
/// time.
pub(super) struct Subject {
    child: Child,
    pub(super) clients: Vec<Wire>,
}

impl Subject {
    /// Starts the program; it has said nothing yet.
    pub(super) fn start(vmm: &Vmm, clients: usize) -> Result<Self> {
        let mut command = Command::new(&vmm.program);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-machine", "none"])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let (mut wires, mut mappings) = (Vec::new(), Vec::new());
        for (child_fd, client) in (FIRST_FD..).zip(0..clients) {
            let (ours, theirs) = UnixStream::pair()?;
            command
                .args(["-chardev", &format!("socket,id=qmp{client},fd={child_fd}")])
                .args(["-mon", &format!("chardev=qmp{client},mode=control")]);
            wires.push(Wire::new(ours));
            mappings.push(FdMapping {
                parent_fd: theirs.into(),
                child_fd,
            });
        }
        let child = command.fd_mappings(mappings)?.spawn()?;
        Ok(Self {
            child,
            clients: wires,
        })
    }

    /// Starts the program and negotiates for all clients.
    pub(super) fn ready(vmm: &Vmm, clients: usize) -> Result<Self> {
        let mut subject = Self::start(vmm, clients)?;
        for wire in &mut subject.clients {
            wire.greeted()?;
        }
        // Whoever negotiates now misses the events of the start.
        thread::sleep(REST);
        for wire in &mut subject.clients {
            wire.negotiate()?;
        }
        Ok(subject)
    }

    /// The only client, or the first.
    pub(super) fn client(&mut self) -> Result<&mut Wire> {
        self.clients.first_mut().context("no client")
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All its threads.
    pub(super) fn threads(&self) -> Result<Vec<Pid>> {
        threads(self.pid())
    }

    /// The CPU time that its threads have taken so far.
    pub(super) fn cpu_time(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for thread in self.threads()? {
            sum += Spent::of(self.pid(), thread)?.running;
        }
        Ok(sum)
    }

    /// Ends the program.
    pub(super) fn quit(mut self) -> Result<()> {
        self.client()?.ask(b"{\"execute\": \"quit\"}\n", &[])?;
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

/// All threads of a process.
pub(super) fn threads(process: u32) -> Result<Vec<Pid>> {
    fs::read_dir(format!("/proc/{process}/task"))?
        .map(|thread| {
            Ok(Pid::from_raw(
                thread?.file_name().to_string_lossy().parse()?,
            ))
        })
        .collect()
}

/// The time that a thread has spent so far; while it runs, as of the last timer interrupt.
pub(super) struct Spent {
    pub(super) running: Duration,
    /// It could run, and others had the CPU.
    pub(super) queueing: Duration,
}

impl Spent {
    pub(super) fn of(process: u32, thread: Pid) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/task/{thread}/schedstat"))?;
        let mut nanoseconds = text.split_ascii_whitespace().map(str::parse);
        let mut next = || -> Result<Duration> {
            let number = nanoseconds.next().context("schedstat is short")?;
            Ok(Duration::from_nanos(number?))
        };
        Ok(Self {
            running: next()?,
            queueing: next()?,
        })
    }
}

/// One connection to a monitor.
pub(super) struct Wire {
    pub(super) stream: UnixStream,
    answer: Vec<u8>,
}

impl Wire {
    /// On a connected socket; nothing is said or read yet.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            answer: vec![0; ROOM],
        }
    }

    /// Waits for the greeting.
    pub(super) fn greeted(&mut self) -> Result<()> {
        self.read_answer().map(drop)
    }

    /// Negotiates, after the greeting.
    pub(super) fn negotiate(&mut self) -> Result<()> {
        self.ask(b"{\"execute\": \"qmp_capabilities\"}\n", &[])
            .map(drop)
    }

    /// Sends a request and waits for the end of its answer, whose length it gives.
    pub(super) fn ask(&mut self, request: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize> {
        let sent = send_with_fds(&self.stream, request, fds)?;
        ensure!(sent == request.len(), "a request went out in part");
        self.read_answer()
    }

    /// The same; gives the time it took.
    pub(super) fn time(&mut self, request: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Duration> {
        let start = Instant::now();
        self.ask(request, fds)?;
        Ok(start.elapsed())
    }

    /// Waits for the end of an answer, past events; gives its length.
    fn read_answer(&mut self) -> Result<usize> {
        let mut length = 0;
        loop {
            let room = self.answer.get_mut(length..).unwrap_or_default();
            let count = self.stream.read(room)?;
            ensure!(count > 0, "the monitor closed the connection");
            length += count;
            let messages = self.answer.get(..length).unwrap_or_default();
            if !messages.ends_with(b"\r\n") {
                continue;
            }
            let Some(answer) = past_events(messages) else {
                length = 0;
                continue;
            };
            ensure!(
                answer.starts_with(b"{\"return\"") || answer.starts_with(b"{\"QMP\""),
                "refused: {}",
                String::from_utf8_lossy(answer)
            );
            return Ok(answer.len());
        }
    }
}

/// What follows the events in whole messages, if anything does.
fn past_events(messages: &[u8]) -> Option<&[u8]> {
    let is_event = |line: &[u8]| line.starts_with(b"{\"timestamp\"");
    let mut rest = messages;
    while is_event(rest) {
        let end = rest.iter().position(|&byte| byte == b'\n')?;
        rest = rest.get(end + 1..)?;
    }
    (!rest.is_empty()).then_some(rest)
}

fn send_with_fds(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize> {
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[_] = if raw.is_empty() { &[] } else { &rights };
    let bytes = [IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    Ok(sendmsg::<()>(
        stream.as_raw_fd(),
        &bytes,
        control,
        flags,
        None,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_no_answers() {
        let event = b"{\"timestamp\": {}, \"event\": \"RESUME\"}\r\n";
        let answer = b"{\"return\": {}}\r\n";
        assert_eq!(past_events(event), None);
        assert_eq!(past_events(answer), Some(&answer[..]));
        let both = [&event[..], event, answer].concat();
        assert_eq!(past_events(&both), Some(&answer[..]));
    }
}
