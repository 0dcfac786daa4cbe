//! A stock Debian disk, booted by the distribution's own firmware, shim and GRUB.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they open what they hand in"
)]

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tests::backends::{ADDRESS, Outside};
use tests::vm::variable;
use tests::{Vm, fds};

/// From a reset to the login prompt, where the processor is emulated.
const BOOT_TIME: Duration = Duration::from_secs(400);

/// Who sits at the serial console.
struct Operator(UnixStream);

impl Operator {
    /// The operator, and the console's end of the line. What the guest says is read from its log.
    fn new() -> Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut said = ours.try_clone()?;
        thread::spawn(move || io::copy(&mut said, &mut io::sink()));
        Ok((Self(ours), theirs))
    }

    fn types(&mut self, line: &str) -> Result<()> {
        Ok(self.0.write_all(format!("{line}\r").as_bytes())?)
    }

    /// Waits for the prompt and logs in.
    fn logs_in(&mut self, vm: &mut Vm, boot: usize) -> Result<()> {
        vm.wait_for_console("debian login: ", boot, BOOT_TIME)?;
        self.types("root")?;
        vm.wait_for_console("root@debian:~# ", boot, BOOT_TIME)
    }
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_stock_disk_boots_to_login_has_an_address_reboots_and_powers_off() -> Result<()> {
    let outside = Outside::new()?;
    let (_passt, connection) = outside.passt()?;
    let (mut operator, console) = Operator::new()?;
    let variables = fds::copy_of(&variable("SESAME_OVMF_VARS")?)?;
    let stock = File::open(variable("SESAME_DEBIAN")?)?;
    let overlay = fds::image(stock.metadata()?.len())?;
    let mut builder = Vm::with_firmware(variables)?.memory("512");
    builder.console_over(console);
    let [stock, overlay] = [stock, overlay].map(|file| builder.fdset(file));
    let disk = json!({"driver": "qcow2", "node-name": "disk", "file": {"driver": "file",
        "filename": overlay}, "backing": {"driver": "raw", "read-only": true, "file": {
        "driver": "file", "filename": stock, "read-only": true}}});
    let netdev = format!(
        "stream,id=net,addr.type=fd,addr.str={}",
        builder.pass(connection)
    );
    let mut vm = builder
        .args([
            "-blockdev",
            &disk.to_string(),
            "-device",
            "virtio-blk-pci,drive=disk",
        ])
        .args(["-netdev", &netdev, "-device", "virtio-net-pci,netdev=net"])
        .args(["-open-policy", "sealed"])
        .start()?;
    operator.logs_in(&mut vm, 1)?;
    operator.types("until hostname -I | grep -F . ; do sleep 1; done")?;
    vm.wait_for_console(&ADDRESS.to_string(), 1, BOOT_TIME)?;
    operator.types("reboot")?;
    vm.qmp.event("RESET", BOOT_TIME)?;
    operator.logs_in(&mut vm, 2)?;
    operator.types("poweroff")?;
    vm.qmp.event("SHUTDOWN", BOOT_TIME)?;
    vm.exit_clean()
}
