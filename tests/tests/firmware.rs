//! UEFI firmware of the distribution: it comes up, finds what to boot, and keeps its variables.
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::vm::variable;
use tests::{Vm, esp, fds};

/// Firmware is slow where the processor is emulated.
const FIRMWARE_TIME: Duration = Duration::from_secs(400);

/// An empty store of variables.
fn variables() -> Result<File> {
    fds::copy_of(&variable("SESAME_OVMF_VARS")?)
}

fn wait_for(vm: &Vm, text: &str) -> Result<()> {
    let start = Instant::now();
    while !vm.console().contains(text) {
        ensure!(
            start.elapsed() < FIRMWARE_TIME,
            "no {text:?} on the console"
        );
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn firmware_comes_up_with_its_shell_and_runs_a_script_of_the_disk() -> Result<()> {
    let script = b"echo sesame-was-here\r\nreset -s\r\n";
    let disk = esp::disk(&[("STARTUP.NSH", script)])?;
    let mut vm = Vm::with_firmware(variables()?)?.disk("esp", disk).start()?;
    wait_for(&vm, "UEFI Interactive Shell")?;
    wait_for(&vm, "sesame-was-here")?;
    vm.qmp.event("SHUTDOWN", FIRMWARE_TIME)?;
    vm.exit_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn firmware_boots_the_kernel_that_it_is_given() -> Result<()> {
    let mut vm = Vm::builder()
        .memory("512")
        .append("sesame.word=uefi")
        .firmware(variables()?)?
        .start()?;
    // Firmware clears the screen, which nobody else does before the kernel.
    wait_for(&vm, "\u{1b}[2J")?;
    let guest = vm.guest()?;
    assert!(guest.text("cmdline")?.contains("sesame.word=uefi"));
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn what_firmware_keeps_is_in_the_file() -> Result<()> {
    let file = variables()?;
    let script =
        b"setvar Sesame -guid 5e5a3e00-0000-4000-8000-000000000001 -bs -nv =0x7e7e7e7e\r\n\
                   reset -s\r\n";
    let disk = esp::disk(&[("STARTUP.NSH", script)])?;
    let mut vm = Vm::with_firmware(file.try_clone()?)?
        .disk("esp", disk)
        .start()?;
    vm.qmp.event("SHUTDOWN", FIRMWARE_TIME)?;
    vm.exit_clean()?;
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len())?];
    file.read_exact_at(&mut bytes, 0)?;
    let name: Vec<u8> = "Sesame".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(bytes.windows(name.len()).any(|part| part == name));
    let again = b"dmpstore Sesame -guid 5e5a3e00-0000-4000-8000-000000000001\r\nreset -s\r\n";
    let disk = esp::disk(&[("STARTUP.NSH", again)])?;
    let mut vm = Vm::with_firmware(file)?.disk("esp", disk).start()?;
    vm.qmp.event("SHUTDOWN", FIRMWARE_TIME)?;
    let console = vm.console();
    ensure!(
        console.contains("7E 7E 7E 7E"),
        "the shell says {console:?}"
    );
    vm.exit_clean()
}
