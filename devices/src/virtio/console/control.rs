//! What the driver is still to be told about its ports, and what it tells us.
//!
//! Messages to the driver are not queued: each port has flags for what is due, and the message is
//! made when the driver has a buffer for it. So a peer that comes and goes a thousand times while
//! the guest sleeps costs nothing, and the guest hears of the last state.

use bitflags::bitflags;

use super::{MAX_NAME, MAX_PORTS};

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_REMOVE: u16 = 2;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// Bytes of a message's fixed part: `le32 id, le16 event, le16 value`.
pub(super) const HEADER: usize = 8;

bitflags! {
    /// What a driver is still to be told about a port, in this order.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct Due: u8 {
        /// The port of this number is gone.
        const REMOVE = 1;
        /// There is a port of this number.
        const ADD = 2;
        /// It is a console.
        const CONSOLE = 4;
        /// It has a name.
        const NAME = 8;
        /// Whether its host side is open.
        const OPEN = 16;
    }
}

/// What is due, for all ports.
#[derive(Debug, Default)]
pub(super) struct Dues([Due; MAX_PORTS as usize]);

impl Dues {
    /// Adds to what is due for a port.
    pub(super) fn add(&mut self, number: u32, due: Due) {
        if let Some(dues) = slot(&mut self.0, number) {
            *dues |= due;
        }
    }

    /// Forgets what was due for a port.
    pub(super) fn cancel(&mut self, number: u32) {
        if let Some(dues) = slot(&mut self.0, number) {
            *dues = Due::empty();
        }
    }

    /// What is due of port `number`.
    pub(super) fn of(&self, number: u32) -> Due {
        let place = usize::try_from(number).ok();
        let due = place.and_then(|place| self.0.get(place));
        due.copied().unwrap_or_default()
    }

    /// Whether anything is due.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|due| due.is_empty())
    }

    /// Takes out the next thing that is due.
    pub(super) fn take(&mut self) -> Option<(u32, Due)> {
        let (number, dues) = (0u32..).zip(&mut self.0).find(|(_, due)| !due.is_empty())?;
        let next = dues.iter().next()?;
        dues.remove(next);
        Some((number, next))
    }
}

fn slot(dues: &mut [Due], number: u32) -> Option<&mut Due> {
    dues.get_mut(usize::try_from(number).ok()?)
}

/// A message to the driver, in its wire form.
pub(super) struct Message {
    bytes: [u8; HEADER + MAX_NAME],
    len: usize,
}

impl Message {
    /// The message for `due`, about a port that is `open` on the host side and has `name`.
    pub(super) fn new(number: u32, due: Due, open: bool, name: Option<&str>) -> Self {
        let (event, value) = match due {
            Due::REMOVE => (PORT_REMOVE, 1),
            Due::ADD => (PORT_ADD, 1),
            Due::CONSOLE => (CONSOLE_PORT, 1),
            Due::NAME => (PORT_NAME, 1),
            _ => (PORT_OPEN, u16::from(open)),
        };
        let mut message = Self {
            bytes: [0; HEADER + MAX_NAME],
            len: HEADER,
        };
        message.bytes[..4].copy_from_slice(&number.to_le_bytes());
        message.bytes[4..6].copy_from_slice(&event.to_le_bytes());
        message.bytes[6..8].copy_from_slice(&value.to_le_bytes());
        if let (Due::NAME, Some(name)) = (due, name) {
            let count = name.len().min(MAX_NAME);
            message.len = HEADER + count;
            message.bytes[HEADER..HEADER + count].copy_from_slice(&name.as_bytes()[..count]);
        }
        message
    }

    /// Its bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

/// What the driver says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// It knows ports now, or has failed to.
    DeviceReady(bool),
    /// It has set up a port, or has failed to.
    PortReady(u32, bool),
    /// A guest program opened or closed a port.
    PortOpen(u32, bool),
}

impl Order {
    /// Reads a message; `None` for one that is none of the driver's.
    pub(super) fn parse(header: [u8; HEADER]) -> Option<Self> {
        let [a, b, c, d, event @ .., e, f] = header;
        let number = u32::from_le_bytes([a, b, c, d]);
        let yes = u16::from_le_bytes([e, f]) != 0;
        match u16::from_le_bytes(event) {
            DEVICE_READY => Some(Self::DeviceReady(yes)),
            PORT_READY => Some(Self::PortReady(number, yes)),
            PORT_OPEN => Some(Self::PortOpen(number, yes)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dues_come_out_once_each_and_removal_first() {
        let mut dues = Dues::default();
        dues.add(3, Due::OPEN | Due::ADD);
        dues.add(3, Due::REMOVE | Due::OPEN);
        dues.add(400, Due::ADD);
        let taken: Vec<_> = std::iter::from_fn(|| dues.take()).collect();
        assert_eq!(taken, [(3, Due::REMOVE), (3, Due::ADD), (3, Due::OPEN)]);
        assert!(dues.is_empty());
    }

    #[test]
    fn messages_have_the_layout_of_the_specification() {
        let open = Message::new(0x0102, Due::OPEN, true, None);
        assert_eq!(open.bytes(), [2, 1, 0, 0, 6, 0, 1, 0]);
        let name = Message::new(1, Due::NAME, true, Some("org.x"));
        assert_eq!(name.bytes(), b"\x01\0\0\0\x07\0\x01\0org.x");
        let order = Order::parse([5, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(order, Some(Order::PortOpen(5, false)));
        assert_eq!(Order::parse([0, 0, 0, 0, 1, 0, 1, 0]), None);
    }
}
