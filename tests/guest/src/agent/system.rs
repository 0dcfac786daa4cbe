//! The machine as the guest's kernel sees it, and the ways out of it.
use std::fs;
use std::io;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use guest::boot;
use nix::sys::reboot::RebootMode;
use serde_json::{Value, json};

use super::Arguments;

/// Time for the answer to reach the host before the machine goes.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What `uname -r` says.
pub(crate) fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The CPUs that are online.
pub(crate) fn cpus() -> usize {
    fs::read_to_string("/proc/cpuinfo")
        .map(|text| text.matches("processor\t").count())
        .unwrap_or(0)
}

/// Total and available memory in bytes.
pub(super) fn memory() -> io::Result<Value> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kibibytes.saturating_mul(1024))
    };
    Ok(json!({"total": field("MemTotal:"), "available": field("MemAvailable:")}))
}

/// The wall clock (from the RTC at boot) and the time since boot.
pub(super) fn time() -> io::Result<Value> {
    let wall = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(io::Error::other)?;
    Ok(json!({"unix-seconds": wall.as_secs(), "uptime-ns": boot::uptime_ns()}))
}

/// `argv`: runs a program of the guest; its status and what it printed.
pub(super) fn run(arguments: &Arguments<'_>) -> io::Result<Value> {
    let argv = arguments.texts("argv")?;
    let (program, rest) = argv
        .split_first()
        .ok_or_else(|| io::Error::other("argument argv is empty"))?;
    let output = Command::new(program).args(rest).output()?;
    Ok(json!({
        "status": output.status.code(),
        "stdout": String::from_utf8_lossy(&output.stdout),
        "stderr": String::from_utf8_lossy(&output.stderr),
    }))
}

/// `lines`: the end of the kernel's log.
pub(super) fn dmesg(arguments: &Arguments<'_>) -> io::Result<Value> {
    let lines = usize::try_from(arguments.number("lines")?).map_err(io::Error::other)?;
    let text = kernel_log()?;
    let all: Vec<&str> = text.lines().collect();
    Ok(json!(all[all.len().saturating_sub(lines)..]))
}

/// What the kernel's log has of the levels warning and worse, without the times.
pub(super) fn warnings() -> io::Result<Value> {
    // "<facility and level>,<number>,<time>,<flags>;<text>" (Documentation/ABI/testing/dev-kmsg).
    const LEVELS: u32 = 8;
    const WARNING: u32 = 4;
    let log = kernel_log()?;
    let worse = log.lines().filter_map(|line| {
        let (head, text) = line.split_once(';')?;
        let level = head.split(',').next()?.parse::<u32>().ok()? % LEVELS;
        (level <= WARNING).then_some(text)
    });
    Ok(worse.collect())
}

/// Loads the drivers that few tests want.
pub(super) fn modules() -> io::Result<Value> {
    boot::load_modules(boot::LATER)?;
    Ok(Value::Null)
}

/// Restarts the machine after the answer is out.
pub(super) fn reboot() -> io::Result<Value> {
    leave_soon(RebootMode::RB_AUTOBOOT)
}

/// Powers off after the answer is out.
pub(super) fn poweroff() -> io::Result<Value> {
    leave_soon(RebootMode::RB_POWER_OFF)
}

/// Panics the kernel after the answer is out, by the magic SysRq key.
pub(super) fn crash() -> io::Result<Value> {
    fs::write("/proc/sys/kernel/sysrq", "1")?;
    thread::spawn(|| {
        thread::sleep(LAST_WORDS);
        if let Err(error) = fs::write("/proc/sysrq-trigger", "c") {
            eprintln!("guest-init: crash: {error}");
        }
    });
    Ok(Value::Null)
}

fn leave_soon(mode: RebootMode) -> io::Result<Value> {
    thread::spawn(move || {
        thread::sleep(LAST_WORDS);
        eprintln!("guest-init: {}", boot::leave(mode));
    });
    Ok(Value::Null)
}

fn kernel_log() -> io::Result<String> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let mut log = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")?;
    let mut text = String::new();
    let mut record = [0; 8192];
    // Each read is one record; WouldBlock is the end, EPIPE one that was overwritten meanwhile.
    loop {
        match log.read(&mut record) {
            Ok(count) => text.push_str(&String::from_utf8_lossy(&record[..count])),
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(text),
            Err(error) => return Err(error),
        }
    }
}
