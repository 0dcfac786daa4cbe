//! The table of what can be handed in, and how: every resource by every source.
//!
//! ```text
//!                    fd:NAME   LISTEN_FDS   /dev/fdset/N   alias   hook   path   number
//!   a disk image       yes        yes           yes         yes     yes    yes    no: why
//!   ...                 │
//!                       └── tests/table opens it that way through the program, or is refused
//! ```
//!
//! It is written once, here: the test goes through its cells, and `cargo xtask codegen` writes it
//! into the users' guide, `docs/fds.md`. A resource that the program learns to open gets a row; a
//! role of the schema without a row must stand in [`WITHOUT_ROW`], or the test fails.

use std::fmt::Write as _;

/// Where a resource can come from, in the order in which a name is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An fd that a client named by `getfd`.
    Getfd,
    /// An fd that the parent process named by `LISTEN_FDNAMES`.
    ListenFds,
    /// A member of an fd set.
    Fdset,
    /// An fd set, by a path for which it answers.
    Alias,
    /// The open hook.
    Hook,
    /// The file system.
    Path,
    /// The number of an inherited fd, on the command line.
    Number,
}

impl Source {
    /// All, in the order of the columns.
    pub const ALL: [Self; 7] = [
        Self::Getfd,
        Self::ListenFds,
        Self::Fdset,
        Self::Alias,
        Self::Hook,
        Self::Path,
        Self::Number,
    ];

    /// The column's head.
    pub fn title(self) -> &'static str {
        match self {
            Self::Getfd => "`fd:NAME` (`getfd`)",
            Self::ListenFds => "`fd:NAME` (`LISTEN_FDNAMES`)",
            Self::Fdset => "`/dev/fdset/N`",
            Self::Alias => "alias",
            Self::Hook => "hook",
            Self::Path => "path",
            Self::Number => "number (command line)",
        }
    }
}

/// What can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A file under a block node.
    ImageFile,
    /// A block device under a block node.
    BlockDevice,
    /// A backing file that only an image's header names.
    BackingFile,
    /// A data file that only an image's header names.
    DataFile,
    /// A file as guest memory.
    MemoryFile,
    /// A directory in which guest memory gets a file without a name.
    MemoryDirectory,
    /// A memfd as guest memory.
    Memfd,
    /// A source of random bytes.
    Entropy,
    /// A secret.
    Secret,
    /// Where a chardev writes to.
    ChardevOutput,
    /// Where a chardev reads from.
    ChardevInput,
    /// A copy of what a chardev writes.
    ChardevLog,
    /// A chardev's listening socket.
    ChardevListener,
    /// A chardev's connection.
    ChardevConnection,
    /// A chardev's connection that is made again when it is lost.
    ChardevReconnecting,
    /// A pseudo terminal.
    Pty,
    /// The open hook's own connection.
    OpenHook,
    /// The kernel of the guest.
    Kernel,
    /// The initial RAM disk of the guest.
    Initrd,
    /// A file of the guest's fw_cfg.
    FwCfg,
    /// The KVM device.
    Kvm,
    /// The file with the process id.
    PidFile,
    /// A monitor's listening socket.
    MonitorListener,
    /// A monitor's connection.
    MonitorConnection,
    /// A key or certificate for TLS.
    TlsKey,
    /// The file that says what a monitor's clients may send.
    MonitorCommands,
    /// A queue of a tap interface under a netdev.
    NetTap,
    /// A file of rules for blkdebug.
    BlkdebugRules,
    /// Firmware without variables.
    Rom,
    /// The kernel's device that moves a tap's packets.
    VhostNet,
    /// The kernel's device for sockets between guest and host.
    VhostVsock,
    /// A netdev's listening socket.
    NetListener,
    /// A netdev's connection.
    NetConnection,
    /// A netdev's connection that is made again when it is lost.
    NetReconnecting,
    /// A netdev's datagram socket.
    NetDatagram,
    /// Where a filter writes packets to.
    NetDump,
}

/// Whether a resource can be opened from a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// It can.
    Yes,
    /// It cannot.
    No(&'static Refusal),
}

/// Why a resource cannot be opened from a source.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For the guide.
    pub why: &'static str,
    /// What the program says then, in part; empty where it makes a file of that name.
    pub error: &'static str,
}

