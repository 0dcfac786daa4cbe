//! The machine of a launch: its KVM, its memory, its kernel, its serial ports.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use fdset::{Access, Door, OpenFile, Request, Role};
use qapi_schema::QmpError;
use qapi_schema::cli::AccelType;

use super::firmware;
use crate::cli::Config;
use crate::cli::config::{RtcBase, SerialSpec as SerialOption};
use crate::kvm::cpu_models::Lacking;
use crate::letters::Letter;
use crate::machine::board::SerialSpec;
use crate::machine::numa::NumaSpec;
use crate::machine::q35::MemoryRoom;
use crate::machine::{BootSource, MachineHost, MachineKind, Q35, Q35Spec};
use crate::memory::{RAM_ID, RamBackend, RamBackendSpec};
use crate::messages;
use crate::process;
use crate::resolve::numa::{NumaDraft, NumaFacts};
use crate::vm::{Vm, VmMachine};

/// What the memory of a machine without a board is called.
const BOARDLESS_RAM_ID: &str = "ram";

/// Builds the machine that `config` asks for, without what is plugged into it.
pub(super) fn build(vm: &mut Vm, door: &Door, config: &Config) -> Result<()> {
    match config.machine.model.kind {
        MachineKind::None if config.kernel.is_some() => {
            bail!("-kernel: machine 'none' has no CPU to run it; use -machine q35")
        }
        MachineKind::None if has_firmware(config) => {
            bail!("firmware: machine 'none' has no CPU to run it; use -machine q35")
        }
        MachineKind::None if !config.fw_cfg.is_empty() => {
            bail!("-fw_cfg: machine 'none' has no fw_cfg device; use -machine q35")
        }
        MachineKind::None => {
            // A machine without CPUs needs no KVM, but tells whether there is one.
            if let Ok((accel, kvm)) = open_kvm(door, config) {
                vm.kvm_enabled = accel == AccelType::Kvm;
                vm.spare_kvm = Some(kvm);
            }
            vm.spare_memory = spare_memory(vm, door, config)?;
        }
        MachineKind::Q35 => {
            let (accel, kvm) = open_kvm(door, config)?;
            let q35 = q35(vm, door, config, accel, kvm)?;
            vm.kvm_enabled = accel == AccelType::Kvm;
            vm.machine = VmMachine::Q35(Box::new(q35));
        }
    }
    Ok(())
}

fn has_firmware(config: &Config) -> bool {
    config.machine.firmware.is_some() || config.machine.pflash.iter().any(Option::is_some)
}

/// The machine, run by `accel`.
fn q35(vm: &mut Vm, door: &Door, config: &Config, accel: AccelType, kvm: OpenFile) -> Result<Q35> {
    let size_of = |id: &str| {
        let mut memories = vm.objects.memories();
        memories
            .find(|memory| memory.id == id)
            .map(|memory| memory.size)
    };
    let numa = vm
        .numa
        .finish(config.memory.size, size_of)
        .context("-numa")?;
    let room = memory_room(config);
    let places = config.smp.topology.total().unwrap_or(config.smp.cpus);
    let numa =
        numa.or_else(|| (room.capacity > 0).then(|| NumaSpec::single(config.memory.size, places)));
    let spec = Q35Spec {
        product: config.machine.model.name.to_owned(),
        uuid: config.uuid.unwrap_or_default(),
        topology: config.smp.topology,
        cpu: config.cpu.clone(),
        vcpus: config.smp.cpus,
        numa,
        room,
        rtc_offset: rtc_offset(config),
        rtc_drive: config.rtc.drive,
        serials: serials(vm, config)?,
        boot: boot(door, config)?,
        firmware: firmware::firmware(vm, door, config)?,
        no_reboot: config.no_reboot,
        held: accel == AccelType::Qtest,
    };
    let vcpu_mail = vm.mailbox.clone();
    let host = MachineHost {
        kvm,
        clock: vm.clock.clone(),
        reactor: vm.reactor.clone(),
        memory: if vm.numa.is_empty() {
            vec![memory(vm, door, config, RAM_ID)?]
        } else {
            node_memory(vm, config)?
        },
        notices: vm.mailbox.notices(),
        vcpu_events: Arc::new(move |event| vcpu_mail.send(Letter::Vcpu(event))),
    };
    let q35 = Q35::new(spec, host).context("-machine q35")?;
    if config.cpu.lacking == Lacking::Told {
        for feature in q35.cpu_model().lacks() {
            messages::report(format_args!(
                "warning: host doesn't support requested feature: {feature}"
            ));
        }
    }
    if config.overcommit.mem_lock {
        process::lock_memory().context("-overcommit mem-lock=on")?;
    }
    Ok(q35)
}

