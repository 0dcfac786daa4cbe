//! Files given as `-kernel`, put into a small guest.
//!
//! What must hold: whatever the headers say, loading ends, and touches no memory outside the
//! guest's; what is accepted is entered inside RAM, and a reset puts the same bytes there again.

use std::fs::File;
use std::os::unix::fs::FileExt;

use devices::memory::GuestMemView;
use fdset::OpenFile;
use vm_memory::{Bytes, GuestAddress};
use vmm_core::kvm::BootEntry;
use vmm_core::machine::kernel::BootSource;
use vmm_core::memory::Layout;

/// Enough for a kernel at 1 MiB, or at 2 MiB if it is relocated.
const RAM: u32 = 4 << 20;

pub(super) fn run(input: &[u8]) {
    let [cmdline, initrd, image @ ..] = input else {
        return;
    };
    let kernel = file_of(image);
    let initrd = (*initrd > 0).then(|| file_of(&vec![*initrd; usize::from(*initrd) * 64]));
    let cmdline = "c".repeat(usize::from(*cmdline) * 16);
    let Ok(source) = BootSource::new(kernel, initrd, &cmdline) else {
        return;
    };
    let layout = Layout::new(u64::from(RAM), 40).expect("a small guest");
    let first = load(&source, &layout);
    let again = load(&source, &layout);
    assert!(first == again, "a reset loads something else");
}

/// Where the guest begins, and all of its memory; nothing if it cannot be loaded.
fn load(source: &BootSource, layout: &Layout) -> Option<(BootEntry, Vec<u8>)> {
    let size = usize::try_from(RAM).expect("small");
    let memory = GuestMemView::from_ranges(&[(GuestAddress(0), size)]).expect("memory");
    let entry = source.load(&memory, layout, 0xe_0000).ok()?;
    let first = match entry {
        BootEntry::Linux64 { entry, .. } => entry,
        BootEntry::Pvh { entry, .. } => u64::from(entry),
        BootEntry::ResetVector => panic!("a kernel is entered where firmware is"),
    };
    assert!(first < u64::from(RAM), "entered at {first:#x}, outside RAM");
    let mut bytes = vec![0; size];
    let all = memory.read_slice(&mut bytes, GuestAddress(0));
    all.expect("all of it is there");
    Some((entry, bytes))
}

fn file_of(bytes: &[u8]) -> OpenFile {
    let file: File = tempfile::tempfile().expect("a file");
    file.write_all_at(bytes, 0).expect("room on the disk");
    OpenFile::new(file.into(), None)
}
