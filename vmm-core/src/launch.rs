//! From a command line to a VM that is ready to run.
//!
//! ```text
//!   Config ─► fd names and sets ─► open hook ─► pid file ─► chardevs ─► objects ─► nodes ─► machine ─► devices ─► monitors ─► Vm
//! ```
//!
//! The order is QEMU's, because a later thing names earlier ones. Everything goes through the
//! same functions as the commands of a client; the first failure ends the launch with one line.

mod activation;
mod firmware;
mod fw_cfg;
mod machine;
mod monitors;
mod open_hook;
mod qtest;

use std::fs::File;
use std::io::Read;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use fdset::{
    Access, Account, Door, FdRegistry, FdsetId, Handover, Inherited, OpenFile, Origin, Policy,
    Request, Role, Scope,
};
use monitor::{Phase, Server, ServerSpec, Version};
use qapi_schema::Event;
use qapi_schema::qom::{ObjectOptions, ObjectOptionsVariant};
use qapi_schema::run_state::{Shutdown, ShutdownCause};

pub use self::activation::Activation;
use self::monitors::{Kept, Waiting};
use crate::cli::Config;
use crate::cli::config::{Incoming, UserSpec};
use crate::event_loop::{EventLoop, Mailbox};
use crate::letters::Letter;
use crate::messages::report;
use crate::plug;
use crate::process::{self, EndSignals};
use crate::resolve;
use crate::resolve::filter::is_filter;
use crate::run_state::RunState;
use crate::sandbox;
use crate::uuid;
use crate::vm::{EndPolicy, Identity, Rest, Vm, VmCell, VmSpec};

/// The longest file for `-readconfig`, in bytes.
const LONGEST_CONFIG: u64 = 1 << 20;

/// The QEMU release whose protocol and names we follow.
const QEMU_VERSION: (i64, i64, i64) = (10, 0, 0);

/// A VM that is ready to run, and what must live as long.
pub struct Launched {
    vm: Vm,
    cell: VmCell,
    /// The null device, for the standard streams of a process in the background.
    pub null: Option<OpenFile>,
    event_loop: EventLoop,
    /// Removed at the end.
    _pid_file: Option<fdset::PidFile>,
    /// A terminal's mode comes back at the end.
    _kept: Vec<Kept>,
}

impl Launched {
    /// Runs until the VM has ended.
    ///
    /// # Errors
    /// The main loop cannot wait any more.
    pub fn run(mut self) -> std::io::Result<ExitCode> {
        self.cell.run(self.vm, &mut self.event_loop)
    }
}

/// The text of the file that `-readconfig` names; while the command line is read, any path can be
/// opened.
///
/// # Errors
/// It cannot be opened, is longer than a configuration can be, or is no text.
pub fn read_config(name: &str) -> Result<String> {
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let request = Request::new(name, Access::ReadOnly, Role::CommandLine, "-readconfig");
    let (fd, _) = fdset::open(&door, &request)?.into_parts();
    let mut text = String::new();
    let read = File::from(fd)
        .take(LONGEST_CONFIG)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read '{name}'"))?;
    if u64::try_from(read).unwrap_or(u64::MAX) == LONGEST_CONFIG {
        anyhow::bail!("'{name}' is longer than a configuration can be: {LONGEST_CONFIG} bytes");
    }
    Ok(text)
}

