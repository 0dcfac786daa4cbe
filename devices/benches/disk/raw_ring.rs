//! The reference: the same requests to the same file by one bare io_uring, with nothing between.
#![expect(unsafe_code, reason = "a submission entry names memory by its address")]
// UNSAFETY: the kernel reads and writes the buffers until the completions; they live in this
// function, which waits for all of them before it ends.

use std::os::fd::AsRawFd;
use std::time::Instant;

use fdset::{Access, Door, Request, Role};
use io_uring::{IoUring, opcode, types};

use super::Order;
use super::work::{CpuClock, Done, Places, Work, nanoseconds};

/// What O_DIRECT may want of a buffer's address.
const ALIGNMENT: usize = 4096;

pub(crate) fn measure(door: &Door, order: &Order, direct: bool) -> Vec<Done> {
    let request = Request::new(&order.file, Access::ReadWrite, Role::Image, "bench");
    let file = fdset::open(door, &request.direct(direct)).expect("the file");
    let clock = CpuClock::Own;
    let run = |work: &Work| {
        let mut ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(256)
            .expect("a ring");
        let len = usize::try_from(work.len).expect("small");
        let mut memory = vec![1_u8; len * usize::from(work.depth) + ALIGNMENT];
        let skip = memory.as_ptr().align_offset(ALIGNMENT);
        let buffers = memory[skip..].as_mut_ptr();
        let mut places = Places::new(work, order.size);
        let (start, cpu) = (Instant::now(), clock.now());
        let (mut flying, mut requests) = (0, 0);
        let mut free: Vec<u16> = (0..work.depth).collect();
        loop {
            while let Some(slot) = free.pop() {
                let Some(place) = places.next(start) else {
                    free.push(slot);
                    break;
                };
                let buffer = buffers.wrapping_add(usize::from(slot) * len);
                let (fd, bytes) = (
                    types::Fd(file.as_raw_fd()),
                    u32::try_from(len).expect("small"),
                );
                let entry = if work.write {
                    opcode::Write::new(fd, buffer, bytes).offset(place).build()
                } else {
                    opcode::Read::new(fd, buffer, bytes).offset(place).build()
                };
                let entry = entry.user_data(u64::from(slot));
                // SAFETY: the buffer is this slot's until the completion, and lies in `memory`.
                unsafe { ring.submission().push(&entry) }.expect("room for every slot");
                flying += 1;
            }
            if flying == 0 {
                break;
            }
            ring.submit_and_wait(1).expect("a ring that works");
            for entry in ring.completion() {
                assert_eq!(entry.result(), i32::try_from(len).expect("small"), "moved");
                free.push(u16::try_from(entry.user_data()).expect("a slot"));
                flying -= 1;
                requests += 1;
            }
        }
        Done {
            requests,
            nanoseconds: nanoseconds(start.elapsed()),
            cpu: nanoseconds(clock.now().saturating_sub(cpu)),
        }
    };
    order.work.iter().map(run).collect()
}
