//! CPUs that come and go.

use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use serde_json::{Value, json};

use super::Arguments;

/// How long a CPU may take to come or go.
const PATIENCE: Duration = Duration::from_secs(60);

fn folder(cpu: u64) -> PathBuf {
    PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}"))
}

fn wait(what: &str, cpu: u64, is_so: impl Fn() -> bool) -> io::Result<()> {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("CPU {cpu} does not {what}")));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Waits for a CPU to come, switches it on, and tells how many are on.
pub(super) fn online(arguments: &Arguments<'_>) -> io::Result<Value> {
    let cpu = arguments.number("cpu")?;
    let switch = folder(cpu).join("online");
    wait("come", cpu, || switch.exists())?;
    if fs::read_to_string(&switch)?.trim() == "0" {
        fs::write(&switch, "1")?;
    }
    Ok(json!(super::system::cpus()))
}

/// Waits for a CPU to go, and tells how many are on.
pub(super) fn gone(arguments: &Arguments<'_>) -> io::Result<Value> {
    let cpu = arguments.number("cpu")?;
    wait("go", cpu, || !folder(cpu).exists())?;
    Ok(json!(super::system::cpus()))
}