/// What `-m` says of memory devices.
fn memory_room(config: &Config) -> MemoryRoom {
    MemoryRoom {
        capacity: config.memory.maxmem.saturating_sub(config.memory.size),
        slots: config.memory.slots,
    }
}

/// What the command line says of NUMA.
pub(super) fn numa(config: &Config) -> Result<NumaDraft> {
    let mut draft = NumaDraft::new(NumaFacts {
        topology: config.smp.topology,
        hmat: config.machine.hmat,
    });
    for options in config.numa.iter().cloned() {
        draft.take(options).context("-numa")?;
    }
    Ok(draft)
}

/// The RAM of the NUMA nodes, in their order.
fn node_memory(vm: &mut Vm, config: &Config) -> Result<Vec<RamBackend>> {
    if config.machine.memory_backend.is_some() {
        bail!("'-machine memory-backend' and '-numa memdev' properties are mutually exclusive");
    }
    let ids = vm.numa.memory().into_iter();
    let taken = ids.map(|id| vm.objects.take_memory(&id, "machine"));
    taken.collect::<Result<_, _>>().context("-numa memdev")
}

/// The first of the accelerators whose KVM can be had, and that.
fn open_kvm(door: &Door, config: &Config) -> Result<(AccelType, OpenFile)> {
    let mut last = None;
    for accel in &config.accels {
        let request = Request::new(&accel.device, Access::ReadWrite, Role::Kvm, "-accel kvm");
        match fdset::open(door, &request) {
            Ok(file) => return Ok((accel.accel, file)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| anyhow::anyhow!("-accel: none is given"), Into::into))
}

/// The memory that `-m` asks for, or `memory-backend=` names, where there is no board to use it.
fn spare_memory(vm: &mut Vm, door: &Door, config: &Config) -> Result<Option<RamBackend>> {
    if config.memory.size == 0 {
        return Ok(None);
    }
    memory(vm, door, config, BOARDLESS_RAM_ID).map(Some)
}

/// The RAM that `-m` asks for, called `own_id` unless it is an object.
fn memory(vm: &mut Vm, door: &Door, config: &Config, own_id: &str) -> Result<RamBackend> {
    let size = config.memory.size;
    let Some(id) = &config.machine.memory_backend else {
        let spec = RamBackendSpec {
            merge: config.machine.mem_merge,
            dump: config.machine.dump_guest_core,
            ..RamBackendSpec::anonymous(own_id, size)
        };
        return RamBackend::open(door, spec).context("-m");
    };
    let backend = vm
        .objects
        .take_memory(id, "machine")
        .context("-machine memory-backend")?;
    let found = backend.spec().size;
    if found != size {
        return Err(QmpError::generic(format!(
            "-m says {size} bytes and memory backend '{id}' has {found}: give both the same size"
        ))
        .into());
    }
    Ok(backend)
}

fn boot(door: &Door, config: &Config) -> Result<Option<BootSource>> {
    let Some(spec) = &config.kernel else {
        return Ok(None);
    };
    let request = Request::new(&spec.kernel, Access::ReadOnly, Role::Kernel, "-kernel");
    let kernel = fdset::open(door, &request)?;
    let initrd = spec
        .initrd
        .as_deref()
        .map(|name| {
            let request = Request::new(name, Access::ReadOnly, Role::Initrd, "-initrd");
            fdset::open(door, &request)
        })
        .transpose()?;
    let source = BootSource::new(kernel, initrd, &spec.append).context("-kernel")?;
    Ok(Some(source))
}

fn serials(vm: &Vm, config: &Config) -> Result<Vec<SerialSpec>> {
    let mut serials = Vec::new();
    for (index, serial) in config.serials.iter().enumerate() {
        let SerialOption::Chardev(id) = serial else {
            continue;
        };
        let chardev = vm.chardevs.find(id).context("-serial")?;
        serials.push(SerialSpec {
            index,
            chardev: Some(chardev),
        });
    }
    Ok(serials)
}

fn rtc_offset(config: &Config) -> i64 {
    match config.rtc.base {
        RtcBase::Utc => 0,
        RtcBase::Localtime => process::local_time_offset(),
        RtcBase::Start(seconds) => seconds.saturating_sub(process::unix_time()),
    }
}
