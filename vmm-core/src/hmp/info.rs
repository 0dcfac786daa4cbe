//! `info`: what QMP's queries say, laid out for people.

use std::fmt::Write as _;

use devices::net::Netdev;
use qapi_schema::block_core::{Commands as _, QueryNamedBlockNodes};
use qapi_schema::block_stats::{Commands as _, QueryBlockstats};
use qapi_schema::char::Commands as _;
use qapi_schema::job::Commands as _;
use qapi_schema::machine::Commands as _;
use qapi_schema::memory_devices::{Commands as _, MemoryDeviceInfoVariant};
use qapi_schema::migration::Commands as _;
use qapi_schema::pci::{Commands as _, PciDeviceInfo};
use qapi_schema::run_state::Commands as _;
use qapi_schema::{Context, QmpError};

use crate::device_tree::path;
use crate::machine::Q35;
use crate::qom::Object;
use crate::resolve::netdev::mac_text;
use crate::vm::Vm;

type Show = fn(&mut Vm, &mut dyn Context) -> Result<String, QmpError>;

/// Every subject, sorted: its name, what is told, who tells it.
const SUBJECTS: &[(&str, &str, Show)] = &[
    ("block", "the disks and their nodes", block),
    ("blockstats", "what the disks were asked", blockstats),
    ("chardev", "the chardevs", chardev),
    ("cpus", "the vCPUs", cpus),
    ("iothreads", "the threads for I/O", iothreads),
    ("jobs", "the jobs", jobs),
    ("kvm", "whether KVM runs the guest", kvm),
    ("memdev", "the memory backends", memdev),
    (
        "memory-devices",
        "the memory that came later",
        memory_devices,
    ),
    ("memory_size_summary", "how much memory there is", memory),
    (
        "migrate_capabilities",
        "what moves can be told",
        capabilities,
    ),
    ("name", "what the guest is called", name),
    ("network", "the network cards and where they lead", network),
    ("numa", "the NUMA nodes", numa),
    ("pci", "the PCI functions", pci),
    ("qtree", "the devices", qtree),
    ("status", "what the machine is doing", status),
    ("uuid", "the machine's UUID", uuid),
    ("version", "which version this is", version),
];

/// Tells of one subject; of all there are, without one.
pub(super) fn run(vm: &mut Vm, cx: &mut dyn Context, subject: &str) -> Result<String, QmpError> {
    let (name, _) = subject.split_once(' ').unwrap_or((subject, ""));
    match SUBJECTS.iter().find(|(known, ..)| *known == name) {
        _ if name.is_empty() => Ok(help()),
        Some((.., show)) => show(vm, cx),
        None => Ok(format!("unknown command: 'info {name}'")),
    }
}

/// The names of all subjects.
#[cfg(test)]
pub(super) fn subjects() -> impl Iterator<Item = &'static str> {
    SUBJECTS.iter().map(|(name, ..)| *name)
}

/// The subjects, one a line.
pub(super) fn help() -> String {
    let lines = SUBJECTS
        .iter()
        .map(|(name, about, _)| format!("info {name} -- show {about}"));
    lines.collect::<Vec<_>>().join("\n")
}

fn on_off(switch: bool) -> &'static str {
    if switch { "on" } else { "off" }
}

/// One line for each, or a line that says that there is none.
fn lines(lines: impl Iterator<Item = String>, none: &str) -> String {
    let lines: Vec<_> = lines.collect();
    if lines.is_empty() {
        none.to_owned()
    } else {
        lines.join("\n")
    }
}

fn status(vm: &mut Vm, cx: &mut dyn Context) -> Result<String, QmpError> {
    let info = vm.query_status(cx)?;
    let state = info.status.as_str();
    Ok(match (info.running, state) {
        (true, _) => "VM status: running".to_owned(),
        (false, "paused") => "VM status: paused".to_owned(),
        (false, why) => format!("VM status: paused ({why})"),
    })
}

fn name(vm: &mut Vm, cx: &mut dyn Context) -> Result<String, QmpError> {
    Ok(vm.query_name(cx)?.name.unwrap_or_default())
}

