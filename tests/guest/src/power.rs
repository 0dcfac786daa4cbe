//! The ACPI power button and a keyboard's power key, read as a stock system reads them: input devices
//! that send `KEY_POWER`.
use std::fs::{self, File};
use std::io::Read;
use std::thread;

use guest::boot;
use nix::sys::reboot::RebootMode;

/// The devices with such a key, by their names.
const BUTTONS: [&str; 2] = ["Power Button", "Sesame Virtio Keyboard"];
/// `linux/input-event-codes.h`.
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// `struct input_event` on x86-64: two longs of time, type, code, value.
const EVENT_SIZE: usize = 24;

/// Starts a thread per power button; a press syncs and powers the machine off.
pub(crate) fn watch_button() {
    let buttons = buttons();
    if buttons.is_empty() {
        println!("guest-init: no power button");
    }
    for node in buttons {
        thread::spawn(move || match wait_for_press(&node) {
            Ok(()) => {
                println!("guest-init: power button pressed, powering off");
                let error = boot::leave(RebootMode::RB_POWER_OFF);
                eprintln!("guest-init: power off: {error}");
            }
            Err(error) => eprintln!("guest-init: {node}: {error}"),
        });
    }
}

fn buttons() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/class/input") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            fs::read_to_string(entry.path().join("device/name"))
                .is_ok_and(|name| BUTTONS.contains(&name.trim()))
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("event"))
        .collect()
}

fn wait_for_press(node: &str) -> std::io::Result<()> {
    let mut device = File::open(format!("/dev/input/{node}"))?;
    let mut event = [0; EVENT_SIZE];
    loop {
        device.read_exact(&mut event)?;
        let kind = u16::from_ne_bytes([event[16], event[17]]);
        let code = u16::from_ne_bytes([event[18], event[19]]);
        let pressed = event[20] == 1;
        if kind == EV_KEY && code == KEY_POWER && pressed {
            return Ok(());
        }
    }
}
