//! What the driver has done: bursts of packets one way, for a time.

use std::thread;
use std::time::{Duration, Instant};

use nix::time::ClockId;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::cable::Cable;
use super::card::Card;
use super::queue::{Direction, HEADER, SIZE};

/// Between two looks at the ring.
const REST: Duration = Duration::from_micros(50);
/// What is not there by then never comes.
const PATIENCE: Duration = Duration::from_secs(10);

/// One piece of work.
#[derive(Clone, Copy, Deserialize)]
pub(crate) struct Work {
    /// From the host to the guest.
    receive: bool,
    /// Bytes of a packet, without its virtio header.
    len: usize,
    /// Packets that come at once.
    burst: u16,
    milliseconds: u64,
}

/// What came of it.
#[derive(Serialize)]
pub(crate) struct Done {
    packets: u64,
    nanoseconds: u64,
    cpu: u64,
}

impl Work {
    pub(crate) fn run(&self, card: &mut Card, cable: &mut Cable, pid: i32) -> Done {
        assert!(self.burst <= SIZE, "a queue holds a burst");
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid)).expect("a process");
        let cpu = || Duration::from(clock.now().expect("a clock"));
        // To everybody, from nobody: no filter drops it.
        let mut packet = vec![0x2e; self.len];
        packet[..6].fill(0xff);
        card.transmit.fill(&packet);
        let mut step = || {
            if self.receive {
                self.take(card, cable, &packet);
            } else {
                self.give(card, cable);
            }
        };
        // The first finds whatever must be found only once.
        step();
        let (start, before) = (Instant::now(), cpu());
        let mut packets = 0;
        while start.elapsed() < Duration::from_millis(self.milliseconds) {
            step();
            packets += u64::from(self.burst);
        }
        Done {
            packets,
            nanoseconds: nanoseconds(start.elapsed()),
            cpu: nanoseconds(cpu().saturating_sub(before)),
        }
    }

    /// A burst of the guest's.
    fn give(&self, card: &mut Card, cable: &mut Cable) {
        let whole = u32::try_from(HEADER + self.len).expect("a packet");
        for _ in 0..self.burst {
            card.transmit.submit(Some(whole));
        }
        card.publish(Direction::Out);
        let mut rest = self.burst;
        wait(|| {
            rest -= card.transmit.reap(self.len);
            cable.drain();
            rest == 0
        });
    }

    /// A burst of the host's. The queue is always full of buffers when it comes.
    fn take(&self, card: &mut Card, cable: &mut Cable, packet: &[u8]) {
        while card.receive.flying() < SIZE {
            card.receive.submit(None);
        }
        card.publish(Direction::In);
        cable.give(packet, self.burst.into());
        let mut rest = self.burst;
        wait(|| {
            rest -= card.receive.reap(self.len);
            rest == 0
        });
    }
}

fn wait(mut is_over: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_over() {
        assert!(start.elapsed() < PATIENCE, "packets are lost");
        thread::sleep(REST);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).expect("seconds at most")
}
