//! A 16550A on a port range, an interrupt line and a chardev.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::registers::{Registers, UartState};
use crate::bus::BusDevice;
use crate::chardev::{Chardev, ChardevError, ChardevLease, Frontend};
use crate::irq::IrqLine;
use crate::lifecycle::Lifecycle;

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

    /// What a snapshot keeps. Called while paused.
    #[must_use]
    pub fn save(&self) -> UartState {
        self.chip().registers.save()
    }

    /// Goes back to a saved state. Called while paused or before the start.
    pub fn load(&self, state: &UartState) {
        let mut chip = self.chip();
        chip.registers = Registers::load(state);
        self.irq.set(chip.registers.interrupt());
    }

    fn chip(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
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
