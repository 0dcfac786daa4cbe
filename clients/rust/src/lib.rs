//! A typed QMP client that passes file descriptors.
//!
//! This room knows the wire and the socket. What commands, types and events there are is generated
//! from the schema, so that the crate's version is the server's; it must never know what a command
//! is good for. It has no thread and no runtime of its own.
//!
//! ```text
//!   generated      a struct for each command, type and event
//!       │
//!   command.rs     Command + fds = Request
//!       │
//!   session.rs     requests to bytes, bytes to replies and events; knows no socket
//!       │
//!   inbox.rs       what has come and waits to be taken
//!       ├──────────────┐
//!   client.rs     asynchronous.rs     a socket that waits; a socket that is polled
//!       └──────┬───────┘
//!          socket.rs                  sendmsg and recv
//! ```
//!
//! ```no_run
//! use sesame_qmp::block_core::{BlockdevAdd, BlockdevOptionsFile};
//! use sesame_qmp::block_core::{BlockdevOptions, BlockdevOptionsVariant};
//! use sesame_qmp::fds::Getfd;
//! use sesame_qmp::{Client, TakesFd};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut qmp = Client::connect("qmp.sock")?;
//! let disk = std::fs::OpenOptions::new().read(true).write(true).open("disk.raw")?;
//! qmp.execute(Getfd::new("disk").with_fd(&disk))?;
//! let file = BlockdevOptionsVariant::File(BlockdevOptionsFile::new("fd:disk"));
//! qmp.execute(BlockdevAdd(BlockdevOptions {
//!     node_name: Some("disk".to_owned()),
//!     ..BlockdevOptions::new(file)
//! }))?;
//! # Ok(())
//! # }
//! ```
//!
//! Read next: [`Client`], [`Request`], then a module of the schema such as [`fds`].

#![forbid(unsafe_code)]

pub mod asynchronous;
mod client;
mod command;
mod error;
mod event;
#[rustfmt::skip]
mod generated;
mod inbox;
mod session;
mod socket;

pub use client::{Client, Events};
pub use command::{Command, IntoRequest, Plain, Request, TakesFd};
pub use error::{Error, ErrorClass, Refusal};
pub use event::TimedEvent;
pub use generated::events::Event;
pub use generated::*;
pub use session::{Message, Session};
pub use socket::{receive, send};
