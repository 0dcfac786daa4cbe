//! The end of reading: options are held against each other, and every default is applied.

use qapi_schema::char::ChardevBackendVariant;
use qapi_schema::cli::MachineOptions;
use qapi_schema::devices::{DeviceOptions, DeviceOptionsVariant};
use qapi_schema::qom::{ObjectOptions, ObjectOptionsVariant};

use super::config::{Config, KernelSpec, QtestSpec, SerialSpec};
use super::draft::Draft;
use super::error::{CliError, Problem};
use super::{chardev, clock, device, drive, machine, process, processor};
use crate::kvm::cpu_models::{CpuSpec, HOST};

/// The whole of what was asked for.
pub(super) fn resolve(mut draft: Draft) -> Result<Config, CliError> {
    let options: MachineOptions = draft.merged("machine")?;
    let mut machine = draft.resolved("machine", |options| machine::resolve(&options))?;
    let accels = machine::resolve_accels(&draft, options.accel.as_deref())?;
    let smp = draft.resolved("smp", |smp| processor::resolve_smp(&smp, machine.model))?;
    let ram = draft.resolved("machine", |options| backend_size(&draft.objects, &options))?;
    let memory = draft.resolved("m", |memory| {
        processor::resolve_memory(&memory, ram, machine.model)
    })?;
    let kernel = kernel(&draft, options)?;
    let name = draft.resolved("name", process::resolve_name)?;
    let rtc = draft.resolved("rtc", |options| clock::resolve(&options))?;
    let boot = draft.resolved("boot", process::resolve_boot)?;
    let overcommit = draft.resolved("overcommit", |options| {
        process::resolve_overcommit(&options)
    })?;
    let run_with = draft.resolved("run-with", process::resolve_run_with)?;
    let messages = draft.resolved("msg", |options| Ok(process::resolve_messages(&options)))?;
    let actions = draft.merged("action")?;
    let compat = draft.merged("compat")?;
    if machine.model.has_board() {
        add_default_serial(&mut draft);
    }
    check_chardevs(&draft)?;
    if let Some((typed, _)) = draft.numa.first().filter(|_| !machine.model.has_board()) {
        return Err(Problem::new("NUMA is not supported by this machine-type").of(typed));
    }
    if let Some(error) = draft.foreign_cpu.take_if(|_| machine.model.has_board()) {
        return Err(error);
    }
    let (drives, disks) = drive::resolve(std::mem::take(&mut draft.drives), machine.model)?;
    draft.devices.extend(disks);
    machine::add_flash(&mut machine, &drives).map_err(|problem| {
        let drive = drives.iter().any(|drive| drive.flash.is_some());
        problem.of(&draft.typed(if drive { "drive" } else { "machine" }))
    })?;
    if machine.model.has_board() {
        // As soldered on: before all that -device asks for.
        draft.devices.splice(0..0, std::mem::take(&mut draft.nics));
    }
    let devices = devices(&mut draft)?;
    Ok(Config {
        machine,
        accels,
        cpu: draft.cpu.unwrap_or_else(|| CpuSpec::plain(HOST)),
        smp,
        numa: untyped(draft.numa),
        memory,
        kernel,
        name,
        uuid: draft.uuid,
        rtc,
        boot,
        no_graphic: draft.flags.nographic,
        fw_cfg: draft.fw_cfg,
        add_fds: draft.add_fds,
        open_hook: draft.open_hook,
        objects: draft.objects,
        chardevs: untyped(draft.chardevs),
        blockdevs: draft.blockdevs,
        netdevs: draft.netdevs,
        tpmdevs: draft.tpmdevs,
        drives,
        devices,
        globals: draft.globals,
        no_reboot: draft.no_reboot,
        serials: untyped(draft.serials),
        monitors: untyped(draft.monitors),
        qtest: draft.qtest.map(|(_, chardev)| QtestSpec {
            chardev,
            log: draft.qtest_log,
        }),
        incoming: draft.incoming,
        paused: draft.flags.paused,
        preconfig: draft.flags.preconfig,
        actions,
        compat,
        overcommit,
        messages,
        open_policy: draft.open_policy,
        sandbox: draft.sandbox,
        run_with,
        pidfile: draft.pidfile,
        daemonize: draft.flags.daemonize,
    })
}

/// A list without how its members were typed.
fn untyped<T>(list: Vec<(String, T)>) -> Vec<T> {
    list.into_iter().map(|(_, member)| member).collect()
}

/// The devices, with the globals of their models.
fn devices(draft: &mut Draft) -> Result<Vec<DeviceOptions>, CliError> {
    let devices = std::mem::take(&mut draft.devices);
    let with_globals = devices.into_iter().map(|(typed, options)| {
        device::apply_globals(&draft.globals, options)
            .map_err(|error| Problem::from(error).of(&typed))
    });
    with_globals.collect()
}

