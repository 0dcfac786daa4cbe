//! The other process: honest, or by a script.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use arbitrary::{Result, Unstructured};
use devices::vhost_user::message::{HEADER, words};
use fdset::scm::{recv_with_fds, send_with_fds};

use super::{QUEUES, connect, lock};
use crate::fds::Pool;

/// Where an honest one says that a queue stands.
pub(super) const BASE: u16 = 5;

const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const IS_REPLY: u32 = 4;
const WANTS_REPLY: u32 = 8;

/// What every back end offers while it is honest.
#[derive(Clone, Copy)]
pub(super) struct Honest {
    pub(super) features: u64,
    protocol: u64,
}

impl Honest {
    pub(super) fn arbitrary(input: &mut Unstructured<'_>) -> Result<Self> {
        let features = u64::from(input.arbitrary::<u16>()?);
        Ok(Self {
            features: features | VERSION_1 | PROTOCOL_FEATURES,
            protocol: u64::from(input.arbitrary::<u16>()?),
        })
    }

    /// The answer to a request, if it has one.
    fn answer(self, request: &Request) -> Option<Vec<u8>> {
        let payload = &request.payload;
        Some(match request.number {
            1 => words(&[self.features]),
            15 => words(&[self.protocol]),
            17 => words(&[QUEUES as u64]),
            11 => words(&[u64::from(payload[0]) | u64::from(BASE) << 32]),
            24 => payload.clone(),
            // It has no need of memory for what is under way.
            31 => vec![0; 24],
            _ => return (request.flags & WANTS_REPLY != 0).then(|| words(&[0])),
        })
    }
}

/// What a back end does instead of being honest, a few bytes for each request. It hangs up where
/// the script ends: it never just keeps silent, for it would be waited for.
pub(super) struct Script(Option<VecDeque<u8>>);

impl Script {
    /// None: it is honest as long as it is there.
    pub(super) fn honest() -> Self {
        Self(None)
    }

    pub(super) fn new(bytes: &[u8]) -> Self {
        Self(Some(bytes.iter().copied().collect()))
    }

    /// What it does about the next request; `None` at the end.
    fn next(&mut self) -> Option<Deed> {
        let Some(bytes) = &mut self.0 else {
            return Some(Deed::Answer);
        };
        let deed = bytes.pop_front()?;
        let mut byte = || bytes.pop_front().unwrap_or(0);
        Some(match deed {
            0..=159 => Deed::Answer,
            160..=179 => Deed::Change {
                at: byte().into(),
                by: byte(),
            },
            180..=194 => Deed::Number([(); 8].map(|()| byte())),
            195..=204 => Deed::Laden(byte()),
            205..=214 => Deed::Length(byte()),
            215..=224 => Deed::Cut(byte().into()),
            225..=234 => Deed::More(byte()),
            235..=249 => Deed::Ask([byte(), byte(), byte()]),
            _ => return None,
        })
    }
}

/// One of them.
enum Deed {
    /// What is honest.
    Answer,
    /// The same with another byte somewhere, but for its length.
    Change { at: usize, by: u8 },
    /// Another number.
    Number([u8; 8]),
    /// With fds.
    Laden(u8),
    /// With another length; nothing comes behind it.
    Length(u8),
    /// Only a part of it; nothing comes behind it.
    Cut(usize),
    /// With bytes behind it.
    More(u8),
    /// A request of its own first: its number, its flags, and how many bytes belong to it.
    Ask([u8; 3]),
}

struct Request {
    number: u32,
    flags: u32,
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// What it was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) regions: usize,
    pub(super) enabled: [bool; QUEUES],
}

/// The other process: here a thread.
pub(super) struct Peer {
    pub(super) told: Arc<Mutex<Told>>,
    stream: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    pub(super) fn call(path: &Path, honest: Honest, script: Script) -> Self {
        let stream = connect(path);
        let told = Arc::new(Mutex::new(Told::default()));
        let end = End {
            stream: stream.try_clone().expect("a descriptor"),
            told: Arc::clone(&told),
            back_channel: None,
        };
        Self {
            told,
            stream,
            thread: Some(thread::spawn(move || end.serve(honest, script))),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have hung up by itself.
        self.stream.shutdown(Shutdown::Both).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it does not panic");
        }
    }
}