/// A resource and its sources.
#[derive(Debug)]
pub struct Row {
    /// Which.
    pub resource: Resource,
    /// Its name in the guide.
    pub title: &'static str,
    /// Where its name is written, in the guide.
    pub spelled: &'static str,
    /// Its role in the schema (`OpenRole`).
    pub role: &'static str,
    /// What it must be, in the guide.
    pub kinds: &'static str,
    /// For each of [`Source::ALL`].
    pub cells: [Cell; 7],
}

use Cell::{No, Yes};

const AT_LAUNCH: Refusal = Refusal {
    why: "it is opened at the launch, before a client can send anything; \
          `LISTEN_FDNAMES` gives names by then",
    error: "no fd has this name",
};
const NO_NUMBER: Refusal = Refusal {
    why: "a number is a file's name here, as in QEMU; `-add-fd fd=N,set=M` puts an inherited fd \
          into a set",
    error: "No such file or directory",
};
const MADE: Refusal = Refusal {
    why: "a number is a file's name here, as in QEMU, and the file is made",
    error: "",
};
const NAMELESS: Refusal = Refusal {
    why: "a pty has no name under which it could be asked for; without a hook it is made here",
    error: "query-chardev",
};
const NOT_ITSELF: Refusal = Refusal {
    why: "the hook cannot be asked for its own connection",
    error: "No such file or directory",
};
const USED_UP: Refusal = Refusal {
    why: "a name or number is used up by the first connection; a set can be given the next one",
    error: "a passed connection cannot be made again",
};

const NOT_OURS: Refusal = Refusal {
    why: "a name in an image is the wish of whoever made the image, and leads to no fd that was \
          handed in for something else; set an alias for it, or give the node (`backing`, \
          `data-file`)",
    error: "which is not a plain path",
};

const NO_TAP: Refusal = Refusal {
    why: "no path leads to a queue: an interface is opened by its name, `ifname`",
    error: "needed is a tap interface",
};

const FILE: [Cell; 7] = [Yes, Yes, Yes, Yes, Yes, Yes, No(&NO_NUMBER)];
const IN_A_HEADER: [Cell; 7] = [
    No(&NOT_OURS),
    No(&NOT_OURS),
    No(&NOT_OURS),
    Yes,
    Yes,
    Yes,
    No(&NO_NUMBER),
];
const MADE_FILE: [Cell; 7] = [Yes, Yes, Yes, Yes, Yes, Yes, No(&MADE)];
const FILE_AT_LAUNCH: [Cell; 7] = [No(&AT_LAUNCH), Yes, Yes, Yes, Yes, Yes, No(&NO_NUMBER)];
const SOCKET: [Cell; 7] = [Yes; 7];
const SOCKET_AT_LAUNCH: [Cell; 7] = [No(&AT_LAUNCH), Yes, Yes, Yes, Yes, Yes, Yes];