/// The size of the object that is to be the RAM.
fn backend_size(
    objects: &[ObjectOptions],
    machine: &MachineOptions,
) -> Result<Option<u64>, Problem> {
    let Some(id) = machine.memory_backend.as_deref() else {
        return Ok(None);
    };
    let object = objects.iter().find(|object| object.id == id);
    match object.map(|object| &object.qom_type) {
        Some(ObjectOptionsVariant::MemoryBackendRam(ram)) => Ok(Some(ram.size)),
        Some(ObjectOptionsVariant::MemoryBackendMemfd(memfd)) => Ok(Some(memfd.size)),
        Some(ObjectOptionsVariant::MemoryBackendShm(shm)) => Ok(Some(shm.size)),
        Some(ObjectOptionsVariant::MemoryBackendFile(file)) => Ok(Some(file.size)),
        Some(_) => Err(Problem::new(format!(
            "memory-backend={id}: object '{id}' is no memory backend"
        ))),
        None => {
            let ids = objects.iter().map(|object| object.id.as_str());
            Err(Problem::with_nearest(
                format!("Memory backend '{id}' not found"),
                id,
                ids,
            ))
        }
    }
}

fn kernel(draft: &Draft, options: MachineOptions) -> Result<Option<KernelSpec>, CliError> {
    match options.kernel {
        Some(kernel) => Ok(Some(KernelSpec {
            kernel,
            initrd: options.initrd,
            append: options.append.unwrap_or_default(),
        })),
        None if options.append.is_some() => {
            Err(Problem::new("only allowed with -kernel").of(&draft.typed("append")))
        }
        None if options.initrd.is_some() => {
            Err(Problem::new("only allowed with -kernel").of(&draft.typed("initrd")))
        }
        None => Ok(None),
    }
}

/// The port that a PC has when nobody says anything about ports.
fn add_default_serial(draft: &mut Draft) {
    let is_port =
        |options: &DeviceOptionsVariant| matches!(options, DeviceOptionsVariant::IsaSerial(_));
    let spoken_of = !draft.serials.is_empty()
        || draft
            .devices
            .iter()
            .any(|(_, device)| is_port(&device.driver));
    let taken = draft
        .chardevs
        .iter()
        .any(|(_, chardev)| chardev.id == "serial0");
    if draft.flags.nodefaults || spoken_of || taken {
        return;
    }
    let (typed, chardev) = if draft.flags.nographic {
        ("-nographic", chardev::stdio("serial0", false))
    } else {
        ("-serial", chardev::null("serial0"))
    };
    draft.chardevs.push((typed.to_owned(), chardev));
    let serial = SerialSpec::Chardev("serial0".to_owned());
    draft.serials.push((typed.to_owned(), serial));
}

/// Every chardev that a monitor, serial port or tester names is there, and serves only one of them.
fn check_chardevs(draft: &Draft) -> Result<(), CliError> {
    let monitors = draft
        .monitors
        .iter()
        .map(|(typed, monitor)| (typed, &monitor.chardev));
    let serials = draft
        .serials
        .iter()
        .filter_map(|(typed, serial)| match serial {
            SerialSpec::Chardev(id) => Some((typed, id)),
            SerialSpec::Absent => None,
        });
    let mut used: Vec<&str> = Vec::new();
    let qtest = draft.qtest.iter().map(|(typed, id)| (typed, id));
    for (typed, id) in monitors.chain(serials).chain(qtest) {
        if !draft.chardevs.iter().any(|(_, chardev)| chardev.id == *id) {
            let ids = draft
                .chardevs
                .iter()
                .map(|(_, chardev)| chardev.id.as_str());
            let what = format!("chardev \"{id}\" not found");
            return Err(Problem::with_nearest(what, id, ids).of(typed));
        }
        if used.contains(&id.as_str()) {
            return Err(Problem::new(format!("chardev '{id}' is already in use")).of(typed));
        }
        used.push(id);
    }
    check_stdio(draft)
}

/// Standard input and output serve only one chardev, and none in the background.
fn check_stdio(draft: &Draft) -> Result<(), CliError> {
    let is_stdio = |kind: &ChardevBackendVariant| matches!(kind, ChardevBackendVariant::Stdio(_));
    let mut users = draft
        .chardevs
        .iter()
        .filter(|(_, chardev)| is_stdio(&chardev.backend.r#type));
    match (users.next(), users.next()) {
        (_, Some((typed, _))) => {
            Err(Problem::new("cannot use stdio by multiple character devices").of(typed))
        }
        (Some((typed, _)), None) if draft.flags.daemonize => {
            Err(Problem::new("cannot use stdio with -daemonize").of(typed))
        }
        _ => Ok(()),
    }
}
