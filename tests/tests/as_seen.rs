//! What stock kernels see of a machine with every device: its PCI functions as `lspci` reads them,
//! and no word of warning about any of it.
//!
//! What is wanted is kept in `tests/as_seen`. Where a change is meant, a run with `SESAME_BLESS=1`
//! writes it anew; the difference is read like any other. That nd_pmem cannot guarantee persistence it
//! says of any virtio-pmem: it asks for DIMMs behind a region before it asks how the region is flushed.
#![expect(
    clippy::disallowed_methods,
    reason = "a test reads what is kept, and hands files in: the rule of the one open is about the VMM"
)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::vm::variable;
use tests::{Vm, fds, vm::Builder};

/// The lab's emulator lets a guest set XCR0 past KVM, which then tells of the wrong size: kernels warn
/// of it, or die. Under QEMU they do the same there.
const LAB_WORDS: &str = "noxsave";
/// What is said of the machine underneath, and only sometimes.
const OF_THE_HOST: &[&str] = &["clocksource:", "TSC ", "tsc:"];

/// The bridges that no driver is needed for: the host's, the one to ISA, and the one to conventional
/// PCI, which has no hot-plug controller.
const BRIDGES: &[(&str, &str)] = &[
    ("0x8086", "0x29c0"),
    ("0x8086", "0x2918"),
    ("0x1b36", "0x000e"),
];

/// A machine with one of each. `cid` is its address on vsock: the tests run side by side, and the
/// kernel gives an address to one machine only.
fn machine(cid: u32) -> Result<Builder> {
    let mut builder = Vm::builder()
        .root_ports(3)
        .memory("256,maxmem=1G")
        .append(LAB_WORDS);
    let cd = builder.fdset(file(1 << 20)?);
    let hd = builder.fdset(file(1 << 20)?);
    let network = builder.pass(socket()?);
    let vsock = builder.pass(fds::open_rw(Path::new("/dev/vhost-vsock"))?);
    let node = |name: &str, file: &str| {
        let file = json!({"driver": "file", "filename": file});
        json!({"driver": "raw", "node-name": name, "file": file}).to_string()
    };
    let socket = format!("stream,id=cable,server=off,addr.type=fd,addr.str={network}");
    Ok(builder
        .disk("disk", file(1 << 20)?)
        .args(["-blockdev", &node("cd", &cd), "-blockdev", &node("hd", &hd)])
        .args(["-netdev", &socket])
        .args([
            "-device",
            "virtio-net-pci,netdev=cable,mac=52:54:00:12:34:56",
        ])
        .args(["-object", "rng-random,id=noise,filename=/dev/urandom"])
        .args(["-device", "virtio-rng-pci,rng=noise"])
        .args(["-device", "virtio-balloon-pci"])
        .args(["-device", "virtio-scsi-pci,id=scsi"])
        .args(["-device", "scsi-hd,bus=scsi.0,drive=hd,serial=hd"])
        .args(["-device", "scsi-cd,bus=scsi.0,drive=cd,serial=cd"])
        .args(["-device", "pvpanic-pci"])
        .args(["-device", "virtio-keyboard-pci"])
        .args(["-device", "virtio-tablet-pci"])
        .args(["-object", "memory-backend-memfd,id=blocks,size=128M"])
        .args(["-device", "virtio-mem-pci,memdev=blocks,block-size=2M"])
        .args([
            "-device",
            &format!("vhost-vsock-pci,guest-cid={cid},vhostfd={vsock}"),
        ])
        .args(["-device", "pcie-pci-bridge,id=old,bus=port2"])
        .args(["-device", "i6300esb,bus=old,addr=1"])
        .args(["-device", "virtio-mouse-pci,bus=old,addr=2"])
        .args(["-device", "virtio-blk-pci,bus=port1,drive=null"])
        .args(["-blockdev", "driver=null-co,node-name=null,size=1048576"])
        .args(["-object", "memory-backend-memfd,id=lasting,size=32M"])
        .args(["-device", "virtio-pmem-pci,memdev=lasting"]))
}

fn file(length: u64) -> Result<fs::File> {
    let file = tempfile::tempfile()?;
    file.set_len(length)?;
    Ok(file)
}

/// One end of a cable; the other is held by nobody but lives as long.
fn socket() -> Result<std::os::unix::net::UnixStream> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    Box::leak(Box::new(theirs));
    Ok(ours)
}

/// Where what is wanted is kept.
fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/as_seen")
        .join(name)
}

/// Compares with what is kept, line by line.
fn judge(name: &str, seen: &str) -> Result<()> {
    let path = kept(name);
    if env::var_os("SESAME_BLESS").is_some() {
        fs::create_dir_all(kept(""))?;
        return Ok(fs::write(path, seen)?);
    }
    let wanted = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let first = wanted.lines().zip(seen.lines()).find(|(was, is)| was != is);
    ensure!(
        wanted == seen,
        "{name} has changed, first {first:?}; if that is meant: SESAME_BLESS=1. All of it:\n{seen}"
    );
    Ok(())
}

/// That machine, whose guest has a driver for each of its devices.
fn started(builder: Builder) -> Result<Vm> {
    let mut vm = builder.start()?;
    vm.guest()?.call("modules", json!({}))?;
    Ok(vm)
}

/// What `lspci` makes of the configuration spaces.
fn lspci(config: &str) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let dump = folder.path().join("dump");
    fs::write(&dump, config)?;
    let output = Command::new("lspci").arg("-nvvvF").arg(&dump).output()?;
    // It says on the side which of its resources this machine does not have.
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "lspci: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().context("a text")
}

/// The warnings that are not of the host's making, a line each.
fn warnings(vm: &mut Vm) -> Result<String> {
    let all = vm.guest()?.call("warnings", json!({}))?;
    let mut lines = String::new();
    for line in all.as_array().context("a list")? {
        let line = text(line)?;
        if !OF_THE_HOST.iter().any(|start| line.starts_with(start)) {
            lines.push_str(line);
            lines.push('\n');
        }
    }
    Ok(lines)
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn lspci_reads_what_it_read_before_and_the_kernel_warns_of_nothing_new() -> Result<()> {
    let mut vm = started(machine(31)?)?;
    let config = vm.guest()?.call("pci-config", json!({}))?;
    judge("lspci", &lspci(text(&config)?)?)?;
    judge("warnings", &warnings(&mut vm)?)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn the_newest_kernel_drives_every_device_and_warns_of_none() -> Result<()> {
    let newest = machine(32)?
        .boots(&variable("SESAME_NEWEST_KERNEL")?)
        .initrd(&variable("SESAME_NEWEST_INITRD")?);
    let mut vm = started(newest)?;
    println!("{}", vm.guest()?.text("kernel")?);
    let known = fs::read_to_string(kept("warnings"))?;
    let seen = warnings(&mut vm)?;
    let new = seen
        .lines()
        .find(|line| !known.lines().any(|it| it == *line));
    ensure!(new.is_none(), "it warns: {new:?}, all of it:\n{seen}");
    let functions = vm.guest()?.call("pci", json!({}))?;
    for function in functions.as_array().context("a list")? {
        let model = (text(&function["vendor"])?, text(&function["device"])?);
        let is_driven = function["driver"].is_string();
        ensure!(
            is_driven || BRIDGES.contains(&model),
            "no driver: {function}"
        );
    }
    vm.shutdown_clean()
}
