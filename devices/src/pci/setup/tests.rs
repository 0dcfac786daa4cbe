//! Whatever is plugged: the same tree gets the same addresses, and no two overlap.

use proptest::prelude::*;

use super::*;
use crate::pci::bus::BusKind;
use crate::pci::inspect::{BridgeView, RegionView, WindowView};

const CLOSED: WindowView = WindowView { base: 1, limit: 0 };

fn spec() -> SetupSpec {
    SetupSpec {
        ecam: 0xb000_0000,
        io: 0x1000..0x1_0000,
        memory32: 0xc000_0000..0xfec0_0000,
        memory64: 1 << 36..1 << 38,
        port_memory: SetupSpec::PORT_MEMORY,
        port_prefetchable: SetupSpec::PORT_PREFETCHABLE,
    }
}

fn function(
    device: u8,
    regions: Vec<RegionView>,
    bridge: Option<Vec<FunctionView>>,
) -> FunctionView {
    FunctionView {
        id: format!("d{device}"),
        bus: 0,
        address: SlotAddress::slot(device),
        class: 0,
        vendor: 0x1af4,
        device: 0x1042,
        subsystem: None,
        irq: 0,
        irq_pin: 1,
        regions,
        bridge: bridge.map(|functions| BridgeView {
            bus: format!("d{device}"),
            kind: BusKind::Port,
            primary: 0,
            secondary: 0,
            subordinate: 0,
            memory: CLOSED,
            prefetchable: CLOSED,
            functions,
        }),
    }
}

/// A bridge to conventional PCI, with these cards in its slots.
fn conventional(device: u8, cards: Vec<Vec<RegionView>>) -> FunctionView {
    let cards = (0u8..).zip(cards);
    let cards = cards.map(|(slot, regions)| function(slot, regions, None));
    let mut view = function(device, Vec::new(), Some(cards.collect()));
    if let Some(bridge) = &mut view.bridge {
        bridge.kind = BusKind::Conventional;
    }
    view
}

fn regions() -> impl Strategy<Value = Vec<RegionView>> {
    let region = (0u32..3, 2u32..24).prop_map(|(kind, shift)| {
        let (kind, shift) = match kind {
            0 => (BarKind::Io, shift.min(8)),
            1 => (BarKind::Memory32, shift.max(4)),
            _ => (BarKind::Memory64, shift.max(4)),
        };
        (kind, 1u64 << shift)
    });
    prop::collection::vec(region, 0..3).prop_map(|list| {
        list.into_iter()
            .enumerate()
            .map(|(index, (kind, size))| RegionView {
                index: index * 2,
                kind,
                size,
                address: None,
            })
            .collect()
    })
}

fn tree() -> impl Strategy<Value = Vec<FunctionView>> {
    let card = regions().prop_map(|regions| function(0, regions, None));
    let cards = prop::collection::vec(regions(), 0..6);
    let bridge = cards.prop_map(|cards| conventional(0, cards));
    let child = prop::option::of(prop_oneof![card, bridge]);
    let slot = (regions(), prop::option::of(child));
    prop::collection::vec(slot, 1..20).prop_map(|slots| {
        (0u8..)
            .zip(slots)
            .map(|(device, (regions, port))| match port {
                Some(child) => function(device, Vec::new(), Some(child.into_iter().collect())),
                None => function(device, regions, None),
            })
            .collect()
    })
}

/// All BARs of a plan in one space, as (start, end).
fn spans(plans: &[FunctionPlan], io: bool) -> Vec<(u64, u64)> {
    let mut spans: Vec<_> = plans
        .iter()
        .flat_map(|plan| &plan.bars)
        .filter(|bar| (bar.kind == BarKind::Io) == io)
        .filter_map(|bar| Some((bar.address?, bar.address? + bar.size)))
        .collect();
    spans.sort_unstable();
    spans
}

fn disjoint(spans: &[(u64, u64)]) -> bool {
    spans.windows(2).all(|pair| pair[0].1 <= pair[1].0)
}

