//! One connection to a back end, from the greeting to its end: makes what the device wants so.
//!
//! ```text
//!   greet: features ─ protocol features ─ how many queues ─ whose requests ─ configuration space
//!     │
//!     ▼
//!   serve: wanted ≠ applied? ─► one request ─► applied      (again and again)
//!            └─ no: wait for orders, for the back end's requests, or for its end
//! ```
//!
//! A connection begins with nothing applied, so one that comes after another is told everything
//! again: that is all there is to reconnecting.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use mio::Interest;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::message::{
    BackendRequest, F_PROTOCOL_FEATURES, Message, Protocol, Request, config, inflight, queue_fd,
    queue_number, words,
};
use super::orders::{Applied, Inflight, Order, Orders, Served};
use super::table::Table;
use super::talk::{Reader, Talk, TalkError};
use super::task::Bell;
use crate::reactor::{Reactor, Ready, Registration};

/// Virtio's feature of version 1.
pub(super) const F_VERSION_1: u64 = 1 << 32;

/// What a back end has to offer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Features of queues and of the kind of device.
    pub features: u64,
    /// How much of the protocol is used.
    pub protocol: Protocol,
    /// How many queues it has (of a network card: pairs); 1 if it cannot tell.
    pub queues: u64,
    /// Its configuration space, as long as was asked for.
    pub config: Vec<u8>,
}

/// What a device wants of its back end.
#[derive(Clone, Copy, Debug)]
pub struct Wants {
    /// What may be used of the protocol.
    pub protocol: Protocol,
    /// What must be there of it.
    pub needed: Protocol,
    /// How many bytes of configuration space the back end has to show.
    pub config: usize,
}

/// The back end's own requests.
struct BackChannel {
    socket: Arc<OwnedFd>,
    reader: Reader,
    _watch: Registration,
}

/// A connection that has been greeted.
pub(super) struct Session {
    talk: Talk,
    back: Option<BackChannel>,
    bell: Arc<Bell>,
    wants: Wants,
    pub(super) offer: Offer,
    applied: Applied,
}

/// What a session has found out and its device wants to know.
pub(super) enum News {
    /// The configuration space is another.
    Config(Vec<u8>),
}

impl Session {
    /// Finds out what the back end at the other end of `talk` offers.
    pub(super) async fn greet(
        mut talk: Talk,
        bell: Arc<Bell>,
        wants: Wants,
        reactor: &Reactor,
    ) -> Result<Self, TalkError> {
        let features = number(&mut talk, Request::GetFeatures).await?;
        if features & F_VERSION_1 == 0 {
            return Err(TalkError::Lacks(
                "it does not offer VIRTIO_F_VERSION_1".to_owned(),
            ));
        }
        let mut protocol = Protocol::empty();
        if features & F_PROTOCOL_FEATURES != 0 {
            let offered = number(&mut talk, Request::GetProtocolFeatures).await?;
            protocol = Protocol::from_bits_truncate(offered) & wants.protocol;
        }
        let missing = wants.needed - protocol;
        if !missing.is_empty() {
            return Err(TalkError::Lacks(format!(
                "it does not offer the protocol features {missing:?}"
            )));
        }
        if features & F_PROTOCOL_FEATURES != 0 {
            let payload = words(&[protocol.bits()]);
            talk.tell(Request::SetProtocolFeatures, &payload, &[])
                .await?;
            talk.acknowledges = protocol.contains(Protocol::REPLY_ACK);
        }
        let queues = if protocol.contains(Protocol::MQ) {
            number(&mut talk, Request::GetQueueNum).await?
        } else {
            1
        };
        let back = if protocol.contains(Protocol::BACKEND_REQ) {
            Some(back_channel(&mut talk, &bell, reactor).await?)
        } else {
            None
        };
        talk.tell(Request::SetOwner, &[], &[]).await?;
        let mut session = Self {
            talk,
            back,
            bell,
            wants,
            offer: Offer {
                features,
                protocol,
                queues,
                config: Vec::new(),
            },
            applied: Applied::default(),
        };
        if protocol.contains(Protocol::CONFIG) && wants.config > 0 {
            session.offer.config = session.read_config().await?;
        }
        Ok(session)
    }

