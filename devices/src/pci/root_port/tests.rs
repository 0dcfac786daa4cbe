//! Hot-plug, register by register, as a driver does it.

use super::*;
use crate::notice::Notice;
use crate::pci::address::{Bdf, SlotAddress};
use crate::pci::config::EXTENDED;
use crate::pci::express::{
    BUTTON_PRESSED, HOT_PLUG_INTERRUPT, INDICATOR_OFF, INDICATOR_ON, LINK_ACTIVE, LINK_CHANGED,
    LINK_CHANGED_ENABLE, LINK_STATUS, POWER_INDICATOR, PRESENCE_CHANGED, PRESENT, SLOT_CONTROL,
    SLOT_STATUS,
};
use crate::pci::host::{PciHost, PciHostSpec};
use crate::pci::mock::{Controller, lines, notices};
use crate::pci::setup::{self, SetupSpec};
use crate::state::{AnyStateful, Empty, NothingToSave, trial};
use proptest::prelude::*;

struct Card(PciCore);
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

impl Lifecycle for Card {}
impl PciFunction for Card {
    fn id(&self) -> &str {
        self.0.id()
    }
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.0.read(offset, data);
    }
    fn config_write(&self, offset: u16, data: &[u8]) {
        self.0.write(offset, data);
    }
    fn attach(&self, attachment: Attachment) {
        self.0.attach(&attachment);
    }
    fn detach(&self) {
        self.0.detach();
    }
    fn inspect(&self) -> FunctionView {
        self.0.inspect()
    }
}

fn card(id: &str) -> Arc<dyn PciFunction> {
    let identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: [1, 0, 0],
        subsystem: (0, 0),
        header: 0,
        pin: 1,
    };
    Arc::new(Card(PciCore::plain(id, identity)))
}

struct Bench {
    host: Arc<PciHost>,
    port: Arc<RootPort>,
    controller: Arc<Controller>,
    heard: Arc<Mutex<Vec<Notice>>>,
}

impl Bench {
    fn new() -> Self {
        let (sink, heard) = notices();
        let controller = Arc::new(Controller::default());
        let host = PciHost::new(PciHostSpec {
            spaces: Default::default(),
            intx: lines(),
        });
        let port = RootPort::new(RootPortSpec {
            id: "p1".to_owned(),
            port: 0x10,
            slot: 1,
            multifunction: false,
            msi: Arc::clone(&controller) as Arc<dyn MsiController>,
            notices: sink,
        })
        .unwrap();
        host.plug(None, None, Arc::clone(&port) as Arc<dyn PciFunction>)
            .unwrap();
        Self {
            host,
            port,
            controller,
            heard,
        }
    }

    /// Firmware's part, then the guest runs.
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

    fn at(&self, offset: u16) -> u16 {
        self.port.registers.0 + offset
    }

    fn read(&self, register: u16) -> u16 {
        let mut data = [0; 2];
        self.port.config_read(self.at(register), &mut data);
        u16::from_le_bytes(data)
    }

    fn write(&self, register: u16, value: u16) {
        self.port
            .config_write(self.at(register), &value.to_le_bytes());
    }

    /// What pciehp does when it takes a slot over.
    fn pciehp_probe(&self) {
        let Msi(msi) = self.port.msi;
        self.port
            .config_write(msi + 4, &0xfee0_0000_u32.to_le_bytes());
        self.port.config_write(msi + 12, &0x31_u16.to_le_bytes());
        self.port.config_write(msi + 2, &1_u16.to_le_bytes());
        self.write(
            SLOT_STATUS,
            BUTTON_PRESSED | PRESENCE_CHANGED | LINK_CHANGED,
        );
        let control = self.read(SLOT_CONTROL);
        let wanted = BUTTON_PRESSED | LINK_CHANGED_ENABLE | HOT_PLUG_INTERRUPT;
        self.write(SLOT_CONTROL, control | wanted);
    }

    /// What its interrupt handler does: read and clear until nothing is left.
    fn pciehp_interrupt(&self) -> u16 {
        let mut events = 0;
        loop {
            let seen = self.read(SLOT_STATUS) & (BUTTON_PRESSED | PRESENCE_CHANGED | LINK_CHANGED);
            if seen == 0 {
                return events;
            }
            events |= seen;
            self.write(SLOT_STATUS, seen);
        }
    }

    fn indicate(&self, indicator: u16) {
        let control = self.read(SLOT_CONTROL) & !POWER_INDICATOR;
        self.write(SLOT_CONTROL, control | indicator);
    }

    fn vendor_behind(&self) -> u16 {
        let mut data = [0; 2];
        let bdf = Bdf {
            bus: 1,
            slot: SlotAddress::slot(0),
        };
        self.host.config_read(bdf, 0, &mut data);
        u16::from_le_bytes(data)
    }

    fn unplugged(&self) -> usize {
        self.heard.lock().unwrap().len()
    }
}

