//! What the lab must know of this machine's CPUs: which one it runs on, and how fast their time
//! stamp counter goes. Knows nothing of the lab.
#![expect(
    unsafe_code,
    reason = "the time stamp counter is read by an instruction"
)]
// UNSAFETY: `_rdtsc` has no safe wrapper in the standard library.

use std::arch::x86_64::_rdtsc;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread, for the kernel.
const THIS_THREAD: Pid = Pid::from_raw(0);
/// How long the counter is watched: its rate comes out to one part in ten thousand.
const WATCHED: Duration = Duration::from_millis(20);
/// Counter and clock were read together if both took no longer than this.
const TOGETHER: Duration = Duration::from_micros(2);

/// How often this process has asked for a CPU.
static ASKED: AtomicU32 = AtomicU32::new(0);

/// Calls `start` on one of the CPUs that this thread may use; processes and threads that it
/// starts stay on that CPU. The next call takes another one, and so do different processes.
///
/// # Errors
/// The kernel refuses to move this thread.
pub fn on_one_cpu<T>(start: impl FnOnce() -> T) -> Result<T> {
    let allowed = sched_getaffinity(THIS_THREAD)?;
    let number = process::id().wrapping_add(ASKED.fetch_add(1, Ordering::Relaxed));
    sched_setaffinity(THIS_THREAD, &one_of(&allowed, number)?)?;
    let result = start();
    sched_setaffinity(THIS_THREAD, &allowed)?;
    Ok(result)
}

/// One CPU out of `allowed`, chosen by `number`.
fn one_of(allowed: &CpuSet, number: u32) -> Result<CpuSet> {
    let cpus: Vec<usize> = (0..CpuSet::count())
        .filter(|&cpu| allowed.is_set(cpu).unwrap_or(false))
        .collect();
    let index = number as usize % cpus.len().max(1);
    let cpu = cpus.get(index).context("this thread may use no CPU")?;
    let mut one = CpuSet::new();
    one.set(*cpu)?;
    Ok(one)
}

/// How fast the time stamp counter goes, in kHz.
pub fn tsc_khz() -> u128 {
    let (start, first) = clock_and_counter();
    thread::sleep(WATCHED);
    let (end, last) = clock_and_counter();
    let nanoseconds = end.duration_since(start).as_nanos().max(1);
    u128::from(last.wrapping_sub(first)) * 1_000_000 / nanoseconds
}

/// Both at the same moment: again, where something came between the two.
fn clock_and_counter() -> (Instant, u64) {
    loop {
        let now = Instant::now();
        // SAFETY: the instruction reads a register, and every x86-64 CPU has it.
        let counter = unsafe { _rdtsc() };
        if now.elapsed() <= TOGETHER {
            return (now, counter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_started_on_one_cpu_stays_there_and_the_starter_does_not() {
        let before = sched_getaffinity(THIS_THREAD).unwrap();
        let inside = on_one_cpu(|| {
            thread::spawn(|| sched_getaffinity(THIS_THREAD).unwrap())
                .join()
                .unwrap()
        });
        let inside = inside.unwrap();
        let cpus = (0..CpuSet::count()).filter(|&cpu| inside.is_set(cpu).unwrap());
        assert_eq!(cpus.count(), 1);
        assert_eq!(sched_getaffinity(THIS_THREAD).unwrap(), before);
    }

    #[test]
    fn numbers_spread_over_the_allowed_cpus_only() {
        let mut allowed = CpuSet::new();
        allowed.set(3).unwrap();
        allowed.set(5).unwrap();
        let chosen = |number| one_of(&allowed, number).unwrap();
        assert!(chosen(0).is_set(3).unwrap() && !chosen(0).is_set(5).unwrap());
        assert!(chosen(1).is_set(5).unwrap() && !chosen(1).is_set(3).unwrap());
        assert_eq!(chosen(2), chosen(0));
        assert!(one_of(&CpuSet::new(), 0).is_err());
    }
}
