//! The tree as a client and as a guest sees it.

use super::*;
use crate::bus::BusDevice;
use crate::irq::MsiController;
use crate::legacy::ResetControl;
use crate::pci::mock::{Controller, lines, notices};
use crate::pci::ports::{ConfigPorts, Ecam};
use crate::pci::root_port::{RootPort, RootPortSpec};
use crate::pci::setup::{self, SetupSpec};

fn host() -> Arc<PciHost> {
    PciHost::new(PciHostSpec {
        spaces: Spaces::default(),
        intx: lines(),
    })
}

fn port(id: &str, slot: u16) -> Arc<dyn PciFunction> {
    let port = RootPort::new(RootPortSpec {
        id: id.to_owned(),
        port: 0,
        slot,
        multifunction: false,
        msi: Arc::new(Controller::default()) as Arc<dyn MsiController>,
        notices: notices().0,
    });
    port.unwrap()
}

fn spec() -> SetupSpec {
    SetupSpec {
        ecam: 0xb000_0000,
        io: 0x1000..0x1_0000,
        memory32: 0xc000_0000..0xfec0_0000,
        memory64: 0..0,
        port_memory: SetupSpec::PORT_MEMORY,
        port_prefetchable: SetupSpec::PORT_PREFETCHABLE,
    }
}

#[test]
fn functions_take_the_slot_asked_for_or_the_lowest_free_one() {
    let host = host();
    let wanted = "04.0".parse().ok();
    assert_eq!(
        host.plug(None, wanted, port("a", 1)).unwrap(),
        SlotAddress::slot(4)
    );
    let next = host.plug(Some(ROOT_BUS), None, port("b", 2)).unwrap();
    assert_eq!(next, SlotAddress::slot(1));
    assert_eq!(host.bus_names(), [ROOT_BUS, "b", "a"]);
}

#[test]
fn each_refusal_names_what_was_asked_and_why_not() {
    let host = host();
    host.plug(None, Some(SlotAddress::slot(4)), port("a", 1))
        .unwrap();
    let refusals = [
        (
            host.plug(Some("x"), None, port("b", 2)),
            "Bus 'x' not found",
        ),
        (
            host.plug(None, Some(SlotAddress::slot(4)), port("b", 2)),
            "PCI: slot 4 function 0 of bus 'pcie.0' already in use by 'a', cannot plug 'b'",
        ),
        (
            host.plug(None, Some(SlotAddress::slot(0)), port("b", 2)),
            "PCI: slot 0 function 0 of bus 'pcie.0' already in use by 'the machine', cannot plug 'b'",
        ),
        (
            host.plug(Some("a"), Some(SlotAddress::slot(3)), port("b", 2)),
            "PCI: slot 3 is not valid for 'b': bus 'a' of a PCI Express port has only slot 0",
        ),
        (
            host.plug(None, SlotAddress::new(4, 1), port("b", 2)),
            "PCI: slot 4 of bus 'pcie.0' is not multifunction: function 1 for 'b' needs \
             multifunction=on at function 0",
        ),
    ];
    for (result, expected) in refusals {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }
    host.set_started();
    let late = host.plug(None, None, port("b", 2)).unwrap_err();
    assert_eq!(
        late.to_string(),
        "Bus 'pcie.0' does not support hotplugging"
    );
    let stay = host.request_unplug("a").unwrap_err();
    assert_eq!(
        stay.to_string(),
        "Bus 'pcie.0' does not support hotplugging"
    );
    let nobody = host.request_unplug("zz").unwrap_err();
    assert_eq!(nobody.to_string(), "Device 'zz' not found");
}

#[test]
fn a_full_bus_says_so() {
    let host = host();
    for slot in 1..32 {
        host.plug(None, None, port(&format!("p{slot}"), slot))
            .unwrap();
    }
    let error = host.plug(None, None, port("late", 99)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no slot free on bus 'pcie.0' for 'late'")
    );
}

#[test]
fn a_plug_that_is_undone_leaves_the_slot_free() {
    let host = host();
    host.plug(None, None, port("a", 1)).unwrap();
    host.plug(Some("a"), None, port("b", 2)).unwrap();
    assert!(host.withdraw("b"));
    assert!(!host.withdraw("b"));
    host.plug(Some("a"), None, port("c", 3)).unwrap();
}

