//! What will be opened, told before anything is.
//!
//! ```text
//!   command, arguments ─► qapi type ─► resolve::* ─► *Spec ─► node, object, chardev ─► [Planned]
//!   command line ───────► Config ──────────────────────────────► config ────────────►    │
//!                                                query-open-plan shows it, the open hook is asked
//! ```
//!
//! Pure: nothing is opened, no VM is looked at. It tells names and access modes as the rooms that
//! open have them, so a change there is a change here; a test holds both together. What only an
//! image's header names stands in the plan as an [`Image`], which [`chain`] replaces by what it
//! names as soon as its file can be read.

pub mod chain;
#[cfg(test)]
mod tests;

use block::graph::{Absent, HeaderPlace};
use block::protocol::create::NewFile;
use block::spec::{BackingSpec, ChildSpec, DriverSpec, FileSpec, NodeOptions, NodeSpec, Qcow2Spec};
use devices::chardev::{BackendSpec, ChardevSpec, SocketRole};
use devices::net::tap::VHOST_NET;
use devices::net::{NetdevKind, NetdevSpec, StreamRole, TapQueues, TapSpec, TapVhost};
use fdset::{Access, Existing, Expected, Request, Role, SocketAddress, Wish};
use qapi_schema::block_core::FileSnapshot;
use qapi_schema::block_create::BlockdevCreate;
use qapi_schema::devices::{DeviceOptions, DeviceOptionsVariant};
use qapi_schema::qom::ObjectOptions;
use qapi_schema::transaction::{Transaction, TransactionActionVariant};
use qapi_schema::{QmpError, find_command, input};
use serde_json::Value;

use crate::cli::Config;
use crate::cli::config::FwCfgSource;
use crate::hook::HookSpec;
use crate::memory::{HostMemory, RamBackendSpec};
use crate::resolve;
use crate::resolve::create::CreateSpec;
use crate::resolve::filter::is_filter;
use crate::resolve::object::ObjectSpec;
use crate::secret::SecretSource;
use crate::transaction;

/// Permission bits of files that are created.
const MODE: u32 = 0o600;

/// One open that will come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What.
    pub wish: Wish,
    /// Whether it comes only if the one before it is refused.
    pub fallback: bool,
    /// Whether everything fails without it.
    pub required: bool,
    /// The node that it is the file of, if that has a name.
    pub node: Option<String>,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something is opened.
    Open(Planned),
    /// The same, and the open hook was asked for it or need not be.
    Settled(Planned),
    /// A header is read, and what it names is opened.
    Image(chain::Image),
}

impl From<Planned> for Step {
    fn from(planned: Planned) -> Self {
        Self::Open(planned)
    }
}

impl Planned {
    /// An open that everything fails without.
    #[must_use]
    pub fn of(wish: Wish) -> Self {
        Self {
            wish,
            fallback: false,
            required: true,
            node: None,
        }
    }

    fn new(request: &Request<'_>, expected: Expected) -> Self {
        Self::of(Wish::new(request, expected))
    }
}