fn uuid(vm: &mut Vm, cx: &mut dyn Context) -> Result<String, QmpError> {
    Ok(vm.query_uuid(cx)?.uuid)
}

fn version(vm: &mut Vm, _cx: &mut dyn Context) -> Result<String, QmpError> {
    let version = vm.server.version();
    Ok(format!(
        "{}.{}.{} ({})",
        version.major, version.minor, version.micro, version.package
    ))
}

fn kvm(vm: &mut Vm, cx: &mut dyn Context) -> Result<String, QmpError> {
    let enabled = vm.query_kvm(cx)?.enabled;
    let state = if enabled { "enabled" } else { "disabled" };
    Ok(format!("kvm support: {state}"))
}

fn chardev(vm: &mut Vm, cx: &mut dyn Context) -> Result<String, QmpError> {
    let chardevs = vm.query_chardev(cx)?.into_iter();
    let shown = chardevs.map(|one| format!("{}: filename={}", one.label, one.filename));
    Ok(lines(shown, ""))
}

fn cpus(vm: &mut Vm, cx: &mut dyn Context) -> Result<String, QmpError> {
    let cpus = vm.query_cpus_fast(cx)?.into_iter();
    let shown = cpus.map(|cpu| {
        let mark = if cpu.cpu_index == 0 { '*' } else { ' ' };
        format!("{mark} CPU #{}: thread_id={}", cpu.cpu_index, cpu.thread_id)
    });
    Ok(lines(shown, ""))
}

fn numa(vm: &mut Vm, _cx: &mut dyn Context) -> Result<String, QmpError> {
    const MIB: u64 = 1 << 20;
    let board = vm.machine.board("info numa").ok();
    let Some(numa) = board.and_then(Q35::numa) else {
        return Ok("0 nodes".to_owned());
    };
    let cpus = vm.machine.cpus();
    let nodes = (0..).zip(&numa.nodes).flat_map(|(number, node): (u32, _)| {
        let own = cpus.iter().filter(|cpu| cpu.node == Some(number));
        let own: String = own.map(|cpu| format!(" {}", cpu.index)).collect();
        let plugged = vm.plugged_into_node(number);
        [
            format!("node {number} cpus:{own}"),
            format!("node {number} size: {} MB", (node.memory + plugged) / MIB),
            format!("node {number} plugged: {} MB", plugged / MIB),
        ]
    });
    let count = format!("{} nodes", numa.nodes.len());
    Ok(lines(std::iter::once(count).chain(nodes), ""))
}

fn memory_devices(vm: &mut Vm, cx: &mut dyn Context) -> Result<String, QmpError> {
    let devices = vm.query_memory_devices(cx)?.into_iter();
    let shown = devices.map(|device| match device.r#type {
        MemoryDeviceInfoVariant::Dimm(module) => {
            let module = module.data;
            format!(
                "Memory device [dimm]: \"{}\"\n  addr: {:#x}\n  slot: {}\n  node: {}\n  size: {}\n  \
                 memdev: {}\n  hotplugged: {}\n  hotpluggable: {}",
                module.id.unwrap_or_default(),
                module.addr,
                module.slot,
                module.node,
                module.size,
                module.memdev,
                module.hotplugged,
                module.hotpluggable,
            )
        }
        MemoryDeviceInfoVariant::VirtioPmem(memory) => {
            let memory = memory.data;
            format!(
                "Memory device [virtio-pmem]: \"{}\"\n  memaddr: {:#x}\n  size: {}\n  memdev: {}",
                memory.id.unwrap_or_default(),
                memory.memaddr,
                memory.size,
                memory.memdev,
            )
        }
        MemoryDeviceInfoVariant::VirtioMem(memory) => {
            let memory = memory.data;
            format!(
                "Memory device [virtio-mem]: \"{}\"\n  memaddr: {:#x}\n  node: {}\n  \
                 requested-size: {}\n  size: {}\n  max-size: {}\n  block-size: {}\n  memdev: {}",
                memory.id.unwrap_or_default(),
                memory.memaddr,
                memory.node,
                memory.requested_size,
                memory.size,
                memory.max_size,
                memory.block_size,
                memory.memdev,
            )
        }
    });
    Ok(lines(shown, ""))
}

