//! `top`: what a VM does, at a glance.
//!
//! What is shown follows what the VM can be asked: a section whose command it does not have is left
//! out. Processor time of vCPUs is the host's account of their threads, so it is shown where the VM
//! runs on this machine.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::arguments::files::thread_time;
use crate::failure::Failure;
use crate::output;
use crate::session::Session;

/// Clears the terminal and begins at its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// What one look found.
#[derive(Debug, Default)]
struct Look {
    at: Option<Instant>,
    status: Value,
    name: Value,
    vcpus: Value,
    disks: Value,
    statistics: Value,
    nodes: Value,
    jobs: Value,
    /// Processor time by thread id.
    times: BTreeMap<i64, Duration>,
}

/// Looks again and again, `count` times or until the VM ends.
pub(crate) fn watch(
    session: &mut Session,
    count: Option<u64>,
    interval: Duration,
) -> Result<(), Failure> {
    let clear = if io::stdout().is_terminal() {
        CLEAR
    } else {
        ""
    };
    let mut before = Look::default();
    let mut looks = 0;
    loop {
        let now = Look::take(session)?;
        output::line(&format!(
            "{clear}{}",
            frame(&session.version(), &before, &now)
        ))?;
        looks += 1;
        if count.is_some_and(|count| looks >= count) {
            return Ok(());
        }
        before = now;
        thread::sleep(interval);
    }
}

/// One look.
pub(crate) fn look(session: &mut Session) -> Result<(), Failure> {
    let now = Look::take(session)?;
    output::line(&frame(&session.version(), &Look::default(), &now))
}

impl Look {
    fn take(session: &mut Session) -> Result<Self, Failure> {
        // The one question that every VM answers; it also tells that the VM is gone.
        let status = session.execute("query-status", json!({}), &[])?;
        let mut ask = |command| session.ask(command, json!({})).unwrap_or_default();
        let mut look = Self {
            at: Some(Instant::now()),
            status,
            name: ask("query-name"),
            vcpus: ask("query-cpus-fast"),
            disks: ask("query-block"),
            statistics: ask("query-blockstats"),
            nodes: ask("query-named-block-nodes"),
            jobs: ask("query-jobs"),
            times: BTreeMap::new(),
        };
        for vcpu in list(&look.vcpus) {
            let id = vcpu["thread-id"].as_i64().unwrap_or_default();
            if let Some(time) = thread_time(id) {
                look.times.insert(id, time);
            }
        }
        Ok(look)
    }
}

fn frame(version: &str, before: &Look, now: &Look) -> String {
    let state = now.status["status"].as_str().unwrap_or("?");
    let name = now.name["name"].as_str().unwrap_or("(no name)");
    let mut text = format!("{name}  {state}  {version}\n");
    let passed = match (before.at, now.at) {
        (Some(before), Some(now)) => Some(now.saturating_duration_since(before)),
        _ => None,
    };
    vcpus(&mut text, before, now, passed);
    disks(&mut text, before, now, passed);
    if !list(&now.nodes).is_empty() {
        let _ = writeln!(text, "\n{:24} {:12} {:>12}  FILE", "NODE", "DRIVER", "SIZE");
        for node in list(&now.nodes) {
            let size = node["image"]["virtual-size"]
                .as_u64()
                .map_or_else(String::new, amount);
            let (name, driver) = (word(&node["node-name"]), word(&node["drv"]));
            let _ = writeln!(
                text,
                "{name:24} {driver:12} {size:>12}  {}",
                word(&node["file"])
            );
        }
    }
    if !list(&now.jobs).is_empty() {
        let _ = writeln!(
            text,
            "\n{:24} {:12} {:12} {:>5}",
            "JOB", "TYPE", "STATUS", "DONE"
        );
        for job in list(&now.jobs) {
            let total = job["total-progress"].as_f64().unwrap_or_default().max(1.0);
            let done = job["current-progress"].as_f64().unwrap_or_default() * 100.0 / total;
            let (id, kind, status) = (word(&job["id"]), word(&job["type"]), word(&job["status"]));
            let _ = writeln!(text, "{id:24} {kind:12} {status:12} {done:4.0}%");
        }
    }
    text.trim_end().to_owned()
}

