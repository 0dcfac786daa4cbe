//! `-drive`: a block node, a name for it and perhaps a disk, in one option that is older than all
//! three.
//!
//! ```text
//!   file=F,format=raw,if=virtio,id=d,cache=none,discard=unmap
//!     │
//!     ├─ keys of the drive itself (DriveOptions) ─► DriveSpec: id, interface, write cache
//!     ├─ throttling.* ─► its limits
//!     └─ all others ─► keys of a node: format is driver, file is file.filename .. ─► -blockdev's
//!           │                                                                         types
//!           ├─ a file's name may be null-co://, blkdebug:RULES:FILE or json:{..}
//!           └─ backing.node-name=N without a driver: a name for what the image's header names
//! ```
//!
//! Read next: [`names`], what a file's name can stand for.

mod names;

use std::fmt::Write as _;

use block::ThrottleLimits;
use block::spec::Behind;
use qapi_schema::block_core::{BlockdevDriver, BlockdevOptions, BlockdevOptionsVariant};
use qapi_schema::cli::{DriveInterface, DriveOptions};
use qapi_schema::describe::Described;
use qapi_schema::devices::DeviceOptions;
use qapi_schema::input::Mode;
use serde_json::{Map, Value, json};

use super::config::DriveSpec;
use super::draft::{Draft, Given, Step};
use super::error::{CliError, Problem};
use super::help;
use super::read::{self, Form};
use crate::machine::MachineType;
use crate::resolve::object::check_id;
use crate::throttling;
use names::Keys;

/// The group whose limits a drive has.
const GROUP: &str = "throttling.group";
/// The most formats over each other above a file that is named.
const DEEPEST_FILE: usize = 8;
/// Nodes that have no other node below them.
const STORAGE: [BlockdevDriver; 4] = [
    BlockdevDriver::File,
    BlockdevDriver::HostDevice,
    BlockdevDriver::NullCo,
    BlockdevDriver::NullAio,
];

pub(super) fn take(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let (mut own, mut keys) = (Map::new(), Keys::default());
    let known = |key: &str| {
        DriveOptions::MEMBERS
            .iter()
            .any(|member| member.name == key)
    };
    for part in read::split(given.text) {
        if matches!(part, "help" | "?") {
            return Ok(Step::Print(help::keys_of::<DriveOptions>("drive", None)));
        }
        let (key, value) = part.split_once('=').unwrap_or((part, "on"));
        let key = if key == "readonly" { "read-only" } else { key };
        let value = value.replace(",,", ",");
        if known(key) {
            own.insert(key.to_owned(), Value::from(value));
        } else {
            keys.set(key, value);
        }
    }
    let options: DriveOptions = read::typed(Value::Object(own), Mode::Keyval)?;
    if matches!(options.format.as_deref(), Some("help" | "?")) {
        return Ok(Step::Print(formats()));
    }
    refuse_unmet(&options)?;
    let write_cache = cache(&options, &mut keys)?;
    let throttling = limits(&mut keys)?;
    let (node, behind, recognised) = node(&options, keys)?;
    draft.drives.push((
        given.typed.to_owned(),
        Drive {
            options,
            node,
            behind,
            recognised,
            write_cache,
            throttling,
        },
    ));
    Ok(Step::Next)
}

/// A drive before the machine is known.
#[derive(Clone, Debug)]
pub(super) struct Drive {
    options: DriveOptions,
    node: BlockdevOptions,
    behind: Option<Behind>,
    recognised: bool,
    write_cache: bool,
    throttling: (Option<String>, ThrottleLimits),
}

/// Disks of drives, each with the option that asked for it, as typed.
type Disks = Vec<(String, DeviceOptions)>;

/// Gives each drive its id, and those with an interface their disk, which comes after all others.
pub(super) fn resolve(
    drives: Vec<(String, Drive)>,
    model: &MachineType,
) -> Result<(Vec<DriveSpec>, Disks), CliError> {
    let (mut specs, mut disks) = (Vec::<DriveSpec>::new(), Vec::new());
    for (typed, drive) in drives {
        let wrong = |problem: Problem| problem.of(&typed);
        let usual = if model.has_board() {
            DriveInterface::Virtio
        } else {
            DriveInterface::None
        };
        let interface = drive.options.r#if.unwrap_or(usual);
        let taken = |id: &str| specs.iter().any(|other| other.id == id);
        let flash = (interface == DriveInterface::Pflash).then(|| {
            let given = drive.options.unit.or(drive.options.index);
            let given = given.and_then(|unit| usize::try_from(unit).ok());
            let chips = || specs.iter().filter(|other| other.flash.is_some()).count();
            given.unwrap_or_else(chips)
        });
        let id = match (drive.options.id, flash) {
            (Some(id), _) => id,
            (None, Some(unit)) => format!("{}{unit}", interface.as_str()),
            (None, None) => (0..=specs.len())
                .map(|unit| format!("{}{unit}", interface.as_str()))
                .find(|id| !taken(id))
                .unwrap_or_default(),
        };
        check_id(&id).map_err(|error| wrong(error.into()))?;
        if taken(&id) {
            return Err(wrong(Problem::new(format!(
                "Duplicate ID '{id}' for drive"
            ))));
        }
        if interface == DriveInterface::Virtio {
            let disk = json!({"driver": "virtio-blk-pci", "drive": id});
            let disk = read::typed(disk, Mode::Json).map_err(wrong)?;
            disks.push((typed, disk));
        }
        specs.push(DriveSpec {
            id,
            node: drive.node,
            behind: drive.behind,
            recognised: drive.recognised,
            flash,
            write_cache: drive.write_cache,
            on_error: [drive.options.rerror, drive.options.werror],
            throttling: drive.throttling,
        });
    }
    Ok((specs, disks))
}

