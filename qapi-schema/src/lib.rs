//! The QMP schema as Rust: wire types, one command trait per schema file, events, introspection.
//!
//! This room knows the shape of every command and nothing of what one does. It must never know a
//! VM, a device, a file or a socket.
//!
//! ```text
//!   schema/x.json ──cargo xtask codegen──► generated/x.rs: types, `Commands`, `dispatch`
//!
//!   request ─► find_command(name) ─► x::dispatch(handler, name, cx, arguments)
//!                 CommandSpec            │ arguments ─► args type   (input: strict)
//!                 .module says           │ handler.command(cx, args)
//!                 which x                ▼ result ─► Reply          (text, written once)
//!   command line ─► input::keyval ─► the same types
//! ```
//!
//! What to use:
//! - [`find_command`], [`COMMANDS`], [`Module`]: what the monitor checks before it runs a command.
//! - [`fds::Commands`] and its siblings: what an implementation writes. Arguments
//!   written in place have the command's name (`add-fd` → [`fds::AddFd`]). A union is a struct with
//!   the fixed members and an enum in the field named after its discriminator:
//!   `match options.driver { BlockdevOptionsVariant::File(file) => .. }`.
//! - [`Event`]: serializes as its `event` and `data` members.
//! - [`Reply`]: what `dispatch` gives back; [`to_wire`] writes anything else that goes out.
//! - [`INTROSPECTION`]: the reply of `query-qmp-schema`.
//! - [`input::FromInput`], [`input::keyval::parse_keyval`]: from JSON or `key=value` text.
//! - [`describe::Described`]: members with their documentation, for help texts.
//! - [`compat`]: what becomes of parts that are marked deprecated or unstable.
//! - [`drivers::DRIVERS`]: device models, their aliases, buses and properties.
//!
//! Read next: `schema/main.json`, then [`input`].

#![forbid(unsafe_code)]

mod command;
pub mod compat;
pub mod describe;
pub mod drivers;
pub mod export;
#[rustfmt::skip]
mod generated;
pub mod input;
mod order;
mod reply;
mod wire;

pub use command::{CommandSpec, find_command};
pub use generated::commands::{COMMANDS, Module};
pub use generated::events::Event;
pub use generated::introspection::INTROSPECTION;
pub use generated::*;
pub use reply::{Reply, to_wire};
pub use wire::{Context, ErrorClass, EventSink, MonitorId, QmpError, SessionId, SessionPeer};
