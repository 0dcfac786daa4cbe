//! Kernels of a few bytes: what a stock kernel never does.
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use tests::{Vm, kernels};

const SOON: Duration = Duration::from_secs(60);

/// A machine that waits for `cont` with this code as its kernel.
fn machine(code: &[u8]) -> Result<Vm> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(&kernels::pvh(code))?;
    Vm::paused().boots(file.path()).start()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn an_elf_kernel_starts_at_its_pvh_entry() -> Result<()> {
    // mov dx, 0x3f8; mov al, 'S'; out dx, al; again: cli; hlt; jmp again
    let mut vm = machine(b"\x66\xba\xf8\x03\xb0S\xee\xfa\xf4\xeb\xfc")?;
    vm.execute("cont", json!({}))?;
    let start = Instant::now();
    while vm.console() != "S" {
        ensure!(
            start.elapsed() < SOON,
            "the console says {:?}",
            vm.console()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_guest_that_kvm_cannot_run_stops_with_an_internal_error() -> Result<()> {
    // mov eax, 0xd0000000; jmp eax: there is nothing to execute there.
    let mut vm = machine(b"\xb8\x00\x00\x00\xd0\xff\xe0")?;
    vm.execute("cont", json!({}))?;
    vm.qmp.event("STOP", SOON)?;
    assert_eq!(
        vm.execute("query-status", json!({}))?["status"],
        "internal-error"
    );
    let said = vm.stderr();
    assert!(said.to_lowercase().contains("suberror"), "{said}");
    vm.execute("query-kvm", json!({}))?;
    vm.execute("quit", json!({}))?;
    assert!(vm.wait_exit()?.success());
    Ok(())
}
