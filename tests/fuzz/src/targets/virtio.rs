//! A virtio driver gone mad: any bytes in its rings and buffers, any access to the device's
//! registers and configuration space, resets at any time; for a disk over nothing, a disk over a
//! file, a random number generator, a console, a balloon, a SCSI controller with a disk and an empty
//! drive, persistent memory, and, as targets of their own, a network card, memory by the block, and
//! keyboards, mice and tablets.
//!
//! What must hold: no panic on any thread; whatever goes on, the device lets itself be reset, and
//! then serves a driver that keeps the rules.

mod hosts;
mod input;
mod mem;
mod net;

use std::sync::{Arc, mpsc};

use arbitrary::{Result, Unstructured};
use devices::irq::IrqLine;
use devices::lifecycle::Lifecycle;
use devices::memory::{GuestMem, GuestMemView};
use devices::pci::bus::BusKind;
use devices::pci::intx::Wires;
use devices::pci::{Attachment, PciFunction, SlotAddress, Spaces};
use devices::virtio::device::VirtioDevice;
use devices::virtio::input::VirtioInput;
use devices::virtio::transport::{VirtioPci, VirtioPciSpec};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use self::hosts::{device, iothread};
use crate::board::{Line, Nowhere, reactor};

/// Guest memory: two pieces with a hole between.
const RAM: [(u64, usize); 2] = [(0, 0x2_0000), (0x10_0000, 0x1_0000)];
/// Where a queue's rings and buffers are, and how far from the next queue's.
const RINGS: u64 = 0x1000;
const STRIDE: u64 = 0x2000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const BUFFERS: u64 = 0x1000;
const SIZE: u16 = 8;
/// Where the registers are mapped, and what is where in them (virtio 1.2, 4.1.4.3).
const BAR: u64 = 0xe000_0000;
const STATUS: u64 = 0x14;
const ISR: u64 = 0x1000;
const NOTIFY: u64 = 0x3000;
const VERSION_1: u64 = 1 << 32;
/// Of a network card: without the first there is no queue for commands, and without the second only
/// one pair of others.
const CONTROL_QUEUE: u64 = 1 << 17;
const RSS: u64 = 1 << 60;
/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// How many steps an input is worth.
const STEPS: usize = 200;

pub(super) fn run(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let Ok(kind) = input.arbitrary::<u8>() else {
        return;
    };
    let kind = match kind % 7 {
        0 => Kind::Null,
        1 => Kind::File,
        2 => Kind::Rng,
        3 => Kind::Console,
        4 => Kind::Balloon,
        5 => Kind::Scsi,
        _ => Kind::Pmem,
    };
    drive(kind, &mut input);
}

pub(super) fn run_net(input: &[u8]) {
    drive(Kind::Net, &mut Unstructured::new(input));
}

pub(super) fn run_mem(input: &[u8]) {
    drive(Kind::Mem, &mut Unstructured::new(input));
}

pub(super) fn run_input(input: &[u8]) {
    drive(Kind::Input, &mut Unstructured::new(input));
}

fn drive(kind: Kind, input: &mut Unstructured<'_>) {
    let mut driver = Driver::new(kind, input);
    driver.start(u64::MAX);
    driver.assert_it_runs();
    for _ in 0..STEPS {
        if input.is_empty() || driver.step(input).is_err() {
            break;
        }
    }
    driver.function.pause();
    driver.function.reset();
    driver.function.resume();
    driver.place();
    driver.start(VERSION_1 | CONTROL_QUEUE | RSS);
    driver.assert_it_serves();
    driver.assert_it_hears_what_is_typed();
    driver.function.detach();
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Null,
    File,
    Rng,
    Console,
    Balloon,
    Scsi,
    Net,
    Mem,
    Pmem,
    Input,
}

/// The guest's side of one device.
struct Driver {
    kind: Kind,
    function: Arc<VirtioPci>,
    memory: GuestMem,
    spaces: Spaces,
    line: Arc<Line>,
    queues: u16,
    /// The other end of a card's cable.
    echo: Option<net::Echo>,
    /// Where somebody types.
    typed: Option<Arc<VirtioInput>>,
    /// The next index of each available ring.
    next: Vec<u16>,
}

