//! The registers of a 16550A: a pure state machine (TI PC16550D data sheet, section 8).
//!
//! ```text
//!   offset  read                      write                 with LCR.DLAB
//!     0     received byte             byte to send          divisor, low
//!     1     interrupt enable          interrupt enable      divisor, high
//!     2     interrupt identification  FIFO control
//!     3     line control              line control
//!     4     modem control             modem control
//!     5     line status
//!     6     modem status
//!     7     scratch                   scratch
//! ```
//!
//! Time does not pass here: a byte that the host takes is sent at once, and input below the FIFO's
//! trigger level is reported as a character timeout without waiting for one.

use serde::{Deserialize, Serialize};

use crate::state::SavedState;

/// Bytes in each FIFO.
pub const FIFO: usize = 16;

const IER_RECEIVED: u8 = 0x01;
const IER_SENT: u8 = 0x02;
const IER_LINE: u8 = 0x04;
const IER_MODEM: u8 = 0x08;
const IER_ALL: u8 = 0x0f;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM: u8 = 0x00;
const IIR_SENT: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFO: u8 = 0xc0;

const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR_RECEIVER: u8 = 0x02;
const FCR_CLEAR_SENDER: u8 = 0x04;
const FCR_KEPT: u8 = 0xc1;

const LCR_DLAB: u8 = 0x80;

const MCR_DTR: u8 = 0x01;
const MCR_RTS: u8 = 0x02;
const MCR_OUT1: u8 = 0x04;
const MCR_OUT2: u8 = 0x08;
const MCR_LOOP: u8 = 0x10;
const MCR_ALL: u8 = 0x1f;

const LSR_READY: u8 = 0x01;
const LSR_OVERRUN: u8 = 0x02;
const LSR_HOLDING_EMPTY: u8 = 0x20;
const LSR_SENDER_EMPTY: u8 = 0x40;

const MSR_CTS: u8 = 0x10;
const MSR_DSR: u8 = 0x20;
const MSR_RI: u8 = 0x40;
const MSR_DCD: u8 = 0x80;

/// Which modem output is which modem input in loopback.
const LOOPED: [(u8, u8); 4] = [
    (MCR_RTS, MSR_CTS),
    (MCR_DTR, MSR_DSR),
    (MCR_OUT1, MSR_RI),
    (MCR_OUT2, MSR_DCD),
];

/// A short queue of bytes, as the chip has two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Fifo {
    bytes: [u8; FIFO],
    len: usize,
}

impl Fifo {
    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }

    /// Adds a byte; one that finds no room is lost.
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    /// Takes out the oldest `count` bytes.
    fn consume(&mut self, count: usize) {
        let count = count.min(self.len);
        self.bytes.copy_within(count..self.len, 0);
        self.len -= count;
    }

    fn pop(&mut self) -> Option<u8> {
        let first = self.as_slice().first().copied()?;
        self.consume(1);
        Some(first)
    }

    fn load(bytes: &[u8]) -> Self {
        let mut fifo = Self::default();
        for &byte in bytes {
            fifo.push(byte);
        }
        fifo
    }
}

/// The chip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    received: Fifo,
    /// What the host did not take yet.
    unsent: Fifo,
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    modem_deltas: u8,
    overrun: bool,
    /// The holding register has become empty and the driver was not told yet.
    sent: bool,
    scratch: u8,
    divisor: [u8; 2],
}

impl Default for Registers {
    /// After power-on: 9600 baud, interrupts and FIFOs off.
    fn default() -> Self {
        Self {
            received: Fifo::default(),
            unsent: Fifo::default(),
            interrupt_enable: 0,
            fifo_control: 0,
            line_control: 0,
            modem_control: MCR_OUT2,
            modem_deltas: 0,
            overrun: false,
            sent: false,
            scratch: 0,
            divisor: [12, 0],
        }
    }
}

