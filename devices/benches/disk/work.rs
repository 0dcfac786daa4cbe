//! What the driver has done: a pattern of requests, for a time or once over the whole disk.

use std::time::{Duration, Instant};

use nix::time::ClockId;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::queue::{Driver, Kind, SLOT};

/// One piece of work.
#[derive(Clone, Copy, Deserialize)]
pub(crate) struct Work {
    pub(crate) write: bool,
    pub(crate) random: bool,
    /// Bytes of a request.
    pub(crate) len: u64,
    /// Requests on their way at once.
    pub(crate) depth: u16,
    /// How long; without it, one request at each `step` of the disk.
    pub(crate) milliseconds: Option<u64>,
    /// Where requests begin: at multiples of so many bytes.
    pub(crate) step: u64,
}

/// What came of it.
#[derive(Serialize)]
pub(crate) struct Done {
    pub(crate) requests: u64,
    pub(crate) nanoseconds: u64,
    pub(crate) cpu: u64,
}

impl Work {
    pub(crate) fn run(&self, driver: &mut Driver, size: u64, clock: &CpuClock) -> Done {
        assert!(self.len <= SLOT, "a slot holds a request");
        let kind = if self.write { Kind::Write } else { Kind::Read };
        let mut places = Places::new(self, size);
        let (start, cpu) = (Instant::now(), clock.now());
        let (mut flying, mut requests) = (0_u16, 0_u64);
        let mut free: Vec<u16> = (0..self.depth).rev().collect();
        loop {
            while let Some(slot) = free.pop() {
                let Some(place) = places.next(start) else {
                    free.push(slot);
                    break;
                };
                driver.submit(slot, kind, place, u32::try_from(self.len).expect("small"));
                flying += 1;
            }
            driver.publish();
            if flying == 0 {
                break;
            }
            driver.wait();
            while let Some(slot) = driver.reap() {
                free.push(slot);
                flying -= 1;
                requests += 1;
            }
        }
        Done {
            requests,
            nanoseconds: nanoseconds(start.elapsed()),
            cpu: nanoseconds(clock.now().saturating_sub(cpu)),
        }
    }
}

pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).expect("hours at most")
}

/// Where the requests of a piece of work go, and when they end.
pub(crate) struct Places {
    random: bool,
    step: u64,
    count: u64,
    number: u64,
    /// A step that meets each place once, coprime to the count.
    stride: u64,
    until: Option<Duration>,
}

impl Places {
    pub(crate) fn new(work: &Work, size: u64) -> Self {
        let count = (size - work.len) / work.step + 1;
        // Near the golden ratio: consecutive places lie far from each other.
        let mut stride = (count * 618 / 1000) | 1;
        while gcd(stride, count) != 1 {
            stride += 2;
        }
        Self {
            random: work.random,
            step: work.step,
            count,
            number: 0,
            stride,
            until: work.milliseconds.map(Duration::from_millis),
        }
    }

    /// The next place, unless the work is over.
    pub(crate) fn next(&mut self, start: Instant) -> Option<u64> {
        let over = match self.until {
            Some(until) => start.elapsed() >= until,
            None => self.number == self.count,
        };
        if over {
            return None;
        }
        let number = self.number;
        self.number += 1;
        let place = if self.random {
            number * self.stride % self.count
        } else {
            number % self.count
        };
        Some(place * self.step)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The CPU time of whoever serves.
pub(crate) enum CpuClock {
    /// This process without the calling thread.
    Others,
    /// Another process.
    Process(ClockId),
    /// The calling thread.
    Own,
}

impl CpuClock {
    pub(crate) fn of_the_others() -> Self {
        Self::Others
    }

    pub(crate) fn of_process(pid: i32) -> Self {
        Self::Process(ClockId::pid_cpu_clock_id(Pid::from_raw(pid)).expect("a process"))
    }

    pub(crate) fn now(&self) -> Duration {
        let read = |clock: ClockId| Duration::from(clock.now().expect("a clock"));
        let own = ClockId::CLOCK_THREAD_CPUTIME_ID;
        match self {
            Self::Others => read(ClockId::CLOCK_PROCESS_CPUTIME_ID).saturating_sub(read(own)),
            Self::Process(clock) => read(*clock),
            Self::Own => read(ClockId::CLOCK_PROCESS_CPUTIME_ID),
        }
    }
}
