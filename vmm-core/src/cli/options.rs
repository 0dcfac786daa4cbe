//! The table of options: each with its names, its argument, what it means, and who reads it.

use qapi_schema::block_core::BlockdevOptions;
use qapi_schema::cli::{
    AccelOptions, AddFdOptions, AudiodevOptions, BootOptions, ChardevOptions, CompatPolicy,
    DriveOptions, FwCfgOptions, GlobalOptions, MachineOptions, MemorySizeConfiguration,
    MonitorOptions, MsgOptions, NameOptions, OpenHookOptions, OvercommitOptions, RtcOptions,
    RunWithOptions, SandboxOptions, SmpConfiguration, TpmdevOptions, WatchdogOptions,
};
use qapi_schema::describe::{Described, MemberSpec, VariantSpec};
use qapi_schema::devices::DeviceOptions;
use qapi_schema::net::Netdev;
use qapi_schema::numa::NumaOptions;
use qapi_schema::qom::ObjectOptions;
use qapi_schema::run_state::{RebootAction, SetAction, ShutdownAction};
use serde_json::json;

use super::draft::{Draft, Given, Step};
use super::error::Problem;
use super::read::Form;
use super::{chardev, console, cpu, device, drive, help, machine, nic, numa, process};

/// Reads one occurrence of an option.
type Take = fn(&mut Draft, &Given<'_>) -> Result<Step, Problem>;

/// One option.
pub(super) struct OptionSpec {
    /// Its name, without a dash.
    pub(super) name: &'static str,
    /// Another name for it.
    pub(super) alias: Option<&'static str>,
    /// How its argument looks in the help text; `None` if it takes none.
    pub(super) argument: Option<&'static str>,
    /// What it means, in a sentence or three.
    pub(super) about: &'static str,
    /// The keys of its argument, if it has any.
    pub(super) keys: Keys,
    /// Who reads it.
    pub(super) take: Take,
}

/// The keys of an option's argument, as the schema has them.
#[derive(Clone, Copy)]
pub(super) struct Keys {
    /// Those that are always possible.
    pub(super) members: &'static [MemberSpec],
    /// Those that go with one value of a first key.
    pub(super) variants: &'static [VariantSpec],
}

impl Keys {
    const NONE: Self = Self {
        members: &[],
        variants: &[],
    };

    const fn of<T: Described>() -> Self {
        Self {
            members: T::MEMBERS,
            variants: T::VARIANTS,
        }
    }
}

/// The option with that name or alias.
pub(super) fn find_option(name: &str) -> Option<&'static OptionSpec> {
    OPTIONS
        .iter()
        .find(|option| option.name == name || option.alias == Some(name))
}

/// Every name an option may be called by.
pub(super) fn option_names() -> impl Iterator<Item = &'static str> {
    OPTIONS
        .iter()
        .flat_map(|option| [Some(option.name), option.alias])
        .flatten()
}

/// An option without an argument.
const fn flag(name: &'static str, about: &'static str, take: Take) -> OptionSpec {
    OptionSpec {
        name,
        alias: None,
        argument: None,
        about,
        keys: Keys::NONE,
        take,
    }
}

/// An option with an argument that has no keys.
const fn plain(
    name: &'static str,
    argument: &'static str,
    about: &'static str,
    take: Take,
) -> OptionSpec {
    OptionSpec {
        argument: Some(argument),
        ..flag(name, about, take)
    }
}

/// An option whose argument has the keys of `T`.
const fn keyed<T: Described>(
    name: &'static str,
    argument: &'static str,
    about: &'static str,
    take: Take,
) -> OptionSpec {
    OptionSpec {
        keys: Keys::of::<T>(),
        ..plain(name, argument, about, take)
    }
}

/// The same option under another name too.
const fn also(alias: &'static str, option: OptionSpec) -> OptionSpec {
    OptionSpec {
        alias: Some(alias),
        ..option
    }
}

/// Only tells that something is left out that is never there.
const fn always_none(name: &'static str, about: &'static str) -> OptionSpec {
    plain(name, "none", about, console::take_none)
}

/// Does nothing beyond being known.
fn nothing(_draft: &mut Draft, _given: &Given<'_>) -> Result<Step, Problem> {
    Ok(Step::Next)
}

