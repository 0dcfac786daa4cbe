//! A driver of virtio-net without a guest: what one card does with packets whose queues lie in
//! shared memory, whoever serves it. `cargo xtask bench net` runs it and prints the ratios.
//!
//! ```text
//!   work ─► rings in shared memory ─────► virtio-net-pci of a VMM with `-accel qtest`
//!    │        machine: registers, doorbells by qtest ──┘   │
//!    └─ cable ◄── a socket ◄── -netdev dgram or stream ◄───┘
//! ```
//!
//! The argument is one JSON object ([`Order`]); what is printed is a JSON array, one object for each
//! piece of work: `{"packets": .., "nanoseconds": .., "cpu": ..}`. `cpu` is the CPU time of all the
//! VMM's threads in nanoseconds. Packets go in bursts, each over before the next begins. The driver
//! wants no interrupts and looks at the rings now and then, so that it wakes nobody but by a doorbell
//! that the device has asked for, and its socket's end is read only after a burst.
#![expect(clippy::print_stdout, reason = "what it is for")]
#![expect(
    clippy::expect_used,
    reason = "a failure is the end of the measurement"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers that this program chose itself"
)]

mod cable;
mod card;
mod machine;
mod queue;
mod work;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use devices::memory::GuestMemView;
use fdset::{Door, FdRegistry, Role, Scope};
use serde::Deserialize;
use vm_memory::{FileOffset, GuestAddress};

use cable::{Cable, Kind};
use card::Card;
use machine::Machine;
use work::Work;

/// The program's argument.
#[derive(Deserialize)]
struct Order {
    /// The VMM's process.
    pid: i32,
    /// The number of the fd of its tester's socket.
    tester: i32,
    /// The number of the fd of its memory.
    memory: i32,
    /// Bytes of memory from guest address 0 on.
    size: usize,
    /// The number of the fd of the other end of the netdev's socket.
    cable: i32,
    kind: Kind,
    /// The slot of the card on the root bus.
    slot: u32,
    work: Vec<Work>,
}

fn main() {
    let text = std::env::args().find(|argument| argument.starts_with('{'));
    let Some(text) = text else {
        // `cargo test --benches` runs it without work.
        println!("[]");
        return;
    };
    let order: Order = serde_json::from_str(&text).expect("an order");
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let handed = |number: i32, role: Role| -> OwnedFd {
        fdset::inherited(&door, number, role, "bench").expect("an fd that was handed over")
    };
    let file = handed(order.memory, Role::Memory).into();
    let ranges = [(GuestAddress(0), order.size, Some(FileOffset::new(file, 0)))];
    let memory = Arc::new(GuestMemView::from_ranges_with_files(ranges).expect("a mapping"));
    let machine = Machine::new(handed(order.tester, Role::Chardev));
    let mut card = Card::start(machine, order.slot, &memory);
    let mut cable = Cable::new(handed(order.cable, Role::Net), order.kind);
    let run = |work: &Work| work.run(&mut card, &mut cable, order.pid);
    let results: Vec<_> = order.work.iter().map(run).collect();
    println!("{}", serde_json::to_string(&results).expect("numbers"));
}
