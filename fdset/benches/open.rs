//! What `open` costs beyond the one `dup` it contains. Prints a JSON object of nanoseconds, medians
//! of batches that take turns: `{"dup": .., "open": ..}`. `cargo xtask bench` shows it.
#![expect(clippy::print_stdout, reason = "what it is for")]
#![expect(
    clippy::unwrap_used,
    reason = "a failure is the end of the measurement"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use fdset::{Access, Door, FdRegistry, FdsetId, Handover, Origin, Request, Role, Scope};

/// Calls in a batch.
const CALLS: u32 = 2_000;
/// Batches of each kind.
const BATCHES: usize = 101;

fn main() {
    let file = tempfile::tempfile().unwrap();
    let copy = file.try_clone().unwrap();
    let registry = Arc::new(FdRegistry::new());
    let door = Door::new(Arc::clone(&registry), Scope::Process);
    let set = Some(FdsetId::new(3).unwrap());
    registry.add(Handover::new(file.into(), Origin::CommandLine), set, None);
    let request = Request::new("/dev/fdset/3", Access::ReadWrite, Role::Image, "node 'n'");

    let (mut dups, mut opens) = (Vec::new(), Vec::new());
    for _ in 0..BATCHES {
        dups.push(batch(|| drop(black_box(copy.try_clone().unwrap()))));
        opens.push(batch(|| {
            drop(black_box(fdset::open(&door, black_box(&request)).unwrap()));
        }));
    }
    println!("{{\"dup\": {}, \"open\": {}}}", median(dups), median(opens));
}

/// Nanoseconds of one call, from a batch.
fn batch(mut call: impl FnMut()) -> u128 {
    let start = Instant::now();
    for _ in 0..CALLS {
        call();
    }
    start.elapsed().as_nanos() / u128::from(CALLS)
}

fn median(mut samples: Vec<u128>) -> u128 {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap()
}
