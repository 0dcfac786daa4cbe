//! A guest that accesses any register of any function of a small PCI tree, a watchdog and a bridge to
//! conventional PCI among them, by ports, by the memory window and through the BARs, while cards come
//! and go.
//!
//! What must hold: no panic; every read gives something; and after a reset the tree is, register
//! for register, as a new one with the same cards.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use devices::bus::{Bus, BusDevice};
use devices::irq::IrqLine;
use devices::lifecycle::Lifecycle;
use devices::memory::{GuestMem, GuestMemView};
use devices::notice::NoticeSink;
use devices::pci::i6300esb::{I6300esb, I6300esbState};
use devices::pci::setup::{self, FunctionPlan, SetupSpec};
use devices::pci::{
    ConfigPorts, Ecam, PciFunction, PciHost, PciHostSpec, PciePciBridge, RootPort, RootPortSpec,
    SlotAddress, Spaces,
};
use devices::state::Stateful;
use devices::virtio::rng::{Builtin, Rate, VirtioRng};
use devices::virtio::transport::{VirtioPci, VirtioPciSpec};
use devices::vm_clock::VmClock;
use devices::watchdog::WatchdogHost;
use vm_memory::GuestAddress;

use crate::board::{Line, Nowhere, reactor};

/// A place for a card that comes and goes.
struct Slot {
    bus: &'static str,
    device: u8,
    card: &'static str,
}

const fn slot(bus: &'static str, device: u8, card: &'static str) -> Slot {
    Slot { bus, device, card }
}

/// The slots: behind root ports, and on a conventional bus, where cards come only while it is closed.
const SLOTS: [Slot; 4] = [
    slot("p1", 0, "card1"),
    slot("p2", 0, "card2"),
    slot(CONVENTIONAL, 1, "card3"),
    slot(CONVENTIONAL, 2, "card4"),
];
/// The root ports; the last has the bridge in it.
const PORTS: [&str; 3] = ["p1", "p2", "p3"];
/// The bus behind the bridge.
const CONVENTIONAL: &str = "b1";
/// How many buses there are.
const BUSES: u64 = 5;
/// How much of a configuration space is compared: behind it no function here has any.
const REGISTERS: u64 = 0x200;
/// How many steps an input is worth.
const STEPS: usize = 300;

pub(super) fn run(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let tree = Tree::new([true, false, true, true]);
    let plan = tree.reset();
    for _ in 0..STEPS {
        if input.is_empty() || tree.step(&mut input, &plan).is_err() {
            break;
        }
    }
    tree.reset();
    // The ports have finished the unplugs that were under way: what is left is known now.
    let after = (tree.reset(), tree.registers());
    assert_eq!(tree.watchdog.save(), I6300esbState::default());
    let new = Tree::new(SLOTS.map(|slot| tree.has(slot.card)));
    let wanted = (new.reset(), new.registers());
    assert_eq!(after.0, wanted.0, "other addresses than in a new tree");
    for ((at, after), (_, wanted)) in after.1.iter().zip(&wanted.1) {
        assert_eq!(
            after, wanted,
            "device {at}: other registers than in a new tree"
        );
    }
}

struct Tree {
    host: Arc<PciHost>,
    spaces: Spaces,
    ports: ConfigPorts,
    window: Ecam,
    watchdog: Arc<I6300esb>,
}

fn watchdog() -> Arc<I6300esb> {
    let host = WatchdogHost {
        reactor: reactor().clone(),
        clock: VmClock::Host,
        notices: NoticeSink::new(drop),
    };
    I6300esb::new("watchdog", host, false).expect("a timer")
}

/// A register that nobody has.
struct Nothing;

impl BusDevice for Nothing {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

fn card(id: &str) -> Arc<VirtioPci> {
    let range = (GuestAddress(0), 0x1_0000);
    let memory = GuestMem::new(GuestMemView::from_ranges(&[range]).expect("memory"));
    VirtioPci::new(VirtioPciSpec {
        id: id.to_owned(),
        device: VirtioRng::new(
            Arc::new(Builtin),
            Rate::UNLIMITED,
            reactor().clone(),
            VmClock::Host,
        ),
        memory,
        msi: Arc::new(Nowhere),
        doorbells: Arc::new(Nowhere),
        vectors: 2,
        multifunction: false,
    })
    .expect("a function")
}

impl Tree {
    /// Root ports and a bridge, with cards or without, and a card beside them; as it is once it has
    /// run.
    fn new(cards: [bool; 4]) -> Self {
        let spaces = Spaces::default();
        let host = PciHost::new(PciHostSpec {
            spaces: spaces.clone(),
            intx: Line::four().map(|line| line as Arc<dyn IrqLine>),
        });
        for (number, bus) in (1..).zip(PORTS) {
            let port = RootPort::new(RootPortSpec {
                id: bus.to_owned(),
                port: number,
                slot: number.into(),
                multifunction: false,
                msi: Arc::new(Nowhere),
                notices: NoticeSink::new(drop),
            });
            let place = Some(SlotAddress::slot(number));
            host.plug(None, place, port.expect("a port"))
                .expect("a free slot");
        }
        let bridge = PciePciBridge::new(CONVENTIONAL, false, NoticeSink::new(drop));
        let bridge: Arc<dyn PciFunction> = bridge.expect("a bridge");
        host.plug(PORTS.last().copied(), None, bridge)
            .expect("a free slot");
        for (slot, _) in SLOTS.iter().zip(cards).filter(|(_, is_there)| *is_there) {
            let place = Some(SlotAddress::slot(slot.device));
            host.plug(Some(slot.bus), place, card(slot.card))
                .expect("a free slot");
        }
        host.plug(None, None, card("fixed")).expect("a free slot");
        let watchdog = watchdog();
        let plugged = host.plug(None, None, Arc::clone(&watchdog) as _);
        plugged.expect("a free slot");
        host.set_started();
        Self {
            ports: ConfigPorts::new(Arc::clone(&host), Arc::new(Nothing)),
            window: Ecam::new(Arc::downgrade(&host)),
            host,
            spaces,
            watchdog,
        }
    }

