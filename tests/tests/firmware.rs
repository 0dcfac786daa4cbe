//! UEFI firmware of the distribution: it comes up, finds what to boot, and keeps its variables.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they read and make what they hand in"
)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tests::sealed::is_sealed;
use tests::vm::variable;
use tests::{Vm, esp, fds, uki};

/// Firmware is slow where the processor is emulated.
const FIRMWARE_TIME: Duration = Duration::from_secs(400);

/// An empty store of variables.
fn variables() -> Result<File> {
    fds::copy_of(&variable("SESAME_OVMF_VARS")?)
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
    vm.wait_for_console("\u{1b}[2J", 1, FIRMWARE_TIME)?;
    let guest = vm.guest()?;
    assert!(guest.text("cmdline")?.contains("sesame.word=uefi"));
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn firmware_runs_a_script_of_the_disk_and_what_it_keeps_is_in_the_file() -> Result<()> {
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
    ensure!(console.contains("UEFI Interactive Shell"), "{console:?}");
    ensure!(
        console.contains("7E 7E 7E 7E"),
        "the shell says {console:?}"
    );
    vm.exit_clean()
}

/// A disk with the test guest's system as the program that firmware looks for.
fn system(words: &str) -> Result<File> {
    let read = |name: &str| Ok::<_, anyhow::Error>(fs::read(variable(name)?)?);
    let cmdline = format!("console=ttyS0 quiet panic=-1 {words}");
    let kernel = read("SESAME_GUEST_KERNEL")?;
    let initrd = read("SESAME_GUEST_INITRD")?;
    let program = uki::image(&read("SESAME_EFI_STUB")?, &kernel, &initrd, &cmdline)?;
    esp::disk(&[("EFI/BOOT/BOOTX64.EFI", &program)])
}

/// Where the number is in a page of guest memory: firmware takes pages from the end on.
fn page_with(memory: &File, number: &[u8]) -> Result<u64> {
    let mut end = memory.metadata()?.len();
    let mut page = [0; 4096];
    while let Some(start) = end.checked_sub(page.len() as u64) {
        memory.read_exact_at(&mut page, start)?;
        if page[40..].starts_with(number) {
            return Ok(start);
        }
        end = start;
    }
    bail!("the number is nowhere")
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_sealed_machine_boots_the_disk_that_is_first_in_order_and_again_with_one_more_vcpu()
-> Result<()> {
    let memory = File::from(fds::memfd(512 << 20)?);
    let mut builder = Vm::with_firmware(variables()?)?
        .memory("512")
        .machine("q35,memory-backend=ram")
        .disk_with("second", system("sesame.word=second")?, ",bootindex=7")
        .disk("never", system("sesame.word=never")?)
        .disk_with("first", system("sesame.word=first")?, ",bootindex=3");
    let path = builder.fdset(memory.try_clone()?);
    let backend = format!("memory-backend-file,id=ram,size=512M,share=on,mem-path={path}");
    let mut vm = builder
        .args(["-smp", "1,sockets=2,maxcpus=2", "-object", &backend])
        .args([
            "-device",
            "vmgenid,guid=00112233-4455-6677-8899-aabbccddeeff",
        ])
        .args(["-open-policy", "sealed"])
        .start()?;
    vm.wait_for_console("guest-init: up", 1, FIRMWARE_TIME)?;
    let guest = vm.guest()?;
    assert!(guest.text("cmdline")?.contains("sesame.word=first"));
    let device = json!({"path": "/sys/bus/acpi/devices/QEMUVGID:00/status"});
    assert_eq!(guest.call("read-file", device)?, "15\n");
    let number = b"\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff";
    page_with(&memory, number).context("the generation id")?;
    assert!(is_sealed(&vm.execute("query-sandbox", json!({}))?));
    let cpu = json!({"driver": "host-x86_64-cpu", "id": "late", "socket-id": 1, "core-id": 0,
        "thread-id": 0});
    vm.execute("device_add", cpu)?;
    assert_eq!(vm.guest()?.call("cpu-online", json!({"cpu": 1}))?, 2);
    vm.guest()?.call("reboot", json!({}))?;
    vm.qmp.event("RESET", FIRMWARE_TIME)?;
    assert_eq!(vm.guest_port().wait_ready()?["cpus"], 2);
    assert!(
        vm.guest_port()
            .text("cmdline")?
            .contains("sesame.word=first")
    );
    vm.shutdown_clean()
}
