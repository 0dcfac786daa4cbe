//! Filters on netdevs, by their objects.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{Vm, fds};

const PATIENCE: Duration = Duration::from_secs(30);
/// What a dump begins with, what is before each packet, and the packet that says who a card is.
const HEADER: usize = 24;
const RECORD: usize = 16;
const RARP: u32 = 60;

fn filter(kind: &str, id: &str, more: Value) -> Value {
    let mut options = json!({"qom-type": format!("filter-{kind}"), "id": id, "netdev": "n"});
    for (key, value) in more.as_object().into_iter().flatten() {
        options[key] = value.clone();
    }
    options
}

fn status(id: &str) -> Value {
    json!({"path": format!("/objects/{id}"), "property": "status"})
}

fn switch(id: &str, to: &str) -> Value {
    json!({"path": format!("/objects/{id}"), "property": "status", "value": to})
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn filters_come_are_switched_and_go_with_their_netdev() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    vm.execute("seal", json!({"level": "sealed"}))?;
    let netdev = json!({"type": "hubport", "id": "n", "hubid": 0});
    let ring = json!({"id": "c", "backend": {"type": "ringbuf", "data": {"size": 4096}}});
    let first = filter("mirror", "f", json!({"outdev": "c"}));
    let error = vm.refusal("object-add", first.clone())?;
    assert_eq!(
        error.desc,
        "Parameter 'netdev' expects a network backend id"
    );
    vm.execute("netdev_add", netdev)?;
    let error = vm.refusal("object-add", first.clone())?;
    assert_eq!(error.class, "DeviceNotFound");
    vm.execute("chardev-add", ring)?;
    vm.execute("object-add", first.clone())?;
    let error = vm.refusal("object-add", first)?;
    assert!(error.desc.contains("duplicate"), "{}", error.desc);
    let place = json!({"interval": 1000, "position": "id=f", "insert": "before"});
    vm.execute("object-add", filter("buffer", "g", place))?;
    let lines = json!({"command-line": "info network"});
    let shown = vm.execute("human-monitor-command", lines)?;
    let shown = shown.as_str().context("text")?;
    let places = [
        "filters:",
        "- g: type=filter-buffer",
        "- f: type=filter-mirror",
    ];
    let places = places.map(|text| shown.find(text));
    ensure!(places.is_sorted() && places[0].is_some(), "{shown}");
    assert_eq!(vm.execute("qom-get", status("f"))?, "on");
    vm.execute("qom-set", switch("f", "off"))?;
    assert_eq!(vm.execute("qom-get", status("f"))?, "off");
    let error = vm.refusal("qom-set", switch("f", "maybe"))?;
    assert!(error.desc.contains("'on' or 'off'"), "{}", error.desc);
    let chardev = json!({"id": "c"});
    assert_eq!(
        vm.refusal("chardev-remove", chardev.clone())?.desc,
        "Chardev 'c' is busy"
    );
    vm.execute("netdev_del", json!({"id": "n"}))?;
    for id in ["f", "g"] {
        let error = vm.refusal("object-del", json!({"id": id}))?;
        assert_eq!(error.desc, format!("object '{id}' not found"));
    }
    vm.execute("chardev-remove", chardev)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_dump_has_what_a_card_sends_while_it_is_on() -> Result<()> {
    let nic = "hubport,hubid=0,id=n,mac=52:54:00:00:00:77";
    let mut vm = Vm::paused().args(["-nic", nic]).start()?;
    let dump = fds::memfd(0)?;
    let name = json!({"fdname": "dump"});
    vm.qmp.execute_with("getfd", name, &[dump.as_fd()])?;
    let options = json!({"queue": "rx", "file": "fd:dump", "maxlen": 20, "status": "off"});
    vm.execute("object-add", filter("dump", "f", options))?;
    let announce = json!({"initial": 50, "max": 50, "rounds": 1, "step": 0});
    vm.execute("announce-self", announce.clone())?;
    // Its round is over by then, and nobody has seen it.
    thread::sleep(Duration::from_millis(200));
    let mut bytes = vec![0; 4096];
    assert_eq!(nix::sys::uio::pread(&dump, &mut bytes, 0)?, HEADER);
    vm.execute("qom-set", switch("f", "on"))?;
    vm.execute("announce-self", announce)?;
    let whole = HEADER + RECORD + 20;
    let began = Instant::now();
    let count = loop {
        let count = nix::sys::uio::pread(&dump, &mut bytes, 0)?;
        if count >= whole {
            break count;
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "{count} bytes after {PATIENCE:?}"
        );
        thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(count, whole);
    assert_eq!(bytes[HEADER + 12..HEADER + RECORD], RARP.to_ne_bytes());
    let packet = &bytes[HEADER + RECORD..whole];
    assert_eq!(packet[..6], [0xff; 6]);
    assert_eq!(packet[6..14], [0x52, 0x54, 0, 0, 0, 0x77, 0x80, 0x35]);
    vm.execute("object-del", json!({"id": "f"}))?;
    vm.shutdown_clean()
}