/// Builds everything that `config` asks for, in a process that began with `inherited`.
///
/// # Errors
/// The first thing that cannot be had, with the reason.
pub fn launch(config: Config, activation: Activation, inherited: Inherited) -> Result<Launched> {
    if let Some(name) = &config.name.process {
        process::rename(name).context("-name process")?;
    }
    sandbox::prepare();
    qapi_schema::compat::set(&config.compat);
    let signals = EndSignals::take().context("the signals")?;
    let (mut event_loop, mailbox) = EventLoop::new(signals).context("the main loop")?;
    let registry = Arc::new(FdRegistry::with_inherited(inherited));
    let asker = Arc::new(mailbox.clone());
    let door = Door::new(Arc::clone(&registry), Scope::Process).with_asker(asker);
    // These two are opened by path, and so before the policy holds.
    let null = config
        .daemonize
        .then(|| fdset::null(&door, Access::ReadWrite, Role::Log, "-daemonize"))
        .transpose()?;
    let user = config.run_with.user.as_ref().map(account).transpose()?;
    if config.open_policy > Policy::Open {
        registry.raise_policy(Policy::Passed);
    }
    activation.take(&door)?;
    add_fds(&door, &config)?;
    let cell = VmCell::new(mailbox.clone());
    let phase = if config.preconfig {
        Phase::Preconfig
    } else {
        Phase::Ready
    };
    let server = server(registry, &mailbox, cell.clone(), phase);
    let mut end_policy = EndPolicy::DEFAULT;
    end_policy.change(&config.actions);
    let mut vm = Vm::new(VmSpec {
        identity: identity(&config),
        end_policy,
        run_state: first_state(&config)?,
        door: door.clone(),
        server,
        mailbox,
    });
    let answers = open_hook::ask(&mut vm, &mut event_loop, &door, &config)?;
    let door = door.with_answers(Arc::clone(&answers));
    let pid_file = config
        .pidfile
        .as_deref()
        .map(|name| fdset::pid_file(&door, name, "-pidfile"))
        .transpose()?;
    add_objects(&mut vm, &door, &config, is_tls)?;
    let (kept, mut monitors) = add_chardevs(&mut vm, &door, &config)?;
    qtest::serve(&mut vm, &door, &config)?;
    add_backends(&mut vm, &door, &config)?;
    vm.numa = machine::numa(&config)?;
    let waits = config.preconfig;
    if waits {
        monitors::admit(&vm, std::mem::take(&mut monitors))?;
    }
    let rest: Rest = Box::new(move |vm| {
        add_machine(vm, &door, &config)?;
        monitors::admit(vm, monitors)?;
        answers.close();
        finish(vm, &config, user.as_ref())?;
        qtest::admit(vm);
        Ok(())
    });
    if waits {
        // A tester greets before a client can ask for the machine.
        qtest::admit(&vm);
        vm.rest = Some(rest);
    } else {
        rest(&mut vm)?;
    }
    Ok(Launched {
        vm,
        cell,
        null,
        event_loop,
        _pid_file: pid_file,
        _kept: kept,
    })
}

/// Who to become, from the host's books where it is told by name.
fn account(user: &UserSpec) -> Result<Account> {
    match user {
        UserSpec::Ids { uid, gid } => Ok(Account {
            uid: *uid,
            gid: *gid,
            groups: vec![*gid],
        }),
        UserSpec::Name(name) => fdset::account(name)
            .with_context(|| format!("-run-with user={name}: the accounts of this host"))?
            .with_context(|| {
                format!("-run-with: user '{name}' doesn't exist; give a user's name or UID:GID")
            }),
    }
}

/// The root folder first: it takes a right that the user may not have.
fn give_up_rights(config: &Config, user: Option<&Account>) -> Result<()> {
    if let Some(folder) = &config.run_with.chroot {
        process::change_root(folder).with_context(|| format!("-run-with chroot={folder}"))?;
    }
    if let Some(Account { uid, gid, groups }) = user {
        process::become_user(*uid, *gid, groups)
            .with_context(|| format!("-run-with: becoming user {uid} of group {gid}"))?;
    }
    Ok(())
}

fn first_state(config: &Config) -> Result<RunState> {
    match &config.incoming {
        None => Ok(RunState::Prelaunch),
        Some(Incoming::Defer) => Ok(RunState::Inmigrate),
        Some(Incoming::Uri(uri)) => anyhow::bail!(
            "-incoming {uri}: a machine's state is taken over with '-incoming defer' only"
        ),
    }
}

/// The end of a launch: the machine is there, and may begin.
fn finish(vm: &mut Vm, config: &Config, user: Option<&Account>) -> Result<()> {
    vm.door.registry().adopt_unclaimed();
    vm.power_on()?;
    give_up_rights(config, user)?;
    if let Some(spec) = &config.sandbox {
        sandbox::enter(spec)?;
    }
    if config.open_policy == Policy::Sealed {
        vm.seal()?;
    }
    vm.server.set_phase(Phase::Ready);
    if config.paused || config.incoming.is_some() {
        return Ok(());
    }
    if config.preconfig {
        // A client asked for it.
        vm.start()?;
    } else {
        vm.begin()?;
    }
    Ok(())
}

/// Whether it is what monitors name, and so is made before them.
fn is_tls(options: &ObjectOptions) -> bool {
    matches!(options.qom_type, ObjectOptionsVariant::TlsCredsX509(_))
}

/// Those objects that are `wanted` now.
fn add_objects(
    vm: &mut Vm,
    door: &Door,
    config: &Config,
    wanted: impl Fn(&ObjectOptions) -> bool,
) -> Result<()> {
    let objects = config.objects.iter().filter(|options| wanted(options));
    for options in objects.cloned() {
        let id = options.id.clone();
        vm.add_object(door, options)
            .with_context(|| format!("-object {id}"))?;
    }
    Ok(())
}