/// What the command `name` will open, in this order.
///
/// # Errors
/// There is no such command, or its arguments are wrong: as the command itself would say.
pub fn command(name: &str, arguments: Value) -> Result<Vec<Step>, QmpError> {
    match name {
        "blockdev-add" => {
            let spec = resolve::node::node(input::arguments(arguments)?)?;
            Ok(node(&spec))
        }
        "blockdev-snapshot-sync" => Ok(overlay(&input::arguments(arguments)?)),
        "transaction" => {
            let args: Transaction = input::arguments(arguments)?;
            let overlays = args.actions.iter().map(|action| match &action.r#type {
                TransactionActionVariant::BlockdevSnapshotSync(action) => overlay(&action.data),
                TransactionActionVariant::BlockdevSnapshot(_)
                | TransactionActionVariant::BlockdevSnapshotInternalSync(_)
                | TransactionActionVariant::BlockDirtyBitmapAdd(_)
                | TransactionActionVariant::BlockDirtyBitmapRemove(_)
                | TransactionActionVariant::BlockDirtyBitmapClear(_)
                | TransactionActionVariant::BlockDirtyBitmapEnable(_)
                | TransactionActionVariant::BlockDirtyBitmapDisable(_)
                | TransactionActionVariant::BlockDirtyBitmapMerge(_)
                | TransactionActionVariant::Abort(_) => Vec::new(),
            });
            Ok(overlays.flatten().collect())
        }
        "blockdev-create" => {
            let args: BlockdevCreate = input::arguments(arguments)?;
            // What is wrong with the options, the job will say.
            let spec = resolve::create::create(args.options);
            Ok(spec.map_or_else(|_| Vec::new(), |spec| new_image(&args.job_id, &spec)))
        }
        "object-add" => {
            let (id, spec) = resolve::object::object(input::arguments(arguments)?)?;
            Ok(steps(object(&id, &spec)))
        }
        "device_add" => {
            let options: DeviceOptions = input::arguments(arguments)?;
            Ok(steps(device(&options)?))
        }
        "netdev_add" => {
            let spec = resolve::netdev::netdev(input::arguments(arguments)?)?;
            Ok(steps(netdev(&spec)))
        }
        "chardev-add" => {
            let args: qapi_schema::char::ChardevAdd = input::arguments(arguments)?;
            Ok(steps(chardev(
                &args.id,
                &resolve::chardev::chardev(args.backend)?,
            )))
        }
        other => match find_command(other) {
            Some(_) => Ok(Vec::new()),
            None => Err(QmpError::command_not_found(other)),
        },
    }
}

/// What `open-hook-set` and `-open-hook` open themselves, before there is a hook to ask.
#[must_use]
pub fn hook(spec: &HookSpec, reason: &str) -> Option<Planned> {
    let name = name_of(&spec.address)?;
    let request = Request::new(&name, Access::ReadWrite, Role::OpenHook, reason);
    Some(Planned::new(&request, Expected::ConnectedSocket))
}

/// What a launch will open, in this order. What is wrong with it is left to the launch to tell.
#[must_use]
pub fn config(config: &Config) -> Vec<Step> {
    let mut plan = Vec::new();
    if let Some(name) = &config.pidfile {
        let request = Request::new(name, Access::WriteOnly, Role::PidFile, "-pidfile");
        let request = request.create(0o644, Existing::Keep);
        plan.push(Planned::new(&request, Expected::RegularFile));
    }
    for options in &config.chardevs {
        let mut backend = options.backend.clone();
        // What a monitor encrypts with is an object, and planned as one.
        resolve::chardev::take_tls(&mut backend);
        if let Ok(spec) = resolve::chardev::chardev(backend) {
            plan.extend(chardev(&options.id, &spec));
        }
    }
    let rules = config.monitors.iter();
    plan.extend(rules.filter_map(|one| one.commands.as_deref()).map(|name| {
        let request = Request::new(name, Access::ReadOnly, Role::Commands, "-mon commands=");
        Planned::new(&request, Expected::RegularFile)
    }));
    let (filters, objects): (Vec<_>, Vec<_>) =
        config.objects.iter().partition(|one| is_filter(one));
    plan.extend(objects.into_iter().flat_map(object_of));
    for options in &config.netdevs {
        if let Ok(spec) = resolve::netdev::netdev(options.clone()) {
            plan.extend(netdev(&spec));
        }
    }
    plan.extend(filters.into_iter().flat_map(object_of));
    let mut plan = steps(plan);
    let drives = config.drives.iter().map(|drive| &drive.node);
    for options in config.blockdevs.iter().chain(drives) {
        if let Ok(spec) = resolve::node::node(options.clone()) {
            plan.extend(node(&spec));
        }
    }
    plan.extend(steps(machine(config)));
    for options in &config.devices {
        // What is wrong with one is told when it is its turn.
        plan.extend(steps(device(options).unwrap_or_default()));
    }
    let log = config.qtest.iter().filter_map(|qtest| qtest.log.as_deref());
    plan.extend(log.map(|name| {
        let request = Request::new(name, Access::WriteOnly, Role::Log, "-qtest-log");
        let request = request.create(MODE, Existing::Truncate);
        Planned::new(&request, Expected::Stream).into()
    }));
    plan
}