/// `-drive format=help`, as clients parse it.
fn formats() -> String {
    let mut text = String::from("Supported formats:");
    let mut names: Vec<_> = BlockdevDriver::ALL.iter().map(|one| one.as_str()).collect();
    names.sort_unstable();
    for name in names {
        let _ = write!(text, " {name}");
    }
    text + "\nSupported formats (read-only):\n"
}

fn refuse_unmet(options: &DriveOptions) -> Result<(), Problem> {
    let media = options.media.as_deref().unwrap_or("disk");
    let unmet = [
        (
            options.snapshot == Some(true),
            "snapshot=on: nothing is written elsewhere; hand in a copy of the image",
        ),
        (
            options.copy_on_read == Some(true),
            "copy-on-read=on: nothing is copied on reads; leave it out",
        ),
        (
            media != "disk",
            "media: there are only disks; say media=disk or leave it out",
        ),
    ];
    match unmet.iter().find(|(wanted, _)| *wanted) {
        Some((_, why)) => Err(Problem::new(*why)),
        None => Ok(()),
    }
}

/// The group that is named, and the limits: `throttling.bps-total` and the others, or `bps` and the
/// others by their older names.
fn limits(keys: &mut Keys) -> Result<(Option<String>, ThrottleLimits), Problem> {
    let group = keys.take(GROUP);
    let mut typed = Vec::new();
    for (key, place) in throttling::keys_of_drives() {
        let Some(value) = keys.take(&key) else {
            continue;
        };
        if let Some((other, ..)) = typed.iter().find(|(_, known, _)| *known == place) {
            return Err(Problem::new(format!(
                "'{other}' and its alias '{key}' can't be used at the same time"
            )));
        }
        typed.push((key, place, value));
    }
    Ok((group, throttling::of_drive(&typed)?))
}

/// Takes `cache=MODE` apart; tells whether the guest sees a write cache.
fn cache(options: &DriveOptions, keys: &mut Keys) -> Result<bool, Problem> {
    let (write_back, direct, no_flush) = match options.cache.as_deref() {
        None | Some("writeback") => (true, false, false),
        Some("none" | "off") => (true, true, false),
        Some("directsync") => (false, true, false),
        Some("writethrough") => (false, false, false),
        Some("unsafe") => (true, false, true),
        Some(other) => {
            let modes = ["writeback", "none", "directsync", "writethrough", "unsafe"];
            let what = format!("invalid cache option '{other}'");
            return Err(Problem::with_nearest(what, other, modes));
        }
    };
    let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
    if options.cache.is_some() {
        keys.set_default("cache.direct", switch(direct));
        keys.set_default("cache.no-flush", switch(no_flush));
    }
    match keys.take("cache.writeback").as_deref() {
        None => Ok(write_back),
        Some("on" | "true" | "yes" | "y") => Ok(true),
        Some("off" | "false" | "no" | "n") => Ok(false),
        Some(other) => Err(Problem::new(format!(
            "Parameter 'cache.writeback' expects 'on' or 'off', not '{other}'"
        ))),
    }
}

/// The node that the other keys describe, what is said of the image behind it, and whether its
/// format was recognised by nothing but its being there.
type Node = (BlockdevOptions, Option<Behind>, bool);

fn node(options: &DriveOptions, mut keys: Keys) -> Result<Node, Problem> {
    match (options.format.clone(), keys.get("driver")) {
        (Some(_), Some(_)) => {
            return Err(Problem::new("Cannot specify both 'driver' and 'format'"));
        }
        (Some(format), None) => keys.set("driver", format),
        (None, _) => {}
    }
    if let Some(name) = options.file.clone().filter(|name| !name.is_empty()) {
        let depth = if is_storage(keys.get("driver")) {
            0
        } else {
            // A format over a format: the name is that of the storage below all of them.
            1 + (1..DEEPEST_FILE)
                .take_while(|depth| {
                    let driver = keys.get(&format!("{}driver", "file.".repeat(*depth)));
                    driver.is_some() && !is_storage(driver)
                })
                .count()
        };
        keys.name_file(&name, &"file.".repeat(depth))?;
    }
    keys.expand_names()?;
    if keys.is_empty() {
        return Err(Problem::new("wanted an image: say file=FILE,format=raw"));
    }
    let mut recognised = false;
    if keys.get("driver").is_none() {
        let below = keys.get("file.driver");
        let has_bytes = below.is_none_or(|below| !below.starts_with("null-"));
        // Only what says so itself is taken for an image; that something is raw is never guessed.
        recognised = has_bytes;
        keys.set("driver", if has_bytes { "qcow2" } else { "raw" }.to_owned());
    }
    if let Some(aio) = options.aio.clone() {
        for at in ["", "file."] {
            let driver = keys.get(&format!("{at}driver"));
            if matches!(driver, Some("file" | "host_device")) {
                keys.set_default(&format!("{at}aio"), aio.clone());
            }
        }
    }
    keys.set_default("auto-read-only", "on".to_owned());
    let behind = keys.take_behind();
    let parsed = read::parse::<BlockdevOptions>(&keys.to_text(), Form::KEYS)?;
    let node: BlockdevOptions = read::typed(parsed.value, parsed.mode)?;
    if behind.is_some() && !matches!(node.driver, BlockdevOptionsVariant::Qcow2(_)) {
        return Err(Problem::new(
            "Parameter 'backing' is unexpected: only an image of qcow2 has one",
        ));
    }
    Ok((node, behind, recognised))
}

fn is_storage(driver: Option<&str>) -> bool {
    STORAGE
        .iter()
        .any(|storage| Some(storage.as_str()) == driver)
}
