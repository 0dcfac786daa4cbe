//! Hashes in headers, and queues chosen by hashes.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MQ, VIRTIO_NET_F_RSS, VIRTIO_NET_HASH_REPORT_UDPv4,
};

use super::*;
use crate::virtio::net::hash::{HashConfig, HashTypes, Hasher};

const KEY: [u8; 40] = [0x6d; 40];
const LEADING: u64 = ALL | bit(VIRTIO_NET_F_RSS) | bit(VIRTIO_NET_F_MQ);
const TELLING: u64 = ALL | bit(VIRTIO_NET_F_HASH_REPORT);
const HEADER_WITH_HASH: usize = HEADER + 8;
/// Table of the tests: four entries, backwards.
const TABLE: [u16; 4] = [3, 2, 1, 0];

/// A UDP packet over IPv4 from this port.
fn udp(port: u16) -> Vec<u8> {
    let addresses = [10, 0, 0, 1, 10, 0, 0, 2];
    let ip = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    let ports = [port.to_be_bytes(), [0, 53]].concat();
    packet(MAC, &[&ip, &addresses[..], &ports, &[0; 20]].concat())
}

fn hash_of(packet: &[u8]) -> u32 {
    let config = HashConfig {
        types: HashTypes::all().bits(),
        key: KEY.to_vec(),
    };
    Hasher::new(&config).hash(packet).unwrap().value
}

/// A packet that the table leads to this pair.
fn udp_for(pair: u16) -> Vec<u8> {
    let mut packets = (1000..2000).map(udp);
    let leads = |packet: &Vec<u8>| TABLE[hash_of(packet) as usize & 3] == pair;
    packets.find(leads).unwrap()
}

/// What leads packets: kinds, unclassified, table, queues to send by, key.
fn leading(types: u32, unclassified: u16, table: &[u16], senders: u16, key: &[u8]) -> Vec<u8> {
    let mask = u16::try_from(table.len()).unwrap().wrapping_sub(1);
    let table: Vec<u8> = table.iter().flat_map(|pair| pair.to_le_bytes()).collect();
    let mut command = vec![4, 1];
    command.extend(types.to_le_bytes());
    command.extend([mask, unclassified].map(u16::to_le_bytes).as_flattened());
    command.extend(table);
    command.extend(senders.to_le_bytes());
    command.push(u8::try_from(key.len()).unwrap());
    command.extend(key);
    command
}

fn sound() -> Vec<u8> {
    leading(0x1ff, 3, &TABLE, 2, &KEY)
}

/// What says what is hashed, without a table.
fn hashing(types: u32, key: &[u8]) -> Vec<u8> {
    let length = u8::try_from(key.len()).unwrap();
    [&[4, 2], &types.to_le_bytes()[..], &[0; 8], &[length], key].concat()
}

#[test]
fn what_can_be_hashed_stands_in_the_configuration() {
    let scene = scene_of(4, LEADING);
    let mut bytes = [0; 7];
    scene.card.config_read(17, &mut bytes);
    assert_eq!(bytes, [40, 128, 0, 0xff, 1, 0, 0]);
    assert_eq!(scene.card.queue_sizes().len(), 9);
}