fn steps(plan: Vec<Planned>) -> Vec<Step> {
    plan.into_iter().map(Step::Open).collect()
}

fn machine(config: &Config) -> Vec<Planned> {
    let mut plan = Vec::new();
    let has_board = config.machine.model.has_board();
    if let Some(spec) = config.kernel.as_ref().filter(|_| has_board) {
        let request = Request::new(&spec.kernel, Access::ReadOnly, Role::Kernel, "-kernel");
        plan.push(Planned::new(&request, Expected::RegularFile));
        if let Some(name) = &spec.initrd {
            let request = Request::new(name, Access::ReadOnly, Role::Initrd, "-initrd");
            plan.push(Planned::new(&request, Expected::RegularFile));
        }
    }
    if let Some(name) = config.machine.firmware.as_ref().filter(|_| has_board) {
        let request = Request::new(name, Access::ReadOnly, Role::Firmware, "-bios");
        plan.push(Planned::new(&request, Expected::RegularFile));
    }
    let files = config.fw_cfg.iter().filter(|_| has_board);
    plan.extend(files.filter_map(|file| match &file.source {
        FwCfgSource::File(name) => {
            let reason = format!("-fw_cfg {}", file.name);
            let request = Request::new(name, Access::ReadOnly, Role::Firmware, &reason);
            Some(Planned::new(&request, Expected::RegularFile))
        }
        FwCfgSource::Text(_) => None,
    }));
    let accels = config.accels.iter().enumerate().map(|(at, accel)| {
        let request = Request::new(&accel.device, Access::ReadWrite, Role::Kvm, "-accel kvm");
        Planned {
            fallback: at > 0,
            // Without a board the launch only looks whether there is a KVM.
            required: has_board,
            ..Planned::new(&request, Expected::Kvm)
        }
    });
    plan.extend(accels);
    plan
}

/// What an image is made in.
fn new_image(job: &str, spec: &CreateSpec) -> Vec<Step> {
    let reason = format!("job '{job}'");
    match spec {
        CreateSpec::File(file) => {
            let request = NewFile::request(&file.filename, &reason);
            steps(vec![Planned::new(&request, Expected::RegularFile)])
        }
        CreateSpec::Qcow2(new) => {
            let mut plan = child(&new.file, &reason, &[]);
            let data = new.data_file.iter();
            plan.extend(data.flat_map(|(data, _)| child(data, &reason, &[])));
            plan
        }
    }
}

/// The overlay of a snapshot. It is cached as what it goes above, which is not known here.
fn overlay(snapshot: &FileSnapshot) -> Vec<Step> {
    if transaction::overlay::is_made(snapshot) {
        let request = NewFile::request(&snapshot.snapshot_file, "a new overlay");
        return steps(vec![Planned::new(&request, Expected::RegularFile)]);
    }
    let spec = transaction::overlay::spec(snapshot, transaction::overlay::PLAIN, None);
    spec.map(|spec| node(&spec)).unwrap_or_default()
}

/// A node, and with it its whole chain: the nodes inside it are walked as the graph opens them.
fn node(spec: &NodeSpec) -> Vec<Step> {
    let reason = match &spec.name {
        Some(name) => format!("node '{name}'"),
        None => "a node without a name".to_owned(),
    };
    walk(spec, &reason, &[])
}

