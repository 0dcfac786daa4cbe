//! The messages, and nothing else: numbers into bytes, bytes into numbers.
//!
//! What a back end sends is hostile: a header that does not fit the request, a payload of the wrong
//! size and fds that nobody waits for are each a [`Wrong`], never a guess.

use std::os::fd::OwnedFd;

use bitflags::bitflags;

/// Bytes before each payload: request, flags, size.
pub const HEADER: usize = 12;
/// The longest payload that a back end may send: a configuration space with its place.
pub const LONGEST: usize = CONFIG_HEAD + CONFIG_LIMIT;
/// The most bytes of a configuration space.
pub const CONFIG_LIMIT: usize = 256;
/// Before the bytes of a configuration space: offset, size, flags.
const CONFIG_HEAD: usize = 12;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const IS_REPLY: u32 = 1 << 2;
const WANTS_REPLY: u32 = 1 << 3;
/// In the payload of a kick or call: no fd comes with it.
const NO_FD: u64 = 1 << 8;
/// Where the number of fewer bits ends that names a queue beside [`NO_FD`].
const QUEUE_MASK: u64 = 0xff;

/// Feature: there are protocol features, and queues begin disabled.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

bitflags! {
    /// What both ends understand beyond the first version.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Protocol: u64 {
        /// The back end says how many queues it has.
        const MQ = 1;
        /// It makes the card's address known by itself.
        const RARP = 1 << 2;
        /// Each request is answered that asks for it.
        const REPLY_ACK = 1 << 3;
        /// It may send requests of its own.
        const BACKEND_REQ = 1 << 5;
        /// It has the configuration space.
        const CONFIG = 1 << 9;
        /// What was under way is kept in memory that outlives it.
        const INFLIGHT_SHMFD = 1 << 12;
    }
}

/// What a front end asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Request {
    /// Which features are there?
    GetFeatures = 1,
    /// These are used.
    SetFeatures = 2,
    /// We are the ones who speak.
    SetOwner = 3,
    /// Guest memory, with its fds.
    SetMemTable = 5,
    /// How many entries a queue has.
    SetVringNum = 8,
    /// Where its rings are.
    SetVringAddr = 9,
    /// Which chain is the next.
    SetVringBase = 10,
    /// Stop a queue: which chain would have been the next?
    GetVringBase = 11,
    /// The doorbell.
    SetVringKick = 12,
    /// The interrupt.
    SetVringCall = 13,
    /// Where to complain.
    SetVringErr = 14,
    /// Which protocol features are there?
    GetProtocolFeatures = 15,
    /// These are used.
    SetProtocolFeatures = 16,
    /// How many queues are there?
    GetQueueNum = 17,
    /// Begin or cease to look at a queue.
    SetVringEnable = 18,
    /// Make this address known.
    SendRarp = 19,
    /// A socket for the back end's own requests.
    SetBackendReqFd = 21,
    /// The configuration space?
    GetConfig = 24,
    /// A change of it by the driver.
    SetConfig = 25,
    /// Memory for what is under way?
    GetInflightFd = 31,
    /// Use this memory for it.
    SetInflightFd = 32,
}

/// What a back end asks that is understood here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendRequest {
    /// The configuration space has changed.
    ConfigChanged,
    /// Anything else, by its number: not negotiated, and answered with an error if it wants to know.
    Unknown(u32),
}

/// Why a back end is not believed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Another version of the protocol, or bits without a meaning.
    #[error("flags {0:#x} of a message")]
    Flags(u32),
    /// An answer to something else.
    #[error("an answer to request {came}, wanted one to {wanted}")]
    Request {
        /// What was asked.
        wanted: u32,
        /// What is answered.
        came: u32,
    },
    /// A payload that does not fit.
    #[error("{came} bytes of payload in a message of kind {request}")]
    Size {
        /// The message's number.
        request: u32,
        /// How long the payload is.
        came: usize,
    },
    /// Fds where none belong, or none where one does.
    #[error("{came} fds with a message of kind {request}, wanted {wanted}")]
    Fds {
        /// The message's number.
        request: u32,
        /// How many belong there.
        wanted: usize,
        /// How many came.
        came: usize,
    },
    /// The answer is an error.
    #[error("the back end refuses request {request} with {code:#x}")]
    Refused {
        /// The request's number.
        request: u32,
        /// What it says.
        code: u64,
    },
}