#[test]
fn a_driver_that_takes_hashes_has_them_in_its_headers_both_ways() {
    let mut scene = scene(TELLING);
    let mut receive = scene.queue(0);
    let mut transmit = scene.queue(1);
    let mut control = scene.queue(2);
    let sent = udp(1);
    transmit.give(&[&[0; HEADER_WITH_HASH], sent.as_slice()].concat());
    assert_eq!(scene.heard(), sent);
    let said = udp(7);
    for (command, report, value) in [
        (None, 0, 0),
        (
            Some(hashing(0x1ff, &KEY)),
            VIRTIO_NET_HASH_REPORT_UDPv4,
            hash_of(&said),
        ),
        (Some(hashing(0, &[])), 0, 0),
    ] {
        if let Some(command) = command {
            assert_eq!(ask(&scene, &mut control, 0, &command), 0);
        }
        receive.give_room(2048);
        scene.say(&said);
        let used = receive.used();
        let [header, hash @ ..] = [HEADER, HEADER + 4, HEADER + 6, HEADER_WITH_HASH];
        assert_eq!(used[..header], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(used[header..hash[0]], value.to_le_bytes());
        assert_eq!(used[hash[0]..hash[1]], report.to_le_bytes()[..2]);
        assert_eq!(used[hash[1]..hash[2]], [0, 0]);
        assert_eq!(used[HEADER_WITH_HASH..], said);
    }
}

#[test]
fn a_header_without_all_of_its_hash_breaks_the_device() {
    let scene = scene(TELLING);
    let mut transmit = scene.queue(1);
    transmit.give(&[0; HEADER_WITH_HASH - 1]);
    let start = std::time::Instant::now();
    while scene.driver.resets.load(Ordering::SeqCst) == 0 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn hashes_lead_to_queues_until_another_mode_is_chosen() {
    let mut scene = scene_of(4, LEADING);
    let mut receive = [0, 2, 4, 6].map(|index| scene.queue(index));
    let mut control = scene.queue(8);
    assert_eq!(ask(&scene, &mut control, 0, &sound()), 0);
    for pair in [0, 3, 3, 1, 2, 0] {
        let said = udp_for(pair);
        receive[usize::from(pair)].give_room(2048);
        scene.say(&said);
        assert_eq!(receive[usize::from(pair)].used()[HEADER..], said);
    }
    // No hash is taken of others.
    let arp = packet(MAC, b"who has")[..].to_vec();
    receive[3].give_room(2048);
    scene.say(&arp);
    assert_eq!(receive[3].used()[HEADER..], arp);
    // One pair, chosen by us.
    assert_eq!(ask(&scene, &mut control, 1, &[4, 0, 1, 0]), 0);
    let said = udp_for(2);
    receive[0].give_room(2048);
    scene.say(&said);
    assert_eq!(receive[0].used()[HEADER..], said);
}

#[test]
fn a_packet_waits_for_its_own_queue_and_those_behind_it_come_after() {
    let mut scene = scene_of(4, LEADING);
    let mut receive = [0, 2, 4, 6].map(|index| scene.queue(index));
    let mut control = scene.queue(8);
    let one_sender = leading(0x1ff, 0, &TABLE, 1, &KEY);
    assert_eq!(ask(&scene, &mut control, 0, &one_sender), 0);
    let (first, second) = (udp_for(1), udp_for(2));
    receive[2].give_room(2048);
    scene.say(&first);
    scene.say(&second);
    assert!(receive[2].used_already().is_none());
    receive[1].give_room(2048);
    assert_eq!(receive[1].used()[HEADER..], first);
    assert_eq!(receive[2].used()[HEADER..], second);
}

#[test]
fn a_packet_for_a_queue_that_was_not_started_is_dropped() {
    let mut scene = scene_of(4, LEADING);
    let mut receive = scene.queue(2);
    let mut control = scene.queue(8);
    assert_eq!(ask(&scene, &mut control, 0, &sound()), 0);
    receive.give_room(2048);
    scene.say(&udp_for(2));
    let said = udp_for(1);
    scene.say(&said);
    assert_eq!(receive.used()[HEADER..], said);
}

#[test]
fn a_configuration_that_no_driver_may_ask_for_is_refused_and_changes_nothing() {
    let scene = scene_of(4, LEADING | TELLING);
    let mut control = scene.queue(8);
    assert_eq!(ask(&scene, &mut control, 0, &sound()), 0);
    let before = scene.card.tree().unwrap();
    let mut with_reserved_bit = TABLE;
    with_reserved_bit[1] |= 0x8000;
    let mut cut_short = sound();
    cut_short.pop();
    let mut key_longer_than_told = leading(1, 0, &TABLE, 1, &KEY);
    key_longer_than_told[20] = 41;
    key_longer_than_told.push(0);
    let refused = [
        leading(0x200, 0, &TABLE, 1, &KEY),
        leading(1, 4, &TABLE, 1, &KEY),
        leading(1, 0x8000, &TABLE, 1, &KEY),
        leading(1, 0, &[0, 1, 4, 0], 1, &KEY),
        leading(1, 0, &with_reserved_bit, 1, &KEY),
        leading(1, 0, &[0, 1, 2], 1, &KEY),
        leading(1, 0, &[], 1, &KEY),
        leading(1, 0, &[0; 256], 1, &KEY),
        leading(1, 0, &TABLE, 0, &KEY),
        leading(1, 0, &TABLE, 5, &KEY),
        leading(1, 0, &TABLE, 1, &[]),
        leading(1, 0, &TABLE, 1, &[1; 41]),
        cut_short,
        key_longer_than_told,
        hashing(0x200, &KEY),
        hashing(1, &[]),
        hashing(1, &[1; 41]),
        vec![4, 3, 1, 0],
    ];
    for command in refused {
        assert_eq!(ask(&scene, &mut control, 1, &command), 1, "{command:?}");
    }
    assert_eq!(scene.card.tree().unwrap(), before);
}

#[test]
fn a_mode_that_was_not_negotiated_is_refused() {
    let scene = scene_of(4, ALL);
    let mut control = scene.queue(2);
    for command in [sound(), hashing(1, &KEY), vec![4, 0, 2, 0]] {
        assert_eq!(ask(&scene, &mut control, 0, &command), 1);
    }
}

#[test]
fn what_was_set_is_saved_shown_and_gone_after_a_reset() {
    let from = scene_of(4, LEADING);
    let mut control = from.queue(8);
    assert_eq!(ask(&from, &mut control, 0, &sound()), 0);
    let to = scene_of(4, LEADING);
    let tree = trial::carry(&*from.card, &*to.card);
    assert_eq!(tree.state["hash"]["types"], 0x1ff);
    assert_eq!(tree.state["pairs"], 2);
    let ways = serde_json::json!({"table": TABLE, "unclassified": 3});
    assert_eq!(tree.state["ways"], ways);
    let plain = scene_of(4, TELLING);
    for (card, member, value) in [
        (&to.card, "/ways/table/0", 4),
        (&to.card, "/ways/unclassified", 9),
        (&to.card, "/hash/types", 0x200),
        (&plain.card, "/pairs", 1),
    ] {
        let mut bad = tree.clone();
        *bad.state.pointer_mut(member).unwrap() = value.into();
        let refused = card.restore(&bad).unwrap_err().to_string();
        assert!(refused.starts_with("state 'virtio-net': "), "{refused}");
    }
    for (card, kept) in [(from.card, false), (to.card, true)] {
        if !kept {
            card.stop_queue(8);
            card.reset();
        }
        let state = card.tree().unwrap().state;
        assert_eq!(state["ways"] == ways, kept);
        assert_eq!(state["hash"].is_null(), !kept);
    }
}
