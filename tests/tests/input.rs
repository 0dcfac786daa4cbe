//! What users type, and what happens to a guest that nobody tends.
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tests::Vm;

const SOON: Duration = Duration::from_secs(60);

/// The guest has a keyboard and a tablet, with what these can do.
fn assert_it_has_them(vm: &mut Vm) -> Result<()> {
    let path = json!({"path": "/proc/bus/input/devices"});
    let told = vm.guest()?.call("read-file", path)?;
    let told = told.as_str().unwrap_or_default();
    let device = |name: &str| {
        let mut all = told.split("\n\n");
        all.find(|one| one.contains(name)).unwrap_or_default()
    };
    let keyboard = device("Sesame Virtio Keyboard");
    assert!(keyboard.contains("Vendor=1af4 Product=0001"), "{told}");
    assert!(keyboard.contains("B: LED=7"), "{told}");
    let tablet = device("Sesame Virtio Tablet");
    assert!(tablet.contains("Uniq=left"), "{told}");
    assert!(tablet.contains("B: ABS=3"), "{told}");
    Ok(())
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_watchdog_resets_the_guest_and_a_key_powers_it_off() -> Result<()> {
    let mut vm = Vm::builder()
        .args(["-device", "virtio-keyboard-pci"])
        .args(["-device", "virtio-tablet-pci,serial=left"])
        .args(["-device", "i6300esb", "-watchdog-action", "reset"])
        .start()?;
    vm.guest()?;
    assert_it_has_them(&mut vm)?;
    // The driver starts it, and nobody pats it.
    let open = json!({"path": "/dev/watchdog", "text": "x"});
    vm.guest()?.call("write-file", open)?;
    let told = vm.qmp.event("WATCHDOG", SOON)?;
    assert_eq!(told["data"]["action"], "reset");
    vm.qmp.event("RESET", SOON)?;
    vm.guest()?.wait_ready()?;
    assert_it_has_them(&mut vm)?;
    let moved = json!({"type": "abs", "data": {"axis": "x", "value": 100}});
    vm.execute("input-send-event", json!({"events": [moved]}))?;
    vm.execute(
        "send-key",
        json!({"keys": [{"type": "qcode", "data": "power"}]}),
    )?;
    assert_eq!(vm.qmp.event("SHUTDOWN", SOON)?["data"]["guest"], true);
    vm.exit_clean()
}