    /// As the machine does it; where everything is then.
    fn reset(&self) -> Vec<FunctionPlan> {
        self.host.pause();
        self.host.reset();
        self.ports.reset();
        let spec = SetupSpec {
            ecam: 0xb000_0000,
            io: 0xc000..0x1_0000,
            memory32: 0xc000_0000..0xe000_0000,
            memory64: 0x80_0000_0000..0x90_0000_0000,
            port_memory: SetupSpec::PORT_MEMORY,
            port_prefetchable: SetupSpec::PORT_PREFETCHABLE,
        };
        let plan = setup::assign(&self.host, &spec);
        self.host.resume();
        plan
    }

    fn has(&self, card: &str) -> bool {
        let mut views = self.host.inspect();
        while let Some(view) = views.pop() {
            if view.id == card {
                return true;
            }
            views.extend(view.bridge.into_iter().flat_map(|bridge| bridge.functions));
        }
        false
    }

    /// The configuration space of all that answers on the first buses.
    fn registers(&self) -> Vec<(u64, Vec<u8>)> {
        let functions = (0..BUSES).flat_map(|bus| (0..32).map(move |slot| bus << 20 | slot << 15));
        functions
            .map(|at| {
                let mut bytes = Vec::new();
                let mut id = [0; 4];
                self.window.read(at, &mut id);
                if id != [0xff; 4] {
                    for offset in (0..REGISTERS).step_by(4) {
                        let mut register = [0; 4];
                        self.window.read(at + offset, &mut register);
                        bytes.extend(register);
                    }
                }
                (at >> 15, bytes)
            })
            .collect()
    }

    fn step(&self, input: &mut Unstructured<'_>, plan: &[FunctionPlan]) -> Result<()> {
        match input.int_in_range(0..=9)? {
            0 | 1 => self.access(&self.window, at(input)?, input)?,
            2 => {
                let address = 0x8000_0000 | u32::try_from(at(input)? >> 4 & 0xff_ff00).unwrap_or(0);
                let address = address | u32::from(input.arbitrary::<u8>()?);
                self.ports.write(0, &address.to_le_bytes());
                self.access(
                    &self.ports,
                    4 + u64::from(input.arbitrary::<u8>()? & 3),
                    input,
                )?;
            }
            3 => self.access(&self.ports, input.arbitrary::<u8>()?.into(), input)?,
            4 | 5 => {
                let bars = plan.iter().flat_map(|function| &function.bars);
                let places = bars.filter_map(|bar| Some((bar.address?, bar.size)));
                let places: Vec<(u64, u64)> = places.collect();
                let place = places.get(usize::from(input.arbitrary::<u8>()?) % places.len().max(1));
                let (base, size) = place.unwrap_or(&(0, 1));
                let address = base + u64::from(input.arbitrary::<u16>()?) % size;
                access(&self.spaces.memory, address, input)?;
            }
            6 => {
                let address = input.arbitrary::<u32>()?.into();
                access(&self.spaces.memory, address, input)?;
                access(&self.spaces.io, address & 0xffff, input)?;
            }
            7 => {
                let slot = &SLOTS[usize::from(input.arbitrary::<u8>()?) % SLOTS.len()];
                let taken = self.has(slot.card);
                let place = Some(SlotAddress::slot(slot.device));
                let plugged = self.host.plug(Some(slot.bus), place, card(slot.card));
                assert!(!taken || plugged.is_err(), "two cards in one slot");
            }
            8 => {
                let slot = &SLOTS[usize::from(input.arbitrary::<u8>()?) % SLOTS.len()];
                let asked = self.host.request_unplug(slot.card);
                assert!(asked.is_err() || !self.host.bus_names().is_empty());
            }
            _ => match input.arbitrary::<u8>()? {
                0 => drop(self.reset()),
                1 => drop(self.host.withdraw("card2")),
                2 => drop(self.host.withdraw("card3")),
                _ => drop(self.host.inspect()),
            },
        }
        Ok(())
    }

    fn access(&self, device: &dyn BusDevice, at: u64, input: &mut Unstructured<'_>) -> Result<()> {
        let length = input.int_in_range(1..=8)?;
        if input.arbitrary()? {
            device.write(at, input.bytes(length)?);
        } else {
            device.read(at, &mut [0x5a; 8][..length]);
        }
        Ok(())
    }
}

/// A register in the window: mostly one of a function that is there.
fn at(input: &mut Unstructured<'_>) -> Result<u64> {
    let [place, low, high, bus] = input.arbitrary::<[u8; 4]>()?.map(u64::from);
    let bus = if bus < BUSES { bus } else { 0 };
    Ok(bus << 20 | (place & 0x3f) << 12 | (high & 0xf) << 8 | low)
}

fn access(bus: &Bus, at: u64, input: &mut Unstructured<'_>) -> Result<()> {
    let length = input.int_in_range(1..=8)?;
    if input.arbitrary()? {
        bus.write(at, input.bytes(length)?);
    } else {
        bus.read(at, &mut [0x5a; 8][..length]);
    }
    Ok(())
}
