//! What the fuzz targets of `tests/fuzz` see of the inside: the way from received bytes and fds to
//! requests, without a server around it. Exists only with the feature `fuzz`.

use std::os::fd::OwnedFd;

use fdset::scm::Received;
use serde_json::Value;

use crate::framer::{Framer, Step};
use crate::json;
use crate::session::Session;

/// One client's input.
#[derive(Debug)]
pub struct Input(Session);

/// One request, or what is no request.
#[derive(Debug, PartialEq)]
pub struct Told {
    /// The client's mark.
    pub id: Option<Value>,
    /// The command and its arguments, or the error that the client is told.
    pub request: Result<(String, Value), String>,
}

impl Input {
    /// The input of a session that has just begun.
    #[must_use]
    pub fn new() -> Self {
        Self(Session::new())
    }

    /// Takes in what one receive call brought.
    pub fn receive(&mut self, buffer: &[u8], received: Received) {
        self.0.receive(buffer, received);
    }

    /// The next request or mistake, with the fds that belong to it.
    pub fn next_request(&mut self) -> Option<(Told, Vec<OwnedFd>)> {
        let incoming = self.0.next()?;
        let told = match incoming.request {
            Ok(request) => Told {
                id: request.id,
                request: Ok((request.command, request.arguments)),
            },
            Err(refusal) => Told {
                id: refusal.id,
                request: Err(refusal.error.desc),
            },
        };
        Some((told, incoming.fds))
    }

    /// The client sends no more.
    pub fn end(&mut self) {
        self.0.end_input();
    }
}

impl Default for Input {
    fn default() -> Self {
        Self::new()
    }
}

/// The values in `text`, each as it is or with what is wrong with it.
#[must_use]
pub fn values(text: &[u8]) -> Vec<Result<Value, String>> {
    let mut framer = Framer::new();
    let mut rest = text;
    let mut values = Vec::new();
    loop {
        values.push(match framer.advance(&mut rest) {
            Step::Incomplete => return values,
            Step::Malformed(text) => Err(text),
            Step::Frame(frame) => json::parse(frame).map_err(|error| error.to_string()),
        });
    }
}
