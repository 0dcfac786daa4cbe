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

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};
use tests::backends::{self, Program};
use tests::vm::variable;
use tests::{Vm, fds, inspect, vm::Builder};

/// The lab's emulator lets a guest set XCR0 past KVM, which then tells of the wrong size: kernels warn
/// of it, or die. Under QEMU they do the same there.
const LAB_WORDS: &str = "noxsave";
/// What is said of the machine underneath, and only sometimes.
const OF_THE_HOST: &[&str] = &["clocksource:", "TSC ", "tsc:"];

/// What the machine does not have, and why.
const ELSEWHERE: &[(&str, &str)] = &[
    ("mch", "the tree calls the board's chips otherwise"),
    ("ICH9-LPC", "the same"),
    ("isa-serial", "the same: a serial port has its chip's name"),
    (
        "pvpanic",
        "Linux takes one of its kind, and here it is pvpanic-pci",
    ),
    (
        "tpm-crb",
        "swtpm takes longer here than Linux waits if there is much else to do: `served` has it",
    ),
];

/// The bridges that no driver is needed for: the host's, the one to ISA, and the one to conventional
/// PCI, which has no hot-plug controller.
const BRIDGES: &[(&str, &str)] = &[
    ("0x8086", "0x29c0"),
    ("0x8086", "0x2918"),
    ("0x1b36", "0x000e"),
];

/// A machine with one of each, and the programs that serve some of it. `cid` is its address on vsock:
/// the tests run side by side, and the kernel gives an address to one machine only.
fn machine(cid: u32) -> Result<(Builder, Served)> {
    let mut builder = Vm::builder()
        .machine("q35,memory-backend=ram")
        .root_ports(3)
        .memory("256,slots=1,maxmem=1G")
        .append(LAB_WORDS);
    let cd = builder.fdset(file(1 << 20)?);
    let hd = builder.fdset(file(1 << 20)?);
    let network = builder.pass(socket()?);
    let vsock = builder.pass(fds::open_rw(Path::new("/dev/vhost-vsock"))?);
    let (served, connections) = Served::new()?;
    let [share, far] = connections.map(|socket| builder.pass(socket));
    let node = |name: &str, file: &str| {
        let file = json!({"driver": "file", "filename": file});
        json!({"driver": "raw", "node-name": name, "file": file}).to_string()
    };
    let socket = format!("stream,id=cable,server=off,addr.type=fd,addr.str={network}");
    let builder = builder
        .args(["-object", "memory-backend-memfd,id=ram,size=256M"])
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
        .args(["-device", "virtio-pmem-pci,memdev=lasting"])
        .args(["-chardev", &format!("socket,id=share,fd={share}")])
        .args(["-device", "vhost-user-fs-pci,chardev=share,tag=files"])
        .args(["-chardev", &format!("socket,id=far,fd={far}")])
        .args(["-device", "vhost-user-blk-pci,chardev=far"])
        .args(["-object", "memory-backend-memfd,id=module,size=128M"])
        .args(["-device", "pc-dimm,memdev=module"])
        .args(["-device", "virtconsole,chardev=nobody"])
        .args(["-chardev", "null,id=nobody"])
        .args(["-device", "vmcoreinfo", "-device", "vmgenid,guid=auto"]);
    Ok((builder, served))
}

/// What other programs serve, and where they keep it.
struct Served {
    _programs: [Program; 2],
    _folder: TempDir,
    _image: NamedTempFile,
}

impl Served {
    /// Starts them; the connections to the share and the disk.
    fn new() -> Result<(Self, [UnixStream; 2])> {
        let folder = tempfile::tempdir()?;
        let image = NamedTempFile::new()?;
        image.as_file().set_len(1 << 20)?;
        let (files, share) = backends::virtiofsd(folder.path())?;
        let place = tempfile::tempdir()?;
        let path = place.path().join("disk");
        let disk = backends::storage_daemon(image.path(), &path)?;
        let served = Self {
            _programs: [files, disk],
            _folder: folder,
            _image: image,
        };
        Ok((served, [share, UnixStream::connect(path)?]))
    }
}

/// Whether a model of the machine's is the same as `model`, or there can be only one of its kind.
fn is_there(model: &str, there: &BTreeSet<String>) -> bool {
    let same = model.strip_suffix("-non-transitional").unwrap_or(model);
    there.contains(same) || (model.ends_with("-x86_64-cpu") && there.contains("host-x86_64-cpu"))
}

/// The types of that kind.
fn types(vm: &mut Vm, kind: &str) -> Result<BTreeSet<String>> {
    let types = vm.execute(
        "qom-list-types",
        json!({"implements": kind, "abstract": false}),
    )?;
    let types = types.as_array().context("a list")?.iter();
    types.map(|of| Ok(text(&of["name"])?.to_owned())).collect()
}

/// That there is one of each model that can be named, but for those that are [`ELSEWHERE`].
fn has_all(vm: &mut Vm) -> Result<()> {
    let mut there = BTreeSet::new();
    for container in inspect::CONTAINERS {
        let children = vm.execute("qom-list", json!({"path": container}))?;
        for child in children.as_array().context("a list")? {
            let of = text(&child["type"])?;
            there.extend(
                of.strip_prefix("child<")
                    .map(|of| of.trim_end_matches('>').to_owned()),
            );
        }
    }
    let carried = types(vm, "virtio-device")?;
    for model in types(vm, "device")?.difference(&carried) {
        let is_elsewhere = ELSEWHERE.iter().any(|(name, _)| name == model);
        ensure!(
            is_elsewhere || is_there(model, &there),
            "without a {model}; there are: {there:?}"
        );
    }
    Ok(())
}

fn file(length: u64) -> Result<fs::File> {
    let file = tempfile::tempfile()?;
    file.set_len(length)?;
    Ok(file)
}

/// One end of a cable; the other is held by nobody but lives as long.
fn socket() -> Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
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
    let (builder, _served) = machine(31)?;
    let mut vm = started(builder)?;
    has_all(&mut vm)?;
    let config = vm.guest()?.call("pci-config", json!({}))?;
    judge("lspci", &lspci(text(&config)?)?)?;
    judge("warnings", &warnings(&mut vm)?)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn the_newest_kernel_drives_every_device_and_warns_of_none() -> Result<()> {
    let (builder, _served) = machine(32)?;
    let newest = builder
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
