//! The commands of the qtest protocol, one line each, and what they do to the machine.
//!
//! Numbers are read as C's `strtoul` with base 0 reads them; answers begin with `OK`, `ERR` or
//! `FAIL`. Memory that is neither RAM nor a device's reads as all ones, as for a CPU.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use devices::bus::Bus;
use devices::memory::GuestMem;
use devices::vm_clock::TestedClock;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::irqs::TestedIrqs;
use crate::base64;

/// The most bytes that one command reads or writes.
const MOST: u64 = 32 << 20;

/// The interrupt controller's name.
const CONTROLLER: &str = "ioapic";
/// What inputs without a name are called.
const UNNAMED: &str = "unnamed-gpio-in";

/// What a tester drives: what a CPU of the machine sees.
pub struct Target {
    /// The ports.
    pub ports: Arc<Bus>,
    /// Memory that is not RAM.
    pub mmio: Arc<Bus>,
    /// RAM.
    pub memory: GuestMem,
    /// Its interrupts; `None` while its vCPUs take them.
    pub irqs: Option<Arc<TestedIrqs>>,
}

/// A tester's view of the machine and its clock.
pub(super) struct Session {
    /// `None` for a machine without a board.
    target: Option<Target>,
    /// The tester's clock: that of devices, and of the limits of events, where the tester is in
    /// the place of the CPUs.
    clock: Arc<TestedClock>,
}

/// Why a line is not answered with `OK`: the whole answer.
type Refused = String;

impl Session {
    pub(super) fn new(target: Option<Target>, clock: Arc<TestedClock>) -> Self {
        Self { target, clock }
    }

    pub(super) fn aim(&mut self, target: Target) {
        self.target = Some(target);
    }

    /// The answer to one line, without its end.
    pub(super) fn answer(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let (name, arguments) = words.split_first().unwrap_or((&"", &[]));
        self.run(name, arguments).unwrap_or_else(|refused| refused)
    }

    fn run(&mut self, name: &str, arguments: &[&str]) -> Result<String, Refused> {
        match name {
            "endianness" => Ok("OK little".to_owned()),
            "outb" | "outw" | "outl" => self.write_port(width_of(name), arguments),
            "inb" | "inw" | "inl" => self.read_port(width_of(name), arguments),
            "writeb" | "writew" | "writel" | "writeq" => self.poke(width_of(name), arguments),
            "readb" | "readw" | "readl" | "readq" => self.peek(width_of(name), arguments),
            "read" => self.read(arguments, |bytes| format!("OK 0x{}", hex(bytes))),
            "b64read" => self.read(arguments, |bytes| format!("OK {}", base64::encode(bytes))),
            "write" => self.write(arguments, |text, size| {
                let digits = text.strip_prefix("0x").unwrap_or_default();
                if digits.is_empty() {
                    return Err("ERR invalid argument size".to_owned());
                }
                Ok(unhex(digits, size))
            }),
            "b64write" => self.write(arguments, |text, size| {
                let mut bytes = base64::decode(text).ok_or("ERR invalid base64")?;
                bytes.truncate(size);
                Ok(bytes)
            }),
            "memset" => self.write(arguments, |text, size| {
                let [byte, ..] = number(text)?.to_le_bytes();
                Ok(vec![byte; size])
            }),
            "clock_step" => self.step_clock(arguments),
            "clock_set" => self.set_clock(argument(arguments, 0)?),
            "irq_intercept_in" => self.intercept(word(arguments, 0)?),
            "irq_intercept_out" => Err(match known_device(word(arguments, 0)?) {
                // Its outputs are the processors' inputs, of which there are none to be seen.
                Ok(()) => "FAIL No intercepts installed".to_owned(),
                Err(unknown) => unknown,
            }),
            "set_irq_in" => self.drive_irq(arguments),
            "module_load" => Err("FAIL nothing here is a module: all of it is built in".to_owned()),
            other => Err(format!("FAIL Unknown command '{other}'")),
        }
    }

    fn target(&self) -> Result<&Target, Refused> {
        let none = "FAIL this machine has no buses and no memory";
        self.target.as_ref().ok_or_else(|| none.to_owned())
    }

    fn write_port(&self, width: usize, arguments: &[&str]) -> Result<String, Refused> {
        let (port, value) = (argument(arguments, 0)?, argument(arguments, 1)?);
        let bytes = value.to_le_bytes();
        let bytes = bytes.get(..width).unwrap_or_default();
        self.target()?.ports.write(port_of(port)?, bytes);
        Ok("OK".to_owned())
    }