#[test]
fn a_disk_is_plugged_and_unplugged_as_pciehp_does_it_a_hundred_times() {
    let bench = Bench::new().start();
    bench.pciehp_probe();
    for round in 1..=100 {
        let interrupts = bench.controller.sent();
        bench.host.plug(Some("p1"), None, card("d1")).unwrap();
        assert_eq!(bench.controller.sent(), interrupts + 1);
        assert_eq!(bench.pciehp_interrupt(), PRESENCE_CHANGED | LINK_CHANGED);
        assert_ne!(bench.read(SLOT_STATUS) & PRESENT, 0);
        bench.indicate(INDICATOR_BLINK);
        assert_ne!(bench.read(LINK_STATUS) & LINK_ACTIVE, 0);
        assert_eq!(bench.vendor_behind(), 0x1af4);
        bench.indicate(INDICATOR_ON);
        assert_eq!(bench.port.phase(), Phase::On);

        bench.host.request_unplug("d1").unwrap();
        assert_eq!(bench.pciehp_interrupt(), BUTTON_PRESSED);
        bench.indicate(INDICATOR_BLINK);
        let again = bench.host.request_unplug("d1").unwrap_err();
        assert!(
            again.to_string().contains("already in the process"),
            "{again}"
        );
        assert_eq!(bench.unplugged(), round - 1);
        bench.indicate(INDICATOR_OFF);
        assert_eq!(bench.unplugged(), round);
        assert_eq!(bench.pciehp_interrupt(), PRESENCE_CHANGED | LINK_CHANGED);
        assert_eq!(bench.read(SLOT_STATUS) & PRESENT, 0);
        assert_eq!(bench.read(LINK_STATUS) & LINK_ACTIVE, 0);
        assert_eq!(bench.vendor_behind(), 0xffff);
    }
}

#[test]
fn a_card_from_before_the_start_is_present_and_raises_no_event() {
    let bench = Bench::new();
    bench.host.plug(Some("p1"), None, card("d1")).unwrap();
    let bench = bench.start();
    bench.pciehp_probe();
    assert_eq!(bench.pciehp_interrupt(), 0);
    assert_eq!(bench.controller.sent(), 0);
    assert_ne!(bench.read(SLOT_STATUS) & PRESENT, 0);
    assert_eq!(bench.read(SLOT_CONTROL) & POWER_INDICATOR, INDICATOR_ON);
}

#[test]
fn an_unplug_that_no_driver_answers_is_finished_by_a_reset() {
    let bench = Bench::new();
    bench.host.plug(Some("p1"), None, card("d1")).unwrap();
    let bench = bench.start();
    bench.host.request_unplug("d1").unwrap();
    bench.host.request_unplug("d1").unwrap();
    assert_eq!(bench.unplugged(), 0);
    bench.host.reset();
    let id = "d1".to_owned();
    assert_eq!(*bench.heard.lock().unwrap(), [Notice::Unplugged { id }]);
    assert_eq!(bench.read(SLOT_STATUS) & PRESENT, 0);
    assert_eq!(bench.read(SLOT_CONTROL) & POWER_INDICATOR, INDICATOR_OFF);
}

#[test]
fn a_slot_that_the_guest_has_turned_off_is_emptied_at_once() {
    let bench = Bench::new();
    bench.host.plug(Some("p1"), None, card("d1")).unwrap();
    let bench = bench.start();
    bench.indicate(INDICATOR_OFF);
    assert_eq!(bench.unplugged(), 0, "the host has not asked");
    bench.host.request_unplug("d1").unwrap();
    assert_eq!(bench.unplugged(), 1);
}

#[test]
fn before_the_start_nobody_is_asked() {
    let bench = Bench::new();
    bench.host.plug(Some("p1"), None, card("d1")).unwrap();
    bench.host.request_unplug("d1").unwrap();
    assert_eq!(bench.unplugged(), 1);
    bench.host.plug(Some("p1"), None, card("d1")).unwrap();
}

#[test]
fn a_guest_that_refuses_keeps_its_card_also_over_a_reset() {
    let bench = Bench::new();
    bench.host.plug(Some("p1"), None, card("d1")).unwrap();
    let bench = bench.start();
    bench.pciehp_probe();
    bench.host.request_unplug("d1").unwrap();
    bench.indicate(INDICATOR_BLINK);
    assert_eq!(bench.heard.lock().unwrap().len(), 0);
    bench.indicate(INDICATOR_ON);
    assert_eq!(bench.port.phase(), Phase::On);
    let id = "d1".to_owned();
    let refused = [Notice::UnplugRefused { id }];
    assert_eq!(*bench.heard.lock().unwrap(), refused);
    // What nobody asked for is not refused.
    bench.indicate(INDICATOR_BLINK);
    bench.indicate(INDICATOR_ON);
    bench.host.reset();
    assert_eq!(*bench.heard.lock().unwrap(), refused);
    assert_ne!(bench.read(SLOT_STATUS) & PRESENT, 0);
}