/// What `spec` opens, for `reason`, below the images `above`.
fn walk(spec: &NodeSpec, reason: &str, above: &[HeaderPlace]) -> Vec<Step> {
    match &spec.driver {
        DriverSpec::File(file) => steps(storage(spec, file, Expected::RegularFile, reason)),
        DriverSpec::HostDevice(file) => steps(storage(spec, file, Expected::BlockDevice, reason)),
        DriverSpec::Qcow2(qcow2) => image(spec, qcow2, reason, above),
        DriverSpec::NullCo(_)
        | DriverSpec::NullAio(_)
        | DriverSpec::Raw(_)
        | DriverSpec::CopyOnRead(_)
        | DriverSpec::Compress(_)
        | DriverSpec::Throttle(_)
        | DriverSpec::CopyBeforeWrite(_)
        | DriverSpec::SnapshotAccess(_)
        | DriverSpec::Blkdebug(_) => {
            let mut plan = steps(rules(spec));
            let children = spec.driver.children();
            plan.extend(children.flat_map(|(_, below)| child(below, reason, above)));
            plan
        }
    }
}

/// A child that comes inline; one that is there already opens nothing.
fn child(spec: &ChildSpec, reason: &str, above: &[HeaderPlace]) -> Vec<Step> {
    match spec {
        ChildSpec::Named(_) => Vec::new(),
        ChildSpec::Inline(spec) => match &spec.name {
            Some(name) => walk(spec, &format!("node '{name}'"), above),
            None => walk(spec, reason, above),
        },
    }
}

/// An image: its file, then what its header names, then what is given for below it.
fn image(spec: &NodeSpec, qcow2: &Qcow2Spec, reason: &str, above: &[HeaderPlace]) -> Vec<Step> {
    let mut plan = child(&qcow2.file, reason, above);
    let absent = Absent {
        data_file: qcow2.data_file.is_none(),
        backing: matches!(qcow2.backing, BackingSpec::FromHeader(_)),
    };
    if absent != Absent::default() {
        let wishes = plan.iter().filter_map(|step| match step {
            Step::Open(planned) => Some(planned.wish.clone()),
            Step::Settled(_) | Step::Image(_) => None,
        });
        let file = match &qcow2.file {
            ChildSpec::Named(name) => chain::File::Node(name.clone()),
            ChildSpec::Inline(file) => match &file.driver {
                DriverSpec::File(_) | DriverSpec::HostDevice(_) => {
                    chain::File::Opened(wishes.collect())
                }
                _ => chain::File::Hidden,
            },
        };
        plan.push(Step::Image(chain::Image {
            file,
            absent,
            options: spec.options,
            reason: reason.to_owned(),
            above: above.to_vec(),
            ends: None,
        }));
    }
    let given = spec.driver.children().filter(|(role, _)| *role != "file");
    plan.extend(given.flat_map(|(_, below)| child(below, reason, above)));
    plan
}

/// The file of a node, which may turn out to be only to be read.
fn storage(spec: &NodeSpec, file: &FileSpec, expected: Expected, reason: &str) -> Vec<Planned> {
    let NodeOptions {
        cache,
        read_only,
        auto_read_only,
        ..
    } = spec.options;
    let planned = |access| {
        let request = Request::new(&file.filename, access, file.role, reason);
        Planned {
            node: spec.name.clone(),
            ..Planned::new(&request.direct(cache.direct), expected)
        }
    };
    let reading = planned(Access::ReadOnly);
    match (read_only, auto_read_only) {
        (true, _) => vec![reading],
        (false, false) => vec![planned(Access::ReadWrite)],
        (false, true) => vec![
            planned(Access::ReadWrite),
            Planned {
                fallback: true,
                ..reading
            },
        ],
    }
}

/// The file of rules that a node reads before it opens anything else.
fn rules(spec: &NodeSpec) -> Vec<Planned> {
    let DriverSpec::Blkdebug(blkdebug) = &spec.driver else {
        return Vec::new();
    };
    let named = blkdebug.config.iter();
    let planned = named.map(|name| {
        let node = spec.name.as_deref().unwrap_or_default();
        let reason = format!("the rules of node '{node}'");
        let request = Request::new(name, Access::ReadOnly, Role::Image, &reason);
        Planned::new(&request, Expected::RegularFile)
    });
    planned.collect()
}