fn iothreads(vm: &mut Vm, cx: &mut dyn Context) -> Result<String, QmpError> {
    let threads = vm.query_iothreads(cx)?.into_iter();
    let shown = threads.map(|one| {
        format!(
            "{}:\n  thread_id={}\n  poll-max-ns={}\n  poll-grow={}\n  poll-shrink={}\n  \
             aio-max-batch={}",
            one.id,
            one.thread_id,
            one.poll_max_ns,
            one.poll_grow,
            one.poll_shrink,
            one.aio_max_batch
        )
    });
    Ok(lines(shown, ""))
}

fn jobs(vm: &mut Vm, cx: &mut dyn Context) -> Result<String, QmpError> {
    let jobs = vm.query_jobs(cx)?.into_iter();
    let shown = jobs.map(|job| {
        format!(
            "{}: type {}, status {}, {} of {}",
            job.id,
            job.r#type.as_str(),
            job.status.as_str(),
            job.current_progress,
            job.total_progress
        )
    });
    Ok(lines(shown, "No active jobs"))
}

fn memdev(vm: &mut Vm, cx: &mut dyn Context) -> Result<String, QmpError> {
    let backends = vm.query_memdev(cx)?.into_iter();
    let shown = backends.map(|one| {
        format!(
            "memory backend: {}\n  size:  {}\n  merge: {}\n  dump: {}\n  prealloc: {}\n  share: {}",
            one.id.unwrap_or_default(),
            one.size,
            one.merge,
            one.dump,
            one.prealloc,
            one.share
        )
    });
    Ok(lines(shown, ""))
}

fn memory(vm: &mut Vm, cx: &mut dyn Context) -> Result<String, QmpError> {
    let bytes = vm.query_memory_size_summary(cx)?.base_memory;
    Ok(format!("base memory: {bytes}"))
}

fn capabilities(vm: &mut Vm, cx: &mut dyn Context) -> Result<String, QmpError> {
    let capabilities = vm.query_migrate_capabilities(cx)?.into_iter();
    let shown =
        capabilities.map(|one| format!("{}: {}", one.capability.as_str(), on_off(one.state)));
    Ok(lines(shown, ""))
}

fn block(vm: &mut Vm, cx: &mut dyn Context) -> Result<String, QmpError> {
    let disks = vm.query_block(cx)?;
    let nodes = vm.query_named_block_nodes(cx, QueryNamedBlockNodes::default())?;
    let shown = nodes.into_iter().map(|node| {
        let name = node.node_name.unwrap_or_default();
        let mut text = format!("{name}: {} ({}", node.file, node.drv);
        if node.ro {
            text.push_str(", read-only");
        }
        text.push(')');
        let is_its = |disk: &&qapi_schema::block_core::BlockInfo| {
            let inserted = disk.inserted.as_ref();
            inserted.and_then(|inserted| inserted.node_name.as_ref()) == Some(&name)
        };
        for disk in disks.iter().filter(is_its) {
            let device = disk.qdev.as_deref().unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = write!(text, "\n    Attached to:      {device}");
        }
        let mode = if node.cache.direct {
            "writeback, direct"
        } else {
            "writeback"
        };
        let _ = write!(text, "\n    Cache mode:       {mode}");
        text
    });
    Ok(lines(shown, ""))
}

fn blockstats(vm: &mut Vm, cx: &mut dyn Context) -> Result<String, QmpError> {
    let disks = vm.query_blockstats(cx, QueryBlockstats::default())?;
    let shown = disks.into_iter().map(|disk| {
        let stats = disk.stats;
        format!(
            "{}: rd_bytes={} wr_bytes={} rd_operations={} wr_operations={} flush_operations={} \
             wr_total_time_ns={} rd_total_time_ns={} flush_total_time_ns={} rd_merged={} \
             wr_merged={} idle_time_ns={}",
            disk.device.unwrap_or_default(),
            stats.rd_bytes,
            stats.wr_bytes,
            stats.rd_operations,
            stats.wr_operations,
            stats.flush_operations,
            stats.wr_total_time_ns,
            stats.rd_total_time_ns,
            stats.flush_total_time_ns,
            stats.rd_merged,
            stats.wr_merged,
            stats.idle_time_ns.unwrap_or(0)
        )
    });
    Ok(lines(shown, ""))
}

