//! What has come and waits to be taken: the same for every kind of socket.

use std::collections::VecDeque;

use serde_json::{Value, json};

use crate::command::{Command, Request};
use crate::control::VersionInfo;
use crate::error::{Error, Refusal};
use crate::event::TimedEvent;
use crate::session::{Message, Session};

/// More events do not wait: the oldest are dropped, and counted.
const MOST_EVENTS: usize = 4096;

/// One session and what came of it.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    session: Session,
    version: Option<VersionInfo>,
    offered: Vec<String>,
    reply: Option<(u64, Result<Value, Refusal>)>,
    events: VecDeque<TimedEvent>,
    lost: u64,
}

impl Inbox {
    /// Takes what the server sent.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.session.receive(bytes);
        while let Some(message) = self.session.next_message()? {
            match message {
                Message::Greeting {
                    version,
                    capabilities,
                } => {
                    self.version = Some(version);
                    self.offered = capabilities;
                }
                Message::Reply {
                    id: Some(id),
                    result,
                } => self.reply = Some((id, result)),
                // The server could not read a request of ours.
                Message::Reply {
                    id: None,
                    result: Err(refusal),
                } => return Err(refusal.into()),
                Message::Reply { .. } => {}
                Message::Event(event) => self.keep(event),
            }
        }
        Ok(())
    }

    fn keep(&mut self, event: TimedEvent) {
        if self.events.len() == MOST_EVENTS {
            self.events.pop_front();
            self.lost += 1;
        }
        self.events.push_back(event);
    }

    /// The server's name for itself, once it has greeted.
    pub(crate) fn version(&self) -> Option<&VersionInfo> {
        self.version.as_ref()
    }

    /// The request that ends negotiation: all that is offered is taken.
    pub(crate) fn negotiation(&mut self) -> (u64, Vec<u8>) {
        let arguments = json!({ "enable": self.offered });
        self.any("qmp_capabilities", arguments, false)
    }

    /// A request's bytes, and the id of its reply.
    pub(crate) fn request<C: Command>(
        &mut self,
        request: &Request<'_, C>,
    ) -> Result<(u64, Vec<u8>), Error> {
        let arguments = serde_json::to_value(&request.command);
        let arguments = arguments.map_err(|why| Error::protocol(C::NAME.as_bytes(), why))?;
        Ok(self.any(C::NAME, arguments, request.out_of_band))
    }

    /// The same for a command that only its name tells of.
    pub(crate) fn any(
        &mut self,
        name: &str,
        arguments: Value,
        out_of_band: bool,
    ) -> (u64, Vec<u8>) {
        self.session.request(name, arguments, out_of_band)
    }

    /// The reply to that request, if it has come. Replies to requests that nobody waits for any
    /// more are passed over.
    pub(crate) fn reply(&mut self, id: u64) -> Option<Result<Value, Error>> {
        let (came, result) = self.reply.take()?;
        (came == id).then(|| result.map_err(Error::from))
    }

    /// The first event of which `pick` makes something; the others stay.
    pub(crate) fn pick<T>(&mut self, mut pick: impl FnMut(&TimedEvent) -> Option<T>) -> Option<T> {
        let found = self.events.iter().enumerate();
        let (at, picked) = found
            .filter_map(|(at, event)| Some((at, pick(event)?)))
            .next()?;
        self.events.remove(at);
        Some(picked)
    }

    /// The oldest event.
    pub(crate) fn event(&mut self) -> Option<TimedEvent> {
        self.events.pop_front()
    }

    /// How many events were dropped.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }
}

/// Reads a reply as its command says.
pub(crate) fn read<C: Command>(value: Value) -> Result<C::Reply, Error> {
    C::read_reply(value).map_err(|why| Error::protocol(C::NAME.as_bytes(), why))
}