/// What is wrong with it, the launch will say.
fn object_of(options: &ObjectOptions) -> Vec<Planned> {
    let resolved = resolve::object::object(options.clone());
    resolved.map_or_else(|_| Vec::new(), |(id, spec)| object(&id, &spec))
}

fn object(id: &str, spec: &ObjectSpec) -> Vec<Planned> {
    match spec {
        ObjectSpec::Memory(RamBackendSpec {
            host: HostMemory::File { name, .. },
            share,
            ..
        }) => {
            let access = if *share {
                Access::ReadWrite
            } else {
                Access::ReadOnly
            };
            let reason = format!("memory backend '{id}'");
            let request = Request::new(name, access, Role::Memory, &reason);
            vec![Planned::new(&request.or_unnamed_within(), Expected::Memory)]
        }
        ObjectSpec::RngRandom { filename } => {
            let reason = format!("object '{id}'");
            let request = Request::new(filename, Access::ReadOnly, Role::Entropy, &reason);
            vec![Planned::new(&request, Expected::Stream)]
        }
        ObjectSpec::Secret(spec) => match &spec.source {
            SecretSource::File(name) => {
                let reason = format!("object '{id}'");
                let request = Request::new(name, Access::ReadOnly, Role::Secret, &reason);
                vec![Planned::new(&request, Expected::RegularFile)]
            }
            SecretSource::Text(_) => Vec::new(),
        },
        ObjectSpec::TlsCreds(spec) => {
            let reason = format!("object '{id}'");
            let planned = spec.names().map(|name| {
                let request = Request::new(name, Access::ReadOnly, Role::Secret, &reason);
                Planned::new(&request, Expected::RegularFile)
            });
            planned.collect()
        }
        ObjectSpec::Filter(filter) => {
            let reason = format!("filter '{id}'");
            let planned = filter.file().map(|name| {
                let request = Request::new(name, Access::WriteOnly, Role::NetDump, &reason);
                Planned::new(&request.create(MODE, Existing::Truncate), Expected::Stream)
            });
            planned.into_iter().collect()
        }
        ObjectSpec::Memory(_)
        | ObjectSpec::IoThread(_)
        | ObjectSpec::ThrottleGroup(_)
        | ObjectSpec::RngBuiltin => Vec::new(),
    }
}

fn chardev(id: &str, spec: &ChardevSpec) -> Vec<Planned> {
    let reason = format!("chardev '{id}'");
    let written = |name: &str, role, append: bool| {
        let existing = if append {
            Existing::Append
        } else {
            Existing::Truncate
        };
        let request = Request::new(name, Access::WriteOnly, role, &reason);
        Planned::new(&request.create(MODE, existing), Expected::Stream)
    };
    let mut plan = Vec::new();
    match &spec.backend {
        BackendSpec::File {
            output,
            input,
            append,
        } => {
            plan.push(written(output, Role::Chardev, *append));
            plan.extend(input.as_deref().map(|name| {
                let request = Request::new(name, Access::ReadOnly, Role::Chardev, &reason);
                Planned::new(&request, Expected::Stream)
            }));
        }
        BackendSpec::Socket(socket) => {
            let expected = match socket.role {
                SocketRole::Server { .. } => Some(Expected::ListeningSocket),
                SocketRole::Client => Some(Expected::ConnectedSocket),
                // Called when it is needed, and again and again.
                SocketRole::Reconnecting(_) => None,
            };
            let place = name_of(&socket.address).zip(expected);
            plan.extend(place.map(|(name, expected)| {
                let request = Request::new(&name, Access::ReadWrite, Role::Chardev, &reason);
                Planned::new(&request, expected)
            }));
        }
        BackendSpec::Pty => {
            let access = Access::ReadWrite;
            let request = Request::new(fdset::PTY_NAME, access, Role::Chardev, &reason);
            plan.push(Planned::new(&request, Expected::Terminal));
        }
        BackendSpec::Stdio { .. } | BackendSpec::Null | BackendSpec::Ringbuf { .. } => {}
    }
    if let Some(log) = &spec.log {
        plan.push(written(&log.name, Role::ChardevLog, log.append));
    }
    plan
}

