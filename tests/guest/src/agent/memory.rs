//! Memory that comes and goes.

use std::time::{Duration, Instant};
use std::{io, thread};

use serde_json::Value;

use super::Arguments;
use super::system;

/// How long memory may take to come or go.
const PATIENCE: Duration = Duration::from_secs(60);
const PAGE: usize = 4096;

/// `least`, `most`: waits until there is so much memory in all; what `memory` answers then.
pub(super) fn wait(arguments: &Arguments<'_>) -> io::Result<Value> {
    let (least, most) = (arguments.number("least")?, arguments.number("most")?);
    let start = Instant::now();
    loop {
        let memory = system::memory()?;
        let total = memory["total"].as_u64().unwrap_or(0);
        if (least..=most).contains(&total) {
            return Ok(memory);
        }
        if start.elapsed() > PATIENCE {
            return Err(io::Error::other(format!(
                "there are {total} bytes of memory, not {least} to {most}"
            )));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// `bytes`: uses so much memory for a moment.
pub(super) fn touch(arguments: &Arguments<'_>) -> io::Result<Value> {
    let bytes = usize::try_from(arguments.number("bytes")?).map_err(io::Error::other)?;
    let mut memory = vec![0_u8; bytes];
    for page in memory.chunks_mut(PAGE) {
        page.fill(0xa5);
    }
    let is_kept = std::hint::black_box(&memory)
        .iter()
        .all(|byte| *byte == 0xa5);
    Ok(Value::Bool(is_kept))
}
