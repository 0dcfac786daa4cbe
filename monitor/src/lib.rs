//! The QMP server: sessions, framing, dispatch, events.
//!
//! It turns bytes and fds from clients into requests that may run, and replies and events into
//! bytes. It must never know a VM, a device, or what any command outside the schema modules
//! `control` and `fds` does; it opens nothing and is handed everything.
//!
//! ```text
//!  client      thread qmp-io                                          thread main
//!  ──────   ─────────────────────────────────────────────────────   ─────────────────────────
//!            transport   session    framer + json     dispatch
//!  bytes ──► receive ──► pending ─► one value ──────► admit ──┐
//!  + fds     (fdset::scm)  fds      = one Request             │ in band
//!                                                             ├──► at once, if the VM is idle
//!                                                             ▼    and the command is quick
//!                                                   inbox: one lane ──► Server::next_request
//!                                                   per session,              │ Call: arguments,
//!                                                   popped in turns           │ fds, id
//!                                                             │ out of band   ▼
//!                                                             └──► builtin / the VM's commands
//!                                                                             │ Call::finish
//!  bytes ◄── Outlet: straight into the socket, from whichever thread has ◄────┤
//!            the answer; a bounded queue while the client is slower           │
//!                                       events: stamp, limit, fan out ◄───────┘ EventSink::emit
//! ```
//!
//! How the main loop uses it:
//! - [`Server::new`], then [`Server::add_monitor`] for each monitor; the thread starts with the
//!   first.
//! - When [`ServerSpec::wake_main`] was called: `while let Some(call) = server.next_request()`, and
//!   for each `server.serve_builtin(call)`; what that gives back goes to the generated `dispatch`
//!   of its module with the [`Call`] as its context, and the result to [`Call::finish`].
//! - [`ServerSpec::serve_now`] is offered each request first, on `qmp-io`: a wake-up of an idle
//!   thread costs more than most commands.
//! - [`Server::events`] for whoever has news; [`Server::shutdown`] at the end, which delivers the
//!   last reply and the last event first.
//!
//! Read next: `io` (the loop), `session` (whose fds are whose, and the states of a session),
//! `framer` (where a value ends), `inbox` (who waits for whom), `dispatch` (what may run), `policy`
//! (whom a monitor serves, and what they may ask).

#![forbid(unsafe_code)]

mod builtin;
mod busy_poll;
mod call;
mod dispatch;
mod door;
mod events;
mod farewell;
mod framer;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod inbox;
mod io;
mod json;
mod ledger;
mod limit;
mod line;
mod policy;
mod print;
mod request;
mod server;
mod session;
pub mod tls;
mod transport;

pub use builtin::{Version, scope_of};
pub use call::Call;
pub use dispatch::Phase;
pub use events::EventLimits;
pub use json::{ParseError, read_json};
pub use policy::{ClientPolicy, CommandPolicy, LONGEST_POLICY, PolicyError};
pub use print::Style;
pub use server::{Endpoint, FdScope, MonitorError, MonitorSpec, Quit, Server, ServerSpec};
pub use tls::{TlsError, TlsServer, TlsSpec};
