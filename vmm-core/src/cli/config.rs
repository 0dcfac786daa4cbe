//! What a command line asks for: every default applied, every list in the order given.

use block::ThrottleLimits;
use block::spec::Behind;
use devices::legacy::RtcDrive;
use fdset::Policy;
use qapi_schema::block_core::{BlockdevOnError, BlockdevOptions};
use qapi_schema::char::ChardevAdd;
use qapi_schema::cli::{AccelType, CompatPolicy, TpmdevOptions};
use qapi_schema::devices::DeviceOptions;
use qapi_schema::net::Netdev;
use qapi_schema::numa::NumaOptions;
use qapi_schema::qom::ObjectOptions;
use qapi_schema::run_state::SetAction;
use serde_json::Value;

use crate::hook::HookSpec;
use crate::kvm::cpu_models::CpuSpec;
use crate::kvm::cpuid::CpuTopology;
use crate::machine::MachineType;
use crate::sandbox::SandboxSpec;

/// A whole command line.
///
/// Things are made in the order of QEMU: fd sets, chardevs, monitors, objects, block nodes, the
/// machine, devices. Within each list the order is the command line's.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The board.
    pub machine: MachineSpec,
    /// Who may run the guest; the first that works does. Never empty.
    pub accels: Vec<AccelSpec>,
    /// What the guest is told about its CPU.
    pub cpu: CpuSpec,
    /// How many vCPUs, and how they are grouped.
    pub smp: SmpSpec,
    /// What is said of NUMA.
    pub numa: Vec<NumaOptions>,
    /// How much RAM.
    pub memory: MemorySpec,
    /// What to boot; without it nothing runs until a client says so.
    pub kernel: Option<KernelSpec>,
    /// What things are called.
    pub name: NameSpec,
    /// The machine's UUID, in the order in which it is written.
    pub uuid: Option<[u8; 16]>,
    /// What the real-time clock shows.
    pub rtc: RtcSpec,
    /// The order of booting.
    pub boot: BootSpec,
    /// Whether `-nographic` is given.
    pub no_graphic: bool,
    /// Files for the guest to find in fw_cfg.
    pub fw_cfg: Vec<FwCfgSpec>,
    /// Fds to move into fd sets before anything is opened.
    pub add_fds: Vec<AddFdSpec>,
    /// A manager to be asked for what only a path names.
    pub open_hook: Option<HookSpec>,
    /// Objects to be made. The RAM of `machine.memory_backend` is one of them.
    pub objects: Vec<ObjectOptions>,
    /// Chardevs to be made: those of `-chardev`, and those that `-serial` and `-qmp` imply.
    pub chardevs: Vec<ChardevAdd>,
    /// Block nodes to be made.
    pub blockdevs: Vec<BlockdevOptions>,
    /// Network backends.
    pub netdevs: Vec<Netdev>,
    /// TPM backends.
    pub tpmdevs: Vec<TpmdevOptions>,
    /// Drives to be made.
    pub drives: Vec<DriveSpec>,
    /// Devices to be plugged in, with `globals` already in them.
    pub devices: Vec<DeviceOptions>,
    /// Properties that devices of a model have unless told otherwise; for devices that come later.
    pub globals: Vec<GlobalSpec>,
    /// Whether the board's own watchdog is wired so that it does nothing.
    pub no_reboot: bool,
    /// The serial ports, from the first on; at most four.
    pub serials: Vec<SerialSpec>,
    /// The monitors.
    pub monitors: Vec<MonitorSpec>,
    /// A tester, and the log of what it says.
    pub qtest: Option<QtestSpec>,
    /// A state to come from elsewhere before the guest runs.
    pub incoming: Option<Incoming>,
    /// `-S`: the guest waits for `cont`.
    pub paused: bool,
    /// `--preconfig`: the machine is built once a client says so.
    pub preconfig: bool,
    /// What becomes of parts of QMP that are marked deprecated or unstable.
    pub compat: CompatPolicy,
    /// What the guest's own acts lead to, as far as an option says so.
    pub actions: SetAction,
    /// What the host gives up for the guest.
    pub overcommit: OvercommitSpec,
    /// What messages on stderr begin with.
    pub messages: MessageSpec,
    /// What names can be opened, from the command line on.
    pub open_policy: Policy,
    /// System calls to give up before the guest runs.
    pub sandbox: Option<SandboxSpec>,
    /// Who and where to be once everything is opened.
    pub run_with: RunWithSpec,
    /// Where the process id goes: any name that can be opened.
    pub pidfile: Option<String>,
    /// Whether to go into the background once the monitors answer.
    pub daemonize: bool,
}

/// The board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// The model.
    pub model: &'static MachineType,
    /// The id of the object that is the RAM; without it the machine makes its own.
    pub memory_backend: Option<String>,
    /// Whether there is a table of the speeds and caches of memory.
    pub hmat: bool,
    /// Whether RAM that the machine makes itself is in core dumps.
    pub dump_guest_core: bool,
    /// Whether the host may merge equal pages of RAM that the machine makes itself.
    pub mem_merge: bool,
    /// Firmware in a ROM: any name that can be opened.
    pub firmware: Option<String>,
    /// The nodes or drives of the flash chips, the one with the firmware's code first.
    pub pflash: [Option<String>; 2],
}

/// Who runs the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccelSpec {
    /// Which kind.
    pub accel: AccelType,
    /// KVM's device: any name that can be opened.
    pub device: String,
}

/// How many vCPUs, and how they are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmpSpec {
    /// How many there are at the start, from 1 to `maxcpus`.
    pub cpus: u32,
    /// How many there is room for: the product of the topology.
    pub maxcpus: u32,
    /// How they are grouped.
    pub topology: CpuTopology,
}

