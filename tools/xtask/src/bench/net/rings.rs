//! Packets through one card whose rings lie in shared memory, by the program
//! `devices/benches/packets`: how many for each second of CPU time that the VMM takes.
//!
//! ```text
//!   this ── starts ─► VMM, -accel qtest ── -netdev dgram or stream ── a socket ─┐
//!      └─── starts ─► packets ── qtest, memory, the socket's other end ─────────┘
//! ```
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;

use ::tests::fds;
use ::tests::vm::{Builder, Vmm};
use anyhow::{Context, Result};
use command_fds::{CommandFdExt, FdMapping};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

use super::super::front;
use super::super::table::{Bar, Row};
use crate::shell::output;

/// Bytes of the machine's memory.
const MEMORY: u64 = 64 << 20;
/// Where the card is on its bus.
const SLOT: u32 = 4;
/// Packets that come at once.
const BURST: u32 = 128;
/// How long each piece of work goes on.
const MILLISECONDS: u32 = 300;
/// Room in the sockets: more than a burst of the longest packets.
const ROOM: usize = 1 << 20;
/// The first number of the fds that the program gets.
const FIRST_FD: i32 = 10;
/// How many times QEMU's packets for the same CPU time are wanted.
const TIMES: f64 = 1.3;

/// Which way packets go, and how long they are.
const WORK: [(bool, u32); 4] = [(false, 64), (false, 1500), (true, 64), (true, 1500)];

const KINDS: [&str; 2] = ["dgram", "stream"];

/// Takes turns with both programs.
pub(in super::super) fn measure(pair: &[Vmm; 2], turns: usize) -> Result<Vec<Row>> {
    let front = front("packets")?;
    let mut rows = Vec::new();
    for kind in KINDS {
        let mut samples = WORK.map(|_| [Vec::new(), Vec::new()]);
        for _ in 0..turns {
            for (index, vmm) in pair.iter().enumerate() {
                let name = || format!("{} with {kind}", vmm.program.display());
                let rates = sample(vmm, &front, kind).with_context(name)?;
                for (samples, rate) in samples.iter_mut().zip(rates) {
                    samples[index].push(rate);
                }
            }
        }
        for ((receive, len), samples) in WORK.into_iter().zip(samples) {
            let way = if receive { "to" } else { "from" };
            let what = format!("{kind}: packets of {len} {way} the guest");
            rows.push(Row::new(what, "1000/CPU s", samples, Bar::Times(TIMES)));
        }
    }
    Ok(rows)
}

/// The two ends of a netdev's cable.
fn cable(kind: &str) -> Result<[OwnedFd; 2]> {
    let ends: [OwnedFd; 2] = if kind == "dgram" {
        let (netdev, other) = UnixDatagram::pair()?;
        [netdev.into(), other.into()]
    } else {
        let (netdev, other) = UnixStream::pair()?;
        [netdev.into(), other.into()]
    };
    for end in &ends {
        setsockopt(end, sockopt::SndBufForce, &ROOM).context("SO_SNDBUFFORCE, which wants root")?;
    }
    Ok(ends)
}

/// Thousands of packets for a second of the VMM's CPU time, for each piece of work.
fn sample(vmm: &Vmm, front: &Path, kind: &str) -> Result<Vec<f64>> {
    let [netdev, other] = cable(kind)?;
    let memory = fds::memfd(MEMORY)?;
    let (tester, tester_end) = UnixStream::pair()?;
    let mut builder = Builder::new(vmm.clone())
        .memory(&format!("{}", MEMORY >> 20))
        .machine("q35,memory-backend=ram");
    builder.tested_over(tester_end);
    // QEMU opens memory by a path of the system's only.
    let path = if vmm.is_qemu {
        format!("/dev/fd/{}", builder.pass(memory.try_clone()?))
    } else {
        builder.fdset(memory.try_clone()?)
    };
    let fd = builder.pass(netdev);
    let ram = format!("memory-backend-file,id=ram,size={MEMORY},share=on,mem-path={path}");
    let netdev = match kind {
        "dgram" => format!("dgram,id=n0,local.type=fd,local.str={fd}"),
        _ => format!("stream,id=n0,server=off,addr.type=fd,addr.str={fd}"),
    };
    let device = format!("virtio-net-pci,netdev=n0,disable-legacy=on,addr=0x{SLOT:x}");
    let mut vm = builder
        .args(["-object", &ram, "-netdev", &netdev, "-device", &device])
        .start()?;
    let work = WORK.map(|(receive, len)| {
        json!({"receive": receive, "len": len, "burst": BURST, "milliseconds": MILLISECONDS})
    });
    let order = json!({
        "pid": vm.pid(), "tester": FIRST_FD, "memory": FIRST_FD + 1, "cable": FIRST_FD + 2,
        "size": MEMORY, "kind": kind, "slot": SLOT, "work": work,
    });
    let mut command = Command::new(front);
    let fds = [tester.into(), memory, other];
    let mapping = |(child_fd, parent_fd)| FdMapping {
        parent_fd,
        child_fd,
    };
    command
        .arg(order.to_string())
        .fd_mappings((FIRST_FD..).zip(fds).map(mapping).collect())?;
    let text = output(&mut command)?;
    vm.execute("quit", json!({}))?;
    vm.wait_exit()?;
    let results: Vec<Value> = serde_json::from_str(text.trim())?;
    let rate = |result: &Value| {
        let number = |key: &str| result[key].as_f64().with_context(|| key.to_owned());
        Ok(number("packets")? / number("cpu")? * 1e6)
    };
    results.iter().map(rate).collect()
}
