//! Kernels of a few bytes: an ELF file with a PVH entry note (Xen's x86 HVM start), which begins
//! in 32-bit protected mode without paging.

/// Where the code is loaded and entered.
pub const ENTRY: u32 = 0x0010_0000;

const PAGE: usize = 0x1000;
const EHDR: usize = 64;
const PHDR: usize = 56;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PHYS32_ENTRY: u32 = 18;

/// An ELF kernel of this code, at most a page of it.
pub fn pvh(code: &[u8]) -> Vec<u8> {
    let note_at = EHDR + 2 * PHDR;
    let mut note = Vec::new();
    for word in [4, 4, PHYS32_ENTRY] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&ENTRY.to_le_bytes());

    let mut file = Vec::with_capacity(2 * PAGE);
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // Type executable, machine x86-64, version 1.
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [u64::from(ENTRY), EHDR as u64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&[0; 4]);
    // Header size, program header size and count, no sections.
    file.extend_from_slice(&[64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    program_header(&mut file, 1, PAGE, ENTRY, code.len());
    program_header(&mut file, 4, note_at, 0, note.len());
    file.extend_from_slice(&note);
    file.resize(PAGE, 0);
    file.extend_from_slice(code);
    file.resize(2 * PAGE, 0);
    file
}

/// A kernel that writes a dot to the first serial port, counts to `turns`, and does so for ever.
pub fn ticking(turns: u32) -> Vec<u8> {
    // mov dx, 0x3f8; mov al, '.'; again: out dx, al; mov ecx, TURNS; d: dec ecx; jnz d; jmp again
    let [a, b, c, d] = turns.to_le_bytes();
    pvh(&[
        0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xb9, a, b, c, d, 0x49, 0x75, 0xfd, 0xeb, 0xf5,
    ])
}

fn program_header(file: &mut Vec<u8>, kind: u32, offset: usize, address: u32, size: usize) {
    // Read and execute.
    for word in [kind, 5] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    let address = u64::from(address);
    let (offset, size) = (offset as u64, size as u64);
    for word in [offset, address, address, size, size, 4] {
        file.extend_from_slice(&word.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readelf_would_read_it() {
        let file = pvh(&[0xf4]);
        assert_eq!(&file[..4], b"\x7fELF");
        assert_eq!(file[PAGE], 0xf4);
        let note = EHDR + 2 * PHDR;
        assert_eq!(&file[note + 12..note + 16], b"Xen\0");
        assert_eq!(file[note + 16..note + 20], ENTRY.to_le_bytes());
    }
}
