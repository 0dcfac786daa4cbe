//! A guest with three cards, and what goes through each to this machine: over a tap, over a tap whose
//! packets the kernel moves, and over passt.
//!
//! ```text
//!   guest ── card 0 ── tap ───────────┐
//!         ── card 1 ── tap, vhost=on ─┼─► a listener: bytes that mean nothing; questions of one byte
//!         ── card 2 ── stream ─ passt ┘
//! ```
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use ::tests::backends::{ADDRESS, Outside, Program, ROUTER};
use ::tests::network::{self, Peer};
use ::tests::vm::{Builder, Vmm};
use ::tests::{Vm, fds, tap};
use anyhow::{Context, Result};
use nix::time::ClockId;
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::super::InsideOptions;
use super::super::table::{Bar, Row};

/// How many questions are asked.
const TIMES: u64 = 1000;

/// The ways, each with how many MiB are sent, and how many times as fast as the other it must be.
const WAYS: [(&str, u64, f64); 3] = [
    ("tap", 128, 1.1),
    ("tap, vhost=on", 128, 1.0),
    ("passt", 16, 1.1),
];

/// How often the bytes are sent: what else the machine does hits one of them, and the median not.
const POURS: usize = 5;

/// One guest: for each way the seconds of all bytes, the CPU time of the whole VMM meanwhile, and the
/// seconds of all questions.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Sample([[f64; 3]; WAYS.len()]);

/// Takes turns with both programs; `sample` boots a guest under one of them.
pub(in super::super) fn measure(
    pair: &[Vmm; 2],
    boots: usize,
    mut sample: impl FnMut(&Vmm) -> Result<Sample>,
) -> Result<Vec<Row>> {
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..boots {
        for (vmm, all) in pair.iter().zip(&mut samples) {
            all.push(sample(vmm).with_context(|| vmm.program.display().to_string())?);
        }
    }
    let mut rows = Vec::new();
    for (way, (name, length, times)) in WAYS.into_iter().enumerate() {
        let of = |kind: usize| {
            let seconds = |all: &Vec<Sample>| all.iter().map(|one| one.0[way][kind]).collect();
            [seconds(&samples[0]), seconds(&samples[1])]
        };
        let bar = Bar::Share(1.0 / times);
        rows.push(Row::new(format!("{name}: {length} MiB"), "s", of(0), bar));
        rows.push(Row::new(
            "      CPU time with the guest's",
            "s",
            of(1),
            Bar::Shown,
        ));
        let questions = format!("{name}: {TIMES} questions");
        rows.push(Row::new(questions, "s", of(2), bar));
    }
    Ok(rows)
}

/// A card's end of the cable on this machine, and where the guest finds it.
struct Way {
    netdev: String,
    guest: Ipv4Addr,
    peer: Peer,
    /// Held as long as the guest runs.
    _passt: Option<(Outside, Program)>,
}

fn over_tap(builder: &mut Builder, number: u8, vhost: bool) -> Result<Way> {
    let name = format!("bench{number}");
    let here = Ipv4Addr::new(10, 78, number, 1);
    let queues: Vec<OwnedFd> = tap::queues(&name, 1)?;
    network::configure(&name, &format!("{here}/24"))?;
    let mut netdev = format!("tap,id=n{number}");
    for queue in queues {
        netdev += &format!(",fd={}", builder.pass(queue));
    }
    if vhost {
        let device = fds::open_rw(Path::new("/dev/vhost-net"))?;
        netdev += &format!(",vhost=on,vhostfd={}", builder.pass(device));
    }
    Ok(Way {
        netdev,
        guest: Ipv4Addr::new(10, 78, number, 2),
        peer: Peer::tcp(here)?,
        _passt: None,
    })
}