/// What devices and the machine name by id.
fn add_backends(vm: &mut Vm, door: &Door, config: &Config) -> Result<()> {
    add_objects(vm, door, config, |options| {
        !is_tls(options) && !is_filter(options)
    })?;
    for options in config.blockdevs.clone() {
        let name = options.node_name.clone().unwrap_or_default();
        vm.add_node(door, options)
            .with_context(|| format!("-blockdev {name}"))?;
    }
    for netdev in config.netdevs.clone() {
        let what = format!("-netdev {}", netdev.id);
        vm.add_netdev(door, netdev).context(what)?;
    }
    add_objects(vm, door, config, is_filter)?;
    for tpmdev in config.tpmdevs.clone() {
        let what = format!("-tpmdev {}", tpmdev.id);
        vm.add_tpm(tpmdev).context(what)?;
    }
    for drive in config.drives.clone() {
        let what = format!("-drive {}", drive.id);
        vm.add_drive(door, drive).context(what)?;
    }
    Ok(())
}

/// The machine and its devices.
fn add_machine(vm: &mut Vm, door: &Door, config: &Config) -> Result<()> {
    machine::build(vm, door, config)?;
    vm.globals = config.globals.clone();
    vm.boot_strict = config.boot.strict;
    for options in config.devices.clone() {
        let what = format!(
            "-device {}{}",
            options.driver.tag().as_str(),
            options
                .id
                .as_deref()
                .map(|id| format!(",id={id}"))
                .unwrap_or_default()
        );
        plug::plug(vm, door, options).context(what)?;
    }
    Ok(())
}

fn identity(config: &Config) -> Identity {
    let uuid = config.uuid.unwrap_or_default();
    Identity {
        name: config.name.guest.clone(),
        uuid: uuid::text(uuid),
    }
}

fn server(registry: Arc<FdRegistry>, mailbox: &Mailbox, cell: VmCell, phase: Phase) -> Server {
    let (wake, quit) = (mailbox.clone(), mailbox.clone());
    let told = AtomicBool::new(false);
    let (major, minor, micro) = QEMU_VERSION;
    Server::new(ServerSpec {
        registry,
        version: Version {
            major,
            minor,
            micro,
            package: concat!("sesame-", env!("CARGO_PKG_VERSION")).to_owned(),
        },
        phase,
        wake_main: Box::new(move || wake.wake()),
        serve_now: Box::new(move |call| cell.serve_now(call)),
        out_of_band: Box::new(|call| {
            let name = call.command.name;
            call.finish(Err(qapi_schema::QmpError::generic(format!(
                "The command {name} does not support OOB"
            ))));
        }),
        quit: Box::new(move |events| {
            if !told.swap(true, Ordering::Relaxed) {
                events.emit(Event::Shutdown(Shutdown {
                    guest: false,
                    reason: ShutdownCause::HostQmpQuit,
                }));
            }
            quit.send(Letter::Quit);
        }),
    })
}

fn add_fds(door: &Door, config: &Config) -> Result<()> {
    for spec in &config.add_fds {
        let what = || format!("-add-fd fd={}", spec.fd);
        let fd = fdset::inherited(door, spec.fd, Role::CommandLine, "-add-fd")?;
        let set = FdsetId::new(i64::from(spec.set)).with_context(what)?;
        let passed = Handover::new(fd, Origin::CommandLine)
            .announced_as(spec.kind)
            .with_context(what)?;
        door.registry().add(passed, Some(set), spec.opaque.clone());
        if let Some(path) = &spec.alias {
            door.registry().add_alias(path, set).with_context(what)?;
        }
    }
    Ok(())
}

/// Opens the chardevs: a monitor's is handed to the server, every other one waits for its device.
fn add_chardevs(vm: &mut Vm, door: &Door, config: &Config) -> Result<(Vec<Kept>, Vec<Waiting>)> {
    let (mut kept, mut waiting) = (Vec::new(), Vec::new());
    for chardev in &config.chardevs {
        let id = &chardev.id;
        let mut backend = chardev.backend.clone();
        let is_monitor = config.monitors.iter().any(|one| one.chardev == *id);
        let tls = is_monitor.then(|| resolve::chardev::take_tls(&mut backend));
        let spec = resolve::chardev::chardev(backend).with_context(|| format!("-chardev {id}"))?;
        let mut monitors = config.monitors.iter().enumerate();
        let monitor = monitors.find(|(_, monitor)| monitor.chardev == *id);
        let Some((number, monitor)) = monitor else {
            let what = || format!("-chardev {id}");
            let reply = vm.add_chardev(door, id, &spec).with_context(what)?;
            if let Some(pty) = reply.pty {
                report(format_args!("char device redirected to {pty} (label {id})"));
            }
            continue;
        };
        let tls = tls.flatten();
        let place = monitors::Place { id, number, tls };
        let (its, opened) = monitors::open(vm, door, &place, &spec, monitor)?;
        kept.push(its);
        waiting.push(opened);
    }
    for monitor in &config.monitors {
        if !config
            .chardevs
            .iter()
            .any(|chardev| chardev.id == monitor.chardev)
        {
            anyhow::bail!("-mon: there is no chardev '{}'", monitor.chardev);
        }
    }
    Ok((kept, waiting))
}