/// Its end of the connection.
struct End {
    stream: UnixStream,
    told: Arc<Mutex<Told>>,
    back_channel: Option<UnixStream>,
}

impl End {
    fn serve(mut self, honest: Honest, mut script: Script) {
        while let Some(mut request) = self.hear() {
            self.note(&mut request);
            let Some(deed) = script.next() else {
                break;
            };
            let answer = honest.answer(&request);
            if !self.carry_out(&deed, request.number, answer) {
                break;
            }
        }
        self.stream.shutdown(Shutdown::Both).ok();
    }

    /// The next request, as long as there is a connection.
    fn hear(&mut self) -> Option<Request> {
        let mut head = [0; HEADER];
        let received = recv_with_fds(&self.stream, &mut head).ok()?;
        if received.bytes == 0 {
            return None;
        }
        self.stream.read_exact(&mut head[received.bytes..]).ok()?;
        let [number, flags, size] = *head.as_chunks::<4>().0 else {
            return None;
        };
        let size = usize::try_from(u32::from_le_bytes(size)).ok()?;
        let mut payload = vec![0; size];
        self.stream.read_exact(&mut payload).ok()?;
        Some(Request {
            number: u32::from_le_bytes(number),
            flags: u32::from_le_bytes(flags),
            payload,
            fds: received.fds,
        })
    }

    fn note(&mut self, request: &mut Request) {
        let mut told = lock(&self.told);
        let first = request.payload.first().copied().map_or(0, usize::from);
        match request.number {
            5 => {
                assert_eq!(request.fds.len(), first, "an fd for each region");
                told.regions = first;
            }
            18 => told.enabled[first] = request.payload[4] != 0,
            21 => self.back_channel = request.fds.pop().map(UnixStream::from),
            _ => {}
        }
    }

    /// Whether it goes on.
    fn carry_out(&mut self, deed: &Deed, number: u32, answer: Option<Vec<u8>>) -> bool {
        if let (Deed::Answer, None) = (deed, &answer) {
            return true;
        }
        let mut bytes = message(number, 1 | IS_REPLY, &answer.unwrap_or_default());
        let mut fds = 0;
        let mut goes_on = true;
        match deed {
            Deed::Answer => {}
            Deed::Change { at, by } => {
                let places = bytes.len() - 4;
                let at = at % places;
                bytes[if at < 8 { at } else { at + 4 }] ^= by;
            }
            Deed::Number(number_bytes) => bytes = message(number, 1 | IS_REPLY, number_bytes),
            Deed::Laden(count) => fds = usize::from(count % 12),
            Deed::Length(by) => {
                bytes[8] ^= by;
                goes_on = false;
            }
            Deed::Cut(at) => {
                bytes.truncate(at % bytes.len());
                goes_on = false;
            }
            Deed::More(count) => bytes.extend(vec![7; usize::from(*count)]),
            Deed::Ask([kind, flags, len]) => {
                let asked = message(
                    u32::from(kind % 16),
                    1 | u32::from(*flags),
                    &vec![0; usize::from(*len)],
                );
                if let Some(channel) = &mut self.back_channel {
                    // It may have been closed, as nobody is believed for ever.
                    channel.write_all(&asked).ok();
                }
            }
        }
        let pool = Pool::of_this_process();
        let fds: Vec<_> = (0..fds).map(|index| pool.fd(index).0.as_fd()).collect();
        // The other side may have hung up.
        let sent = send_with_fds(&self.stream, &bytes, &fds);
        goes_on && sent.is_ok()
    }
}

fn message(number: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("small");
    let head = [number, flags, len];
    let head = head.iter().flat_map(|number| number.to_le_bytes());
    head.chain(payload.iter().copied()).collect()
}