/// As in QEMU, a line for each network card: none can be made.
/// Each card with its netdev below it, then the netdevs without a card.
fn network(vm: &mut Vm, _cx: &mut dyn Context) -> Result<String, QmpError> {
    let objects = vm.objects.tree();
    let netdev = |netdev: &Netdev| {
        let (id, kind, more) = (netdev.id(), netdev.kind(), netdev.describe());
        format!("{id}: index=0,type={kind},{more}") + &filters(netdev, &objects)
    };
    let cards = vm.devices.cards().map(|(name, device, card)| {
        let mac = mac_text(card.mac());
        let mut line = format!(
            "{name}: index=0,type=nic,model={},macaddr={mac}",
            device.driver
        );
        if let Some(below) = card.netdev().and_then(|id| vm.netdevs.find(id)) {
            let _ = write!(line, "\n \\ {}", netdev(below));
        }
        line
    });
    let alone = vm.netdevs.iter().filter(|netdev| !netdev.is_taken());
    Ok(lines(cards.chain(alone.map(|one| netdev(one))), ""))
}

/// The filters of a netdev, a line for each.
fn filters(netdev: &Netdev, objects: &Object) -> String {
    let ids = netdev.filters();
    let mut text = String::from(if ids.is_empty() { "" } else { "\nfilters:" });
    for id in ids {
        let Some(filter) = objects.at(&format!("/{id}")) else {
            continue;
        };
        let _ = write!(text, "\n  - {id}: type={}", filter.type_name);
        for property in &filter.properties {
            let value = property.value.as_str().map(str::to_owned);
            let value = value.unwrap_or_else(|| property.value.to_string());
            let _ = write!(text, ",{}={value}", property.name);
        }
    }
    text
}

fn pci(vm: &mut Vm, cx: &mut dyn Context) -> Result<String, QmpError> {
    let buses = vm.query_pci(cx)?;
    let mut text = String::new();
    for device in buses.iter().flat_map(|bus| &bus.devices) {
        function(&mut text, device);
    }
    Ok(text)
}

fn function(text: &mut String, device: &PciDeviceInfo) {
    let about = device.class_info.desc.clone();
    let about = about.unwrap_or_else(|| format!("Class {:04x}", device.class_info.class));
    let _ = writeln!(
        text,
        "  Bus {:2}, device {:3}, function {}:\n    {about}: PCI device {:04x}:{:04x}",
        device.bus, device.slot, device.function, device.id.vendor, device.id.device
    );
    for region in &device.regions {
        let _ = writeln!(
            text,
            "      BAR{}: {} at {:#x}, {} bytes",
            region.bar, region.r#type, region.address, region.size
        );
    }
    let _ = writeln!(text, "      id \"{}\"", device.qdev_id);
    let bridge = device.pci_bridge.as_ref();
    let behind = bridge.and_then(|bridge| bridge.devices.as_ref());
    for inner in behind.into_iter().flatten() {
        function(text, inner);
    }
}

fn qtree(vm: &mut Vm, _cx: &mut dyn Context) -> Result<String, QmpError> {
    let mut text = String::new();
    for (name, device) in vm.devices.iter() {
        let id = device.id.as_deref().unwrap_or_default();
        let place = path(name, device.id.is_some());
        let _ = writeln!(text, "dev: {}, id \"{id}\", path {place}", device.driver);
        for property in &device.shown.properties {
            let _ = writeln!(text, "  {} = {}", property.name, property.value);
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_sorted_and_stand_in_the_help() {
        assert!(SUBJECTS.is_sorted_by_key(|(name, ..)| *name));
        for (name, ..) in SUBJECTS {
            assert!(help().contains(&format!("info {name} --")), "{name}");
        }
    }
}
