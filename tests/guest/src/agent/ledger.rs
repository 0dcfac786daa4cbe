//! Numbered blocks, written and read back all along while the host does what it likes with the disk.
//!
//! ```text
//!   block n ─► place n mod PLACES ─► written, flushed ─► an older one read and compared ─► n + 1
//! ```
//!
//! Whatever is wrong ends it at once and is what `ledger-stop` answers. How long the slowest block
//! took is counted, too: the pause that a guest sees.
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use guest::pattern;
use serde_json::{Value, json};

use super::Arguments;
use super::files::open_direct;

/// Places for blocks; the test program knows them, too.
const PLACES: u64 = 512;
/// Bytes of a block, and how far they lie apart: each in a cluster of its own.
const BLOCK: usize = 4096;
const STRIDE: u64 = 64 << 10;

/// The ledgers that are being kept, by disk.
static LEDGERS: Mutex<Option<HashMap<String, Ledger>>> = Mutex::new(None);

struct Ledger {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    keeper: JoinHandle<io::Result<u64>>,
}

/// `disk`: starts.
pub(super) fn start(arguments: &Arguments<'_>) -> io::Result<Value> {
    let disk = arguments.text("disk")?.to_owned();
    let device = open_direct(&disk, true)?;
    let (stop, written) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let (until, count) = (Arc::clone(&stop), Arc::clone(&written));
    let keeper = thread::spawn(move || keep(&device, &until, &count));
    let ledger = Ledger {
        stop,
        written,
        keeper,
    };
    let mut ledgers = LEDGERS.lock().unwrap_or_else(PoisonError::into_inner);
    ledgers.get_or_insert_default().insert(disk, ledger);
    Ok(Value::Null)
}

/// `disk`: how many blocks were written until now.
pub(super) fn count(arguments: &Arguments<'_>) -> io::Result<Value> {
    let disk = arguments.text("disk")?;
    let ledgers = LEDGERS.lock().unwrap_or_else(PoisonError::into_inner);
    let ledger = ledgers.as_ref().and_then(|all| all.get(disk));
    let ledger = ledger.ok_or_else(|| io::Error::other(format!("no ledger of {disk}")))?;
    Ok(json!(ledger.written.load(Ordering::Acquire)))
}

/// `disk`: stops and compares every block; how many were written, and the slowest in microseconds.
pub(super) fn stop(arguments: &Arguments<'_>) -> io::Result<Value> {
    let disk = arguments.text("disk")?;
    let mut ledgers = LEDGERS.lock().unwrap_or_else(PoisonError::into_inner);
    let ledger = ledgers.as_mut().and_then(|all| all.remove(disk));
    let ledger = ledger.ok_or_else(|| io::Error::other(format!("no ledger of {disk}")))?;
    drop(ledgers);
    ledger.stop.store(true, Ordering::Release);
    let slowest = ledger.keeper.join();
    let slowest = slowest.map_err(|_| io::Error::other("the keeper has panicked"))??;
    let written = ledger.written.load(Ordering::Acquire);
    let device = open_direct(disk, false)?;
    let mut memory = Memory::new();
    for number in written.saturating_sub(PLACES)..written {
        compare(&device, memory.block(), number)?;
    }
    Ok(json!({"written": written, "slowest-us": slowest}))
}

/// Memory that suits O_DIRECT.
struct Memory {
    bytes: Vec<u8>,
    start: usize,
}

impl Memory {
    fn new() -> Self {
        let bytes = vec![0_u8; 2 * BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK).min(BLOCK);
        Self { bytes, start }
    }

    fn block(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + BLOCK]
    }
}

fn place(number: u64) -> u64 {
    number % PLACES * STRIDE
}

fn keep(device: &File, stop: &AtomicBool, written: &AtomicU64) -> io::Result<u64> {
    let mut memory = Memory::new();
    let mut slowest = 0;
    let mut number = 0_u64;
    while !stop.load(Ordering::Acquire) {
        let began = Instant::now();
        fill(memory.block(), number);
        device.write_all_at(memory.block(), place(number))?;
        device.sync_data()?;
        slowest = slowest.max(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
        number += 1;
        written.store(number, Ordering::Release);
        // Another one each time, up to the oldest that is still there.
        let older = number - 1 - (number * 7 % PLACES.min(number));
        compare(device, memory.block(), older)?;
    }
    Ok(slowest)
}

/// A block: its number and one, so that zeros are none, and a pattern of its own.
fn fill(block: &mut [u8], number: u64) {
    if let Some((head, rest)) = block.split_first_chunk_mut() {
        *head = (number + 1).to_le_bytes();
        pattern::fill(rest, number, place(number) + 8);
    }
}

fn compare(device: &File, memory: &mut [u8], number: u64) -> io::Result<()> {
    device.read_exact_at(memory, place(number))?;
    let mut wanted = vec![0; memory.len()];
    fill(&mut wanted, number);
    match memory == wanted {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "block {number} is not what was written"
        ))),
    }
}
