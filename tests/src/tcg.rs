//! A weakness of TCG that no option goes round, mended in a copy.
//!
//! A guest in the lab that writes CR8 while an interrupt waits for it (EDK II does at each of its
//! own) ends QEMU 7.2: the processor's own thread raises the waiting interrupt without the lock that
//! an assertion wants there. What follows is one instruction, `or` to memory, and all of the lab's
//! threads share one CPU: nothing can come between. So the copy jumps over the assertion.
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The part of QEMU that is TCG, where a distribution has it apart.
const MODULE: &str = "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so";
/// `test al, al; jne ..; lea r8, ..; lea rcx, ..; mov edx, LINE`: the assertion in
/// `tcg_handle_interrupt`, with 0xff for any byte.
const ASSERTION: [u8; 23] = [
    0x84, 0xc0, 0x75, 0xff, 0x4c, 0x8d, 0x05, 0xff, 0xff, 0xff, 0xff, 0x48, 0x8d, 0x0d, 0xff, 0xff,
    0xff, 0xff, 0xba, 0x51, 0, 0, 0,
];
const JUMP_IF: usize = 2;
const JUMP: u8 = 0xeb;

/// A folder with the mended module for `QEMU_MODULE_DIR`, below `cache`; none where QEMU is another.
pub(crate) fn mended(cache: &Path) -> Result<Option<PathBuf>> {
    let Ok(mut module) = fs::read(MODULE) else {
        return Ok(None);
    };
    let Some(at) = only_place(&module) else {
        return Ok(None);
    };
    module[at + JUMP_IF] = JUMP;
    let folder = cache.join("lab/modules");
    fs::create_dir_all(&folder)?;
    let place = folder.join(Path::new(MODULE).file_name().context("it has a name")?);
    if fs::read(&place).is_ok_and(|there| there == module) {
        return Ok(Some(folder));
    }
    // Others may start a lab at the same time.
    let new = tempfile::NamedTempFile::new_in(&folder)?;
    fs::write(new.path(), module)?;
    new.persist(place)?;
    Ok(Some(folder))
}

/// Where the assertion is, if it is there once.
fn only_place(module: &[u8]) -> Option<usize> {
    let is = |part: &[u8]| {
        let mut bytes = part.iter().zip(ASSERTION);
        bytes.all(|(byte, wanted)| wanted == 0xff || *byte == wanted)
    };
    let mut places = module.windows(ASSERTION.len()).enumerate();
    let first = places.find(|(_, part)| is(part))?.0;
    places.all(|(_, part)| !is(part)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assertion_is_found_if_there_is_one_of_it() {
        let mut module = vec![0x90; 100];
        assert_eq!(only_place(&module), None);
        module[40..63].copy_from_slice(&ASSERTION);
        assert_eq!(only_place(&module), Some(40));
        module.extend(ASSERTION);
        assert_eq!(only_place(&module), None);
    }
}
