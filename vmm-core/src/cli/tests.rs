//! Whole command lines.

mod drive;
mod libvirt;
mod trial;

use std::time::Duration;

use proptest::prelude::*;
use qapi_schema::char::ChardevBackendVariant;
use qapi_schema::devices::DeviceOptionsVariant;
use qapi_schema::run_state::{PanicAction, RebootAction, ShutdownAction};

use super::config::*;
use super::options::{OPTIONS, option_names};
use super::*;
use crate::kvm::cpuid::CpuTopology;
use crate::machine::MachineKind;

/// The only file there is.
fn read_file(name: &str) -> Result<String, String> {
    if name != "/etc/vm" {
        return Err(format!("there is no file '{name}'"));
    }
    Ok("[object \"r\"]\nqom-type = \"rng-builtin\"\n[memory]\nsize = \"200\"".to_owned())
}

fn outcome(arguments: &[&str]) -> Result<Outcome, CliError> {
    parse(arguments.iter().map(OsString::from), read_file)
}

fn config(arguments: &[&str]) -> Config {
    match outcome(arguments) {
        Ok(Outcome::Run(config)) => *config,
        Ok(Outcome::Print(text)) => panic!("shows {text}"),
        Err(error) => panic!("{error}"),
    }
}

fn printed(arguments: &[&str]) -> String {
    match outcome(arguments) {
        Ok(Outcome::Print(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn error(arguments: &[&str]) -> String {
    match outcome(arguments) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{arguments:?} is accepted"),
    }
}

#[test]
fn nothing_asked_for_is_a_default_machine_with_a_silent_serial_port() {
    let config = config(&[]);
    assert_eq!(config.machine.model.kind, MachineKind::Q35);
    assert_eq!(config.memory.size, 128 << 20);
    assert_eq!(config.smp.cpus, 1);
    assert_eq!(config.accels[0].device, "/dev/kvm");
    assert_eq!(config.serials, [SerialSpec::Chardev("serial0".to_owned())]);
    assert!(matches!(
        config.chardevs[0].backend.r#type,
        ChardevBackendVariant::Null(_)
    ));
    assert!(config.monitors.is_empty() && config.devices.is_empty());
}

#[test]
fn each_value_of_a_sandbox_group_is_taken() {
    let sandbox = |text| config(&["-sandbox", text]).sandbox;
    assert_eq!(sandbox("off,spawn=deny"), None);
    let alone = sandbox("on").expect("on");
    assert!(alone.deny_obsolete && !alone.deny_spawn && !alone.deny_elevate_privileges);
    let all = sandbox("on,obsolete=allow,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    let all = all.expect("on");
    assert!(!all.deny_obsolete && all.deny_elevate_privileges);
    assert!(all.deny_spawn && all.deny_resource_control);
    let children = sandbox("on,elevateprivileges=children,resourcecontrol=allow").expect("on");
    assert!(!children.deny_elevate_privileges && !children.deny_resource_control);
}

#[test]
fn a_user_is_a_name_or_two_numbers_and_the_old_options_mean_the_same() {
    let run_with = |arguments: &[&str]| config(arguments).run_with;
    let nobody = run_with(&["-run-with", "user=nobody,chroot=/srv"]);
    assert_eq!(nobody.user, Some(UserSpec::Name("nobody".to_owned())));
    assert_eq!(nobody.chroot.as_deref(), Some("/srv"));
    assert_eq!(run_with(&["-chroot", "/srv", "-runas", "nobody"]), nobody);
    let (uid, gid) = (7, 8);
    assert_eq!(
        run_with(&["-run-with", "user=7:8"]).user,
        Some(UserSpec::Ids { uid, gid })
    );
    assert_eq!(run_with(&[]), RunWithSpec::default());
}

#[test]
fn later_keys_of_a_machine_win_and_its_pieces_merge() {
    let config = config(&[
        "-M",
        "none,accel=tcg",
        "--machine",
        "q35,accel=kvm",
        "-machine",
        "mem-merge=off",
    ]);
    assert_eq!(config.machine.model.kind, MachineKind::Q35);
    assert!(!config.machine.mem_merge);
}

#[test]
fn topologies_are_filled_in_with_cores() {
    let of = |text| config(&["-smp", text]).smp;
    let topology = |sockets, dies, cores, threads| CpuTopology {
        sockets,
        dies,
        cores,
        threads,
    };
    assert_eq!(of("4").topology, topology(1, 1, 4, 1));
    assert_eq!(of("8,threads=2").topology, topology(1, 1, 4, 2));
    assert_eq!(of("8,cores=2").topology, topology(4, 1, 2, 1));
    assert_eq!(of("sockets=2,dies=2,cores=2,threads=2").cpus, 16);
    assert_eq!(of("2,maxcpus=8").maxcpus, 8);
}

#[test]
fn memory_is_in_mebibytes_unless_it_says_otherwise() {
    let of = |text| config(&["-m", text]).memory;
    assert_eq!(of("512").size, 512 << 20);
    assert_eq!(of("4G").size, 4 << 30);
    assert_eq!(of("size=1G,slots=2,maxmem=4G").maxmem, 4 << 30);
}

#[test]
fn an_open_hook_is_a_passed_connection_or_a_path_with_ten_seconds_to_answer() {
    let of = |text| config(&["-open-hook", text]).open_hook.expect("a hook");
    let hook = of("fd=3");
    assert_eq!(hook.address.to_string(), "fd:3");
    assert_eq!(hook.timeout, Duration::from_secs(10));
    let hook = of("path=/run/hook,timeout=1500");
    assert_eq!(hook.address.to_string(), "unix:/run/hook");
    assert_eq!(hook.timeout, Duration::from_millis(1500));
}

#[test]
fn short_forms_make_their_chardevs() {
    let config = config(&[
        "-nodefaults",
        "-serial",
        "mon:stdio",
        "-serial",
        "none",
        "-serial",
        "file:/tmp/a,b",
        "-qmp",
        "tcp:[::1]:4444,server,nowait",
        "-chardev",
        "null,id=x",
        "-qmp-pretty",
        "chardev:x",
    ]);
    let serial = |id: &str| SerialSpec::Chardev(id.to_owned());
    assert_eq!(
        config.serials,
        [serial("serial0"), SerialSpec::Absent, serial("serial2")]
    );
    assert!(!config.monitors[0].pretty && config.monitors[1].pretty);
    let kinds: Vec<_> = config
        .chardevs
        .iter()
        .map(|one| one.backend.r#type.tag().as_str())
        .collect();
    assert_eq!(kinds, ["stdio", "file", "socket", "null"]);
}

#[test]
fn nographic_puts_the_first_port_on_stdio_unless_defaults_are_off() {
    let plain = config(&["-nographic"]);
    assert_eq!(plain.serials.len(), 1);
    assert_eq!(plain.chardevs[0].backend.r#type.tag().as_str(), "stdio");
    assert!(config(&["-nographic", "-nodefaults"]).serials.is_empty());
    assert_eq!(
        config(&["-nographic", "-serial", "none"]).serials,
        [SerialSpec::Absent]
    );
}

#[test]
fn an_unknown_accelerator_is_passed_over_only_beside_a_known_one() {
    let device = "kvm,device=/dev/fdset/3";
    let config = config(&["-accel", "tcg", "-accel", device]);
    assert_eq!(config.accels.len(), 1);
    assert_eq!(config.accels[0].device, "/dev/fdset/3");
    assert!(
        error(&["-machine", "none,accel=tcg:hvf"]).starts_with("-machine: invalid accelerator")
    );
}

#[test]
fn ram_of_an_object_has_its_size_and_no_other() {
    let ram = "memory-backend-ram,id=ram,size=1G";
    let of = |size: &[&'static str]| {
        let mut line = vec!["-object", ram, "-machine", "memory-backend=ram"];
        line.extend(size);
        outcome(&line).map_err(|error| error.to_string())
    };
    assert!(matches!(of(&[]), Ok(Outcome::Run(config)) if config.memory.size == 1 << 30));
    assert!(matches!(of(&["-m", "1024"]), Ok(Outcome::Run(_))));
    assert!(of(&["-m", "2G"]).is_err_and(|text| text.contains("does not match the size")));
}

#[test]
fn shared_memory_is_ram_and_always_shared() {
    let of = |share: &str| {
        let object = format!("memory-backend-shm,id=ram,size=1G{share}");
        let machine = ["-object", &object, "-machine", "memory-backend=ram"];
        outcome(&machine).map_err(|error| error.to_string())
    };
    for share in ["", ",share=on"] {
        assert!(matches!(of(share), Ok(Outcome::Run(config)) if config.memory.size == 1 << 30));
    }
}

#[test]
fn globals_fill_in_what_devices_do_not_say() {
    let config = config(&[
        "-device",
        "virtio-blk,drive=a",
        "-device",
        "virtio-blk-pci,drive=b,queue-size=64",
        "-global",
        "virtio-blk.queue-size=128",
    ]);
    let sizes: Vec<_> = config
        .devices
        .iter()
        .map(|device| match &device.driver {
            DeviceOptionsVariant::VirtioBlkPci(disk) => disk.queue_size,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sizes, [Some(128), Some(64)]);
}

/// Command lines that cannot be carried out, and what is said of them.
const WRONG: &[(&[&str], &str)] = &[
    (
        &["-blokdev", "x"],
        "-blokdev: invalid option; did you mean '-blockdev'?",
    ),
    (&["--frobnicate"], "--frobnicate: invalid option"),
    (
        &["disk.img"],
        "'disk.img' is no option; disks come with -blockdev and -device, kernels with -kernel",
    ),
    (&["-m"], "-m: requires an argument"),
    (
        &["-blockdev", "driver=file,node-name=a,filenam=x"],
        "-blockdev: Parameter 'filenam' is unexpected; did you mean 'filename'?",
    ),
    (
        &[
            "-blockdev",
            "raw,node-name=a,file.driver=file,file.filenam=x",
        ],
        "-blockdev: Parameter 'file.filenam' is unexpected; did you mean 'filename'?",
    ),
    (
        &["-blockdev", "flie,node-name=a"],
        "-blockdev: Parameter 'driver' does not accept value 'flie'; did you mean 'file'?",
    ),
    (
        &["--device", "virtio-blc-pci"],
        "--device: 'virtio-blc-pci' is not a valid device model name; did you mean 'virtio-blk-pci'?",
    ),
    (
        &["-device", r#"{"driver":1}"#],
        "-device: Invalid parameter type for 'driver', expected: string",
    ),
    (
        &["-object", "iothread"],
        "-object: Parameter 'id' is missing",
    ),
    (
        &["-machine", "q36"],
        "-machine: unsupported machine type 'q36' (-machine help lists the others); did you mean 'q35'?",
    ),
    (
        &["-machine", "usb=on"],
        "-machine: usb=on: this machine has no USB controller; leave 'usb' out or set it to off",
    ),
    (
        &["-M", "q35,kernel_irqchip=split"],
        "-M: kernel-irqchip=split: KVM is the interrupt controller here; only 'on' is possible",
    ),
    (
        &["-machine", "q35,accel=kvm", "-accel", "kvm"],
        "-machine: accel= and -accel say the same thing: give only one of them",
    ),
    (
        &["-accel", "tcg"],
        "-accel: invalid accelerator 'tcg'; there are kvm and qtest",
    ),
    (
        &["-cpu", "hots"],
        "-cpu: unable to find CPU model 'hots'; -cpu help lists them; did you mean 'host'?",
    ),
    (
        &["-cpu", "host,-vmxx"],
        "-cpu: Property 'host-x86_64-cpu.vmxx' not found; did you mean 'vmx'?",
    ),
    (
        &["-smp", "4,sockets=3"],
        "-smp: Invalid CPU topology: product of the hierarchy must match maxcpus: \
             sockets (3) * dies (1) * cores (1) * threads (1) != maxcpus (4)",
    ),
    (
        &["-smp", "4,maxcpus=2"],
        "-smp: Invalid CPU topology: maxcpus must be equal to or greater than smp: \
             sockets (1) * dies (1) * cores (2) * threads (1) == maxcpus (2) < smp_cpus (4)",
    ),
    (
        &["-smp", "0"],
        "-smp: Invalid CPU topology: CPU topology parameters must be greater than zero, and 'cpus' is not",
    ),
    (
        &["-smp", "256"],
        "-smp: Invalid SMP CPUs 256. The max CPUs supported by machine 'pc-q35-sesame1' is 255",
    ),
    (
        &["-m", "5Q"],
        "-m: Parameter 'size' is '5Q': wanted a size below 2^64 bytes: a number, perhaps with k, M, G, T, P or E",
    ),
    (&["-m", "1G,slots=3"], "-m: slots specified but no maxmem"),
    (
        &["-uuid", "123"],
        "-uuid: failed to parse UUID string: wrong format: '123'; wanted xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx in hexadecimal",
    ),
    (&["-boot", "order=z"], "-boot: Invalid boot device 'z'"),
    (
        &["-rtc", "clock=tsc"],
        "-rtc: clock=tsc: wanted host, rt or vm",
    ),
    (
        &["-add-fd", "fd=1,set=1"],
        "-add-fd: fd cannot be a standard I/O stream",
    ),
    (
        &["-open-hook", "timeout=5"],
        "-open-hook: An open hook needs 'fd', a connection, or 'path', a socket to connect to",
    ),
    (
        &["-open-hook", "fd=3,path=/s"],
        "-open-hook: Parameters 'fd' and 'path' exclude each other: an open hook has one \
         connection",
    ),
    (
        &["-open-hook", "fd=3,timeout=0"],
        "-open-hook: An open hook needs time to answer: its timeout is at least 1 ms",
    ),
    (&["-chardev", "null"], "-chardev: chardev: no id specified"),
    (
        &["-chardev", "null,id=a", "-chardev", "pty,id=a"],
        "-chardev: Duplicate ID 'a' for chardev",
    ),
    (
        &["-chardev", "socket,id=a,path=/a,wait=off"],
        "-chardev: 'wait' is for a socket with server=on",
    ),
    (
        &["-qmp", "foo:1"],
        "-qmp: 'foo:1' is not a valid char driver; wanted stdio, null, none, pty, file:PATH, unix:PATH, tcp:HOST:PORT or chardev:ID",
    ),
    (
        &["-chardev", "null,id=aa", "-mon", "ab,mode=control"],
        "-mon: chardev \"ab\" not found; did you mean 'aa'?",
    ),
    (
        &["-mon", "aa"],
        "-mon: a monitor speaks QMP here: add mode=control",
    ),
    (
        &["-nodefaults", "-serial", "stdio", "-qmp", "stdio"],
        "-qmp: cannot use stdio by multiple character devices",
    ),
    (
        &["-serial", "stdio", "-daemonize"],
        "-serial: cannot use stdio with -daemonize",
    ),
    (&["--append", "x"], "--append: only allowed with -kernel"),
    (
        &["-M", "smm=on", "-kernel", "a"],
        "-M: smm=on: this machine has no system management mode; leave 'smm' out or set it to off",
    ),
    (
        &["-M", "acpi=off"],
        "-M: acpi=off: this machine has no other way to tell of its parts; leave it out",
    ),
    (
        &["-overcommit", "cpu-pm=on"],
        "-overcommit: cpu-pm=on: a guest that idles always gives its processor back; leave it out",
    ),
    (
        &["-boot", "menu=on"],
        "-boot: menu=on: there is no firmware to show a menu; leave it out",
    ),
    (
        &["-global", "virtio-rng.perod=1"],
        "-global: Property 'virtio-rng-pci.perod' not found; did you mean 'period'?",
    ),
    (
        &["-run-with", "user=0:x"],
        "-run-with: user=0:x: wanted a user's name, or UID:GID in decimal",
    ),
    (
        &["-runas", "4294967295:0"],
        "-run-with: user=4294967295:0: wanted a user's name, or UID:GID in decimal",
    ),
    (
        &["-sandbox", "on,spawn=yes"],
        "-sandbox: spawn=yes: wanted allow or deny",
    ),
    (
        &["-display", "gtk"],
        "-display: 'gtk' is not available here; only none",
    ),
    (
        &["-M", "memory-backend=ram0"],
        "-M: Memory backend 'ram0' not found",
    ),
];

#[test]
fn wrong_lines_get_one_line_that_names_the_option_and_the_nearest_name() {
    for (arguments, text) in WRONG {
        assert_eq!(error(arguments), *text, "{arguments:?}");
        assert!(!text.contains('\n'));
    }
}

#[test]
fn the_lists_that_clients_parse_have_the_form_of_qemu() {
    let machines = printed(&["-machine", "help"]);
    assert!(
        machines
            .lines()
            .any(|line| line.starts_with("pc-q35-sesame1 ") && line.ends_with(" (default)"))
    );
    assert!(
        machines
            .lines()
            .any(|line| line.starts_with("q35 ") && line.ends_with("(alias of pc-q35-sesame1)"))
    );
    let devices = printed(&["-M", "none", "-device", "help"]);
    assert!(devices.contains("name \"virtio-blk-pci\", bus PCI, alias \"virtio-blk\""));
    assert!(printed(&["-device", "virtio-rng,help"]).contains("  max-bytes=<uint64> - "));
    assert!(printed(&["-object", "help"]).contains("  memory-backend-memfd\n"));
    assert!(printed(&["-accel", "help"]).contains("  kvm\n"));
    assert!(printed(&["-cpu", "help"]).contains("  host  "));
    assert!(printed(&["-chardev", "help"]).contains("  socket\n"));
    assert!(printed(&["-smp", "help"]).contains("maxcpus=<int>"));
}

#[test]
fn the_help_text_tells_of_every_option_and_every_key() {
    let text = printed(&["--help"]);
    for option in OPTIONS {
        assert!(
            text.contains(&format!("-{}", option.name)),
            "{}",
            option.name
        );
        assert!(option.about.ends_with('.'), "{}", option.name);
        for member in option.keys.members {
            assert!(
                text.contains(&format!("{}=<", member.name)),
                "{}",
                member.name
            );
        }
    }
    assert!(text.lines().all(|line| line.len() <= 120));
    assert_eq!(printed(&["-h"]), text);
}

/// Words like those of a command line: options, keys and values, whole and broken.
fn word() -> impl Strategy<Value = String> {
    let names: Vec<String> = option_names().map(|name| format!("-{name}")).collect();
    let pieces: Vec<String> = libvirt::GUEST
        .iter()
        .map(|word| (*word).to_owned())
        .collect();
    prop_oneof![
        proptest::sample::select(names),
        proptest::sample::select(pieces),
        "[a-z0-9=,.:{}\"+-]{0,24}",
        "(path|fd|id|server|cpus|size|accel|driver|drive|base)=[^\u{0}]{0,12}",
        ".{0,12}",
    ]
}

proptest! {
    #[test]
    fn no_command_line_makes_it_panic(words in proptest::collection::vec(word(), 0..12)) {
        match parse(words.into_iter().map(OsString::from), read_file) {
            Ok(Outcome::Run(config)) => prop_assert!(!config.accels.is_empty()),
            Ok(Outcome::Print(text)) => prop_assert!(text.ends_with('\n')),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