/// The bytes of a request.
#[must_use]
pub fn encode(request: Request, wants_reply: bool, payload: &[u8]) -> Vec<u8> {
    let reply = if wants_reply { WANTS_REPLY } else { 0 };
    assemble(request as u32, VERSION | reply, payload)
}

fn assemble(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    // No payload is longer than a few hundred bytes.
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    for number in [request, flags, len] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// A payload of numbers.
#[must_use]
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A payload of a queue's number and another.
#[must_use]
pub fn queue_number(queue: u32, number: u32) -> Vec<u8> {
    [queue, number]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

/// A payload that names the queue whose fd comes along.
#[must_use]
pub fn queue_fd(queue: u32) -> Vec<u8> {
    words(&[u64::from(queue) & QUEUE_MASK & !NO_FD])
}

/// A payload of a part of the configuration space.
#[must_use]
pub fn config(offset: u32, bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut payload = Vec::with_capacity(CONFIG_HEAD + bytes.len());
    for number in [offset, len, 0] {
        payload.extend(number.to_le_bytes());
    }
    payload.extend(bytes);
    payload
}

/// Where a message's payload begins to matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is about.
    pub request: u32,
    flags: u32,
    /// How many bytes follow.
    pub size: usize,
}

impl Header {
    /// Reads it.
    ///
    /// # Errors
    /// It is of another version, or announces more than any message has.
    pub fn read(bytes: [u8; HEADER]) -> Result<Self, Wrong> {
        let [request, flags, size] = *bytes.as_chunks::<4>().0 else {
            return Err(Wrong::Flags(0));
        };
        let (request, flags) = (u32::from_le_bytes(request), u32::from_le_bytes(flags));
        let size = usize::try_from(u32::from_le_bytes(size)).unwrap_or(usize::MAX);
        if flags & VERSION_MASK != VERSION {
            return Err(Wrong::Flags(flags));
        }
        if size > LONGEST {
            return Err(Wrong::Size {
                request,
                came: size,
            });
        }
        Ok(Self {
            request,
            flags,
            size,
        })
    }
}

/// A message that has come as a whole.
#[derive(Debug)]
pub struct Message {
    /// What it says of itself.
    pub header: Header,
    /// Its payload, as long as the header says.
    pub payload: Vec<u8>,
    /// What came along.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The payload of an answer to `request`, with which no fd belongs.
    ///
    /// # Errors
    /// It is something else, or fds came along.
    pub fn answer(self, request: Request) -> Result<Vec<u8>, Wrong> {
        self.expect(request, 0).map(|(payload, _)| payload)
    }

    /// The number in an answer to `request`.
    ///
    /// # Errors
    /// As [`answer`](Self::answer); or it is no number.
    pub fn number(self, request: Request) -> Result<u64, Wrong> {
        let payload = self.answer(request)?;
        let came = payload.len();
        let bytes: Result<[u8; 8], _> = payload.try_into();
        bytes.map(u64::from_le_bytes).map_err(|_| Wrong::Size {
            request: request as u32,
            came,
        })
    }

    /// Where the queue `queue` stands, in an answer to [`Request::GetVringBase`].
    ///
    /// # Errors
    /// As [`number`](Self::number); or it is about another queue.
    pub fn base(self, queue: u32) -> Result<u16, Wrong> {
        let request = Request::GetVringBase;
        let number = self.number(request)?;
        let refused = Wrong::Refused {
            request: request as u32,
            code: number,
        };
        if number & u64::from(u32::MAX) != u64::from(queue) {
            return Err(refused);
        }
        u16::try_from(number >> 32).map_err(|_| refused)
    }

    /// Checks the answer to a `request` that asked for one although it has none of its own.
    ///
    /// # Errors
    /// As [`number`](Self::number); or the back end refuses.
    pub fn done(self, request: Request) -> Result<(), Wrong> {
        match self.number(request)? {
            0 => Ok(()),
            code => Err(Wrong::Refused {
                request: request as u32,
                code,
            }),
        }
    }

    /// The bytes of the configuration space, of which `wanted` were asked for.
    ///
    /// # Errors
    /// As [`answer`](Self::answer); or it is another part of it, which also stands for a failure.
    pub fn config(self, wanted: usize) -> Result<Vec<u8>, Wrong> {
        let request = Request::GetConfig;
        let mut payload = self.answer(request)?;
        let came = payload.len();
        let said = payload.get(4..8).map(<[u8]>::to_vec);
        let len = u32::try_from(wanted).unwrap_or(u32::MAX);
        if came != CONFIG_HEAD + wanted || said.as_deref() != Some(&len.to_le_bytes()) {
            return Err(Wrong::Size {
                request: request as u32,
                came,
            });
        }
        Ok(payload.split_off(CONFIG_HEAD))
    }

    /// What the back end offers for what is under way: the payload to be sent back to the next one,
    /// and the memory. `None` if it has no need of it.
    ///
    /// # Errors
    /// It is something else, or without its one fd.
    pub fn inflight(self) -> Result<Option<(Vec<u8>, OwnedFd)>, Wrong> {
        let request = Request::GetInflightFd;
        let is_empty = self.payload.get(..8) == Some(&[0; 8]);
        if is_empty && self.fds.is_empty() {
            return Ok(None);
        }
        let (payload, mut fds) = self.expect(request, 1)?;
        let came = payload.len();
        match fds.pop() {
            Some(fd) if (INFLIGHT_SHORT..=INFLIGHT).contains(&came) => Ok(Some((payload, fd))),
            _ => Err(Wrong::Size {
                request: request as u32,
                came,
            }),
        }
    }

    /// What a back end asks for, and the bytes of the answer if it wants one.
    ///
    /// # Errors
    /// It is no request, or brings fds with something that has none.
    pub fn backend_request(self) -> Result<(BackendRequest, Option<Vec<u8>>), Wrong> {
        let Header { request, flags, .. } = self.header;
        if flags & IS_REPLY != 0 {
            return Err(Wrong::Flags(flags));
        }
        let (asked, code) = match request {
            2 if self.payload.is_empty() => (BackendRequest::ConfigChanged, 0),
            other => (BackendRequest::Unknown(other), 1),
        };
        if !self.fds.is_empty() && asked == BackendRequest::ConfigChanged {
            return Err(Wrong::Fds {
                request,
                wanted: 0,
                came: self.fds.len(),
            });
        }
        let answer = (flags & WANTS_REPLY != 0)
            .then(|| assemble(request, VERSION | IS_REPLY, &words(&[code])));
        Ok((asked, answer))
    }

    fn expect(self, request: Request, fds: usize) -> Result<(Vec<u8>, Vec<OwnedFd>), Wrong> {
        let (wanted, came) = (request as u32, self.header.request);
        if wanted != came {
            return Err(Wrong::Request { wanted, came });
        }
        if self.header.flags & IS_REPLY == 0 {
            return Err(Wrong::Flags(self.header.flags));
        }
        if self.fds.len() != fds {
            return Err(Wrong::Fds {
                request: wanted,
                wanted: fds,
                came: self.fds.len(),
            });
        }
        Ok((self.payload, self.fds))
    }
}

/// The payload about memory for what is under way: size, offset, queues and their size; some pad it.
const INFLIGHT: usize = 24;
const INFLIGHT_SHORT: usize = 20;

/// A payload that asks for such memory.
#[must_use]
pub fn inflight(queues: u16, queue_size: u16) -> Vec<u8> {
    let mut payload = words(&[0, 0]);
    payload.extend(queues.to_le_bytes());
    payload.extend(queue_size.to_le_bytes());
    payload.resize(INFLIGHT, 0);
    payload
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;

    fn message(bytes: &[u8], fds: usize) -> Result<Message, Wrong> {
        let (head, payload) = bytes.split_at(HEADER);
        let header = Header::read(head.try_into().expect("a header"))?;
        let fds = (0..fds).map(|_| UnixStream::pair().expect("a pair").0.into());
        Ok(Message {
            header,
            payload: payload.get(..header.size).unwrap_or(payload).to_vec(),
            fds: fds.collect(),
        })
    }

    fn reply(request: Request, payload: &[u8]) -> Message {
        let bytes = assemble(request as u32, VERSION | IS_REPLY, payload);
        message(&bytes, 0).expect("a header")
    }

    #[test]
    fn an_answer_is_of_its_request_its_size_and_its_fds() {
        let seven = words(&[7]);
        let features = Request::GetFeatures;
        assert_eq!(reply(features, &seven).number(features), Ok(7));
        let other = reply(features, &seven).number(Request::GetQueueNum);
        assert!(matches!(other, Err(Wrong::Request { .. })));
        let short = reply(features, &seven[..7]).number(features);
        assert!(matches!(short, Err(Wrong::Size { came: 7, .. })));
        let request = message(&encode(features, false, &seven), 0).expect("a header");
        assert!(matches!(request.number(features), Err(Wrong::Flags(_))));
        let bytes = assemble(features as u32, VERSION | IS_REPLY, &seven);
        let laden = message(&bytes, 1).expect("a header").number(features);
        assert!(matches!(laden, Err(Wrong::Fds { came: 1, .. })));
    }

    #[test]
    fn a_queue_stands_where_the_answer_about_it_says() {
        let base = |number| reply(Request::GetVringBase, &words(&[number])).base(3);
        assert_eq!(base(0x1234 << 32 | 3), Ok(0x1234));
        assert!(base(0x1234 << 32 | 2).is_err() && base(0x1_0000 << 32 | 3).is_err());
    }

    #[test]
    fn an_empty_configuration_space_is_a_refusal() {
        let space = reply(Request::GetConfig, &config(0, &[1, 2, 3])).config(3);
        assert_eq!(space, Ok(vec![1, 2, 3]));
        assert!(reply(Request::GetConfig, &[]).config(3).is_err());
        assert!(
            reply(Request::GetConfig, &config(0, &[1]))
                .config(3)
                .is_err()
        );
    }

    #[test]
    fn a_back_ends_request_is_answered_only_if_it_wants_to_know() {
        let quiet = message(&assemble(2, VERSION, &[]), 0).expect("a header");
        assert_eq!(
            quiet.backend_request(),
            Ok((BackendRequest::ConfigChanged, None))
        );
        let asking = assemble(9, VERSION | WANTS_REPLY, &[]);
        let (asked, answer) = message(&asking, 0)
            .and_then(Message::backend_request)
            .expect("a request");
        assert_eq!(asked, BackendRequest::Unknown(9));
        let refusal = message(&answer.expect("wanted"), 0).expect("a header");
        assert_eq!(refusal.payload, words(&[1]));
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_back_end_are_more_than_wrong(
            bytes in prop::collection::vec(any::<u8>(), HEADER..HEADER + 300),
            fds in 0usize..3,
            known in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if known {
                bytes[4..8].copy_from_slice(&(VERSION | IS_REPLY).to_le_bytes());
                bytes[9..12].fill(0);
            }
            let read = || message(&bytes, fds);
            if read().is_err() {
                return Ok(());
            }
            let _ = read()?.base(0);
            let _ = read()?.config(60);
            let _ = read()?.inflight();
            let _ = read()?.done(Request::SetMemTable);
            let _ = read()?.backend_request();
        }
    }
}
