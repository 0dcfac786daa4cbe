//! What memory devices are given, held against the machine and the memory behind them.
//!
//! Pure. The texts of refusals are those that QEMU's clients know.

use qapi_schema::QmpError;

use crate::machine::numa::NumaSpec;
use crate::memory::{HostMemory, RamBackendSpec};

const MIB: u64 = 1 << 20;
/// The least that comes and goes together.
const LEAST_BLOCK: u64 = MIB;
/// What comes and goes together where nobody says: a huge page of the host.
const BLOCK: u64 = 2 * MIB;

/// The bytes that come and go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(pub u64);

fn refuse<T>(text: impl Into<String>) -> Result<T, QmpError> {
    Err(QmpError::generic(text))
}

/// The memory backend.
///
/// # Errors
/// There is none.
pub fn memdev(given: Option<&str>) -> Result<&str, QmpError> {
    match given {
        Some(id) => Ok(id),
        None => refuse("'memdev' property is not set"),
    }
}

/// Memory that the guest writes.
///
/// # Errors
/// It cannot.
pub fn writable(memory: &RamBackendSpec) -> Result<(), QmpError> {
    if !memory.read_only {
        return Ok(());
    }
    refuse(format!(
        "memory backend '{}' is readonly=on: only virtio-pmem-pci takes it",
        memory.id
    ))
}

/// Memory whose file has what the guest wrote.
///
/// # Errors
/// It has no file, or the guest's writes do not reach it.
pub fn lasting(memory: &RamBackendSpec) -> Result<(), QmpError> {
    let id = &memory.id;
    if memory.host == HostMemory::Anonymous {
        return refuse(format!(
            "memory backend '{id}' has no file for what is to last: make it a memory-backend-file, \
             or hand it an fd"
        ));
    }
    if !memory.share && !memory.read_only {
        return refuse(format!(
            "memory backend '{id}' is private, so what the guest writes reaches no file: make it \
             share=on, or readonly=on"
        ));
    }
    Ok(())
}

/// The NUMA node of the guest; `None` where the machine has none.
///
/// # Errors
/// The machine has no such node.
pub fn node(given: Option<u32>, numa: Option<&NumaSpec>) -> Result<Option<u16>, QmpError> {
    let node = given.unwrap_or(0);
    let count = numa.map_or(0, |numa| numa.nodes.len());
    let known = u16::try_from(node)
        .ok()
        .filter(|node| usize::from(*node) < count.max(1));
    match known {
        Some(node) => Ok((count > 0).then_some(node)),
        None => refuse(format!(
            "'node' property has value '{node}', which exceeds the number of numa nodes: {count}"
        )),
    }
}

/// The block size of a region of `size` bytes with pages of `page` bytes behind it.
///
/// # Errors
/// There can be no such blocks, or the region is no number of them.
pub fn block_size(given: Option<u64>, page: u64, size: u64) -> Result<BlockSize, QmpError> {
    let block = given.unwrap_or_else(|| BLOCK.max(page));
    let least = LEAST_BLOCK.max(page);
    if block < least {
        return refuse(format!(
            "'block-size' property has to be at least 0x{least:x}"
        ));
    }
    if !block.is_power_of_two() {
        return refuse("'block-size' property has to be a power of two");
    }
    if !size.is_multiple_of(block) {
        return refuse(format!(
            "'memdev' property: memory backend size 0x{size:x} is not a multiple of 'block-size' \
             (0x{block:x})"
        ));
    }
    Ok(BlockSize(block))
}

/// What the address of a module with pages of `page` bytes behind it must be a multiple of.
///
/// # Errors
/// Its length is no multiple of that.
pub fn module_alignment(page: u64, size: u64) -> Result<u64, QmpError> {
    let align = BLOCK.max(page);
    if size.is_multiple_of(align) {
        return Ok(align);
    }
    refuse(format!(
        "backend memory size must be multiple of 0x{align:x}"
    ))
}

