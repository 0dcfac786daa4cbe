//! Process 1 of a test guest: mounts what a system needs, loads the modules it was given, and
//! answers the test over the virtio-serial port `org.sesame.guest`, one JSON line each way:
//!
//! ```text
//!   guest → {"event":"ready","uptime-ns":1840000000,"kernel":"6.12...","cpus":2}
//!   test  → {"id":1,"call":"mount","device":"vdb","kind":"ext4","path":"/mnt"}
//!   guest → {"id":1,"return":null}         or {"id":1,"error":"mount /dev/vdb ...: ENOENT"}
//! ```
//!
//! The ACPI power button is watched on the side, as a stock system does: it powers off cleanly.
//! Read next: `agent/mod.rs` has the list of calls.
#![expect(
    clippy::disallowed_methods,
    reason = "a guest opens its own files: the rule of the one open is about the host"
)]

mod agent;
mod power;

use std::io::{self, BufRead, BufReader, Write};

use guest::boot;
use guest::port::{self, Patient};
use nix::sys::reboot::RebootMode;
use serde_json::json;

/// The port the test listens on.
const PORT: &str = "org.sesame.guest";

fn main() {
    if let Err(error) = live() {
        eprintln!("guest-init: {error}");
    }
    let _ = boot::leave(RebootMode::RB_POWER_OFF);
}

fn live() -> io::Result<()> {
    boot::mount_kernel_filesystems()?;
    let started = boot::uptime_ns();
    boot::load_modules(boot::AT_ONCE)?;
    println!("guest-init: up after {} ms", started / 1_000_000);
    power::watch_button();
    let mut port = port::open(PORT)?;
    let ready = json!({
        "event": "ready",
        "init-ns": started,
        "uptime-ns": boot::uptime_ns(),
        "kernel": agent::system::kernel_release(),
        "cpus": agent::system::cpus(),
    });
    writeln!(port, "{ready}")?;
    for line in BufReader::new(Patient(port.try_clone()?)).lines() {
        let reply = agent::answer(&line?);
        writeln!(port, "{reply}")?;
    }
    Ok(())
}