    /// Does what `orders` say until the connection ends, which is the only way this ends; `tell`
    /// hears the news.
    pub(super) async fn serve(&mut self, orders: &Orders, tell: impl Fn(News)) -> TalkError {
        loop {
            match self.step(orders, &tell).await {
                Ok(true) => {}
                Ok(false) => self.bell.wait().await,
                Err(error) => return error,
            }
        }
    }

    /// Whether there was something to do.
    async fn step(&mut self, orders: &Orders, tell: &impl Fn(News)) -> Result<bool, TalkError> {
        if let Some(order) = orders.next(&mut self.applied) {
            self.obey(order, orders).await?;
            return Ok(true);
        }
        self.talk.is_quiet()?;
        if self.hear()? {
            let config = self.read_config().await?;
            if config != self.offer.config {
                self.offer.config.clone_from(&config);
                tell(News::Config(config));
            }
            return Ok(true);
        }
        Ok(false)
    }

    async fn obey(&mut self, order: Order, orders: &Orders) -> Result<(), TalkError> {
        match order {
            Order::Features(features) => {
                let protocol = self.offer.features & F_PROTOCOL_FEATURES;
                let used = features & self.offer.features | protocol;
                self.talk
                    .tell(Request::SetFeatures, &words(&[used]), &[])
                    .await
            }
            Order::Memory(table) => self.tell_memory(&table).await,
            Order::Inflight(known) => self.share_inflight(known, orders).await,
            Order::Start {
                index,
                queue,
                base,
                call,
                enabled,
            } => {
                self.start(index, &queue, base, &call).await?;
                self.enable(index, enabled).await
            }
            Order::Enable { index, enabled } => self.enable(index, enabled).await,
            Order::Call { index, call } => {
                let payload = queue_fd(index);
                let fds = [call.as_fd()];
                self.talk.tell(Request::SetVringCall, &payload, &fds).await
            }
            Order::Stop { index } => {
                let base = self.stop(index).await?;
                orders.stopped(index, base);
                Ok(())
            }
            Order::Config { offset, bytes } => {
                let payload = config(offset, &bytes);
                self.talk.tell(Request::SetConfig, &payload, &[]).await
            }
            Order::Rarp(mac) => {
                let [a, b, c, d, e, f] = mac;
                let payload = words(&[u64::from_le_bytes([a, b, c, d, e, f, 0, 0])]);
                if self.offer.protocol.contains(Protocol::RARP) {
                    self.talk.tell(Request::SendRarp, &payload, &[]).await?;
                }
                Ok(())
            }
        }
    }

    async fn tell_memory(&mut self, table: &Table) -> Result<(), TalkError> {
        let payload = table.payload();
        self.talk
            .tell(Request::SetMemTable, &payload, &table.fds())
            .await
    }

    /// Where the requests under way are kept: the memory of the back end before, or new one.
    async fn share_inflight(
        &mut self,
        known: Option<Arc<Inflight>>,
        orders: &Orders,
    ) -> Result<(), TalkError> {
        if !self.offer.protocol.contains(Protocol::INFLIGHT_SHMFD) {
            return Ok(());
        }
        let kept = match known {
            Some(kept) => kept,
            None => {
                let (queues, size) = orders.extent();
                let request = Request::GetInflightFd;
                let answer = self.talk.ask(request, &inflight(queues, size), &[]).await?;
                let Some((payload, memory)) = answer.inflight()? else {
                    return Ok(());
                };
                orders.keep_inflight(Inflight { payload, memory })
            }
        };
        self.talk
            .tell(
                Request::SetInflightFd,
                &kept.payload,
                &[kept.memory.as_fd()],
            )
            .await
    }

