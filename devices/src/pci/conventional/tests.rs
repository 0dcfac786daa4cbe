//! The old bus as a driver, a client and firmware's part see it.

use std::sync::Mutex;

use super::*;
use crate::irq::{IrqLine, MsiController};
use crate::notice::Notice;
use crate::pci::address::Bdf;
use crate::pci::host::{PciHost, PciHostSpec};
use crate::pci::mock::{Controller, Level, notices};
use crate::pci::root_port::{RootPort, RootPortSpec};
use crate::pci::setup::{self, SetupSpec};
use crate::state::{Empty, NothingToSave};

/// A card that remembers its wire, and how often it was reset.
struct Card {
    core: PciCore,
    line: Mutex<Option<Arc<dyn IrqLine>>>,
    resets: AtomicU32,
}

impl NothingToSave for Card {
    const KIND: &'static str = "card";
}

impl Stateful for Card {
    type State = Empty<Self>;
    fn save(&self) -> Empty<Self> {
        Empty::default()
    }
    fn load(&self, _state: Empty<Self>) -> Result<(), StateError> {
        Ok(())
    }
}

impl Lifecycle for Card {
    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

impl PciFunction for Card {
    fn id(&self) -> &str {
        self.core.id()
    }
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.core.read(offset, data);
    }
    fn config_write(&self, offset: u16, data: &[u8]) {
        self.core.write(offset, data);
    }
    fn attach(&self, attachment: Attachment) {
        let device = attachment.address.device();
        let line = attachment.wires.inta(device).source();
        *self.line.lock().unwrap() = Some(line);
        self.core.attach(&attachment);
    }
    fn detach(&self) {
        self.line.lock().unwrap().take();
        self.core.detach();
    }
    fn inspect(&self) -> FunctionView {
        self.core.inspect()
    }
}

fn card(id: &str) -> Arc<Card> {
    let identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: [1, 0, 0],
        subsystem: (0, 0),
        header: regs::HEADER_MULTIFUNCTION,
        pin: 1,
    };
    Arc::new(Card {
        core: PciCore::plain(id, identity),
        line: Mutex::new(None),
        resets: AtomicU32::new(0),
    })
}

/// Port `p1` at 01.0, bridge `b1` below it.
struct Bench {
    host: Arc<PciHost>,
    heard: Arc<Mutex<Vec<Notice>>>,
    lines: [Arc<Level>; 4],
}

impl Bench {
    fn new() -> Self {
        let (sink, heard) = notices();
        let lines: [Arc<Level>; 4] = Default::default();
        let host = PciHost::new(PciHostSpec {
            spaces: Default::default(),
            intx: lines.clone().map(|line| line as Arc<dyn IrqLine>),
        });
        let port = RootPort::new(RootPortSpec {
            id: "p1".to_owned(),
            port: 0,
            slot: 1,
            multifunction: false,
            msi: Arc::new(Controller::default()) as Arc<dyn MsiController>,
            notices: sink.clone(),
        });
        host.plug(None, None, port.unwrap()).unwrap();
        let bridge = PciePciBridge::new("b1", false, sink).unwrap();
        host.plug(Some("p1"), None, bridge).unwrap();
        Self { host, heard, lines }
    }

    fn plug(&self, id: &str, address: &str) -> Arc<Card> {
        let card = card(id);
        let function = Arc::clone(&card) as Arc<dyn PciFunction>;
        let address = Some(address.parse().unwrap());
        self.host.plug(Some("b1"), address, function).unwrap();
        card
    }

    fn start(self) -> Self {
        let spec = SetupSpec {
            ecam: 0xb000_0000,
            io: 0x1000..0x1_0000,
            memory32: 0xc000_0000..0xfec0_0000,
            memory64: 0..0,
            port_memory: SetupSpec::PORT_MEMORY,
            port_prefetchable: SetupSpec::PORT_PREFETCHABLE,
        };
        setup::assign(&self.host, &spec);
        self.host.set_started();
        self
    }