/// The number of the place of a module, on a machine with `places` of which these are `taken`.
///
/// # Errors
/// There is no such place, or it is not free.
pub fn slot(given: Option<i32>, places: u32, taken: &[u32]) -> Result<u32, QmpError> {
    // As in QEMU, -1 leaves the choice.
    let Some(given) = given.filter(|slot| *slot != -1) else {
        let free = (0..places).find(|slot| !taken.contains(slot));
        return free.ok_or_else(|| QmpError::generic("no free slots available"));
    };
    match u32::try_from(given).ok().filter(|slot| *slot < places) {
        None => refuse(format!(
            "invalid slot# {given}, should be less than {places}"
        )),
        Some(slot) if taken.contains(&slot) => refuse(format!("slot {slot} is busy")),
        Some(slot) => Ok(slot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_as_large_as_the_pages_behind_them_at_least() {
        let of = |given, page| block_size(given, page, 1 << 30).map_err(|error| error.desc);
        assert_eq!(of(None, 4096), Ok(BlockSize(2 * MIB)));
        assert_eq!(of(None, 1 << 30), Ok(BlockSize(1 << 30)));
        assert_eq!(of(Some(MIB), 4096), Ok(BlockSize(MIB)));
        for (given, page, text) in [
            (
                MIB / 2,
                4096,
                "'block-size' property has to be at least 0x100000",
            ),
            (
                MIB,
                2 * MIB,
                "'block-size' property has to be at least 0x200000",
            ),
            (
                3 * MIB,
                4096,
                "'block-size' property has to be a power of two",
            ),
            (
                2 << 30,
                4096,
                "'memdev' property: memory backend size 0x40000000 is not a multiple of \
                 'block-size' (0x80000000)",
            ),
        ] {
            assert_eq!(of(Some(given), page), Err(text.to_owned()));
        }
    }

    #[test]
    fn modules_take_places_that_are_there_and_free() {
        let of = |given, taken: &[u32]| slot(given, 3, taken).map_err(|error| error.desc);
        assert_eq!(of(None, &[]), Ok(0));
        assert_eq!(of(Some(-1), &[0, 2]), Ok(1));
        assert_eq!(of(Some(2), &[0]), Ok(2));
        for (given, taken, text) in [
            (None, &[1, 0, 2][..], "no free slots available"),
            (Some(2), &[2], "slot 2 is busy"),
            (Some(3), &[], "invalid slot# 3, should be less than 3"),
            (Some(-2), &[], "invalid slot# -2, should be less than 3"),
        ] {
            assert_eq!(of(given, taken), Err(text.to_owned()));
        }
    }

    #[test]
    fn a_module_is_a_number_of_large_pages() {
        assert_eq!(module_alignment(4096, 4 * MIB).unwrap(), 2 * MIB);
        assert_eq!(
            module_alignment(4096, 3 * MIB).unwrap_err().desc,
            "backend memory size must be multiple of 0x200000"
        );
    }

    #[test]
    fn what_is_to_last_has_a_file_that_writes_reach_or_that_nobody_writes() {
        let of = |host, share, read_only| {
            let memory = RamBackendSpec {
                host,
                share,
                read_only,
                ..RamBackendSpec::anonymous("m", MIB)
            };
            (lasting(&memory).is_ok(), writable(&memory).is_ok())
        };
        let file = || HostMemory::File {
            name: "fd:m".to_owned(),
            offset: 0,
        };
        assert_eq!(of(HostMemory::Anonymous, true, false), (false, true));
        assert_eq!(of(file(), false, false), (false, true));
        assert_eq!(of(file(), true, false), (true, true));
        assert_eq!(of(file(), false, true), (true, false));
    }

    #[test]
    fn a_node_must_be_one_of_the_guests() {
        let numa = NumaSpec::single(1 << 30, 1);
        assert_eq!(node(None, None).unwrap(), None);
        assert_eq!(node(Some(0), Some(&numa)).unwrap(), Some(0));
        assert_eq!(
            node(Some(1), Some(&numa)).unwrap_err().desc,
            "'node' property has value '1', which exceeds the number of numa nodes: 1"
        );
    }
}