impl Driver {
    fn new(kind: Kind, input: &mut Unstructured<'_>) -> Self {
        let ranges = RAM.map(|(base, len)| (GuestAddress(base), len));
        let memory = GuestMem::new(GuestMemView::from_ranges(&ranges).expect("memory"));
        let (mut echo, mut typed) = (None, None);
        let device: Arc<dyn VirtioDevice> = match kind {
            Kind::Net => {
                let (card, cable) = net::card();
                echo = Some(cable);
                card
            }
            Kind::Input => {
                let device = input::device(input);
                typed = Some(Arc::clone(&device));
                device
            }
            _ => device(kind),
        };
        let queues = u16::try_from(device.queue_sizes().len()).expect("few queues");
        let function = VirtioPci::new(VirtioPciSpec {
            id: "device".to_owned(),
            vectors: VirtioPciSpec::vectors_for(device.as_ref()),
            device,
            memory: memory.clone(),
            msi: Arc::new(Nowhere),
            doorbells: Arc::new(Nowhere),
            multifunction: false,
        })
        .expect("a function");
        let spaces = Spaces::default();
        let lines = Line::four();
        function.attach(Attachment {
            spaces: spaces.clone(),
            address: SlotAddress::slot(4),
            wires: Wires::new(lines.clone().map(|line| line as Arc<dyn IrqLine>)),
            bus: BusKind::Root,
        });
        let driver = Self {
            kind,
            function,
            memory,
            spaces,
            line: Arc::clone(&lines[0]),
            queues,
            echo,
            typed,
            next: Vec::new(),
        };
        driver.place();
        driver
    }

    /// BARs and COMMAND, as firmware writes them.
    fn place(&self) {
        self.function
            .config_write(0x10, &0xe000_0000_u32.to_le_bytes());
        self.function
            .config_write(0x14, &0xe001_0000_u32.to_le_bytes());
        self.function.config_write(0x04, &[7, 0]);
    }

    /// The way of a correct driver up to DRIVER_OK, with the features in `mask`.
    fn start(&mut self, mask: u64) {
        self.put(STATUS, &[0]);
        self.put(STATUS, &[1]);
        self.put(STATUS, &[3]);
        for select in 0..2_u32 {
            self.put(0x00, &select.to_le_bytes());
            let mut offered = [0; 4];
            self.spaces.memory.read(BAR + 0x04, &mut offered);
            let part = u32::try_from(mask >> (32 * select) & 0xffff_ffff).unwrap_or(0);
            let accepted = u32::from_le_bytes(offered) & part;
            self.put(0x08, &select.to_le_bytes());
            self.put(0x0c, &accepted.to_le_bytes());
        }
        self.put(STATUS, &[11]);
        let view = self.memory.memory();
        for queue in 0..self.queues {
            let base = RINGS + u64::from(queue) * STRIDE;
            let zeroes = [0; 0xa00];
            view.write_slice(&zeroes, GuestAddress(base))
                .expect("inside");
            self.put(0x16, &queue.to_le_bytes());
            self.put(0x18, &SIZE.to_le_bytes());
            self.put(0x1a, &0xffff_u16.to_le_bytes());
            for (register, address) in [(0x20, base), (0x28, base + AVAILABLE), (0x30, base + USED)]
            {
                self.put(register, &address.to_le_bytes());
            }
            self.put(0x1c, &1_u16.to_le_bytes());
        }
        self.next = vec![0; usize::from(self.queues)];
        self.put(STATUS, &[15]);
    }

    fn put(&self, offset: u64, data: &[u8]) {
        self.spaces.memory.write(BAR + offset, data);
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        match input.int_in_range(0..=13)? {
            0 => self.scribble(input)?,
            1 | 2 => {
                let (queue, index) = (self.queue(input)?, input.arbitrary::<u16>()? % SIZE);
                let (address, len) = (input.arbitrary::<[u8; 3]>()?, input.arbitrary::<u16>()?);
                let [low, middle, high] = address.map(u64::from);
                let address = low | middle << 8 | high << 16;
                let (flags, next) = (input.arbitrary::<u8>()?, input.arbitrary::<u8>()?);
                self.describe(
                    queue,
                    index,
                    (address, len.into(), flags.into()),
                    next.into(),
                );
            }
            3 | 4 => {
                let (queue, head) = (self.queue(input)?, input.arbitrary::<u8>()?);
                self.offer(queue, head.into());
            }
            5 => {
                let queue = self.queue(input)?;
                self.kick(queue);
            }
            6 | 7 => self.request(input)?,
            8 => {
                let (offset, len) = (input.arbitrary::<u16>()?, input.int_in_range(1..=8)?);
                self.spaces
                    .memory
                    .read(BAR + u64::from(offset & 0x3fff), &mut [0; 8][..len]);
            }
            9 => {
                let (offset, data) = (input.arbitrary::<u16>()?, bytes(input)?);
                self.put(u64::from(offset & 0x3fff), &data);
            }
            10 => {
                let (offset, data) = (input.arbitrary::<u16>()? & 0xfff, bytes(input)?);
                self.function.config_write(offset, &data);
                self.function.config_read(offset, &mut [0; 8][..data.len()]);
            }
            11 => self.settle(),
            12 => self.start(input.arbitrary()?),
            _ => match input.arbitrary::<u8>()? {
                0 => self.function.reset(),
                1 => {
                    self.function.pause();
                    self.function.resume();
                }
                _ => self.place(),
            },
        }
        Ok(())
    }

