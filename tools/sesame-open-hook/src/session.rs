//! One Sesame process: its requests in, answers out, one log line for each decision.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use qapi_schema::open_hook::{
    OpenHookAnswer, OpenHookOpen, OpenHookRequest, OpenHookRequestVariant,
};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::allow::AllowList;
use crate::opener;

/// The longest request, in bytes.
const MAX_LINE: usize = 1 << 20;

/// One connection.
pub(crate) struct Session {
    stream: UnixStream,
    allow: PathBuf,
    /// Who is there, for the log.
    peer: String,
}

impl Session {
    /// A session over a connected unix socket, by the allow list in that file.
    pub(crate) fn new(connection: OwnedFd, allow: PathBuf) -> Self {
        let peer = match socket_peercred(&connection) {
            Ok(credentials) => format!("pid {}", credentials.pid.as_raw_nonzero()),
            Err(_) => "pid unknown".to_owned(),
        };
        Self {
            stream: connection.into(),
            allow,
            peer,
        }
    }

    /// Serves until the other side has closed the connection.
    pub(crate) fn serve(mut self) -> Result<()> {
        let mut input = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let count = self.stream.read(&mut chunk).context("read a request")?;
            if count == 0 {
                return Ok(());
            }
            input.extend_from_slice(chunk.get(..count).unwrap_or_default());
            while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
                let rest = input.split_off(end + 1);
                let line = std::mem::replace(&mut input, rest);
                self.take(&line)
                    .with_context(|| format!("{}: it is left", self.peer))?;
            }
            if input.len() > MAX_LINE {
                bail!("{}: a request of more than {MAX_LINE} bytes", self.peer);
            }
        }
    }

    fn take(&self, line: &[u8]) -> Result<()> {
        let OpenHookRequest { id, request } =
            serde_json::from_slice(line).context("a line that is no request")?;
        let OpenHookRequestVariant::Open(wish) = request else {
            // Requests are answered as they come: there is nothing left to cancel.
            return Ok(());
        };
        let opened = AllowList::read(&self.allow).and_then(|list| opener::open(&list, &wish));
        self.log(&wish, opened.as_ref().err());
        let answer = OpenHookAnswer {
            id,
            error: opened.as_ref().err().map(|error| format!("{error:#}")),
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        send(&self.stream, &line, opened.as_ref().ok().map(AsFd::as_fd))
    }

    fn log(&self, wish: &OpenHookOpen, refusal: Option<&anyhow::Error>) {
        let OpenHookOpen {
            name,
            role,
            access,
            reason,
            ..
        } = wish;
        let command = wish.command.as_deref().unwrap_or("the launch");
        let what = format!("{role} {access} {name:?} for {reason:?} of {command}");
        match refusal {
            None => eprintln!("{}: allowed: {what}", self.peer),
            Some(error) => eprintln!("{}: refused: {what}: {error:#}", self.peer),
        }
    }
}

/// Sends a line, and `fd` with its first byte.
fn send(socket: &UnixStream, line: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<()> {
    let mut rest = line;
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    let mut fds = fds.as_slice();
    while !rest.is_empty() {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            bail!("no room for an fd");
        }
        let bytes = [IoSlice::new(rest)];
        match sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL) {
            Ok(sent) => {
                rest = rest.get(sent..).unwrap_or_default();
                fds = &[];
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("send an answer"),
        }
    }
    Ok(())
}
