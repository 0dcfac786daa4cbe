//! Network cards on taps, in guests whose VMM can open nothing.
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::Vm;
use tests::cable::Cable;

const MIB: u64 = 1 << 20;
/// The numbers of features (virtio 1.2, 5.1.3).
const CSUM: u64 = 0;
const GUEST_TSO4: u64 = 7;
const HOST_TSO4: u64 = 11;
const MRG_RXBUF: u64 = 15;
const MQ: u64 = 22;
const HASH_REPORT: u64 = 57;
const RSS: u64 = 60;

fn card(vm: &mut Vm, name: &str) -> Result<Value> {
    let cards = vm.guest_port().call("cards", json!({}))?;
    let mut cards = cards.as_array().cloned().unwrap_or_default().into_iter();
    let found = cards.find(|card| card["name"] == name);
    Ok(found.unwrap_or_default())
}

/// Whether the driver and the card have agreed on a feature.
fn has(card: &Value, feature: u64) -> bool {
    let features = card["features"].as_array();
    features.is_some_and(|all| all.contains(&json!(feature)))
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_card_on_a_passed_tap_carries_packets_before_and_after_a_reset() -> Result<()> {
    let cable = Cable::new(1, 1)?;
    let mut vm = Vm::sealed_with_a_port()?;
    cable.plug(&mut vm, &json!({}))?;
    let name = cable.configure(&mut vm)?;
    let seen = card(&mut vm, &name)?;
    for feature in [CSUM, GUEST_TSO4, HOST_TSO4, MRG_RXBUF] {
        ensure!(has(&seen, feature), "no feature {feature}: {seen}");
    }
    ensure!(!has(&seen, MQ), "{seen}");
    assert_eq!(seen["carrier"], true);
    cable.use_it(&mut vm, 4 * MIB, 1)?;
    vm.execute("system_reset", json!({}))?;
    vm.guest_port().wait_ready()?;
    cable.configure(&mut vm)?;
    cable.use_it(&mut vm, MIB, 1)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_cable_that_is_pulled_out_is_seen_and_carries_again_when_it_is_back() -> Result<()> {
    let cable = Cable::new(2, 1)?;
    let mut vm = Vm::sealed_with_a_port()?;
    cable.plug(&mut vm, &json!({}))?;
    let name = cable.configure(&mut vm)?;
    for end in ["card", "cable"] {
        cable.pull_and_put_back(&mut vm, &name, end)?;
        cable.use_it(&mut vm, 64 << 10, 1)?;
    }
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_tap_serves_another_guest_as_soon_as_its_card_is_deleted() -> Result<()> {
    let cable = Cable::new(3, 1)?;
    let mut first = Vm::sealed_with_a_port()?;
    let mut second = Vm::sealed_with_a_port()?;
    for _ in 0..2 {
        for vm in [&mut first, &mut second] {
            cable.plug(vm, &json!({}))?;
            cable.configure(vm)?;
            cable.use_it(vm, 64 << 10, 1)?;
            cable.unplug(vm)?;
            let mac = json!({"mac": cable.mac(), "seconds": 60});
            vm.guest_port().call("card-wait-gone", mac)?;
        }
    }
    first.shutdown_clean()?;
    second.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn four_queues_by_fds_are_used_by_a_guest_that_asks_for_them() -> Result<()> {
    let cable = Cable::new(4, 4)?;
    let mut vm = Vm::sealed_with(Vm::builder().cpus(4))?;
    cable.plug(&mut vm, &json!({}))?;
    let name = cable.configure(&mut vm)?;
    let seen = card(&mut vm, &name)?;
    ensure!(has(&seen, MQ), "{seen}");
    assert_eq!(
        (&seen["rx-queues"], &seen["tx-queues"]),
        (&json!(4), &json!(4))
    );
    for count in [4, 2, 1, 4] {
        let guest = vm.guest_port();
        guest.call("card-set-channels", json!({"card": name, "count": count}))?;
        let channels = guest.call("card-channels", json!({"card": name}))?;
        assert_eq!(channels, json!({"most": 4, "used": count}));
        cable.use_it(&mut vm, MIB, 8)?;
    }
    cable.unplug(&mut vm)?;
    cable.plug(&mut vm, &json!({"device": {"rss": true, "hash": true}}))?;
    let name = cable.configure(&mut vm)?;
    let seen = card(&mut vm, &name)?;
    ensure!(has(&seen, RSS) && has(&seen, HASH_REPORT), "{seen}");
    for queue in [2, 0] {
        lead_to(&mut vm, &name, queue)?;
        cable.use_it(&mut vm, MIB, 8)?;
    }
    vm.shutdown_clean()
}

/// Has the guest take all packets by one queue.
fn lead_to(vm: &mut Vm, name: &str, queue: u64) -> Result<()> {
    let guest = vm.guest_port();
    guest.call("card-set-spread", json!({"card": name, "queue": queue}))?;
    let table = guest.call("card-spread", json!({"card": name}))?;
    assert_eq!(table, json!(vec![queue; 128]));
    let inside = vm.execute("x-inspect", json!({"path": "card/virtio-backend"}))?;
    assert_eq!(inside["state"]["ways"]["table"], table);
    Ok(())
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn offloads_that_are_switched_off_are_not_negotiated_and_not_needed() -> Result<()> {
    let cable = Cable::new(5, 1)?;
    let mut vm = Vm::sealed_with_a_port()?;
    let off = json!({"device": {"csum": false, "guest_csum": false, "mrg_rxbuf": false}});
    cable.plug(&mut vm, &off)?;
    let name = cable.configure(&mut vm)?;
    let seen = card(&mut vm, &name)?;
    for feature in [CSUM, GUEST_TSO4, HOST_TSO4, MRG_RXBUF] {
        ensure!(!has(&seen, feature), "feature {feature}: {seen}");
    }
    cable.use_it(&mut vm, MIB, 2)?;
    vm.shutdown_clean()
}