/// Every option, in the order of the help text.
pub(super) const OPTIONS: &[OptionSpec] = &[
    also(
        "help",
        flag("h", "Shows this text.", |_, _| Ok(Step::Print(help::all()))),
    ),
    flag("version", "Shows the version.", |_, _| {
        Ok(Step::Print(help::version()))
    }),
    // the machine
    also(
        "M",
        keyed::<MachineOptions>(
            "machine",
            "[type=]NAME[,KEY=VALUE..]",
            "The machine; 'help' lists the models. Given several times, later keys win.",
            machine::take_machine,
        ),
    ),
    keyed::<AccelOptions>(
        "accel",
        "[accel=]NAME[,KEY=VALUE..]",
        "Who runs the guest: kvm. Given several times, the first that works does; unknown ones \
         are passed over if a known one is left.",
        machine::take_accel,
    ),
    plain(
        "cpu",
        "MODEL[,FEATURE=on|off..][,+FEATURE..][,-FEATURE..][,KEY=VALUE..]",
        "The CPU that the guest sees: host or max, which is the host's as far as KVM supports it, or \
         a model by name (-cpu help lists them), with features switched on and off.",
        cpu::take_cpu,
    ),
    keyed::<SmpConfiguration>(
        "smp",
        "[cpus=]N[,KEY=N..]",
        "How many vCPUs, and how they are grouped.",
        |draft, given| draft.merge::<SmpConfiguration>(given, Form::implied("cpus")),
    ),
    keyed::<MemorySizeConfiguration>(
        "m",
        "[size=]SIZE[,KEY=VALUE..]",
        "How much RAM. Sizes take k, M, G, T, P or E; without one of these they are in MiB.",
        |draft, given| draft.merge::<MemorySizeConfiguration>(given, Form::implied("size")),
    ),
    keyed::<NumaOptions>(
        "numa",
        "[type=]node|dist|cpu|hmat-lb|hmat-cache[,KEY=VALUE..]",
        "One thing about NUMA: that there is a node, and what belongs to it. vCPUs are also named by \
         ranges: cpus=0-3.",
        numa::take,
    ),
    plain("uuid", "UUID", "The machine's UUID.", process::take_uuid),
    keyed::<RtcOptions>(
        "rtc",
        "KEY=VALUE[,..]",
        "What the real-time clock shows.",
        |draft, given| draft.merge::<RtcOptions>(given, Form::KEYS),
    ),
    keyed::<BootOptions>(
        "boot",
        "[order=]LETTERS[,KEY=VALUE..]",
        "The order of booting. A kernel given with -kernel comes before all of it.",
        |draft, given| draft.merge::<BootOptions>(given, Form::implied("order")),
    ),
    keyed::<FwCfgOptions>(
        "fw_cfg",
        "[name=]NAME,file=FILE|string=TEXT",
        "A file for the guest's programs to find, by QEMU's fw_cfg device.",
        process::take_fw_cfg,
    ),
    plain(
        "bios",
        "FILE",
        "Firmware, in a ROM that keeps nothing; for firmware with variables there is -machine \
         pflash0=NODE,pflash1=NODE.",
        machine::take_bios,
    ),
    plain(
        "kernel",
        "FILE",
        "A kernel to boot: a bzImage, or an ELF with a PVH entry.",
        machine::take_boot_file,
    ),
    plain(
        "initrd",
        "FILE",
        "The kernel's initial RAM disk.",
        machine::take_boot_file,
    ),
    plain(
        "append",
        "TEXT",
        "The kernel's command line.",
        machine::take_boot_file,
    ),
    flag(
        "S",
        "Does not start the guest; a client's cont does.",
        |draft, _| {
            draft.flags.paused = true;
            Ok(Step::Next)
        },
    ),
    flag(
        "no-reboot",
        "Ends when the guest resets, instead of starting it again.",
        |draft, _| {
            let actions = SetAction {
                reboot: Some(RebootAction::Shutdown),
                ..SetAction::default()
            };
            draft.merge_actions(&actions)
        },
    ),
    flag(
        "no-shutdown",
        "Stops the machine when the guest powers off, instead of ending.",
        |draft, _| {
            let actions = SetAction {
                shutdown: Some(ShutdownAction::Pause),
                ..SetAction::default()
            };
            draft.merge_actions(&actions)
        },
    ),
    keyed::<SetAction>(
        "action",
        "KEY=ACTION[,..]",
        "What the guest's own acts lead to.",
        |draft, given| draft.merge::<SetAction>(given, Form::KEYS),
    ),
    flag(
        "preconfig",
        "Builds no machine until a client sends x-exit-preconfig.",
        |draft, _| {
            draft.flags.preconfig = true;
            Ok(Step::Next)
        },
    ),
    plain(
        "incoming",
        "defer|URI",
        "Waits for a state from elsewhere before the guest runs.",
        process::take_incoming,
    ),
    // backends and devices
    keyed::<ObjectOptions>(
        "object",
        "[qom-type=]TYPE,id=ID[,KEY=VALUE..]|JSON",
        "Makes an object: memory, an I/O thread, a source of random numbers. 'help' lists the \
         types.",
        device::take_object,
    ),
    keyed::<BlockdevOptions>(
        "blockdev",
        "[driver=]DRIVER,node-name=NAME[,KEY=VALUE..]|JSON",
        "Makes a block node for a disk's drive= to name.",
        device::take_blockdev,
    ),
    keyed::<DriveOptions>(
        "drive",
        "KEY=VALUE[,..]",
        "Makes a block node and a name for it, and with if=virtio a disk: for older command lines. \
         'format=help' lists the formats.",
        drive::take,
    ),
    keyed::<ChardevOptions>(
        "chardev",
        "[backend=]KIND,id=ID[,KEY=VALUE..]",
        "Makes a character device. 'help' lists the kinds.",
        chardev::take,
    ),
    keyed::<Netdev>(
        "netdev",
        "[type=]KIND,id=ID[,KEY=VALUE..]|JSON",
        "Makes a network backend for a card's netdev= to name. 'help' lists the kinds.",
        device::take_netdev,
    ),
    plain(
        "nic",
        "none|[type=]KIND[,model=MODEL][,mac=ADDRESS][,id=ID][,KEY=VALUE..]",
        "Makes a network backend as -netdev does, and a card on it, in one option. Without an id it is \
         nic0, nic1 and so on. A machine without a board has no card.",
        nic::take,
    ),
    keyed::<DeviceOptions>(
        "device",
        "[driver=]MODEL[,KEY=VALUE..]|JSON",
        "Plugs a device in. 'help' lists the models; 'MODEL,help' the properties of one.",
        device::take_device,
    ),
    keyed::<GlobalOptions>(
        "global",
        "MODEL.PROPERTY=VALUE",
        "What a property is on all devices of that model that do not set it themselves.",
        device::take_global,
    ),
    plain(
        "set",
        "GROUP.ID.KEY=VALUE",
        "One more key for the option -GROUP ..,id=ID that was given before.",
        |_, _| Err(Problem::new("it is for the command line")),
    ),
    plain(
        "serial",
        "none|stdio|null|pty|file:PATH|unix:PATH|tcp:HOST:PORT|chardev:ID",
        "The next serial port, of four. 'mon:' before the rest is accepted: Ctrl-C then goes to \
         the guest, but there is no monitor for people to share the terminal with. Without -serial, \
         -nodefaults and a device isa-serial there is one port: on stdio with -nographic, on \
         nothing otherwise.",
        console::take_serial,
    ),
    // monitors and descriptors
    keyed::<MonitorOptions>(
        "mon",
        "[chardev=]ID,mode=control[,KEY=VALUE..]",
        "A QMP monitor on a character device. allow-uid= and allow-gid= say whom it serves, \
         read-only= and commands=FILE what they may ask.",
        console::take_mon,
    ),
    plain(
        "qmp",
        "stdio|unix:PATH[,server=on][,wait=off]|tcp:HOST:PORT[,..]|chardev:ID",
        "A QMP monitor, and the character device for it.",
        console::take_qmp,
    ),
    plain(
        "qmp-pretty",
        "as -qmp",
        "The same, with replies laid out for people.",
        console::take_qmp,
    ),
    keyed::<AddFdOptions>(
        "add-fd",
        "fd=N,set=N[,opaque=TEXT][,kind=KIND][,alias=PATH]",
        "Moves an inherited fd into an fd set, to be opened as /dev/fdset/N or as PATH.",
        process::take_add_fd,
    ),
    keyed::<OpenHookOptions>(
        "open-hook",
        "fd=N|path=PATH[,timeout=MS]",
        "Asks a manager for everything that would be opened by its path, over that socket. \
         sesame-open-hook is such a manager.",
        process::take_open_hook,
    ),
    plain(
        "qtest",
        "as -qmp",
        "Lets a program that tests drive the machine's ports and memory, by QEMU's qtest protocol.",
        console::take_qtest,
    ),
    plain(
        "qtest-log",
        "FILE|none",
        "Writes what a tester says and is told to FILE.",
        |draft, given| {
            draft.qtest_log = (given.text != "none").then(|| given.text.to_owned());
            Ok(Step::Next)
        },
    ),
    keyed::<CompatPolicy>(
        "compat",
        "KEY=POLICY[,..]|JSON",
        "What becomes of parts of QMP that are deprecated or unstable: accept, reject (input), hide \
         (output), crash (input). Given several times, later keys win.",
        |draft, given| draft.merge::<CompatPolicy>(given, Form::KEYS_OR_JSON),
    ),
    // the process
    keyed::<NameOptions>(
        "name",
        "[guest=]NAME[,KEY=VALUE..]",
        "What the guest and the process are called.",
        |draft, given| draft.merge::<NameOptions>(given, Form::implied("guest")),
    ),
    plain(
        "pidfile",
        "FILE",
        "Writes the process id to FILE.",
        |draft, given| {
            draft.pidfile = Some(given.text.to_owned());
            Ok(Step::Next)
        },
    ),
    flag(
        "daemonize",
        "Goes into the background once the monitors answer.",
        |draft, _| {
            draft.flags.daemonize = true;
            Ok(Step::Next)
        },
    ),
    keyed::<SandboxOptions>(
        "sandbox",
        "[enable=]on|off[,KEY=allow|deny..]",
        "Gives up groups of system calls before the guest runs.",
        process::take_sandbox,
    ),
    plain(
        "open-policy",
        "open|passed|sealed",
        "What can be opened, from this command line on: anything (the default); only fds that were \
         handed in; or the same, and before the guest runs every thread gives up, for ever, the \
         system calls that open, connect, create or start anything. The QMP command seal raises it.",
        process::take_open_policy,
    ),
    keyed::<RunWithOptions>(
        "run-with",
        "[user=NAME|UID:GID][,chroot=DIR]",
        "Becomes that user, in that folder as its root, once everything that this command line names \
         is opened. What comes later comes as an fd, or is opened from there as that user.",
        |draft, given| draft.merge::<RunWithOptions>(given, Form::KEYS),
    ),
    plain(
        "runas",
        "NAME|UID:GID",
        "The same as -run-with user=..",
        |draft, given| draft.merge_value::<RunWithOptions>("run-with", json!({"user": given.text})),
    ),
    plain(
        "chroot",
        "DIR",
        "The same as -run-with chroot=..",
        |draft, given| {
            draft.merge_value::<RunWithOptions>("run-with", json!({"chroot": given.text}))
        },
    ),
    keyed::<OvercommitOptions>(
        "overcommit",
        "KEY=on|off[,..]",
        "What the host gives up for the guest.",
        |draft, given| draft.merge::<OvercommitOptions>(given, Form::KEYS),
    ),
    keyed::<MsgOptions>(
        "msg",
        "KEY=on|off[,..]",
        "What messages on stderr begin with.",
        |draft, given| draft.merge::<MsgOptions>(given, Form::KEYS),
    ),
    flag(
        "nodefaults",
        "Makes no device that no option asks for.",
        |draft, _| {
            draft.flags.nodefaults = true;
            Ok(Step::Next)
        },
    ),
    plain(
        "readconfig",
        "FILE",
        "Takes more options from FILE: a section [OPTION \"ID\"] for each, with lines KEY = \"VALUE\".",
        |_, given| Ok(Step::ReadConfig(given.text.to_owned())),
    ),
    flag(
        "no-user-config",
        "Accepted: no configuration file is read unasked.",
        nothing,
    ),
    flag(
        "nographic",
        "No display, as always; the first serial port is on stdio.",
        |draft, _| {
            draft.flags.nographic = true;
            Ok(Step::Next)
        },
    ),
    keyed::<AudiodevOptions>(
        "audiodev",
        "[driver=]none,id=ID|JSON",
        "Accepted and without effect: there is no sound card.",
        device::take_audiodev,
    ),
    keyed::<TpmdevOptions>(
        "tpmdev",
        "[type=]emulator,id=ID,chardev=ID|JSON",
        "What carries out a TPM's commands.",
        device::take_tpmdev,
    ),
    keyed::<WatchdogOptions>(
        "watchdog-action",
        "[action=]ACTION",
        "What a watchdog that runs out leads to, as -action watchdog=.",
        process::take_watchdog,
    ),
    always_none("display", "There is no display."),
    always_none("audio", "There is no sound."),
    always_none("vga", "There is no graphics card."),
    always_none("parallel", "There is no parallel port."),
    plain(
        "monitor",
        "none|null",
        "There is no monitor for people; -qmp is for programs.",
        console::take_monitor,
    ),
];