fn within(inner: &Range<u64>, outer: &Range<u64>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

#[test]
fn ports_get_numbers_in_order_and_room_for_hotplug() {
    let survey = vec![
        function(1, Vec::new(), Some(Vec::new())),
        function(2, Vec::new(), Some(Vec::new())),
    ];
    let plans = plan(&survey, &spec());
    let bridge = |index: usize| plans[index].bridge.clone().unwrap();
    assert_eq!((bridge(0).secondary, bridge(0).subordinate), (1, 1));
    assert_eq!((bridge(1).secondary, bridge(1).subordinate), (2, 2));
    assert_eq!(last_bus(&plans), 2);
    let memory = bridge(1).memory.unwrap();
    assert_eq!(memory.end - memory.start, SetupSpec::PORT_MEMORY);
    let wide = bridge(1).prefetchable.unwrap();
    assert_eq!(wide.end - wide.start, SetupSpec::PORT_PREFETCHABLE);
}

#[test]
fn a_conventional_bus_gets_a_number_and_windows_for_what_is_there() {
    let region = |kind, size| RegionView {
        index: 0,
        kind,
        size,
        address: None,
    };
    let cards = vec![
        vec![region(BarKind::Memory32, 1 << 20)],
        vec![region(BarKind::Memory32, 1 << 12)],
    ];
    let port = |device, behind| function(device, Vec::new(), Some(vec![behind]));
    let survey = [
        port(1, conventional(0, Vec::new())),
        port(2, conventional(0, cards)),
    ];
    let plans = plan(&survey, &spec());
    let bridges: Vec<_> = plans
        .iter()
        .filter_map(|plan| plan.bridge.clone())
        .collect();
    let numbers = bridges.iter().map(|it| (it.secondary, it.subordinate));
    assert!(numbers.eq([(1, 2), (3, 4), (2, 2), (4, 4)]));
    let [_, port, empty, full] = &bridges[..] else {
        panic!("{bridges:?}");
    };
    assert_eq!((&empty.memory, &empty.prefetchable), (&None, &None));
    let (outer, inner) = (port.memory.clone().unwrap(), full.memory.clone().unwrap());
    assert!(within(&inner, &outer));
    assert_eq!(inner.end - inner.start, 2 * MIB, "no room for more");
    let placed = plans.iter().flat_map(|plan| &plan.bars);
    assert!(
        placed
            .clone()
            .all(|bar| inner.contains(&bar.address.unwrap()))
    );
    assert_eq!(placed.count(), 2);
}

#[test]
fn without_memory_above_ram_wide_bars_go_below() {
    let wide = RegionView {
        index: 0,
        kind: BarKind::Memory64,
        size: 1 << 20,
        address: None,
    };
    let no_high = SetupSpec {
        memory64: 0..0,
        ..spec()
    };
    let plans = plan(&[function(3, vec![wide], None)], &no_high);
    assert_eq!(plans[0].bars[0].address, Some(0xc000_0000));
    assert_eq!(last_bus(&plans), 0);
}

#[test]
fn what_finds_no_room_stays_unassigned() {
    let huge = RegionView {
        index: 0,
        kind: BarKind::Memory32,
        size: 1 << 31,
        address: None,
    };
    let plans = plan(&[function(3, vec![huge], None)], &spec());
    assert_eq!(plans[0].bars[0].address, None);
}

proptest! {
    #[test]
    fn the_same_tree_gets_the_same_addresses(survey in tree()) {
        prop_assert_eq!(plan(&survey, &spec()), plan(&survey, &spec()));
    }

    #[test]
    fn nothing_overlaps_and_all_is_aligned_and_inside(survey in tree()) {
        let spec = spec();
        let plans = plan(&survey, &spec);
        prop_assert!(disjoint(&spans(&plans, true)));
        prop_assert!(disjoint(&spans(&plans, false)));
        for bar in plans.iter().flat_map(|plan| &plan.bars) {
            let Some(address) = bar.address else { continue };
            prop_assert_eq!(address % bar.size, 0);
            let range = address..address + bar.size;
            let allowed = match bar.kind {
                BarKind::Io => within(&range, &spec.io),
                BarKind::Memory32 => within(&range, &spec.memory32),
                BarKind::Memory64 => {
                    within(&range, &spec.memory64) || within(&range, &spec.memory32)
                }
            };
            prop_assert!(allowed, "{:?}", bar);
        }
    }

    #[test]
    fn what_is_behind_a_bridge_is_inside_its_windows_and_nothing_else_is(survey in tree()) {
        let plans = plan(&survey, &spec());
        for bridge in plans.iter().filter_map(|plan| plan.bridge.as_ref()) {
            for window in [&bridge.memory, &bridge.prefetchable].into_iter().flatten() {
                prop_assert_eq!(window.start % MIB, 0);
                prop_assert_eq!(window.end % MIB, 0);
                for plan in &plans {
                    let behind = (bridge.secondary..=bridge.subordinate).contains(&plan.bdf.0);
                    for bar in plan.bars.iter().filter(|bar| bar.kind != BarKind::Io) {
                        let Some(at) = bar.address else { continue };
                        let inside = window.start < at + bar.size && at < window.end;
                        prop_assert!(!inside || behind);
                    }
                }
            }
            let below = plans.iter().filter(|plan| plan.bdf.0 == bridge.secondary);
            for bar in below.flat_map(|plan| &plan.bars).filter(|bar| bar.kind != BarKind::Io) {
                let at = bar.address;
                prop_assert!(at.is_some(), "a window holds what was there at the reset: {:?}", bar);
            }
        }
    }
}
