//! A driver made of register accesses, against a device that only remembers.

mod state;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use virtio_queue::{QueueState, QueueT};
use vm_memory::{GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

use super::*;
use crate::bus::Bus;
use crate::irq::IrqLine;
use crate::pci::bus::BusKind;
use crate::pci::function::Spaces;
use crate::pci::intx::Wires;
use crate::pci::mock::{Bells, Controller, Level, lines, notices};
use crate::pci::setup::{self, SetupSpec};
use crate::pci::{PciHost, PciHostSpec, RootPort, RootPortSpec, SlotAddress};
use crate::state::{AnyStateful, Empty, NothingToSave, trial};
use crate::virtio::device::{ActiveQueue, DriverNotifier, VirtioError};
use crate::virtio::transport::interrupt::NO_VECTOR;
use crate::virtio::transport::status::Status;

const BAR: u64 = 0xe000_0000;
const TABLE: u64 = 0xe001_0000;
const EVENT_IDX: u64 = 1 << 29;
const OWN: u64 = 1 << 5;

#[derive(Default)]
struct Mock {
    queues: Mutex<[Option<ActiveQueue>; 2]>,
    features: AtomicU64,
    driver: Mutex<Option<Arc<dyn DriverNotifier>>>,
    resets: AtomicU64,
}

impl Mock {
    fn running(&self, index: usize) -> bool {
        self.queues.lock().unwrap()[index].is_some()
    }

    fn driver(&self) -> Arc<dyn DriverNotifier> {
        Arc::clone(self.driver.lock().unwrap().as_ref().unwrap())
    }

    fn interrupt(&self, index: usize) {
        let interrupt = {
            let queues = self.queues.lock().unwrap();
            Arc::clone(&queues[index].as_ref().unwrap().interrupt)
        };
        interrupt.trigger();
    }

    fn kicks(&self, index: usize) -> u64 {
        let queues = self.queues.lock().unwrap();
        queues[index].as_ref().unwrap().kick.read().unwrap_or(0)
    }
}

impl NothingToSave for Mock {
    const KIND: &'static str = "mock";
}

impl Stateful for Mock {
    type State = Empty<Self>;
    fn save(&self) -> Empty<Self> {
        Empty::default()
    }
    fn load(&self, _state: Empty<Self>) -> Result<(), StateError> {
        Ok(())
    }
}

impl VirtioDevice for Mock {
    fn device_type(&self) -> u16 {
        2
    }
    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }
    fn features(&self) -> u64 {
        EVENT_IDX | OWN
    }
    fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::SeqCst);
    }
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset & 0xff).unwrap());
    }
    fn config_write(&self, _offset: u64, _data: &[u8]) {}
    fn attach(&self, driver: Arc<dyn DriverNotifier>) {
        *self.driver.lock().unwrap() = Some(driver);
    }
    fn start_queue(&self, index: usize, queue: ActiveQueue) -> Result<(), VirtioError> {
        let before = self.queues.lock().unwrap()[index].replace(queue);
        assert!(before.is_none(), "a running queue is never started again");
        Ok(())
    }
    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        let queue = self.queues.lock().unwrap()[index].take()?;
        Some(queue.queue.state())
    }
    fn reset(&self) {
        assert!(!self.running(0) && !self.running(1), "queues stop first");
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

struct Bench {
    mock: Arc<Mock>,
    function: Arc<VirtioPci>,
    controller: Arc<Controller>,
    bells: Arc<Bells>,
    memory: Arc<Bus>,
    line: Arc<Level>,
}

impl Bench {
    fn new() -> Self {
        Self::on(BusKind::Root)
    }

    fn on(bus: BusKind) -> Self {
        let mock = Arc::new(Mock::default());
        let controller = Arc::new(Controller::default());
        let bells = Arc::new(Bells::default());
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let function = VirtioPci::new(VirtioPciSpec {
            id: "disk".to_owned(),
            device: Arc::clone(&mock) as Arc<dyn VirtioDevice>,
            memory: GuestMemoryAtomic::new(ram),
            msi: Arc::clone(&controller) as Arc<dyn MsiController>,
            doorbells: Arc::clone(&bells) as Arc<dyn Doorbells>,
            vectors: VirtioPciSpec::vectors_for(mock.as_ref()),
            multifunction: false,
        })
        .unwrap();
        let spaces = Spaces::default();
        let memory = Arc::clone(&spaces.memory);
        let line = Arc::new(Level::default());
        let mut all = lines();
        all[0] = Arc::clone(&line) as Arc<dyn IrqLine>;
        function.attach(Attachment {
            spaces,
            address: SlotAddress::slot(4),
            wires: Wires::new(all),
            bus,
        });
        let bench = Self {
            mock,
            function,
            controller,
            bells,
            memory,
            line,
        };
        bench.place();
        bench
    }

    /// BARs and COMMAND, as firmware writes them.
    fn place(&self) {
        let write = |at, value: u64| {
            let value = u32::try_from(value).unwrap().to_le_bytes();
            self.function.config_write(at, &value);
        };
        write(regs::BAR0, BAR);
        write(regs::BAR0 + 4, TABLE);
        write(regs::COMMAND, 7);
    }

    fn read(&self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        assert!(self.memory.read(BAR + offset, &mut data[..len]));
        u64::from_le_bytes(data)
    }

    fn write(&self, offset: u64, len: usize, value: u64) {
        let data = value.to_le_bytes();
        assert!(self.memory.write(BAR + offset, &data[..len]));
    }

    fn status(&self) -> Status {
        Status::from_bits_retain(u8::try_from(self.read(0x14, 1)).unwrap())
    }

    fn accept(&self, features: u64) {
        for select in 0..2 {
            self.write(0x08, 4, select);
            self.write(0x0c, 4, features >> (32 * select) & 0xffff_ffff);
        }
    }

    fn describe_queue(&self, index: u64, base: u64) {
        self.write(0x16, 2, index);
        self.write(0x18, 2, 16);
        self.write(0x20, 4, base);
        self.write(0x24, 4, 0);
        self.write(0x28, 8, base + 0x1000);
        self.write(0x30, 8, base + 0x2000);
        self.write(0x1a, 2, index + 1);
        self.write(0x1c, 2, 1);
    }

    /// The way of a correct driver up to DRIVER_OK.
    fn drive(&self, features: u64) {
        for status in [0, 1, 3] {
            self.write(0x14, 1, status);
        }
        self.accept(features);
        self.write(0x14, 1, 11);
        self.write(0x10, 2, 0);
        self.describe_queue(0, 0x10000);
        self.describe_queue(1, 0x20000);
        self.write(0x14, 1, 15);
    }

    fn enable_msix(&self) {
        for vector in 0..3 {
            let entry = TABLE + vector * 16;
            assert!(self.memory.write(entry, &0xfee0_0000_u32.to_le_bytes()));
            assert!(self.memory.write(entry + 8, &[0x40, 0, 0, 0]));
            assert!(self.memory.write(entry + 12, &[0; 4]));
        }
        let control = self.function.places.msix + 2;
        self.function
            .config_write(control, &0x8000_u16.to_le_bytes());
    }

    /// The list of capabilities, of each its first 16 bytes.
    fn capabilities(&self) -> Vec<[u8; 16]> {
        let mut found = Vec::new();
        let mut at = [0];
        self.function.config_read(regs::CAPABILITIES, &mut at);
        while at[0] != 0 {
            let mut cap = [0; 16];
            self.function.config_read(at[0].into(), &mut cap);
            found.push(cap);
            at[0] = cap[1];
        }
        found
    }

    /// The capabilities of a kind of virtio's, as (kind, BAR, offset, length).
    fn regions(&self) -> Vec<(u8, u8, u32, u32)> {
        let mut found = self.capabilities();
        found.retain(|cap| cap[0] == regs::CAP_VENDOR);
        let regions = found.into_iter().map(|cap| {
            let dword = |i: usize| u32::from_le_bytes(cap[i..i + 4].try_into().unwrap());
            (cap[3], cap[4], dword(8), dword(12))
        });
        regions.collect()
    }
}

#[test]
fn the_four_regions_are_in_one_bar_and_the_window_is_there() {
    let bench = Bench::new();
    let regions = bench.regions();
    let kinds: Vec<u8> = regions.iter().map(|region| region.0).collect();
    assert_eq!(kinds, [1, 3, 4, 2, 5]);
    for (kind, bar, offset, len) in regions {
        assert_eq!(bar, 0);
        let expected = if kind == 5 { 0 } else { 0x1000 };
        assert_eq!(len, expected);
        assert!(u64::from(offset + len) <= REGISTERS_LEN);
    }
}

#[test]
fn what_kind_of_pci_express_function_it_is_follows_from_its_bus() {
    let kind_on = |bus| {
        let bench = Bench::on(bus);
        assert_eq!(bench.regions().len(), 5);
        let all = bench.capabilities();
        assert!(all.iter().any(|cap| cap[0] == regs::CAP_MSIX));
        let express = all.into_iter().find(|cap| cap[0] == regs::CAP_EXPRESS);
        express.map(|cap| cap[2] >> 4)
    };
    assert_eq!(kind_on(BusKind::Root), Some(9), "integrated");
    assert_eq!(kind_on(BusKind::Port), Some(0), "an endpoint");
    assert_eq!(kind_on(BusKind::Conventional), None);
}

#[test]
fn a_driver_negotiates_and_its_queues_run_where_it_put_them() {
    let bench = Bench::new();
    bench.drive(super::super::registers::F_VERSION_1 | EVENT_IDX);
    assert_eq!(bench.status().bits(), 15);
    assert_eq!(bench.mock.features.load(Ordering::SeqCst), EVENT_IDX);
    assert_eq!(
        bench.mock.kicks(1),
        1,
        "buffers from before the start are looked for"
    );
    let queues = bench.mock.queues.lock().unwrap();
    let state = queues[1].as_ref().unwrap().queue.state();
    assert_eq!((state.size, state.desc_table), (16, 0x20000));
    assert_eq!((state.avail_ring, state.used_ring), (0x21000, 0x22000));
    assert!(state.event_idx_enabled);
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_not_agreed() {
    for features in [EVENT_IDX, 1 << 32 | 1 << 7] {
        let bench = Bench::new();
        bench.drive(features);
        assert!(!bench.status().contains(Status::FEATURES_OK));
        assert_eq!(bench.mock.features.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn a_ring_outside_memory_breaks_the_device_until_its_reset() {
    let bench = Bench::new();
    bench.write(0x14, 1, 3);
    bench.accept(1 << 32);
    bench.write(0x14, 1, 11);
    bench.describe_queue(0, 0xfffff000);
    bench.write(0x14, 1, 15);
    assert!(bench.status().contains(Status::NEEDS_RESET));
    assert!(!bench.mock.running(0));
    bench.drive(1 << 32);
    assert_eq!(bench.status().bits(), 15);
    assert!(bench.mock.running(0));
}

#[test]
fn doorbells_follow_the_bar_and_ring_by_exits_too() {
    let bench = Bench::new();
    bench.drive(1 << 32);
    let doorbell = |bar: u64, queue: u64| bar + 0x3000 + 4 * queue;
    assert_eq!(
        *bench.bells.0.lock().unwrap(),
        [doorbell(BAR, 0), doorbell(BAR, 1)]
    );
    let moved = 0xd000_0000_u64;
    let low = u32::try_from(moved).unwrap().to_le_bytes();
    bench.function.config_write(regs::BAR0, &low);
    assert_eq!(
        *bench.bells.0.lock().unwrap(),
        [doorbell(moved, 0), doorbell(moved, 1)]
    );
    assert_eq!(bench.mock.kicks(1), 1);
    assert!(bench.memory.write(doorbell(moved, 1), &[1, 0]));
    assert_eq!(bench.mock.kicks(1), 1);
    bench.function.config_write(regs::COMMAND, &[0, 0]);
    assert!(bench.bells.0.lock().unwrap().is_empty());
}

#[test]
fn without_msix_the_line_is_driven_until_the_isr_is_read() {
    let bench = Bench::new();
    bench.drive(1 << 32);
    bench.mock.interrupt(0);
    assert!(bench.line.high());
    assert_eq!(bench.read(0x1000, 1), 1);
    assert!(!bench.line.high());
    bench.mock.driver().config_changed();
    assert_eq!(bench.read(0x15, 1), 1);
    assert_eq!(
        bench.read(0x1000, 1),
        3,
        "the queues are to be looked at too"
    );
    bench.mock.interrupt(1);
    bench.function.config_write(regs::COMMAND + 1, &[4]);
    assert!(!bench.line.high(), "COMMAND forbids the line");
}

#[test]
fn the_line_falls_when_msix_is_enabled_over_an_unread_isr() {
    let bench = Bench::new();
    bench.drive(1 << 32);
    bench.mock.interrupt(0);
    assert!(bench.line.high());
    bench.enable_msix();
    assert!(!bench.line.high(), "nobody reads the ISR any more");
}

#[test]
fn with_msix_each_queue_has_its_vector() {
    let bench = Bench::new();
    bench.enable_msix();
    bench.drive(1 << 32);
    bench.mock.interrupt(0);
    bench.mock.interrupt(1);
    bench.mock.interrupt(1);
    bench.mock.driver().config_changed();
    let counts = [0, 1, 2].map(|vector| bench.controller.triggered(vector));
    assert_eq!(counts, [1, 1, 2]);
    assert!(!bench.line.high());
    bench.write(0x1a, 2, 77);
    assert_eq!(bench.read(0x1a, 2), u64::from(NO_VECTOR));
}

#[test]
fn a_pause_keeps_where_the_queues_stand() {
    let bench = Bench::new();
    bench.drive(1 << 32);
    bench.mock.queues.lock().unwrap()[0]
        .as_mut()
        .unwrap()
        .queue
        .set_next_avail(7);
    bench.function.pause();
    assert!(!bench.mock.running(0) && !bench.mock.running(1));
    assert!(bench.bells.0.lock().unwrap().is_empty());
    bench.function.resume();
    let queues = bench.mock.queues.lock().unwrap();
    assert_eq!(queues[0].as_ref().unwrap().queue.next_avail(), 7);
    assert!(queues[1].is_some());
}

#[test]
fn a_reset_by_driver_or_machine_stops_everything() {
    let bench = Bench::new();
    bench.enable_msix();
    bench.drive(1 << 32);
    bench.write(0x14, 1, 0);
    assert_eq!(bench.status(), Status::empty());
    assert!(!bench.mock.running(0));
    bench.drive(1 << 32);
    let resets = bench.mock.resets.load(Ordering::SeqCst);
    bench.function.reset();
    assert!(!bench.mock.running(0));
    assert_eq!(bench.mock.resets.load(Ordering::SeqCst), resets + 1);
    assert!(!bench.memory.read(BAR, &mut [0]), "no BAR is mapped");
}

#[test]
fn an_unplugged_function_starts_nothing_whatever_is_written() {
    let bench = Bench::new();
    bench.drive(1 << 32);
    bench.function.detach();
    assert!(!bench.mock.running(0));
    assert!(!bench.memory.write(BAR, &[0]));
    let registers = Arc::clone(&bench.function.registers);
    registers.write(0x1c, &[1, 0]);
    registers.write(0x14, &[15]);
    assert!(!bench.mock.running(0));
}

#[test]
fn the_window_reaches_registers_without_a_bar() {
    let bench = Bench::new();
    let mut at = [0];
    bench.function.config_read(regs::CAPABILITIES, &mut at);
    let window = loop {
        let mut cap = [0; 4];
        bench.function.config_read(at[0].into(), &mut cap);
        if cap[0] == regs::CAP_VENDOR && cap[3] == 5 {
            break u16::from(at[0]);
        }
        at[0] = cap[1];
    };
    let aim = |offset: u32, len: u32| {
        bench.function.config_write(window + 4, &[0]);
        bench
            .function
            .config_write(window + 8, &offset.to_le_bytes());
        bench.function.config_write(window + 12, &len.to_le_bytes());
    };
    aim(0x12, 2);
    let mut count = [0; 2];
    bench.function.config_read(window + 16, &mut count);
    assert_eq!(u16::from_le_bytes(count), 2);
    aim(0x14, 1);
    bench.function.config_write(window + 16, &[1]);
    assert_eq!(bench.status(), Status::ACKNOWLEDGE);
}

proptest! {
    /// Any guest: any register, any size, any order.
    #[test]
    fn no_access_breaks_a_function(
        accesses in prop::collection::vec(
            (0u8..4, any::<u16>(), prop::collection::vec(any::<u8>(), 1..9)), 0..64),
    ) {
        let bench = Bench::new();
        bench.drive(1 << 32);
        let registers = Arc::clone(&bench.function.registers);
        let msix = Arc::clone(&bench.function.msix);
        for (target, offset, data) in accesses {
            let mut back = data.clone();
            match target {
                0 => {
                    bench.function.config_write(offset & 0xfff, &data);
                    bench.function.config_read(offset & 0xfff, &mut back);
                }
                1 => {
                    registers.write(u64::from(offset) & 0x3f, &data);
                    registers.read(u64::from(offset) & 0x3f, &mut back);
                }
                2 => {
                    registers.write(u64::from(offset) & 0x3fff, &data);
                    registers.read(u64::from(offset) & 0x3fff, &mut back);
                }
                _ => {
                    msix.write(u64::from(offset) & 0x1fff, &data);
                    msix.read(u64::from(offset) & 0x1fff, &mut back);
                }
            }
        }
        bench.function.reset();
        prop_assert!(!bench.mock.running(0) && !bench.mock.running(1));
        bench.place();
        bench.drive(1 << 32);
        prop_assert_eq!(bench.status().bits(), 15);
    }
}

#[test]
fn a_disk_behind_a_port_is_where_setup_put_it_and_leaves_nothing_behind() {
    let controller = Arc::new(Controller::default());
    let mock = Arc::new(Mock::default());
    let (sink, heard) = notices();
    let spaces = Spaces::default();
    let memory = Arc::clone(&spaces.memory);
    let host = PciHost::new(PciHostSpec {
        spaces,
        intx: lines(),
    });
    let port = RootPort::new(RootPortSpec {
        id: "p1".to_owned(),
        port: 0,
        slot: 1,
        multifunction: false,
        msi: Arc::clone(&controller) as Arc<dyn MsiController>,
        notices: sink,
    });
    host.plug(None, None, port.unwrap()).unwrap();
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let disk = VirtioPci::new(VirtioPciSpec {
        id: "disk".to_owned(),
        device: mock,
        memory: GuestMemoryAtomic::new(ram),
        msi: Arc::clone(&controller) as Arc<dyn MsiController>,
        doorbells: Arc::new(Bells::default()),
        vectors: 3,
        multifunction: false,
    });
    let disk = disk.unwrap();
    let watch = Arc::downgrade(&disk);
    host.plug(Some("p1"), None, disk).unwrap();
    setup::assign(
        &host,
        &SetupSpec {
            ecam: 0xb000_0000,
            io: 0..0,
            memory32: 0xc000_0000..0xfec0_0000,
            memory64: 0..0,
            port_memory: SetupSpec::PORT_MEMORY,
            port_prefetchable: SetupSpec::PORT_PREFETCHABLE,
        },
    );
    let view = host.inspect();
    let behind = view[1].bridge.as_ref().unwrap();
    let registers = behind.functions[0].regions[0].address.unwrap();
    assert!(behind.memory.base <= registers && registers < behind.memory.limit);
    let mut queues = [0; 2];
    assert!(memory.read(registers + 0x12, &mut queues));
    assert_eq!(u16::from_le_bytes(queues), 2);
    host.request_unplug("disk").unwrap();
    assert!(!memory.read(registers, &mut queues));
    assert_eq!(heard.lock().unwrap().len(), 1);
    assert_eq!(
        watch.strong_count(),
        0,
        "nobody holds an unplugged function"
    );
}