/// The table.
pub const TABLE: &[Row] = &[
    Row {
        resource: Resource::ImageFile,
        title: "Disk image",
        spelled: "`blockdev-add` `file`: `filename`",
        role: "image",
        kinds: "regular file, memfd",
        cells: FILE,
    },
    Row {
        resource: Resource::BlockDevice,
        title: "Block device",
        spelled: "`blockdev-add` `host_device`: `filename`",
        role: "image",
        kinds: "block device",
        cells: FILE,
    },
    Row {
        resource: Resource::BackingFile,
        title: "Backing file",
        spelled: "the header of an image",
        role: "backing",
        kinds: "regular file, memfd",
        cells: IN_A_HEADER,
    },
    Row {
        resource: Resource::DataFile,
        title: "Data file",
        spelled: "the header of an image",
        role: "data-file",
        kinds: "regular file, memfd",
        cells: IN_A_HEADER,
    },
    Row {
        resource: Resource::MemoryFile,
        title: "Guest memory in a file",
        spelled: "`memory-backend-file`: `mem-path`",
        role: "memory",
        kinds: "regular file (also of hugetlbfs), memfd",
        cells: FILE,
    },
    Row {
        resource: Resource::MemoryDirectory,
        title: "Guest memory in a new file of a directory",
        spelled: "`memory-backend-file`: `mem-path`",
        role: "memory",
        kinds: "directory (also of hugetlbfs)",
        cells: FILE,
    },
    Row {
        resource: Resource::Memfd,
        title: "Guest memory in a memfd",
        spelled: "`memory-backend-memfd`, `memory-backend-ram`: `fd`",
        role: "memory",
        kinds: "memfd, regular file",
        cells: FILE,
    },
    Row {
        resource: Resource::Entropy,
        title: "Random bytes",
        spelled: "`rng-random`: `filename`",
        role: "entropy",
        kinds: "character device, pipe, file, connected socket",
        cells: FILE,
    },
    Row {
        resource: Resource::Secret,
        title: "Secret",
        spelled: "`secret`: `file`",
        role: "secret",
        kinds: "regular file, memfd",
        cells: FILE,
    },
    Row {
        resource: Resource::ChardevOutput,
        title: "Character device's output",
        spelled: "`chardev-add` `file`: `out`; `-serial file:`",
        role: "chardev",
        kinds: "file, pipe, terminal, character device, connected socket",
        cells: MADE_FILE,
    },
    Row {
        resource: Resource::ChardevInput,
        title: "Character device's input",
        spelled: "`chardev-add` `file`: `in`",
        role: "chardev",
        kinds: "file, pipe, terminal, character device, connected socket",
        cells: FILE,
    },
    Row {
        resource: Resource::ChardevLog,
        title: "Character device's log",
        spelled: "`chardev-add`: `logfile`",
        role: "chardev-log",
        kinds: "file, pipe, terminal, character device, connected socket",
        cells: MADE_FILE,
    },
    Row {
        resource: Resource::ChardevListener,
        title: "Character device's listening socket",
        spelled: "`chardev-add` `socket`: `addr`, `server=on`",
        role: "chardev",
        kinds: "listening unix, TCP or vsock socket",
        cells: SOCKET,
    },
    Row {
        resource: Resource::ChardevConnection,
        title: "Character device's connection",
        spelled: "`chardev-add` `socket`: `addr`, `server=off`",
        role: "chardev",
        kinds: "connected unix, TCP or vsock socket",
        cells: SOCKET,
    },
    Row {
        resource: Resource::ChardevReconnecting,
        title: "The same, made again when lost",
        spelled: "`chardev-add` `socket`: `addr`, `reconnect-ms`",
        role: "chardev",
        kinds: "connected unix, TCP or vsock socket",
        cells: [No(&USED_UP), No(&USED_UP), Yes, Yes, Yes, Yes, No(&USED_UP)],
    },
    Row {
        resource: Resource::Pty,
        title: "Pseudo terminal",
        spelled: "`chardev-add` `pty`",
        role: "chardev",
        kinds: "the first end of a pty",
        cells: [
            No(&NAMELESS),
            No(&NAMELESS),
            No(&NAMELESS),
            No(&NAMELESS),
            Yes,
            Yes,
            No(&NAMELESS),
        ],
    },
    Row {
        resource: Resource::OpenHook,
        title: "The open hook's connection",
        spelled: "`open-hook-set`, `-open-hook`: `fd`, `path`",
        role: "other",
        kinds: "connected unix socket",
        cells: [Yes, Yes, Yes, Yes, No(&NOT_ITSELF), Yes, Yes],
    },
    Row {
        resource: Resource::Kernel,
        title: "Kernel",
        spelled: "`-kernel`",
        role: "kernel",
        kinds: "regular file, memfd, block device",
        cells: FILE_AT_LAUNCH,
    },
    Row {
        resource: Resource::Initrd,
        title: "Initial RAM disk",
        spelled: "`-initrd`",
        role: "initrd",
        kinds: "regular file, memfd, block device",
        cells: FILE_AT_LAUNCH,
    },
    Row {
        resource: Resource::FwCfg,
        title: "File of fw_cfg",
        spelled: "`-fw_cfg name=NAME,file=`",
        role: "firmware",
        kinds: "regular file, memfd, block device",
        cells: FILE_AT_LAUNCH,
    },
    Row {
        resource: Resource::Kvm,
        title: "KVM",
        spelled: "`-accel kvm,device=`",
        role: "kvm",
        kinds: "the KVM device",
        cells: FILE_AT_LAUNCH,
    },
    Row {
        resource: Resource::PidFile,
        title: "Pid file",
        spelled: "`-pidfile`",
        role: "pid-file",
        kinds: "regular file, memfd",
        cells: [No(&AT_LAUNCH), Yes, Yes, Yes, Yes, Yes, No(&MADE)],
    },
    Row {
        resource: Resource::MonitorListener,
        title: "Monitor's listening socket",
        spelled: "`-chardev socket,server=on` with `-mon`; `-qmp`",
        role: "chardev",
        kinds: "listening unix, TCP or vsock socket",
        cells: SOCKET_AT_LAUNCH,
    },
    Row {
        resource: Resource::MonitorConnection,
        title: "Monitor's connection",
        spelled: "`-chardev socket,server=off` with `-mon`",
        role: "chardev",
        kinds: "connected unix, TCP or vsock socket",
        cells: SOCKET_AT_LAUNCH,
    },
    Row {
        resource: Resource::TlsKey,
        title: "Key and certificates for TLS",
        spelled: "`tls-creds-x509`: `key`, `certificate`, `authority`",
        role: "secret",
        kinds: "regular file, memfd",
        cells: FILE,
    },
    Row {
        resource: Resource::MonitorCommands,
        title: "What a monitor's clients may send",
        spelled: "`-mon commands=`",
        role: "commands",
        kinds: "regular file, memfd, pipe",
        cells: FILE_AT_LAUNCH,
    },
    Row {
        resource: Resource::NetTap,
        title: "Queues of a tap interface",
        spelled: "`netdev_add` `tap`: `fd`, `fds`",
        role: "tap",
        kinds: "queue of a tap interface",
        cells: [Yes, Yes, Yes, Yes, Yes, No(&NO_TAP), Yes],
    },
    Row {
        resource: Resource::NetListener,
        title: "Network backend's listening socket",
        spelled: "`netdev_add` `stream`: `addr`, `server=on`",
        role: "net",
        kinds: "listening unix, TCP or vsock socket",
        cells: SOCKET,
    },
    Row {
        resource: Resource::NetConnection,
        title: "Network backend's connection (also to passt)",
        spelled: "`netdev_add` `stream`: `addr`; `socket`: `fd`",
        role: "net",
        kinds: "connected unix, TCP or vsock socket",
        cells: SOCKET,
    },
    Row {
        resource: Resource::NetReconnecting,
        title: "The same, made again when lost",
        spelled: "`netdev_add` `stream`: `addr`, `reconnect-ms`",
        role: "net",
        kinds: "connected unix, TCP or vsock socket",
        cells: [No(&USED_UP), No(&USED_UP), Yes, Yes, Yes, Yes, No(&USED_UP)],
    },
    Row {
        resource: Resource::NetDatagram,
        title: "Network backend's datagram socket",
        spelled: "`netdev_add` `dgram`: `local`",
        role: "net",
        kinds: "unix datagram socket, UDP socket",
        cells: SOCKET,
    },
    Row {
        resource: Resource::NetDump,
        title: "Packets of a network backend",
        spelled: "`filter-dump`: `file`",
        role: "net-dump",
        kinds: "file, pipe, terminal, character device, connected socket",
        cells: MADE_FILE,
    },
];