impl Registers {
    /// The driver reads the register at `offset` (0 to 7).
    pub fn read(&mut self, offset: u64) -> u8 {
        match offset {
            0 if self.has_divisor() => self.divisor[0],
            1 if self.has_divisor() => self.divisor[1],
            0 => self.received.pop().unwrap_or(0),
            1 => self.interrupt_enable,
            2 => {
                let cause = self.cause();
                if cause == IIR_SENT {
                    self.sent = false;
                }
                let fifo = if self.has_fifo() { IIR_FIFO } else { 0 };
                cause | fifo
            }
            3 => self.line_control,
            4 => self.modem_control,
            5 => {
                let status = self.line_status();
                self.overrun = false;
                status
            }
            6 => self.modem_lines() | std::mem::take(&mut self.modem_deltas),
            7 => self.scratch,
            _ => 0xff,
        }
    }

    /// The driver writes the register at `offset` (0 to 7). Gives a byte that the host is to
    /// take; what it does not take goes to [`keep`](Self::keep).
    #[must_use]
    pub fn write(&mut self, offset: u64, value: u8) -> Option<u8> {
        match offset {
            0 if self.has_divisor() => self.divisor[0] = value,
            1 if self.has_divisor() => self.divisor[1] = value,
            0 => return self.transmit(value),
            1 => {
                let enabled = value & IER_ALL & !self.interrupt_enable;
                self.interrupt_enable = value & IER_ALL;
                // Enabling the interrupt while the register is empty reports so at once.
                if enabled & IER_SENT != 0 && self.unsent.len == 0 {
                    self.sent = true;
                }
            }
            2 => self.control_fifos(value),
            3 => self.line_control = value,
            4 => {
                let before = self.modem_lines();
                self.modem_control = value & MCR_ALL;
                let changed = before ^ self.modem_lines();
                // The ring indicator counts only its end; the others count both ways.
                let rang = changed & MSR_RI & before;
                self.modem_deltas |= ((changed & !MSR_RI) | rang) >> 4;
            }
            7 => self.scratch = value,
            _ => {}
        }
        None
    }

    /// Keeps a byte that the host did not take: the line is busy until it does.
    pub fn keep(&mut self, byte: u8) {
        self.sent = false;
        self.unsent.push(byte);
    }

    /// What the host did not take yet.
    #[must_use]
    pub fn unsent(&self) -> &[u8] {
        self.unsent.as_slice()
    }

    /// The host has taken `count` of the unsent bytes.
    pub fn taken(&mut self, count: usize) {
        self.unsent.consume(count);
        if self.unsent.len == 0 {
            self.sent = true;
        }
    }

