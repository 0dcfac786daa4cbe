//! Passed file descriptors: the registry, and the one open.
//!
//! Every host resource enters Sesame through this crate: an image, a kernel, `/dev/kvm`, a socket,
//! guest memory, a pty. `clippy.toml` forbids the opening calls everywhere else, so reading this
//! crate tells everything that a Sesame process can touch.
//!
//! ```text
//!   getfd NAME                 add-fd fdset-id=3                    the file system
//!       │  (fds arrive by SCM_RIGHTS: scm.rs)                              │
//!       ▼                          ▼                                       │
//!   ┌─ FdRegistry ──────────────────────────────────────┐                  │
//!   │  names, by scope         sets, by id              │                  │
//!   │   monitor 0: "disk"       3 ─ fd 7 rw, fd 8 ro    │                  │
//!   │   process:   "kvm"            1 lease             │                  │
//!   └──────┬───────────────────────────┬────────────────┘                  │
//!          │ "fd:disk"                 │ "/dev/fdset/3", or its alias      │ any other name
//!          │  taken                    │  dup'ed, F_DUPFD_CLOEXEC          │  opened
//!          └───────────────┬───────────┴───────────────────────────────────┘
//!                          ▼
//!              open(&Door, &Request) ─► OpenFile = OwnedFd + Lease ─► drop: the lease goes back
//!
//!   remove-fd 3: the members are closed at once; the set itself stays, empty, until its last
//!   lease drops, so that a device which re-opens by name finds the set it began with.
//! ```
//!
//! What this room must never know: a VM, a device, QAPI, or what a file is used for beyond the
//! [`Role`] that says which kinds of fd will do.
//!
//! Read next: [`registry`] (who holds what), [`open`](mod@open) (the order of the sources),
//! [`kind`] (what an fd is and which role takes it), [`lease`] (what an opener gets), [`socket`] and [`backing`] for the resources that have no
//! file name, [`scm`] for how fds arrive.

pub mod account;
mod alias;
pub mod backing;
mod error;
pub mod escrow;
pub mod handover;
pub mod hook;
pub mod inherited;
mod kernel;
pub mod kind;
pub mod lease;
pub mod ledger;
pub mod limits;
pub mod look;
mod named;
pub mod open;
pub mod pidfile;
pub mod policy;
mod probe;
pub mod registry;
pub mod request;
pub mod reserve;
pub mod scm;
mod sets;
pub mod socket;
mod unnamed;
#[cfg(test)]
mod watch;

pub use account::{Account, account};
pub use backing::{HugePageSize, MemfdSpec, PTY_NAME, Pty, memfd, pty};
pub use error::{OpenError, RegistryError, Wanted};
pub use escrow::Escrow;
pub use handover::{Handover, Origin, Peer};
pub use hook::{Answers, Asker, Expected, HookClient, HookError, HookWire, Told, Wish};
pub use inherited::{Inherited, handed_in, inherited, passed, passed_if, standard_streams};
pub use kind::{Kind, Nature};
pub use lease::{FileType, Identity, Lease, OpenFile};
pub use ledger::{Place, Use, Via, Waiting};
pub use look::{Found, Source, look, peek};
pub use open::{null, open};
pub use pidfile::{PidFile, pid_file};
pub use policy::Policy;
pub use registry::{Door, FdRegistry, Scope, ScopeLease};
pub use request::{Access, Create, Existing, Request, Role};
pub use reserve::{Reserve, is_out_of_fds};
pub use sets::{Fdset, FdsetId, Member};
pub use socket::{
    Connection, Datagram, Listener, Remote, SocketAddress, Wait, accept, connect, datagram,
    finish_connect, listen, may_connect, set_nodelay, wait_for_caller,
};