    fn queue(&self, input: &mut Unstructured<'_>) -> Result<u16> {
        Ok(u16::from(input.arbitrary::<u8>()?) % self.queues)
    }

    /// Anything, anywhere in memory.
    fn scribble(&self, input: &mut Unstructured<'_>) -> Result<()> {
        let [low, high] = input.arbitrary::<[u8; 2]>()?.map(u64::from);
        let length = input.int_in_range(1..=32)?.min(input.len());
        let bytes = input.bytes(length)?;
        // Behind the end there is nothing to be written to.
        let _ = self
            .memory
            .memory()
            .write_slice(bytes, GuestAddress(low | high << 8));
        Ok(())
    }

    fn base(queue: u16) -> u64 {
        RINGS + u64::from(queue) * STRIDE
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let written = self
            .memory
            .memory()
            .write_slice(bytes, GuestAddress(address));
        written.expect("inside memory");
    }

    fn describe(&self, queue: u16, index: u16, (address, len, flags): (u64, u32, u16), next: u16) {
        let at = Self::base(queue) + u64::from(index) * 16;
        self.write(at, &address.to_le_bytes());
        self.write(at + 8, &len.to_le_bytes());
        self.write(at + 12, &flags.to_le_bytes());
        self.write(at + 14, &next.to_le_bytes());
    }

    fn offer(&mut self, queue: u16, head: u16) {
        let Some(next) = self.next.get_mut(usize::from(queue)) else {
            return;
        };
        let place = *next % SIZE;
        *next = next.wrapping_add(1);
        let index = *next;
        let ring = Self::base(queue) + AVAILABLE;
        self.write(ring + 4 + u64::from(place) * 2, &head.to_le_bytes());
        self.write(ring + 2, &index.to_le_bytes());
        self.kick(queue);
    }

    fn kick(&self, queue: u16) {
        self.put(NOTIFY + 4 * u64::from(queue), &queue.to_le_bytes());
    }

    /// A chain that looks like one: a header to read, something in the middle, a byte to write.
    fn request(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        if self.kind == Kind::Mem {
            let request = mem::request(input)?;
            self.ask(&request);
            self.settle();
            return Ok(());
        }
        if self.kind == Kind::Net && input.arbitrary::<bool>()? {
            let (queue, words) = net::words(input)?;
            self.say(queue, &words);
            return Ok(());
        }
        if let Some(device) = self
            .typed
            .as_ref()
            .filter(|_| input.ratio(1_u8, 2).unwrap_or(false))
        {
            device.report(&input::report(input)?);
            return Ok(());
        }
        let queue = self.queue(input)?;
        let [kind, sector, len, flags] = input.arbitrary::<[u8; 4]>()?;
        let buffers = Self::base(queue) + BUFFERS;
        let mut header = [0; 16];
        header[0] = kind % 16;
        header[8] = sector;
        self.write(buffers, &header);
        let middle = u32::from(len) * u32::from(flags >> 4);
        let direction = if flags & 1 == 0 { WRITE } else { 0 };
        self.describe(queue, 0, (buffers, 16, NEXT), 1);
        self.describe(queue, 1, (buffers + 0x100, middle, NEXT | direction), 2);
        self.describe(queue, 2, (buffers + 0xf00, 1, WRITE), 0);
        self.offer(queue, u16::from(flags >> 1 & 3) % 3);
        Ok(())
    }

    /// Words for one of a card's queues, with room for an answer.
    fn say(&mut self, queue: u16, words: &[u8]) {
        let buffers = Self::base(queue) + BUFFERS;
        let length = u32::try_from(words.len()).expect("few words");
        self.write(buffers, words);
        self.describe(queue, 0, (buffers, length, NEXT), 1);
        self.describe(queue, 1, (buffers + 0xf00, 1, WRITE), 0);
        self.offer(queue, 0);
    }

    /// A request for blocks of memory, with room for its answer.
    fn ask(&mut self, request: &[u8]) {
        let buffers = Self::base(0) + BUFFERS;
        self.write(buffers, request);
        self.describe(0, 0, (buffers, 24, NEXT), 1);
        self.describe(0, 1, (buffers + 0x100, 10, WRITE), 0);
        self.offer(0, 0);
    }

    /// Lets the device's thread come to an end with what it has begun.
    fn settle(&self) {
        for _ in 0..2 {
            if let Some(echo) = &self.echo {
                echo.answer();
            }
            match self.kind {
                Kind::Null | Kind::File | Kind::Scsi => {
                    iothread().run(|_| async {}).expect("it runs")
                }
                Kind::Rng | Kind::Console | Kind::Balloon | Kind::Net | Kind::Mem | Kind::Input => {
                    settle_reactor()
                }
                Kind::Pmem => {
                    settle_reactor();
                    iothread().run(|_| async {}).expect("it runs");
                }
            }
        }
    }