/// A netdev's descriptors. Those of an interface that is given by its name are opened here or not at
/// all: only who makes an interface can hand queues of it in.
fn netdev(spec: &NetdevSpec) -> Vec<Planned> {
    let reason = format!("netdev '{}'", spec.id);
    let planned = |name: &str, role, expected| {
        let request = Request::new(name, Access::ReadWrite, role, &reason);
        Planned::new(&request, expected)
    };
    match &spec.kind {
        NetdevKind::Tap(TapSpec { queues, vhost, .. }) => {
            let handed = |names: &[String], role, expected| {
                let names = names.iter().filter_map(|name| handed_name(name));
                let planned = names.map(|name| planned(&name, role, expected));
                planned.collect::<Vec<_>>()
            };
            let (mut plan, count) = match queues {
                TapQueues::Handed(names) => (handed(names, Role::Tap, Expected::Tap), names.len()),
                TapQueues::Named { count, .. } => (Vec::new(), usize::from(*count)),
            };
            plan.extend(match vhost {
                TapVhost::Off => Vec::new(),
                TapVhost::Handed(names) => handed(names, Role::Vhost, Expected::VhostNet),
                TapVhost::Opened => {
                    vec![planned(VHOST_NET, Role::Vhost, Expected::VhostNet); count]
                }
            });
            plan
        }
        NetdevKind::Stream(stream) => {
            let expected = match stream.role {
                StreamRole::Server => Some(Expected::ListeningSocket),
                StreamRole::Client => Some(Expected::ConnectedSocket),
                // Called when it is needed, and again and again.
                StreamRole::Reconnecting(_) => None,
            };
            let place = name_of(&stream.address).zip(expected).into_iter();
            let place = place.map(|(name, expected)| planned(&name, Role::Net, expected));
            place.collect()
        }
        NetdevKind::Dgram { local, .. } => {
            let local = local.as_ref().and_then(name_of).into_iter();
            let local = local.map(|name| planned(&name, Role::Net, Expected::DatagramSocket));
            local.collect()
        }
        // The chardev's.
        NetdevKind::VhostUser { .. } | NetdevKind::HubPort { .. } => Vec::new(),
    }
}

/// What a device opens by itself.
fn device(options: &DeviceOptions) -> Result<Vec<Planned>, QmpError> {
    let (DeviceOptionsVariant::VhostVsockPci(vsock)
    | DeviceOptionsVariant::VhostVsockPciNonTransitional(vsock)) = &options.driver
    else {
        return Ok(Vec::new());
    };
    let spec = resolve::vsock::vsock(vsock)?;
    let reason = format!("device '{}'", options.id.as_deref().unwrap_or_default());
    let name = handed_name(&spec.device).into_iter();
    let opened = name.map(|name| {
        let request = Request::new(&name, Access::ReadWrite, Role::Vhost, &reason);
        Planned::new(&request, Expected::VhostVsock)
    });
    Ok(opened.collect())
}

/// The name under which an fd is asked for that is given by its name or number; an inherited number
/// has none.
fn handed_name(given: &str) -> Option<String> {
    if given.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let is_plain = !given.contains('/') && !given.starts_with("fd:");
    Some(if is_plain {
        format!("fd:{given}")
    } else {
        given.to_owned()
    })
}

/// The name under which a socket is asked for; an inherited number has none.
fn name_of(address: &SocketAddress) -> Option<String> {
    match address {
        SocketAddress::Fd { name } => {
            let is_number = name.starts_with(|first: char| first.is_ascii_digit());
            (!is_number).then(|| format!("fd:{name}"))
        }
        other => other.open_name(),
    }
}
