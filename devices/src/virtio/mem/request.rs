//! What a driver asks, and what it is told (virtio 1.2, 5.15.6).

/// The length of a request.
pub(super) const REQUEST_LEN: usize = 24;
/// The length of an answer.
pub(super) const ANSWER_LEN: usize = 10;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// Some blocks, as a driver names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// Where the first one begins.
    pub(super) address: u64,
    /// How many they are.
    pub(super) count: u16,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemRequest {
    /// To use blocks.
    Plug(Named),
    /// To do without blocks.
    Unplug(Named),
    /// To do without all of them.
    UnplugAll,
    /// To be told of blocks.
    State(Named),
}

impl MemRequest {
    /// What these bytes ask; `None` if there is no such request.
    pub(super) fn parse(bytes: &[u8; REQUEST_LEN]) -> Option<Self> {
        let [low, high, _, _, _, _, _, _, rest @ ..] = bytes;
        let [a, b, c, d, e, f, g, h, count_low, count_high, ..] = rest;
        let named = Named {
            address: u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
            count: u16::from_le_bytes([*count_low, *count_high]),
        };
        match u16::from_le_bytes([*low, *high]) {
            PLUG => Some(Self::Plug(named)),
            UNPLUG => Some(Self::Unplug(named)),
            UNPLUG_ALL => Some(Self::UnplugAll),
            STATE => Some(Self::State(named)),
            _ => None,
        }
    }
}

/// An answer; the numbers are the specification's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is done.
    Ack = 0,
    /// Not now: the host does not want it.
    Nack = 1,
    /// Not now: the host is not able to.
    Busy = 2,
    /// Never: the driver asked wrongly.
    Error = 3,
}

/// What is told of blocks; the numbers are the specification's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plugged {
    /// All are plugged.
    All = 0,
    /// None is.
    None = 1,
    /// Some are.
    Some = 2,
}

/// The bytes of an answer.
pub(super) fn answer_bytes(answer: Answer, state: Option<Plugged>) -> [u8; ANSWER_LEN] {
    let mut bytes = [0; ANSWER_LEN];
    let [first, .., state_low, _] = &mut bytes;
    *first = answer as u8;
    *state_low = state.map_or(0, |state| state as u8);
    bytes
}
