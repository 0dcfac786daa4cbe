//! A machine by the qtest protocol: ports, memory, and PCI configuration through them.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// Ports of PCI configuration mechanism 1.
const ADDRESS_PORT: u32 = 0xcf8;
const DATA_PORT: u32 = 0xcfc;
/// Where BARs go: in the 32-bit window of either machine.
const BARS: u64 = 0xe000_0000;
/// Between two BARs; none here is longer.
const BAR_ROOM: u64 = 1 << 20;
/// The first BAR's register, and how many there are.
const BAR_REGISTER: u32 = 0x10;
const BAR_COUNT: u32 = 6;

/// Who answers.
pub(crate) struct Machine {
    to: UnixStream,
    from: BufReader<UnixStream>,
    line: String,
}

impl Machine {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        let to = UnixStream::from(socket);
        let from = BufReader::new(to.try_clone().expect("an fd"));
        Self {
            to,
            from,
            line: String::new(),
        }
    }

    /// Sends a command; the number that the answer has, or 0.
    fn ask(&mut self, command: &str) -> u64 {
        self.to
            .write_all(command.as_bytes())
            .expect("a tester's socket");
        loop {
            self.line.clear();
            self.from.read_line(&mut self.line).expect("an answer");
            if self.line.starts_with("IRQ") {
                continue;
            }
            let answer = self
                .line
                .trim()
                .strip_prefix("OK")
                .expect("an answer with OK");
            let digits = answer.trim().trim_start_matches("0x");
            return u64::from_str_radix(digits, 16).unwrap_or(0);
        }
    }

    /// Writes `width` letters' worth of memory: `b`, `w`, `l` or `q`.
    pub(crate) fn write(&mut self, width: char, address: u64, value: u64) {
        self.ask(&format!("write{width} 0x{address:x} 0x{value:x}\n"));
    }

    pub(crate) fn read(&mut self, width: char, address: u64) -> u64 {
        self.ask(&format!("read{width} 0x{address:x}\n"))
    }

    fn choose(&mut self, slot: u32, register: u32) {
        let address = 1 << 31 | slot << 11 | register & !3;
        self.ask(&format!("outl 0x{ADDRESS_PORT:x} 0x{address:x}\n"));
    }

    /// The 32 bits of configuration at `register` of the function 0 in `slot` of the root bus.
    pub(crate) fn config(&mut self, slot: u32, register: u32) -> u32 {
        self.choose(slot, register);
        self.ask(&format!("inl 0x{DATA_PORT:x}\n")) as u32
    }

    fn set_config(&mut self, slot: u32, register: u32, value: u32) {
        self.choose(slot, register);
        self.ask(&format!("outl 0x{DATA_PORT:x} 0x{value:x}\n"));
    }

    /// Gives every memory BAR a place and switches the function on; where the BARs are.
    pub(crate) fn place_bars(&mut self, slot: u32) -> [u64; BAR_COUNT as usize] {
        let mut places = [0; BAR_COUNT as usize];
        let mut next = BARS;
        let mut index = 0;
        while index < BAR_COUNT {
            let register = BAR_REGISTER + 4 * index;
            let nature = self.config(slot, register);
            let (is_ports, is_long) = (nature & 1 != 0, nature & 6 == 4);
            if !is_ports {
                self.set_config(slot, register, next as u32);
                places[index as usize] = next;
                next += BAR_ROOM;
                if is_long {
                    self.set_config(slot, register + 4, 0);
                    index += 1;
                }
            }
            index += 1;
        }
        // Memory space and bus master.
        self.set_config(slot, 4, 6);
        places
    }
}