fn vcpus(text: &mut String, before: &Look, now: &Look, passed: Option<Duration>) {
    if list(&now.vcpus).is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{:>6} {:>10} {:>6}", "VCPU", "THREAD", "CPU");
    for vcpu in list(&now.vcpus) {
        let id = vcpu["thread-id"].as_i64().unwrap_or_default();
        let used = || {
            let used = now.times.get(&id)?.saturating_sub(*before.times.get(&id)?);
            let part = used.as_secs_f64() / passed?.as_secs_f64().max(0.001);
            Some(format!("{:.0}%", part * 100.0))
        };
        let used = used().unwrap_or_else(|| "-".to_owned());
        let _ = writeln!(text, "{:>6} {id:>10} {used:>6}", vcpu["cpu-index"]);
    }
}

/// The disks, with their requests and bytes in a second where the VM counts them.
fn disks(text: &mut String, before: &Look, now: &Look, passed: Option<Duration>) {
    if list(&now.disks).is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "\n{:24} {:>8} {:>8} {:>12} {:>12}  DEVICE",
        "DISK", "RD/S", "WR/S", "RD B/S", "WR B/S"
    );
    for disk in list(&now.disks) {
        let node = word(&disk["inserted"]["node-name"]);
        let counter = |look: &Look, name: &str| {
            let same = |counted: &&Value| counted["qdev"] == disk["qdev"];
            let counted = list(&look.statistics).iter().find(same)?;
            counted["stats"][name].as_f64()
        };
        let rate = |name| {
            let grown = counter(now, name)? - counter(before, name)?;
            Some(grown.max(0.0) / passed?.as_secs_f64().max(0.001))
        };
        let shown =
            |name| rate(name).map_or_else(|| "-".to_owned(), |rate: f64| format!("{rate:.0}"));
        let _ = writeln!(
            text,
            "{node:24} {:>8} {:>8} {:>12} {:>12}  {}",
            shown("rd_operations"),
            shown("wr_operations"),
            shown("rd_bytes"),
            shown("wr_bytes"),
            word(&disk["qdev"])
        );
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// Bytes as people say them.
fn amount(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut left = bytes;
    while left >= 10_240 && unit + 1 < units.len() {
        left /= 1024;
        unit += 1;
    }
    format!("{left} {}", units.get(unit).unwrap_or(&""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_what_has_grown_since_the_look_before() {
        let look = |seconds, reads: u64, cpu| Look {
            at: Some(Instant::now() + Duration::from_secs(seconds)),
            status: json!({"status": "running"}),
            name: json!({"name": "web"}),
            vcpus: json!([{"cpu-index": 0, "thread-id": 77}]),
            disks: json!([{"device": "", "qdev": "d0", "inserted": {"node-name": "disk"}}]),
            statistics: json!([{"qdev": "other", "stats": {"rd_operations": 7}},
                                {"qdev": "d0", "stats": {"rd_operations": reads, "wr_operations": 0}}]),
            nodes: json!([{"node-name": "disk", "drv": "raw", "file": "x",
                           "image": {"virtual-size": 64 << 20}}]),
            jobs: json!([{"id": "j", "type": "mirror", "status": "running",
                          "current-progress": 1, "total-progress": 4}]),
            times: BTreeMap::from([(77, Duration::from_millis(cpu))]),
        };
        let text = frame("sesame", &look(0, 100, 0), &look(2, 300, 1000));
        let line = |start: &str| {
            let line = text
                .lines()
                .find(|line| line.trim_start().starts_with(start));
            line.expect("a line")
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(line("web"), "web running sesame");
        assert_eq!(line("0 "), "0 77 50%");
        let disks: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("disk"))
            .collect();
        assert!(
            disks[0].contains(" 100 ") && disks[0].ends_with("d0"),
            "{text}"
        );
        assert!(
            disks[1].contains("64 MiB") || disks[1].contains("65536 KiB"),
            "{text}"
        );
        assert_eq!(line("j "), "j mirror running 25%");
    }

    #[test]
    fn a_vm_that_counts_nothing_is_shown_without_rates() {
        let text = frame("sesame", &Look::default(), &Look::default());
        assert_eq!(text, "(no name)  ?  sesame");
    }
}
