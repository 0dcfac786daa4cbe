//! A driver of virtio-blk without a guest: what one disk does with requests that come through shared
//! memory, whoever serves them. `cargo xtask bench block` runs it and prints the ratios.
//!
//! ```text
//!   work ─► driver ─► queue in shared memory ─► virtio-blk here            subject "sesame"
//!                                            └► a vhost-user-blk export    subject "vhost-user"
//!        └► io_uring, nothing between                                      subject "ring"
//! ```
//!
//! The argument is one JSON object ([`Order`]); what is printed is a JSON array, one object for each
//! piece of work: `{"requests": .., "nanoseconds": .., "cpu": ..}`. `cpu` is the CPU time in
//! nanoseconds of everybody but the driver's own thread: of the io-thread and what the kernel runs
//! for it, or of the whole other process. For `ring` it is that of the only thread there is.
#![expect(clippy::print_stdout, reason = "what it is for")]
#![expect(
    clippy::expect_used,
    reason = "a failure is the end of the measurement"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers that this program chose itself"
)]

mod queue;
mod raw_ring;
mod sesame;
mod vhost_user;
mod work;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use devices::memory::GuestMemView;
use fdset::{Door, FdRegistry, MemfdSpec, Role, Scope};
use serde::Deserialize;
use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use queue::{Driver, MEMORY};
use work::{CpuClock, Work};

/// What is measured.
#[derive(Deserialize)]
#[serde(tag = "subject", rename_all = "kebab-case")]
enum Subject {
    /// Our device, in this process.
    Sesame { format: String, direct: bool },
    /// The export at the socket `socket` of the process `pid`.
    VhostUser { socket: String, pid: i32 },
    /// The file itself.
    Ring { direct: bool },
}

/// The program's argument.
#[derive(Deserialize)]
struct Order {
    #[serde(flatten)]
    subject: Subject,
    /// The image.
    file: String,
    /// The disk's length in bytes.
    size: u64,
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
    let results = match &order.subject {
        Subject::Ring { direct } => raw_ring::measure(&door, &order, *direct),
        Subject::Sesame { format, direct } => {
            let (view, _memory) = shared_memory(&door);
            let (kick, call) = (bell(), bell());
            let serving = sesame::start(&door, &order.file, (format, *direct), &view, &kick, &call);
            let mut driver = Driver::new(view, kick, call);
            let results = run(&mut driver, &order, &CpuClock::of_the_others());
            drop(serving);
            results
        }
        Subject::VhostUser { socket, pid } => {
            let (view, memory) = shared_memory(&door);
            let (kick, call) = (bell(), bell());
            let _connection = vhost_user::start(&door, socket, &memory, &kick, &call);
            let mut driver = Driver::new(view, kick, call);
            run(&mut driver, &order, &CpuClock::of_process(*pid))
        }
    };
    println!("{}", serde_json::to_string(&results).expect("numbers"));
}

fn run(driver: &mut Driver, order: &Order, clock: &CpuClock) -> Vec<work::Done> {
    let work = order.work.iter();
    work.map(|work| work.run(driver, order.size, clock))
        .collect()
}

fn bell() -> EventFd {
    EventFd::new(0).expect("an eventfd")
}

/// Memory that both sides see, mapped here.
fn shared_memory(door: &Door) -> (Arc<GuestMemView>, OwnedFd) {
    let spec = MemfdSpec {
        size: MEMORY as u64,
        sealed: false,
        huge: None,
    };
    let memory = fdset::memfd(door, "guest", spec, Role::Memory, "bench").expect("memory");
    let memory = std::os::fd::AsFd::as_fd(&memory)
        .try_clone_to_owned()
        .expect("an fd");
    let file = memory.try_clone().expect("an fd").into();
    let ranges = [(GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)))];
    let view = GuestMemView::from_ranges_with_files(ranges).expect("a mapping");
    (Arc::new(view), memory)
}