    fn assert_it_runs(&self) {
        let mut status = [0];
        self.spaces.memory.read(BAR + STATUS, &mut status);
        assert_eq!(status, [15], "it does not start");
    }

    /// One request by the rules is answered by the rules.
    fn assert_it_serves(&mut self) {
        self.assert_it_runs();
        let queue = match self.kind {
            // Its second queue is where the guest writes.
            Kind::Console | Kind::Net | Kind::Input => 1,
            // The first two are for control and events.
            Kind::Scsi => 2,
            _ => 0,
        };
        let buffers = Self::base(queue) + BUFFERS;
        let written = match self.kind {
            Kind::Null | Kind::File => {
                // VIRTIO_BLK_T_GET_ID
                let mut header = [0; 16];
                header[0] = 8;
                self.write(buffers, &header);
                self.write(buffers + 0xf00, &[0xee]);
                self.describe(queue, 0, (buffers, 16, NEXT), 1);
                self.describe(queue, 1, (buffers + 0x100, 20, NEXT | WRITE), 2);
                self.describe(queue, 2, (buffers + 0xf00, 1, WRITE), 0);
                21
            }
            Kind::Rng => {
                self.describe(queue, 0, (buffers, 16, WRITE), 0);
                16
            }
            Kind::Scsi => {
                // TEST UNIT READY, for target 0
                let mut header = [0; 51];
                header[0] = 1;
                self.write(buffers, &header);
                self.describe(queue, 0, (buffers, 51, NEXT), 1);
                self.describe(queue, 1, (buffers + 0x100, 108, WRITE), 0);
                108
            }
            Kind::Console | Kind::Balloon => {
                self.describe(queue, 0, (buffers, 4, 0), 0);
                0
            }
            Kind::Net => {
                self.describe(queue, 0, (buffers, 60, 0), 0);
                0
            }
            Kind::Pmem => {
                // VIRTIO_PMEM_REQ_TYPE_FLUSH
                self.write(buffers, &[0; 4]);
                self.write(buffers + 0x100, &[0xee; 4]);
                self.describe(queue, 0, (buffers, 4, NEXT), 1);
                self.describe(queue, 1, (buffers + 0x100, 4, WRITE), 0);
                4
            }
            Kind::Input => {
                self.write(buffers, &input::LAMP.to_bytes());
                self.describe(queue, 0, (buffers, 8, 0), 0);
                0
            }
            Kind::Mem => {
                self.write(buffers, &mem::question());
                self.describe(queue, 0, (buffers, 24, NEXT), 1);
                self.describe(queue, 1, (buffers + 0x100, 10, WRITE), 0);
                10
            }
        };
        self.offer(queue, 0);
        self.line.wait();
        let mut isr = [0];
        self.spaces.memory.read(BAR + ISR, &mut isr);
        assert_eq!(isr[0] & 1, 1, "an interrupt without a reason");
        let used = Self::base(queue) + USED;
        let [index, _, head, len] = [used + 2, used, used + 4, used + 8].map(|at| self.read(at));
        assert_eq!((index & 0xffff, head, len), (1, 0, written));
        if matches!(self.kind, Kind::Null | Kind::File) {
            assert_eq!(self.read(buffers + 0xf00) & 0xff, 0, "VIRTIO_BLK_S_OK");
            assert_eq!(self.read(buffers + 0x100).to_le_bytes(), *b"fuzz");
        }
        if self.kind == Kind::Pmem {
            assert_eq!(self.read(buffers + 0x100), 0, "VIRTIO_PMEM_RESP_TYPE_OK");
        }
        if self.kind == Kind::Mem {
            assert_eq!(
                self.read(buffers + 0x100) & 0xffff,
                0,
                "VIRTIO_MEM_RESP_ACK"
            );
        }
    }

    fn read(&self, address: u64) -> u32 {
        let mut bytes = [0; 4];
        let read = self
            .memory
            .memory()
            .read_slice(&mut bytes, GuestAddress(address));
        read.expect("inside memory");
        u32::from_le_bytes(bytes)
    }
}

/// One to eight bytes to be written.
fn bytes(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let length = input.int_in_range(1..=8)?;
    Ok(input.bytes(length)?.to_vec())
}

/// Lets the reactor's thread come to an end with what it has begun.
fn settle_reactor() {
    let (tell, told) = mpsc::channel();
    let job = reactor().run(move || tell.send(()).expect("it is waited for"));
    job.expect("it runs");
    told.recv().expect("it runs");
}
