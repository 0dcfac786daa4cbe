//! What a chardev is to be: resolved, every default applied.

use std::time::Duration;

use fdset::SocketAddress;

/// One chardev.
#[derive(Clone, Debug)]
pub struct ChardevSpec {
    /// Where its bytes go and come from.
    pub backend: BackendSpec,
    /// A copy of everything the guest writes.
    pub log: Option<LogSpec>,
}

/// The kinds of chardev.
#[derive(Clone, Debug)]
pub enum BackendSpec {
    /// A stream socket.
    Socket(SocketSpec),
    /// A file for output, and another for input if there is any.
    File {
        /// Where output goes: any name that `fdset::open` takes.
        output: String,
        /// Where input comes from; a file without input never gives any.
        input: Option<String>,
        /// Whether output is added to what a real path holds, instead of replacing it.
        append: bool,
    },
    /// The process's own standard input and output.
    Stdio {
        /// Whether the terminal still turns Ctrl-C into a signal.
        signal: bool,
    },
    /// A new pseudo-terminal.
    Pty,
    /// Nothing: output vanishes, input never comes.
    Null,
    /// A buffer that keeps the newest output.
    Ringbuf {
        /// Its size in bytes, a power of two.
        size: usize,
    },
}

impl BackendSpec {
    /// The kind's name, as `query-chardev` and `-chardev` write it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Socket(_) => "socket",
            Self::File { .. } => "file",
            Self::Stdio { .. } => "stdio",
            Self::Pty => "pty",
            Self::Null => "null",
            Self::Ringbuf { .. } => "ringbuf",
        }
    }
}

/// A stream socket, and who calls whom.
#[derive(Clone, Debug)]
pub struct SocketSpec {
    /// Where: a path, a host and port, or a passed descriptor.
    pub address: SocketAddress,
    /// Who calls whom.
    pub role: SocketRole,
    /// Whether small packets are sent at once. TCP only.
    pub nodelay: bool,
}

/// Who calls whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketRole {
    /// We listen; peers come one after the other.
    Server {
        /// Whether creation waits for the first peer.
        wait: bool,
    },
    /// We call, once.
    Client,
    /// We call, and call again this long after each loss or failure.
    Reconnecting(Duration),
}

/// A log file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSpec {
    /// Any name that `fdset::open` takes.
    pub name: String,
    /// Whether the log is added to what a real path holds, instead of replacing it.
    pub append: bool,
}