    fn read_port(&self, width: usize, arguments: &[&str]) -> Result<String, Refused> {
        let port = port_of(argument(arguments, 0)?)?;
        let mut bytes = [0; 8];
        let target = self.target()?;
        target
            .ports
            .read(port, bytes.get_mut(..width).unwrap_or_default());
        Ok(format!("OK 0x{:04x}", u64::from_le_bytes(bytes)))
    }

    fn poke(&self, width: usize, arguments: &[&str]) -> Result<String, Refused> {
        let (address, value) = (argument(arguments, 0)?, argument(arguments, 1)?);
        let bytes = value.to_le_bytes();
        self.target()?
            .write(address, bytes.get(..width).unwrap_or_default());
        Ok("OK".to_owned())
    }

    fn peek(&self, width: usize, arguments: &[&str]) -> Result<String, Refused> {
        let mut bytes = [0; 8];
        let address = argument(arguments, 0)?;
        self.target()?
            .read(address, bytes.get_mut(..width).unwrap_or_default());
        Ok(format!("OK 0x{:016x}", u64::from_le_bytes(bytes)))
    }

    fn read(&self, arguments: &[&str], show: fn(&[u8]) -> String) -> Result<String, Refused> {
        let address = argument(arguments, 0)?;
        let mut bytes = vec![0; size_of(argument(arguments, 1)?)?];
        self.target()?.read(address, &mut bytes);
        Ok(show(&bytes))
    }

    fn write(
        &self,
        arguments: &[&str],
        bytes: impl FnOnce(&str, usize) -> Result<Vec<u8>, Refused>,
    ) -> Result<String, Refused> {
        let address = argument(arguments, 0)?;
        let size = size_of(argument(arguments, 1)?)?;
        let text = arguments.get(2).ok_or("ERR invalid argument size")?;
        self.target()?.write(address, &bytes(text, size)?);
        Ok("OK".to_owned())
    }

    /// What happened at intercepted pins since the last call: a pin and its new level.
    pub(super) fn take_news(&self) -> Vec<(u32, bool)> {
        let irqs = self.irqs();
        irqs.map(|irqs| irqs.take_news()).unwrap_or_default()
    }

    fn irqs(&self) -> Result<&Arc<TestedIrqs>, Refused> {
        let irqs = self.target()?.irqs.as_ref();
        irqs.ok_or_else(|| "FAIL the vCPUs have the interrupts: use -accel qtest".to_owned())
    }

    fn intercept(&self, path: &str) -> Result<String, Refused> {
        known_device(path)?;
        self.irqs()?.intercept();
        Ok("OK".to_owned())
    }

    fn drive_irq(&self, arguments: &[&str]) -> Result<String, Refused> {
        known_device(word(arguments, 0)?)?;
        let inputs = word(arguments, 1)?;
        if inputs != UNNAMED {
            return Err(format!("FAIL there are no inputs called '{inputs}'"));
        }
        let (number, level) = (argument(arguments, 2)?, argument(arguments, 3)?);
        let pin = u32::try_from(number).unwrap_or(u32::MAX);
        if self.irqs()?.drive(pin, level != 0) {
            Ok("OK".to_owned())
        } else {
            Err(format!("FAIL there is no input {number}"))
        }
    }

    fn step_clock(&mut self, arguments: &[&str]) -> Result<String, Refused> {
        let now = nanoseconds(self.clock.moved());
        let to = match arguments {
            [] => {
                let next = self.clock.next_deadline().map(nanoseconds);
                next.filter(|next| *next > now).ok_or(
                    "FAIL cannot advance clock to the next deadline because there is no pending \
                     deadline",
                )?
            }
            [_, ..] => now.saturating_add(argument(arguments, 0)?),
        };
        self.set_clock(to)
    }

