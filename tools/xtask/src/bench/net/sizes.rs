//! What each card and each disk more adds to the VMM's size, before a driver uses it: a machine with
//! eight of them against one without. None of it is the guest's memory, which nobody touches here.
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::thread;
use std::time::Duration;

use ::tests::fds::{self, proportional_size};
use ::tests::vm::{Builder, Vmm};
use anyhow::{Context, Result};
use serde_json::json;

use super::super::table::{Bar, Row};

/// How many of a kind.
const COUNT: u32 = 8;
/// The most that one may add, in KiB.
const MOST: f64 = 300.0;
/// The root bus's slots for them: q35's own are 0, and 31 at its end.
const FIRST_SLOT: u32 = 4;
/// Threads that have begun, and memory that is given back after the start, are there by then.
const REST: Duration = Duration::from_millis(500);

#[derive(Clone, Copy)]
enum Kind {
    Nothing,
    Card,
    Disk,
}

/// Takes turns with both programs.
pub(in super::super) fn measure(pair: &[Vmm; 2], turns: usize) -> Result<Vec<Row>> {
    let mut cards = [Vec::new(), Vec::new()];
    let mut disks = [Vec::new(), Vec::new()];
    for _ in 0..turns {
        for (index, vmm) in pair.iter().enumerate() {
            let size = |kind| sample(vmm, kind).with_context(|| vmm.program.display().to_string());
            let bare = size(Kind::Nothing)?;
            cards[index].push((size(Kind::Card)? - bare) / f64::from(COUNT));
            disks[index].push((size(Kind::Disk)? - bare) / f64::from(COUNT));
        }
    }
    let bar = Bar::AtMost(MOST);
    Ok(vec![
        Row::new("size (PSS) of each card more", "KiB", cards, bar),
        Row::new("size (PSS) of each disk more", "KiB", disks, bar),
    ])
}

/// KiB of a whole VMM with so many of them.
fn sample(vmm: &Vmm, kind: Kind) -> Result<f64> {
    let (_tester, tester_end) = UnixStream::pair()?;
    let mut builder = Builder::new(vmm.clone());
    builder.tested_over(tester_end);
    let mut peers = Vec::new();
    for number in 0..COUNT {
        let slot = FIRST_SLOT + number;
        builder = match kind {
            Kind::Nothing => builder,
            Kind::Card => {
                let (ours, theirs) = UnixDatagram::pair()?;
                peers.push(theirs);
                let fd = builder.pass(ours);
                let netdev = format!("dgram,id=n{number},local.type=fd,local.str={fd}");
                let card = format!("virtio-net-pci,netdev=n{number},addr=0x{slot:x}");
                builder.args(["-netdev", &netdev, "-device", &card])
            }
            Kind::Disk => {
                let place = format!(",addr=0x{slot:x}");
                builder.disk_with(&format!("disk{number}"), fds::disk(1 << 20)?, &place)
            }
        };
    }
    let mut vm = builder.start()?;
    thread::sleep(REST);
    let size = proportional_size(vm.pid())?;
    vm.execute("quit", json!({}))?;
    vm.wait_exit()?;
    Ok(kibibytes(size))
}

#[expect(clippy::cast_precision_loss, reason = "sizes of processes, for people")]
fn kibibytes(bytes: u64) -> f64 {
    bytes as f64 / 1024.0
}
