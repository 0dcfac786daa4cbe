//! Memory by the block, with a host's memory behind it that takes nothing wrong: only whole blocks
//! of the region, and only as many as were asked for.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use arbitrary::{Result, Unstructured};
use devices::memory::{Populate, Reclaim};
use devices::virtio::mem::{MemHost, MemSpec, VirtioMem};

use super::hosts::notices;
use crate::board::reactor;

const START: u64 = 4 << 30;
const BLOCK: u64 = 2 << 20;
const BLOCKS: u64 = 64;
const REQUESTED: u64 = 24;
/// The number of a request for the state of blocks.
const STATE: u8 = 3;

/// The blocks that have been taken and not given back.
#[derive(Default)]
struct Host(Mutex<Vec<u64>>);

fn blocks(start: u64, len: u64) -> std::ops::Range<u64> {
    let offset = start.checked_sub(START).expect("inside the region");
    assert!(
        offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK) && len > 0,
        "whole blocks"
    );
    let range = offset / BLOCK..(offset + len) / BLOCK;
    assert!(range.end <= BLOCKS, "inside the region");
    range
}

impl Reclaim for Host {
    fn reclaim(&self, start: u64, len: u64) -> io::Result<()> {
        let range = blocks(start, len);
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|block| !range.contains(block));
        Ok(())
    }
}

impl Populate for Host {
    fn populate(&self, start: u64, len: u64) -> io::Result<()> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for block in blocks(start, len) {
            assert!(!taken.contains(&block), "a block is plugged twice");
            taken.push(block);
        }
        assert!(taken.len() as u64 <= REQUESTED, "more than was asked for");
        Ok(())
    }
}

/// The device, and its region.
pub(super) fn device() -> Arc<VirtioMem> {
    let spec = MemSpec {
        id: "mem".to_owned(),
        address: START,
        size: BLOCKS * BLOCK,
        block: BLOCK,
        node: Some(0),
        requested: REQUESTED * BLOCK,
        prealloc: true,
        inaccessible: true,
    };
    let host = MemHost {
        memory: Arc::<Host>::default(),
        reactor: reactor().clone(),
        notices: notices(),
    };
    VirtioMem::new(spec, host).expect("a good size")
}

/// A request that is one, of blocks that may be there.
pub(super) fn request(input: &mut Unstructured<'_>) -> Result<[u8; 24]> {
    let [kind, block, count, off] = input.arbitrary::<[u8; 4]>()?;
    let stray = u64::from(off == 0xff);
    Ok(bytes(
        kind % 4,
        START + u64::from(block % 80) * BLOCK + stray,
        count % 40,
    ))
}

/// A request by the rules: the state of the first block.
pub(super) fn question() -> [u8; 24] {
    bytes(STATE, START, 1)
}

fn bytes(kind: u8, address: u64, count: u8) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[0] = kind;
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16] = count;
    bytes
}