    fn set_clock(&mut self, to: u64) -> Result<String, Refused> {
        let now = nanoseconds(self.clock.moved());
        if to < now {
            return Err(format!("FAIL the clock stands at {now} already"));
        }
        self.clock.advance(Duration::from_nanos(to));
        Ok(format!("OK {to}"))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Target {
    /// RAM where there is some, else whoever answers on the bus, an aligned word at a time.
    fn read(&self, address: u64, bytes: &mut [u8]) {
        let memory = self.memory.memory();
        if memory.read_slice(bytes, GuestAddress(address)).is_ok() {
            return;
        }
        let mut at = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (part, after) = rest.split_at_mut(piece(at, rest.len()));
            if memory.read_slice(part, GuestAddress(at)).is_err() {
                self.mmio.read(at, part);
            }
            at = at.wrapping_add(part.len() as u64);
            rest = after;
        }
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let memory = self.memory.memory();
        if memory.write_slice(bytes, GuestAddress(address)).is_ok() {
            return;
        }
        let mut at = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(piece(at, rest.len()));
            if memory.write_slice(part, GuestAddress(at)).is_err() {
                self.mmio.write(at, part);
            }
            at = at.wrapping_add(part.len() as u64);
            rest = after;
        }
    }
}

/// How much of `len` bytes at `address` one access takes: what a CPU would, aligned.
fn piece(address: u64, len: usize) -> usize {
    let fits = |size: &usize| *size <= len && address.is_multiple_of(*size as u64);
    [8, 4, 2].into_iter().find(fits).unwrap_or(1)
}

/// The bytes that the last letter of a command stands for.
fn width_of(command: &str) -> usize {
    match command.as_bytes().last() {
        Some(b'b') => 1,
        Some(b'w') => 2,
        Some(b'l') => 4,
        _ => 8,
    }
}

/// The only device whose inputs can be looked at and driven: by its name, or any path to it.
fn known_device(path: &str) -> Result<(), Refused> {
    let is_known = path.rsplit('/').next() == Some(CONTROLLER);
    is_known
        .then_some(())
        .ok_or_else(|| "FAIL Unknown device".to_owned())
}

fn word<'a>(arguments: &[&'a str], at: usize) -> Result<&'a str, Refused> {
    let word = arguments.get(at).copied();
    word.ok_or_else(|| "ERR missing argument".to_owned())
}

fn argument(arguments: &[&str], at: usize) -> Result<u64, Refused> {
    number(word(arguments, at)?)
}

fn number(text: &str) -> Result<u64, Refused> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None if text.len() > 1 && text.starts_with('0') => u64::from_str_radix(text, 8),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("ERR '{text}' is no number"))
}

fn port_of(number: u64) -> Result<u64, Refused> {
    match u16::try_from(number) {
        Ok(port) => Ok(u64::from(port)),
        Err(_) => Err(format!("ERR there is no port {number:#x}")),
    }
}