    fn read(&self, bus: u8, device: u8, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.host.config_read(at(bus, device), offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Who has left, in order.
    fn gone(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        let ids = heard.iter().map(|notice| match notice {
            Notice::Unplugged { id } => id.clone(),
            other => panic!("{other:?}"),
        });
        ids.collect()
    }
}

fn at(bus: u8, device: u8) -> Bdf {
    Bdf {
        bus,
        slot: SlotAddress::slot(device),
    }
}

#[test]
fn it_shows_a_bridge_header_and_its_kind_of_pci_express() {
    let bench = Bench::new().start();
    assert_eq!(bench.read(1, 0, regs::VENDOR), 0x000e_1b36);
    assert_eq!(bench.read(1, 0, regs::REVISION), 0x0604_0000);
    assert_eq!(bench.read(1, 0, 0x0c) >> 16 & 0xff, 1, "the header's type");
    assert_eq!(bench.read(1, 0, regs::PRIMARY_BUS), 0x0002_0201);
    let capability = u16::try_from(bench.read(1, 0, regs::CAPABILITIES)).unwrap();
    let express = bench.read(1, 0, capability);
    assert_eq!(express & 0xff, u32::from(regs::CAP_EXPRESS));
    assert_eq!(express >> 20 & 0xf, 7, "PCI Express to PCI");
    assert_eq!(
        bench.read(1, 0, 0x3c) & 0xff00,
        0,
        "no interrupt of its own"
    );
}

#[test]
fn its_cards_are_reached_by_their_slots_and_have_no_extended_registers() {
    let bench = Bench::new();
    bench.plug("first", "0");
    bench.plug("last", "1f");
    let bench = bench.start();
    for device in [0, 31] {
        assert_eq!(bench.read(2, device, regs::VENDOR), 0x1042_1af4);
        assert_eq!(bench.read(2, device, 0x100), u32::MAX);
    }
    assert_eq!(bench.read(2, 1, regs::VENDOR), u32::MAX);
    assert_eq!(bench.read(1, 0, 0x100), 0, "those of the bridge");
    let line = &[0x5a];
    bench
        .host
        .config_write(at(2, 31), regs::INTERRUPT_LINE, line);
    bench.host.config_write(at(2, 31), 0x100, &[0xff; 4]);
    assert_eq!(bench.read(2, 31, regs::INTERRUPT_LINE) & 0xff, 0x5a);
}

/// PCI-to-PCI Bridge 1.2, table 9-1, twice: at the bridge's own slot 0 and at the port's slot 1.
#[test]
fn the_wires_of_its_slots_rotate_and_go_on_through_the_port() {
    let bench = Bench::new();
    for (device, wire) in [(0, 1), (1, 2), (2, 3), (3, 0), (5, 2)] {
        let card = bench.plug("card", &format!("{device:x}"));
        card.line.lock().unwrap().as_ref().unwrap().set(true);
        let high = bench.lines.iter().map(|line| line.high());
        let wanted = (0..4).map(|index| index == wire);
        assert!(high.eq(wanted), "slot {device}");
        assert!(bench.host.withdraw("card"));
    }
}

#[test]
fn a_card_is_asked_for_once_and_goes_with_the_next_reset() {
    let bench = Bench::new();
    bench.plug("stays", "1");
    bench.plug("goes", "2.0");
    bench.plug("goes-too", "2.1");
    let bench = bench.start();
    bench.host.request_unplug("goes").unwrap();
    let again = bench.host.request_unplug("goes-too").unwrap_err();
    assert_eq!(
        again.to_string(),
        "Device goes-too is already in the process of unplug"
    );
    assert!(bench.gone().is_empty());
    bench.host.reset();
    assert_eq!(bench.gone(), ["goes-too", "goes"]);
    bench.host.reset();
    assert_eq!(bench.gone().len(), 2);
    assert_eq!(
        bench.host.inspect()[1].bridge.as_ref().unwrap().functions[0].id,
        "b1"
    );
}

#[test]
fn before_the_machine_runs_only_the_card_that_is_named_goes() {
    let bench = Bench::new();
    bench.plug("stays", "1");
    bench.plug("goes", "2");
    bench.host.request_unplug("goes").unwrap();
    assert_eq!(bench.gone(), ["goes"]);
    let bench = bench.start();
    assert_eq!(bench.read(2, 1, regs::VENDOR), 0x1042_1af4);
}

#[test]
fn once_the_machine_runs_no_card_comes() {
    let bench = Bench::new().start();
    let late = bench.host.plug(Some("b1"), None, card("late")).unwrap_err();
    assert_eq!(late.to_string(), "Bus 'b1' does not support hotplugging");
}

/// Nobody has to be told: whoever opens it looks at its slots then.
#[test]
fn as_long_as_the_guest_has_not_opened_it_cards_come() {
    let bench = Bench::new();
    bench.host.set_started();
    bench.plug("early", "4");
    let bench = bench.start();
    assert_eq!(bench.read(2, 4, regs::VENDOR), 0x1042_1af4);
    assert!(bench.host.plug(Some("b1"), None, card("late")).is_err());
    bench.host.reset();
    bench.plug("before-firmware", "5");
}

#[test]
fn what_is_pci_express_finds_no_place_on_it() {
    let bench = Bench::new();
    let inner = PciePciBridge::new("b2", false, notices().0).unwrap();
    let error = bench.host.plug(Some("b1"), None, inner).unwrap_err();
    assert!(
        error.to_string().starts_with("PCI: 'b2' is PCI Express"),
        "{error}"
    );
}

#[test]
fn its_cards_go_before_it_when_its_port_is_emptied() {
    let bench = Bench::new();
    bench.plug("one", "1");
    bench.plug("two", "2");
    bench.host.request_unplug("b1").unwrap();
    assert_eq!(bench.gone(), ["two", "one", "b1"]);
}

/// What was asked for and then undone must not take the next card with it.
#[test]
fn a_slot_that_was_emptied_is_no_longer_to_be_emptied() {
    let bench = Bench::new();
    bench.plug("card", "2");
    let bench = bench.start();
    bench.host.request_unplug("card").unwrap();
    assert!(bench.host.withdraw("card"));
    bench.host.reset();
    assert!(bench.gone().is_empty());
    let views = bench.host.inspect();
    let bridge = &views[1].bridge.as_ref().unwrap().functions[0];
    assert!(bridge.bridge.as_ref().unwrap().functions.is_empty());
}

#[test]
fn the_guest_resets_what_is_behind_by_bridge_control() {
    let bench = Bench::new();
    let card = bench.plug("card", "3");
    let bench = bench.start();
    let write = |value: u16| {
        let place = at(1, 0);
        bench
            .host
            .config_write(place, regs::BRIDGE_CONTROL, &value.to_le_bytes());
    };
    write(regs::BRIDGE_CONTROL_RESET);
    write(regs::BRIDGE_CONTROL_RESET);
    assert_eq!(card.resets.load(Ordering::SeqCst), 1);
    write(0);
    write(regs::BRIDGE_CONTROL_RESET);
    assert_eq!(card.resets.load(Ordering::SeqCst), 2);
}
