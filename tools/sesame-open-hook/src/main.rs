//! `sesame-open-hook`: the manager's side of the open hook, for those who have no manager.
//!
//! It opens files for Sesame processes that may not open any themselves, as far as an allow list
//! permits, and writes one line for each decision. The protocol is `open-hook.json`.
//!
//! ```text
//!   sesame -open-hook path=S ──► accept ──► session: line ─► request ─► allow list ─► opener
//!   sesame -open-hook fd=N ────► --stdin ──►    │                                       │
//!                                               └── answer + fd ◄───────────────────────┘
//! ```
//!
//! The allow list is read anew for every request, so that an edit counts from the next one on.
//!
//! Read next: [`allow`] (the list), [`opener`] (why a symbolic link does not lead out of it).

#![forbid(unsafe_code)]

mod allow;
mod opener;
mod session;

use std::io::stdin;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};

use allow::AllowList;
use session::Session;

/// How many Sesame processes are served at once.
const MAX_SESSIONS: usize = 256;
/// How many may wait to be.
const BACKLOG: i32 = 64;
/// How long to rest when no connection can be accepted.
const REST: Duration = Duration::from_millis(200);

/// Opens files for Sesame as far as an allow list permits.
#[derive(Parser)]
#[command(version, about)]
struct Options {
    /// The allow list: lines of ROLES RIGHTS PATTERN, such as `image rw /srv/vm/*.raw`. ROLES are
    /// those of OpenRole in open-hook.json, separated by commas, or `any`; RIGHTS are `ro`, `rw`,
    /// or `rwc` to create too; in PATTERN `*` and `?` stand for anything but a slash, `**` for
    /// anything.
    #[arg(long, value_name = "FILE")]
    allow: PathBuf,
    /// Serves everyone who connects to this unix socket, which is made.
    #[arg(long, value_name = "PATH", conflicts_with = "stdin")]
    listen: Option<PathBuf>,
    /// Serves one Sesame at the other end of standard input.
    #[arg(long, required_unless_present = "listen")]
    stdin: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sesame-open-hook: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    // A list that cannot be read is told now and not at the first request.
    AllowList::read(&options.allow)?;
    match &options.listen {
        Some(path) => serve_all(path, &options.allow),
        None => {
            let connection = stdin().as_fd().try_clone_to_owned()?;
            Session::new(connection, options.allow.clone()).serve()
        }
    }
}

fn serve_all(path: &Path, allow: &Path) -> Result<()> {
    let listener = listener(path).with_context(|| format!("listen at {}", path.display()))?;
    let sessions = Arc::new(AtomicUsize::new(0));
    loop {
        let connection = match accept_with(&listener, SocketFlags::CLOEXEC) {
            Ok(connection) => connection,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
            Err(error) => {
                eprintln!("sesame-open-hook: a connection cannot be accepted yet: {error}");
                thread::sleep(REST);
                continue;
            }
        };
        if sessions.fetch_add(1, Ordering::Relaxed) >= MAX_SESSIONS {
            sessions.fetch_sub(1, Ordering::Relaxed);
            eprintln!("sesame-open-hook: {MAX_SESSIONS} are served already; one is turned away");
            continue;
        }
        let counted = Arc::clone(&sessions);
        let allow = allow.to_owned();
        let serve = move || {
            if let Err(error) = Session::new(connection, allow).serve() {
                eprintln!("sesame-open-hook: {error:#}");
            }
            counted.fetch_sub(1, Ordering::Relaxed);
        };
        thread::Builder::new().name("session".into()).spawn(serve)?;
    }
}

/// A listening socket at `path`; one that a dead process has left there is replaced.
#[expect(clippy::disallowed_methods, reason = "this program is here to open")]
fn listener(path: &Path) -> Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let new = || {
        socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
    };
    let socket = new()?;
    match bind(&socket, &address) {
        Err(rustix::io::Errno::ADDRINUSE)
            if rustix::net::connect(&new()?, &address) == Err(rustix::io::Errno::CONNREFUSED) =>
        {
            std::fs::remove_file(path)?;
            bind(&socket, &address)?;
        }
        other => other?,
    }
    listen(&socket, BACKLOG)?;
    Ok(socket)
}