    /// How many bytes the receiver can take: none in loopback, where the line is cut off.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.is_looped() {
            return 0;
        }
        self.depth().saturating_sub(self.received.len)
    }

    /// Bytes come in over the line; returns how many fitted.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        for &byte in bytes.iter().take(count) {
            self.received.push(byte);
        }
        count
    }

    /// The level of the interrupt line.
    #[must_use]
    pub fn interrupt(&self) -> bool {
        self.cause() != IIR_NONE
    }

    fn transmit(&mut self, byte: u8) -> Option<u8> {
        if self.is_looped() {
            if self.received.len < self.depth() {
                self.received.push(byte);
            } else {
                self.overrun = true;
            }
            self.sent = true;
            return None;
        }
        if self.unsent.len > 0 {
            // A driver that writes into a full sender loses the byte, as on the chip.
            if self.unsent.len < self.depth() {
                self.unsent.push(byte);
            }
            return None;
        }
        self.sent = true;
        Some(byte)
    }

    fn control_fifos(&mut self, value: u8) {
        let switched = (value ^ self.fifo_control) & FCR_ENABLE != 0;
        if switched || value & FCR_CLEAR_RECEIVER != 0 {
            self.received = Fifo::default();
        }
        if switched || value & FCR_CLEAR_SENDER != 0 {
            self.unsent = Fifo::default();
            self.sent = true;
        }
        self.fifo_control = value & FCR_KEPT;
    }

    /// The most urgent interrupt that is pending and enabled, as the driver reads it.
    fn cause(&self) -> u8 {
        let enabled = |bit| self.interrupt_enable & bit != 0;
        if enabled(IER_LINE) && self.overrun {
            IIR_LINE
        } else if enabled(IER_RECEIVED) && self.received.len > 0 {
            if self.has_fifo() && self.received.len < self.trigger() {
                IIR_TIMEOUT
            } else {
                IIR_RECEIVED
            }
        } else if enabled(IER_SENT) && self.sent {
            IIR_SENT
        } else if enabled(IER_MODEM) && self.modem_deltas != 0 {
            IIR_MODEM
        } else {
            IIR_NONE
        }
    }

    fn line_status(&self) -> u8 {
        let mut status = 0;
        if self.received.len > 0 {
            status |= LSR_READY;
        }
        if self.overrun {
            status |= LSR_OVERRUN;
        }
        if self.unsent.len == 0 {
            status |= LSR_HOLDING_EMPTY | LSR_SENDER_EMPTY;
        }
        status
    }

    /// The other side is always ready; in loopback the other side is this one.
    fn modem_lines(&self) -> u8 {
        if !self.is_looped() {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        LOOPED
            .iter()
            .filter(|(output, _)| self.modem_control & output != 0)
            .fold(0, |lines, (_, input)| lines | input)
    }

    fn has_divisor(&self) -> bool {
        self.line_control & LCR_DLAB != 0
    }

    fn has_fifo(&self) -> bool {
        self.fifo_control & FCR_ENABLE != 0
    }

    fn is_looped(&self) -> bool {
        self.modem_control & MCR_LOOP != 0
    }

    fn depth(&self) -> usize {
        if self.has_fifo() { FIFO } else { 1 }
    }

    fn trigger(&self) -> usize {
        [1, 4, 8, 14][usize::from(self.fifo_control >> 6)]
    }

    /// What a snapshot keeps.
    #[must_use]
    pub fn save(&self) -> UartState {
        UartState {
            received: self.received.as_slice().to_vec(),
            unsent: self.unsent.as_slice().to_vec(),
            interrupt_enable: self.interrupt_enable,
            fifo_control: self.fifo_control,
            line_control: self.line_control,
            modem_control: self.modem_control,
            modem_deltas: self.modem_deltas,
            overrun: self.overrun,
            sent: self.sent,
            scratch: self.scratch,
            divisor: self.divisor,
        }
    }

    /// The chip as it was saved; bits that no chip has and bytes beyond its FIFOs are left out.
    #[must_use]
    pub fn load(state: &UartState) -> Self {
        Self {
            received: Fifo::load(&state.received),
            unsent: Fifo::load(&state.unsent),
            interrupt_enable: state.interrupt_enable & IER_ALL,
            fifo_control: state.fifo_control & FCR_KEPT,
            line_control: state.line_control,
            modem_control: state.modem_control & MCR_ALL,
            modem_deltas: state.modem_deltas & 0x0f,
            overrun: state.overrun,
            sent: state.sent,
            scratch: state.scratch,
            divisor: state.divisor,
        }
    }
}

/// A 16550A in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartState {
    /// Received and not read by the driver, oldest first.
    pub received: Vec<u8>,
    /// Written by the driver and not taken by the host, oldest first.
    pub unsent: Vec<u8>,
    /// IER.
    pub interrupt_enable: u8,
    /// FCR: the enable bit and the trigger level.
    pub fifo_control: u8,
    /// LCR.
    pub line_control: u8,
    /// MCR.
    pub modem_control: u8,
    /// The low half of MSR.
    pub modem_deltas: u8,
    /// LSR's overrun bit.
    pub overrun: bool,
    /// Whether "holding register empty" is still to be reported.
    pub sent: bool,
    /// SCR.
    pub scratch: u8,
    /// DLL and DLM.
    pub divisor: [u8; 2],
}

