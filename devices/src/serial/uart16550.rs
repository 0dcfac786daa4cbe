//! A 16550A on a port range, an interrupt line and a chardev.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::registers::{Registers, UartState};
use crate::bus::BusDevice;
use crate::chardev::{Chardev, ChardevError, ChardevLease, Frontend};
use crate::irq::IrqLine;
use crate::lifecycle::Lifecycle;
use crate::state::{StateError, Stateful};

/// Ports the chip occupies.
pub const PORTS: u64 = 8;

/// First port and interrupt line of the PC's serial lines, COM1 to COM4.
pub const COM: [(u64, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

/// A serial line of the guest. Without a chardev its output is dropped.
pub struct Uart16550 {
    irq: Arc<dyn IrqLine>,
    /// Held while the interrupt line is driven and while the chardev takes a byte, so that the
    /// line's level and the bytes follow the order of the registers. Neither calls back.
    chip: Mutex<Chip>,
}

struct Chip {
    registers: Registers,
    lease: Option<ChardevLease>,
    paused: bool,
}

impl Chip {
    fn send(&mut self, byte: u8) {
        if let Some(lease) = &self.lease
            && lease.write(&[byte]) == 0
        {
            self.registers.keep(byte);
        }
    }

    fn send_unsent(&mut self) {
        let unsent = self.registers.unsent();
        let count = match &self.lease {
            _ if unsent.is_empty() => return,
            Some(lease) => lease.write(unsent),
            None => unsent.len(),
        };
        self.registers.taken(count);
    }

    fn ask_for_input(&self) {
        if let Some(lease) = &self.lease {
            lease.resume_input();
        }
    }
}

impl Uart16550 {
    /// A line that drives `irq`, with no chardev yet.
    #[must_use]
    pub fn new(irq: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self {
            irq,
            chip: Mutex::new(Chip {
                registers: Registers::default(),
                lease: None,
                paused: false,
            }),
        })
    }

    /// Connects the line to `chardev` for the rest of its life.
    ///
    /// # Errors
    /// Another device has the chardev.
    pub fn connect(self: &Arc<Self>, chardev: &Arc<Chardev>) -> Result<(), ChardevError> {
        let frontend: Arc<dyn Frontend> = Arc::clone(self) as _;
        let lease = chardev.attach(&frontend)?;
        // There is always a line, whether or not a driver listens.
        lease.set_open(true);
        let replaced = self.chip().lease.replace(lease);
        drop(replaced);
        Ok(())
    }

    fn chip(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stateful for Uart16550 {
    type State = UartState;

    fn save(&self) -> UartState {
        self.chip().registers.save()
    }

    fn load(&self, state: UartState) -> Result<(), StateError> {
        let mut chip = self.chip();
        chip.registers = Registers::load(&state);
        self.irq.set(chip.registers.interrupt());
        Ok(())
    }
}

impl BusDevice for Uart16550 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut chip = self.chip();
        for (register, byte) in (offset..).zip(data.iter_mut()) {
            *byte = chip.registers.read(register);
        }
        self.irq.set(chip.registers.interrupt());
        if chip.registers.room() > 0 {
            chip.ask_for_input();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut chip = self.chip();
        for (register, &byte) in (offset..).zip(data) {
            if let Some(sent) = chip.registers.write(register, byte) {
                chip.send(sent);
            }
        }
        self.irq.set(chip.registers.interrupt());
        // A FIFO that was switched on or emptied has room.
        if chip.registers.room() > 0 {
            chip.ask_for_input();
        }
    }
}

impl Frontend for Uart16550 {
    fn room(&self) -> usize {
        let chip = self.chip();
        if chip.paused {
            return 0;
        }
        chip.registers.room()
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        let mut chip = self.chip();
        if chip.paused {
            return 0;
        }
        let taken = chip.registers.receive(bytes);
        self.irq.set(chip.registers.interrupt());
        taken
    }

    fn writable(&self) {
        let mut chip = self.chip();
        // A paused chip sends when it is resumed.
        if !chip.paused {
            chip.send_unsent();
            self.irq.set(chip.registers.interrupt());
        }
    }
}

impl Lifecycle for Uart16550 {
    fn pause(&self) {
        self.chip().paused = true;
    }

    fn resume(&self) {
        let mut chip = self.chip();
        chip.paused = false;
        chip.send_unsent();
        self.irq.set(chip.registers.interrupt());
        chip.ask_for_input();
    }

    fn reset(&self) {
        let mut chip = self.chip();
        chip.registers = Registers::default();
        self.irq.set(false);
    }
}

impl fmt::Debug for Uart16550 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uart16550").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::time::Duration;

    use fdset::{Door, FdRegistry, Scope, SocketAddress};

    use super::*;
    use crate::chardev::{BackendSpec, ChardevSpec, SocketRole, SocketSpec};
    use crate::reactor::Reactor;

    const PATIENCE: Duration = Duration::from_secs(20);
    const HOLDING_EMPTY: u8 = 0x20;

    /// Tells of each change of the line.
    struct Line(Mutex<(bool, Sender<bool>)>);

    impl IrqLine for Line {
        fn set(&self, high: bool) {
            let mut line = self.0.lock().unwrap();
            if line.0 != high {
                line.0 = high;
                line.1.send(high).ok();
            }
        }
    }

    fn uart() -> (Arc<Uart16550>, Receiver<bool>) {
        let (send, changes) = mpsc::channel();
        let line = Line(Mutex::new((false, send)));
        (Uart16550::new(Arc::new(line)), changes)
    }

    fn connected() -> (Arc<Uart16550>, Receiver<bool>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
        let passed = OwnedFd::from(theirs);
        door.registry()
            .add_named(
                Scope::Process,
                "peer",
                fdset::Handover::new(passed, fdset::Origin::CommandLine),
            )
            .unwrap();
        let socket = SocketSpec {
            address: SocketAddress::Fd {
                name: "peer".to_owned(),
            },
            role: SocketRole::Client,
            nodelay: false,
        };
        let spec = ChardevSpec {
            backend: BackendSpec::Socket(socket),
            log: None,
        };
        let chardev = Chardev::open("serial0", &spec, &door, &Reactor::new()).unwrap();
        let (uart, changes) = uart();
        uart.connect(&chardev).unwrap();
        assert!(chardev.frontend_open());
        (uart, changes, ours)
    }

    fn peek(uart: &Uart16550, register: u64) -> u8 {
        let mut byte = [0];
        uart.read(register, &mut byte);
        byte[0]
    }

    #[test]
    fn what_the_guest_writes_reaches_the_peer_and_an_echo_interrupts_the_guest() {
        let (uart, changes, mut peer) = connected();
        uart.write(2, &[1]);
        uart.write(1, &[1]);
        for byte in b"hello" {
            uart.write(0, &[*byte]);
        }
        let mut seen = [0; 5];
        peer.read_exact(&mut seen).unwrap();
        peer.write_all(&seen).unwrap();
        let mut echo = Vec::new();
        while echo.len() < 5 {
            assert!(changes.recv_timeout(PATIENCE).unwrap(), "the line rises");
            while peek(&uart, 5) & 1 != 0 {
                echo.push(peek(&uart, 0));
            }
            assert!(!changes.recv_timeout(PATIENCE).unwrap(), "and falls");
        }
        assert_eq!(echo, b"hello");
    }

    #[test]
    fn more_input_than_the_fifo_holds_waits_for_the_guest() {
        let (uart, _changes, mut peer) = connected();
        let text: Vec<u8> = (0..100).collect();
        // Switching the FIFO on empties it: what came before would be lost, as on the chip.
        uart.write(2, &[1]);
        peer.write_all(&text).unwrap();
        let mut got = Vec::new();
        let waited = std::time::Instant::now();
        while got.len() < text.len() {
            assert!(waited.elapsed() < PATIENCE, "input was lost");
            if peek(&uart, 5) & 1 != 0 {
                got.push(peek(&uart, 0));
            }
        }
        assert_eq!(got, text);
    }

    #[test]
    fn a_peer_that_does_not_read_keeps_the_sender_busy_and_loses_nothing() {
        let (uart, changes, mut peer) = connected();
        let mut sent = 0usize;
        while peek(&uart, 5) & HOLDING_EMPTY != 0 {
            uart.write(0, &sent.to_le_bytes()[..1]);
            sent += 1;
            assert!(sent < 16 << 20, "nothing holds the guest back");
        }
        uart.write(1, &[2]);
        assert!(changes.try_recv().is_err(), "the sender is not empty");
        let mut seen = vec![0; sent];
        peer.read_exact(&mut seen).unwrap();
        assert!(changes.recv_timeout(PATIENCE).unwrap());
        assert_ne!(peek(&uart, 5) & HOLDING_EMPTY, 0);
        assert!((0..sent).all(|n| seen[n] == n.to_le_bytes()[0]));
    }

    #[test]
    fn a_paused_line_takes_no_input_and_its_state_moves_to_another() {
        let (uart, _changes, mut peer) = connected();
        uart.write(7, &[0x5a]);
        uart.pause();
        peer.write_all(b"x").unwrap();
        assert_eq!(uart.save().received, b"");
        let (copy, _) = self::uart();
        copy.load(uart.save()).unwrap();
        assert_eq!(peek(&copy, 7), 0x5a);
        copy.reset();
        assert_eq!(peek(&copy, 7), 0);
        uart.resume();
        let waited = std::time::Instant::now();
        while peek(&uart, 5) & 1 == 0 {
            assert!(waited.elapsed() < PATIENCE, "input was lost");
        }
        assert_eq!(peek(&uart, 0), b'x');
    }

    #[test]
    fn without_a_chardev_output_is_dropped_at_once() {
        let (uart, _changes) = uart();
        for _ in 0..100 {
            uart.write(0, b"x");
            assert_ne!(peek(&uart, 5) & HOLDING_EMPTY, 0);
        }
    }

    #[test]
    fn wide_accesses_reach_consecutive_registers() {
        let (uart, _changes) = uart();
        uart.write(6, &[0xff, 0x12, 0x34, 0x56]);
        let mut bytes = [0; 4];
        uart.read(6, &mut bytes);
        assert_eq!(bytes, [0xb0, 0x12, 0xff, 0xff]);
    }
}