#[test]
fn both_ways_lead_to_the_same_function_through_programmed_bridges() {
    let host = host();
    host.plug(None, None, port("a", 1)).unwrap();
    host.plug(Some("a"), None, port("b", 2)).unwrap();
    let ecam = Ecam::new(Arc::downgrade(&host));
    let reset = Arc::new(ResetControl::new(notices().0));
    let ports = ConfigPorts::new(Arc::clone(&host), reset);
    let behind = |ports: &ConfigPorts| {
        ports.write(0, &0x8001_0000_u32.to_le_bytes());
        let mut ids = [0; 4];
        ports.read(4, &mut ids);
        ids
    };
    assert_eq!(behind(&ports), [0xff; 4], "no bridge has numbers yet");
    setup::assign(&host, &spec());
    assert_eq!(behind(&ports), [0x36, 0x1b, 0x0c, 0x00]);
    let mut vendor = [0; 2];
    ecam.read(1 << 20, &mut vendor);
    assert_eq!(vendor, [0x36, 0x1b]);
    // Half of the dword by an offset from 0xcfc.
    let mut device = [0; 2];
    ports.read(6, &mut device);
    assert_eq!(device, [0x0c, 0x00]);
    // The same half, named in the address.
    ports.write(0, &0x8001_0002_u32.to_le_bytes());
    let mut device = [0; 4];
    ports.read(4, &mut device);
    assert_eq!(device, [0x0c, 0x00, 0xff, 0xff]);
    let view = host.inspect();
    let outer = view[1].bridge.as_ref().unwrap();
    assert_eq!((outer.secondary, outer.subordinate), (1, 2));
    assert_eq!(outer.functions[0].id, "b");
    assert_eq!(outer.functions[0].bus, 1);
}

#[test]
fn the_reset_register_is_reached_inside_the_address_port() {
    let (sink, heard) = notices();
    let ports = ConfigPorts::new(host(), Arc::new(ResetControl::new(sink)));
    ports.write(0, &0x8000_0000_u32.to_le_bytes());
    ports.write(1, &[0x06]);
    assert_eq!(*heard.lock().unwrap(), [Notice::Reset]);
    let mut address = [0; 4];
    ports.read(0, &mut address);
    assert_eq!(address, 0x8000_0000_u32.to_le_bytes());
}

#[test]
fn accesses_of_every_size_at_every_offset_are_answered() {
    let host = host();
    let reset = Arc::new(ResetControl::new(notices().0));
    let ports = ConfigPorts::new(Arc::clone(&host), reset);
    let ecam = Ecam::new(Arc::downgrade(&host));
    for address in [0u32, 0x8000_0000, 0x8000_00fc, 0xffff_ffff] {
        ports.write(0, &address.to_le_bytes());
        for len in 1..=8 {
            for offset in 0..8 {
                let mut data = vec![0; len];
                ports.read(offset, &mut data);
                ports.write(offset, &data);
                ecam.read(0xff8 + offset, &mut data);
                ecam.write(0xff8 + offset, &data);
            }
        }
    }
}

#[test]
fn the_same_tree_is_placed_the_same_after_each_reset() {
    let host = host();
    for slot in 1..5 {
        host.plug(None, None, port(&format!("p{slot}"), slot))
            .unwrap();
    }
    let first = setup::assign(&host, &spec());
    let view = host.inspect();
    host.reset();
    assert_ne!(host.inspect(), view);
    assert_eq!(setup::assign(&host, &spec()), first);
    assert_eq!(host.inspect(), view);
}

#[test]
fn the_window_is_where_pciexbar_says_and_closed_after_a_reset() {
    use crate::irq::IrqLine;
    use crate::pci::host_bridge::{DEVICE_MCH, PCIEXBAR, VENDOR_INTEL};
    use crate::pci::mock::Level;

    let spaces = Spaces::default();
    let memory = Arc::clone(&spaces.memory);
    let host = PciHost::new(PciHostSpec {
        spaces,
        intx: std::array::from_fn(|_| Arc::new(Level::default()) as Arc<dyn IrqLine>),
    });
    let bridge = Bdf {
        bus: 0,
        slot: SlotAddress::slot(0),
    };
    let ids_at = |base: u64| {
        let mut ids = [0; 4];
        memory.read(base, &mut ids).then_some(ids)
    };
    let ids = (u32::from(DEVICE_MCH) << 16 | u32::from(VENDOR_INTEL)).to_le_bytes();
    for base in [0xb000_0000_u64, 0xe000_0000] {
        assert_eq!(ids_at(base), None);
        host.config_write(bridge, PCIEXBAR, &(base | 1).to_le_bytes());
        assert_eq!(ids_at(base), Some(ids));
    }
    assert_eq!(ids_at(0xb000_0000), None, "it has moved");
    host.reset();
    assert_eq!(ids_at(0xe000_0000), None);
}