/// How much RAM, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySpec {
    /// At the start.
    pub size: u64,
    /// How many pieces can be added.
    pub slots: u32,
    /// How much there can be with them; at least `size`.
    pub maxmem: u64,
}

/// What to boot; each name is any that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSpec {
    /// A bzImage or an ELF with a PVH entry.
    pub kernel: String,
    /// Its initial RAM disk.
    pub initrd: Option<String>,
    /// Its command line; may be empty.
    pub append: String,
}

/// What things are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameSpec {
    /// The guest.
    pub guest: Option<String>,
    /// The process, as `ps` shows it.
    pub process: Option<String>,
}

/// What the real-time clock shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtcSpec {
    /// At the start.
    pub base: RtcBase,
    /// What drives it from then on.
    pub drive: RtcDrive,
}

/// What the real-time clock shows at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RtcBase {
    /// The host's time, as UTC.
    Utc,
    /// The host's time, in its time zone.
    Localtime,
    /// This many seconds since 1970-01-01T00:00:00.
    Start(i64),
}

/// The order of booting. A kernel given with `-kernel` comes before all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootSpec {
    /// Devices by letter, `a` to `p`.
    pub order: Option<String>,
    /// The same, for the first start only.
    pub once: Option<String>,
    /// Whether only devices with a bootindex are tried.
    pub strict: bool,
    /// How long a firmware waits that found nothing to boot, in ms; -1 is for ever.
    pub fail_wait: Option<i32>,
    /// How long a firmware shows its picture, in ms.
    pub splash_time: Option<u16>,
}

/// A drive: a block node with a name of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct DriveSpec {
    /// Its id.
    pub id: String,
    /// Its node, which may have no name.
    pub node: BlockdevOptions,
    /// What is said of the image behind it that only its header names.
    pub behind: Option<Behind>,
    /// Whether nobody said what the image is: it was taken for the one format that can be told
    /// from its first bytes.
    pub recognised: bool,
    /// Which flash chip it is, if it is one.
    pub flash: Option<usize>,
    /// Whether its disk shows the guest a write cache unless told otherwise.
    pub write_cache: bool,
    /// What is done when a read fails, and when anything else does, unless its disk says.
    pub on_error: [Option<BlockdevOnError>; 2],
    /// Its group, if that has a name of its own, and its limits.
    pub throttling: (Option<String>, ThrottleLimits),
}

/// A file for the guest to find in fw_cfg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FwCfgSpec {
    /// Its name there.
    pub name: String,
    /// Where its bytes are.
    pub source: FwCfgSource,
}

/// Where the bytes of a file in fw_cfg are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FwCfgSource {
    /// In a file: any name that can be opened.
    File(String),
    /// These they are.
    Text(String),
}

/// An inherited fd, and the set it goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddFdSpec {
    /// Its number, above those of the standard streams.
    pub fd: i32,
    /// The set's number.
    pub set: u32,
    /// Text that `query-fdsets` gives back.
    pub opaque: Option<String>,
    /// What it must be.
    pub kind: Option<fdset::Kind>,
    /// A path for which the set answers.
    pub alias: Option<String>,
}

/// A property that devices of a model have unless told otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalSpec {
    /// The model, never an alias.
    pub driver: String,
    /// The property.
    pub property: String,
    /// Its value, in the JSON type that `device_add` takes.
    pub value: Value,
}

/// One serial port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialSpec {
    /// `-serial none`: the guest finds no port in this place.
    Absent,
    /// A port on the chardev of that id.
    Chardev(String),
}

/// One QMP monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorSpec {
    /// Its id, if it was given one.
    pub id: Option<String>,
    /// The id of its chardev.
    pub chardev: String,
    /// Whether replies are laid out for people.
    pub pretty: bool,
    /// How long the fds stay that its clients hand over.
    pub fd_scope: monitor::FdScope,
    /// Whom it serves.
    pub clients: monitor::ClientPolicy,
    /// Whether its clients may only ask.
    pub read_only: bool,
    /// The file that says what they may ask: any name that can be opened.
    pub commands: Option<String>,
}

impl MonitorSpec {
    /// A monitor on a chardev, with nothing special about it.
    #[must_use]
    pub fn on(chardev: String) -> Self {
        Self {
            id: None,
            chardev,
            pretty: false,
            fd_scope: monitor::FdScope::Monitor,
            clients: monitor::ClientPolicy::default(),
            read_only: false,
            commands: None,
        }
    }

    /// What errors call it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.id.as_deref().unwrap_or(&self.chardev)
    }
}

/// A tester that drives the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QtestSpec {
    /// The id of its chardev.
    pub chardev: String,
    /// Where what it says is written down: any name that can be opened.
    pub log: Option<String>,
}

/// A state to come from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A client will say where from.
    Defer,
    /// Where from.
    Uri(String),
}

/// What the host gives up for the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OvercommitSpec {
    /// Whether the guest's RAM is locked into the host's.
    pub mem_lock: bool,
}

/// Who and where the process is once everything is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunWithSpec {
    /// Its user; it stays what it is without.
    pub user: Option<UserSpec>,
    /// The folder that becomes its root.
    pub chroot: Option<String>,
}

/// A user of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserSpec {
    /// By name: with all groups of that user.
    Name(String),
    /// By numbers: with no other group.
    Ids {
        /// The user's.
        uid: u32,
        /// The group's.
        gid: u32,
    },
}

/// What messages on stderr begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageSpec {
    /// The time.
    pub timestamp: bool,
    /// The guest's name.
    pub guest_name: bool,
}