impl SavedState for UartState {
    const KIND: &'static str = "uart16550";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_linux_driver_finds_a_16550a() {
        let mut chip = Registers::default();
        // The scratch register holds, the FIFO bits answer, loopback shows the modem lines.
        assert_eq!(chip.write(7, 0xa5), None);
        assert_eq!(chip.read(7), 0xa5);
        assert_eq!(chip.write(2, FCR_ENABLE), None);
        assert_eq!(chip.read(2) & IIR_FIFO, IIR_FIFO);
        assert_eq!(chip.write(4, MCR_LOOP | MCR_OUT2 | MCR_RTS), None);
        assert_eq!(chip.read(6) & 0xf0, MSR_DCD | MSR_CTS);
        assert_eq!(chip.write(4, MCR_OUT2), None);
        assert_eq!(chip.read(6) & 0xf0, MSR_CTS | MSR_DSR | MSR_DCD);
    }

    #[test]
    fn what_is_sent_in_loopback_is_received_and_the_17th_byte_overruns() {
        let mut chip = Registers::default();
        for (offset, value) in [(2, FCR_ENABLE), (4, MCR_LOOP), (1, IER_LINE)] {
            assert_eq!(chip.write(offset, value), None);
        }
        for byte in 0..17 {
            assert_eq!(chip.write(0, byte), None);
        }
        assert!(chip.interrupt());
        assert_eq!(chip.read(2) & 0x0f, IIR_LINE);
        let status = chip.read(5);
        assert_eq!(status & (LSR_READY | LSR_OVERRUN), LSR_READY | LSR_OVERRUN);
        assert!(!chip.interrupt(), "reading the status clears the overrun");
        let received: Vec<u8> = (0..16).map(|_| chip.read(0)).collect();
        assert_eq!(received, (0..16).collect::<Vec<u8>>());
        assert_eq!(chip.read(5) & LSR_READY, 0);
    }

    #[test]
    fn the_sender_interrupt_comes_when_enabled_and_goes_when_identified() {
        let mut chip = Registers::default();
        assert!(!chip.interrupt());
        assert_eq!(chip.write(1, IER_SENT), None);
        assert!(chip.interrupt());
        assert_eq!(chip.read(2) & 0x0f, IIR_SENT);
        assert!(!chip.interrupt());
        assert_eq!(chip.write(0, b'x'), Some(b'x'));
        assert!(chip.interrupt(), "the byte left at once");
    }

    #[test]
    fn an_untaken_byte_keeps_the_sender_busy_until_the_host_takes_it() {
        let mut chip = Registers::default();
        assert_eq!(chip.write(1, IER_SENT), None);
        assert_eq!(chip.write(0, b'x'), Some(b'x'));
        chip.keep(b'x');
        assert!(!chip.interrupt());
        assert_eq!(chip.read(5) & LSR_HOLDING_EMPTY, 0);
        assert_eq!(chip.write(0, b'y'), None, "without a FIFO: one place");
        assert_eq!(chip.unsent(), b"x");
        chip.taken(1);
        assert!(chip.interrupt());
        assert_eq!(chip.read(5) & LSR_HOLDING_EMPTY, LSR_HOLDING_EMPTY);
    }

    #[test]
    fn input_is_taken_up_to_the_depth_and_reported_by_level() {
        let mut chip = Registers::default();
        assert_eq!(chip.room(), 1);
        assert_eq!(chip.write(2, FCR_ENABLE | 0x80), None);
        assert_eq!(chip.write(1, IER_RECEIVED), None);
        assert_eq!(chip.receive(b"abc"), 3);
        assert_eq!(chip.read(2) & 0x0f, IIR_TIMEOUT);
        assert_eq!(chip.receive(&[0; 20]), 13);
        assert_eq!(chip.read(2) & 0x0f, IIR_RECEIVED);
        assert_eq!(chip.room(), 0);
        assert_eq!(chip.read(0), b'a');
        assert_eq!(chip.room(), 1);
    }

    proptest! {
        #[test]
        fn no_driver_breaks_the_chip_and_its_state_survives_a_snapshot(
            accesses in prop::collection::vec((any::<bool>(), 0u64..8, any::<u8>()), 0..200),
        ) {
            let mut chip = Registers::default();
            for (write, offset, value) in accesses {
                if write {
                    if let Some(byte) = chip.write(offset, value) {
                        chip.keep(byte);
                    }
                } else {
                    chip.read(offset);
                    chip.receive(&[value; 3]);
                }
                prop_assert!(chip.received.len <= FIFO && chip.unsent.len <= FIFO);
            }
            prop_assert_eq!(Registers::load(&chip.save()).save(), chip.save());
        }
    }
}