fn size_of(size: u64) -> Result<usize, Refused> {
    usize::try_from(size.min(MOST.saturating_add(1)))
        .ok()
        .filter(|_| (1..=MOST).contains(&size))
        .ok_or_else(|| format!("ERR a size is from 1 to {MOST}, not {size}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// `size` bytes from pairs of digits; zero where there are no more.
fn unhex(digits: &str, size: usize) -> Vec<u8> {
    let digits = digits.as_bytes();
    let nibble = |at: usize| {
        let digit = digits.get(at).copied().map(char::from);
        let value = digit.and_then(|digit| digit.to_digit(16)).unwrap_or(0);
        u8::try_from(value).unwrap_or(0)
    };
    (0..size)
        .map(|at| nibble(2 * at) << 4 | nibble(2 * at + 1))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use devices::bus::BusDevice;
    use std::time::Instant;

    use devices::vm_clock::Timed;
    use vm_memory::GuestMemoryMmap;

    use super::*;

    /// Four registers of a byte.
    #[derive(Default)]
    struct Registers(Mutex<[u8; 4]>);

    impl BusDevice for Registers {
        fn read(&self, offset: u64, data: &mut [u8]) {
            let registers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let from = usize::try_from(offset).unwrap();
            data.copy_from_slice(&registers[from..from + data.len()]);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            let mut registers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let from = usize::try_from(offset).unwrap();
            registers[from..from + data.len()].copy_from_slice(data);
        }
    }

    fn session() -> Session {
        let (ports, mmio) = (Arc::new(Bus::default()), Arc::new(Bus::default()));
        ports
            .insert(0x80, 4, Arc::new(Registers::default()))
            .unwrap();
        mmio.insert(0x10_0000, 4, Arc::new(Registers::default()))
            .unwrap();
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        Session::new(
            Some(Target {
                ports,
                mmio,
                memory: GuestMem::new(ram),
                irqs: Some(super::super::irqs::tests::irqs().0),
            }),
            TestedClock::new(),
        )
    }

    fn conversation(lines: &[(&str, &str)]) {
        let mut session = session();
        for (line, answer) in lines {
            assert_eq!(session.answer(line), *answer, "{line}");
        }
    }

    #[test]
    fn ports_and_memory_are_written_and_read_in_each_width() {
        conversation(&[
            ("endianness", "OK little"),
            ("outw 0x80 0x1234", "OK"),
            ("inb 0x81", "OK 0x0012"),
            ("inl 128", "OK 0x1234"),
            ("inw 0x500", "OK 0xffff"),
            ("writeq 0x10 0x1122334455667788", "OK"),
            ("readb 0x17", "OK 0x0000000000000011"),
            ("readl 0x10", "OK 0x0000000055667788"),
            ("writel 0x100000 0xcafe", "OK"),
            ("readw 0x100000", "OK 0x000000000000cafe"),
            ("readb 0x200000", "OK 0x00000000000000ff"),
        ]);
    }

    #[test]
    fn memory_goes_as_hexadecimal_and_as_base64() {
        conversation(&[
            ("write 0x20 4 0x0102ff", "OK"),
            ("read 0x20 0x4", "OK 0x0102ff00"),
            ("memset 0x20 2 0xaa", "OK"),
            ("b64read 0x20 4", "OK qqr/AA=="),
            ("b64write 0x40 3 AQID", "OK"),
            ("read 0x40 3", "OK 0x010203"),
            ("write 0x20 4 0", "ERR invalid argument size"),
            ("read 0x20 0", "ERR a size is from 1 to 33554432, not 0"),
        ]);
    }

    #[test]
    fn interrupts_are_driven_intercepted_and_told_of() {
        conversation(&[
            ("set_irq_in ioapic unnamed-gpio-in 4 1", "OK"),
            (
                "set_irq_in ioapic unnamed-gpio-in 24 1",
                "FAIL there is no input 24",
            ),
            (
                "set_irq_in ioapic sda 0 1",
                "FAIL there are no inputs called 'sda'",
            ),
            ("set_irq_in lpc unnamed-gpio-in 0 1", "FAIL Unknown device"),
            ("irq_intercept_out ioapic", "FAIL No intercepts installed"),
            ("irq_intercept_out /machine/nothing", "FAIL Unknown device"),
            ("irq_intercept_in ", "FAIL Unknown device"),
            ("irq_intercept_in", "ERR missing argument"),
        ]);
        let mut session = session();
        let irqs = Arc::clone(session.irqs().unwrap());
        irqs.line(3).set(true);
        assert!(session.take_news().is_empty());
        assert_eq!(session.answer("irq_intercept_in /machine/ioapic"), "OK");
        irqs.line(4).set(true);
        assert_eq!(session.take_news(), [(4, true)]);
    }

    #[test]
    fn the_clock_goes_forward_only() {
        conversation(&[
            ("clock_step 100", "OK 100"),
            ("clock_step 5", "OK 105"),
            ("clock_set 200", "OK 200"),
            ("clock_set 199", "FAIL the clock stands at 200 already"),
            (
                "clock_step",
                "FAIL cannot advance clock to the next deadline because there is no pending deadline",
            ),
        ]);
    }

    #[test]
    fn a_step_without_a_length_goes_to_the_next_that_waits() {
        struct Once(Mutex<Option<Instant>>);
        impl Timed for Once {
            fn deadline(&self) -> Option<Instant> {
                *self.0.lock().unwrap()
            }
            fn run(&self, _now: Instant) {
                self.0.lock().unwrap().take();
            }
        }
        let mut session = session();
        let at = session.clock.now() + Duration::from_nanos(700);
        let once: Arc<dyn Timed> = Arc::new(Once(Mutex::new(Some(at))));
        session.clock.add(Arc::downgrade(&once));
        assert_eq!(session.answer("clock_step"), "OK 700");
        assert_eq!(once.deadline(), None);
        assert!(session.answer("clock_step").starts_with("FAIL"));
    }

    #[test]
    fn what_cannot_be_done_is_told() {
        conversation(&[
            ("", "FAIL Unknown command ''"),
            ("sing", "FAIL Unknown command 'sing'"),
            ("outb 0x10000 1", "ERR there is no port 0x10000"),
            ("inb", "ERR missing argument"),
            ("inb x", "ERR 'x' is no number"),
        ]);
        let mut boardless = Session::new(None, TestedClock::new());
        assert!(boardless.answer("inb 0x80").starts_with("FAIL"));
        assert_eq!(boardless.answer("endianness"), "OK little");
    }
}
