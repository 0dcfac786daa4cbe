//! Guest memory in a file that somebody cuts short: the process ends as the kernel has it, and says
//! which memory it was.
//!
//! ```text
//!   test ── runs itself with SESAME_SHORTENED=.. ──► a backend, its file cut short, a touch ──► SIGBUS
//! ```

use std::env;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;

use fdset::{Door, FdRegistry, Handover, Origin, Scope};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_core::memory::{HostMemory, Layout, RamBackend, RamBackendSpec};

const PROBE: &str = "SESAME_SHORTENED";
const SIZE: u64 = 4 << 20;

fn probe(what: &str) -> Output {
    Command::new(env::current_exe().expect("this test"))
        .args(["--exact", "the_probed_process", "--ignored", "--nocapture"])
        .env(PROBE, what)
        .output()
        .expect("it runs")
}

#[test]
fn memory_whose_file_is_cut_short_ends_the_process_with_the_name_of_its_backend() {
    let output = probe("touch");
    assert_eq!(output.status.signal(), Some(libc::SIGBUS));
    let stderr = String::from_utf8_lossy(&output.stderr);
    let line = "sesame: memory backend 'ram0' ('fd:ram'): what is behind it is gone at byte 2097152: \
                the file was cut short, or its storage has failed (thread 'toucher'): the process \
                ends; never shorten a file that is guest memory, and make memfds with \
                MFD_ALLOW_SEALING\n";
    assert!(stderr.contains(line), "{stderr}");
}

#[test]
fn a_signal_that_somebody_sends_ends_the_process_too() {
    let output = probe("kill");
    assert_eq!(output.status.signal(), Some(libc::SIGBUS));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("sesame: the process was sent SIGBUS"),
        "{stderr}"
    );
}

#[test]
#[ignore = "run by the tests above, as a process of its own"]
fn the_probed_process() {
    let Ok(what) = env::var(PROBE) else {
        return;
    };
    let file = tempfile::tempfile().expect("a file");
    file.set_len(SIZE).expect("room");
    let memory = map(file.try_clone().expect("another fd"));
    if what == "kill" {
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGBUS).expect("sent");
    }
    file.set_len(SIZE / 2).expect("shorter");
    let toucher = thread::Builder::new().name("toucher".into());
    let touch = move || memory.memory().read_obj::<u8>(GuestAddress(SIZE / 2));
    let touched = toucher.spawn(touch).expect("a thread").join();
    panic!("nothing ended the process: {touched:?}");
}

fn map(file: File) -> devices::memory::GuestMem {
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let passed = Handover::new(file.into(), Origin::CommandLine);
    let named = door.registry().add_named(Scope::Process, "ram", passed);
    named.expect("a good name");
    let spec = RamBackendSpec {
        host: HostMemory::File {
            name: "fd:ram".into(),
            offset: 0,
        },
        share: true,
        ..RamBackendSpec::anonymous("ram0", SIZE)
    };
    let backend = RamBackend::open(&door, spec).expect("a backend");
    backend
        .map(&Layout::new(SIZE, 40).expect("a layout"))
        .expect("mapped")
}