/// Roles of the schema that have no row, and why.
pub const WITHOUT_ROW: &[(&str, &str)] = &[
    ("monitor", "a monitor's socket is that of its chardev"),
    ("snapshot", "there are no snapshots"),
    (
        "vhost",
        "the kernel may lack these devices: tests/tests/vhost.rs hands them in, in the lab",
    ),
    (
        "log",
        "the program's log goes to standard error; with -daemonize to /dev/null",
    ),
];

/// The table as Markdown, with its refusals as notes.
pub fn markdown() -> String {
    let mut text = String::from("| Resource | Named in | Must be |");
    let mut rule = String::from("|---|---|---|");
    for source in Source::ALL {
        let _ = write!(text, " {} |", source.title());
        rule.push_str(":-:|");
    }
    let mut notes: Vec<&Refusal> = Vec::new();
    let _ = write!(text, "\n{rule}\n");
    for row in TABLE {
        let _ = write!(text, "| {} | {} | {} |", row.title, row.spelled, row.kinds);
        for cell in row.cells {
            match cell {
                Yes => text.push_str(" yes |"),
                No(refusal) => {
                    let known = notes.iter().position(|note| *note == refusal);
                    let at = known.unwrap_or_else(|| {
                        notes.push(refusal);
                        notes.len() - 1
                    });
                    let _ = write!(text, " no ({}) |", at + 1);
                }
            }
        }
        text.push('\n');
    }
    text.push_str("\nWhere it says no:\n\n");
    for (at, note) in notes.iter().enumerate() {
        let _ = writeln!(text, "{}. {}.", at + 1, note.why);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_markdown_table_has_a_field_for_each_column() {
        let text = markdown();
        let lines: Vec<_> = text.lines().take_while(|line| !line.is_empty()).collect();
        assert_eq!(lines.len(), TABLE.len() + 2);
        for line in lines {
            assert_eq!(line.matches('|').count(), Source::ALL.len() + 4, "{line}");
        }
        assert!(
            text.contains("\n1. it is") || text.contains("\n1. a number"),
            "{text}"
        );
    }
}