fn over_passt(builder: &mut Builder, number: u8) -> Result<Way> {
    let outside = Outside::new()?;
    let (passt, connection) = outside.passt()?;
    let fd = builder.pass(connection);
    Ok(Way {
        netdev: format!("stream,id=n{number},server=off,addr.type=fd,addr.str={fd}"),
        guest: ADDRESS,
        peer: Peer::tcp(Ipv4Addr::LOCALHOST)?.called(ROUTER)?,
        _passt: Some((outside, passt)),
    })
}

/// Boots a guest and has it use each way.
pub(in super::super) fn sample(options: &InsideOptions) -> Result<Sample> {
    let mut builder = Builder::new(Vmm::at(&options.vmm))
        .boots(&options.kernel)
        .initrd(&options.initrd);
    let ways = [
        over_tap(&mut builder, 0, false)?,
        over_tap(&mut builder, 1, true)?,
        over_passt(&mut builder, 2)?,
    ];
    for (number, way) in ways.iter().enumerate() {
        let device = format!("virtio-net-pci,netdev=n{number},mac={}", mac(number));
        builder = builder.args(["-netdev", &way.netdev, "-device", &device]);
    }
    let mut vm = builder.start()?;
    vm.guest()?;
    let mut times = [[0.0; 3]; WAYS.len()];
    for (number, (way, times)) in ways.iter().zip(&mut times).enumerate() {
        *times = through(&mut vm, number, way).with_context(|| WAYS[number].0)?;
    }
    vm.execute("quit", json!({}))?;
    vm.wait_exit()?;
    Ok(Sample(times))
}

fn through(vm: &mut Vm, number: usize, way: &Way) -> Result<[f64; 3]> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(i32::try_from(vm.pid())?))?;
    let cpu = || clock.now().map(Duration::from);
    let guest = vm.guest_port();
    let card = guest.call("card-wait", json!({"mac": mac(number), "seconds": 60}))?;
    let address = json!({"card": card, "address": way.guest.to_string(), "prefix": 24});
    guest.call("card-address", address)?;
    // The first bytes find the way.
    way.peer.pour(guest, 1 << 20)?;
    let mut pours = [[Duration::ZERO; POURS]; 2];
    let [seconds, work] = &mut pours;
    for (seconds, work) in seconds.iter_mut().zip(work) {
        let before = cpu()?;
        *seconds = way.peer.pour(guest, WAYS[number].1 << 20)?;
        *work = cpu()?.saturating_sub(before);
    }
    let [seconds, work] = pours.map(|mut times| {
        times.sort_unstable();
        times[POURS / 2]
    });
    let questions = way.peer.ask_often(guest, TIMES)?;
    Ok([seconds, work, questions].map(|time: Duration| time.as_secs_f64()))
}

fn mac(number: usize) -> String {
    format!("52:54:00:78:00:{number:02x}")
}

impl Sample {
    pub(in super::super) fn to_json(&self) -> Value {
        json!({"ways": self.0})
    }

    /// Out of what the program in the lab has printed.
    pub(in super::super) fn find(output: &str) -> Option<Self> {
        output.lines().find_map(|line| {
            let value: Value = serde_json::from_str(line).ok()?;
            serde_json::from_value(value["ways"].clone()).ok().map(Self)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_survives_the_way_out_of_the_lab() {
        let sample = Sample([[1.5, 1.0, 0.25], [2.0, 1.0, 0.5], [3.0, 1.0, 0.125]]);
        let output = format!("some other line\n{}\n", sample.to_json());
        assert_eq!(Sample::find(&output), Some(sample));
        assert_eq!(Sample::find("some other line"), None);
    }

    #[test]
    fn each_way_has_its_bar() {
        let pair = ["ours", "theirs"].map(Vmm::at);
        let mut turn = 0;
        let rows = measure(&pair, 3, |_| {
            turn += 1;
            Ok(Sample([[1.0; 3]; WAYS.len()]))
        });
        assert_eq!((rows.expect("samples").len(), turn), (9, 6));
    }
}