    async fn start(
        &mut self,
        index: u32,
        queue: &Served,
        base: u16,
        call: &OwnedFd,
    ) -> Result<(), TalkError> {
        let number = |number: u16| queue_number(index, number.into());
        let talk = &mut self.talk;
        talk.tell(Request::SetVringNum, &number(queue.size), &[])
            .await?;
        talk.tell(Request::SetVringBase, &number(base), &[]).await?;
        let rings = [
            index.into(),
            queue.rings.descriptors,
            queue.rings.used,
            queue.rings.available,
            0,
        ];
        talk.tell(Request::SetVringAddr, &words(&rings), &[])
            .await?;
        for (request, fd) in [
            (Request::SetVringErr, &queue.error),
            (Request::SetVringCall, call),
            (Request::SetVringKick, &queue.kick),
        ] {
            talk.tell(request, &queue_fd(index), &[fd.as_fd()]).await?;
        }
        Ok(())
    }

    async fn stop(&mut self, index: u32) -> Result<u16, TalkError> {
        self.enable(index, false).await?;
        let request = Request::GetVringBase;
        let answer = self.talk.ask(request, &queue_number(index, 0), &[]).await?;
        Ok(answer.base(index)?)
    }

    async fn enable(&mut self, index: u32, enabled: bool) -> Result<(), TalkError> {
        if self.offer.features & F_PROTOCOL_FEATURES == 0 {
            // Then a queue that was started is looked at.
            return Ok(());
        }
        let payload = queue_number(index, enabled.into());
        self.talk.tell(Request::SetVringEnable, &payload, &[]).await
    }

    async fn read_config(&mut self) -> Result<Vec<u8>, TalkError> {
        let payload = config(0, &vec![0; self.wants.config]);
        let answer = self.talk.ask(Request::GetConfig, &payload, &[]).await?;
        Ok(answer.config(self.wants.config)?)
    }

    /// Whether the back end says that its configuration space has changed.
    fn hear(&mut self) -> Result<bool, TalkError> {
        let Some(back) = &mut self.back else {
            return Ok(false);
        };
        let message = match back.reader.read(back.socket.as_fd()) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(false),
            // It has nothing to ask, ever.
            Err(TalkError::Gone) => {
                self.back = None;
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let (request, answer) = message.backend_request()?;
        if let Some(answer) = answer {
            // A few bytes always have room, unless nobody reads answers.
            fdset::scm::send_with_fds(&*back.socket, &answer, &[])?;
        }
        Ok(match request {
            BackendRequest::ConfigChanged => self.offer.protocol.contains(Protocol::CONFIG),
            BackendRequest::Unknown(number) => {
                tracing::debug!(number, "vhost-user: a request of a back end is not known");
                false
            }
        })
    }
}

async fn number(talk: &mut Talk, request: Request) -> Result<u64, TalkError> {
    let answer: Message = talk.ask(request, &[], &[]).await?;
    Ok(answer.number(request)?)
}

/// Gives the back end a way to send requests of its own.
async fn back_channel(
    talk: &mut Talk,
    bell: &Arc<Bell>,
    reactor: &Reactor,
) -> Result<BackChannel, TalkError> {
    let (ours, theirs) = pair()?;
    let request = Request::SetBackendReqFd;
    let fds: [BorrowedFd<'_>; 1] = [theirs.as_fd()];
    talk.tell(request, &[], &fds).await?;
    let socket = Arc::new(ours);
    let handler: Arc<dyn Ready> = Arc::clone(bell) as _;
    let watch = reactor.register(Arc::clone(&socket) as _, Interest::READABLE, handler)?;
    Ok(BackChannel {
        socket,
        reader: Reader::new(),
        _watch: watch,
    })
}

/// Two connected sockets, of which the first never blocks.
fn pair() -> Result<(OwnedFd, OwnedFd), TalkError> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(std::io::Error::from)?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(std::io::Error::from)?;
    Ok((ours, theirs))
}