#[test]
fn a_port_that_goes_takes_its_card_along() {
    let bench = Bench::new();
    bench.host.plug(Some("p1"), None, card("d1")).unwrap();
    assert!(bench.host.withdraw("p1"));
    let id = "d1".to_owned();
    assert_eq!(*bench.heard.lock().unwrap(), [Notice::Unplugged { id }]);
    assert_eq!(bench.host.bus_names(), ["pcie.0"]);
}

#[test]
fn a_busy_slot_is_asked_when_the_guest_is_done() {
    let bench = Bench::new().start();
    bench.pciehp_probe();
    bench.host.plug(Some("p1"), None, card("d1")).unwrap();
    bench.pciehp_interrupt();
    bench.indicate(INDICATOR_BLINK);
    bench.host.request_unplug("d1").unwrap();
    assert_eq!(bench.pciehp_interrupt(), 0, "it would mean 'never mind'");
    let again = bench.host.request_unplug("d1").unwrap_err();
    assert!(matches!(again, PciError::UnplugPending { .. }), "{again}");
    let interrupts = bench.controller.sent();
    bench.indicate(INDICATOR_ON);
    assert_eq!(bench.controller.sent(), interrupts + 1);
    assert_eq!(bench.pciehp_interrupt(), BUTTON_PRESSED);
    assert_eq!(*bench.heard.lock().unwrap(), []);
    bench.indicate(INDICATOR_BLINK);
    bench.indicate(INDICATOR_OFF);
    assert_eq!(bench.unplugged(), 1);
}

#[test]
fn a_card_that_the_guest_turns_off_by_itself_leaves_when_it_is_off() {
    let bench = Bench::new();
    bench.host.plug(Some("p1"), None, card("d1")).unwrap();
    let bench = bench.start();
    bench.pciehp_probe();
    bench.indicate(INDICATOR_BLINK);
    bench.host.request_unplug("d1").unwrap();
    assert_eq!(bench.unplugged(), 0);
    bench.indicate(INDICATOR_OFF);
    assert_eq!(bench.unplugged(), 1);
}

#[test]
fn a_card_that_is_wanted_back_leaves_with_a_reset() {
    let bench = Bench::new().start();
    bench.pciehp_probe();
    bench.host.plug(Some("p1"), None, card("d1")).unwrap();
    bench.indicate(INDICATOR_BLINK);
    bench.host.request_unplug("d1").unwrap();
    bench.host.reset();
    assert_eq!(bench.unplugged(), 1);
}

#[test]
fn without_msi_the_line_is_high_while_an_event_waits() {
    let bench = Bench::new().start();
    let wanted = LINK_CHANGED_ENABLE | HOT_PLUG_INTERRUPT | INDICATOR_OFF;
    bench.write(SLOT_CONTROL, wanted);
    bench.host.plug(Some("p1"), None, card("d1")).unwrap();
    assert!(bench.port.line_wanted());
    bench.pciehp_interrupt();
    assert!(!bench.port.line_wanted());
    assert_eq!(bench.controller.sent(), 0);
}

proptest! {
    /// Any guest, any order: no panic, and the card leaves only when the host has asked.
    #[test]
    fn no_access_breaks_a_port(
        writes in prop::collection::vec(
            (0u16..4096, prop::collection::vec(any::<u8>(), 1..9)), 0..64),
        ask in any::<bool>(),
    ) {
        let bench = Bench::new().start();
        bench.host.plug(Some("p1"), None, card("d1")).unwrap();
        let asked = ask && bench.host.request_unplug("d1").is_ok();
        for (offset, data) in writes {
            bench.port.config_write(offset, &data);
            let mut back = data;
            bench.port.config_read(offset, &mut back);
        }
        if !asked {
            prop_assert_eq!(bench.unplugged(), 0);
        }
        let mut end = [0; 8];
        bench.port.config_read(u16::try_from(EXTENDED).unwrap() - 1, &mut end);
    }
}

#[test]
fn a_port_goes_on_where_a_snapshot_was_taken() {
    let bench = || {
        let bench = Bench::new();
        bench.host.plug(Some("p1"), None, card("c1")).unwrap();
        bench.start()
    };
    let from = bench();
    from.pciehp_probe();
    from.host.request_unplug("c1").unwrap();
    let to = bench();
    let tree = trial::carry(&*from.port, &*to.port);
    assert_eq!(tree.state["phase"], "asked");
    assert_eq!(to.port.numbers(), from.port.numbers());
    assert_eq!(to.controller.sent(), 0, "the guest has heard of it");
    to.write(
        SLOT_CONTROL,
        to.read(SLOT_CONTROL) & !POWER_INDICATOR | INDICATOR_OFF,
    );
    assert_eq!(to.port.phase(), Phase::Empty);
    let alive = || {
        let _ = (from.read(SLOT_STATUS), from.port.windows());
    };
    assert!(trial::offend(&*from.port, &tree, alive) > 10);
    let refused = Bench::new().start().port.restore(&tree).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "state 'pcie-root-port': phase: Asked, and the slot 'p1' holds no card"
    );
}
