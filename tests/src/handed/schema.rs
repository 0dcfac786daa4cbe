//! Every string that the program takes, by its own schema: which of them could be the name of
//! something to open.
//!
//! ```text
//!   query-qmp-schema ─► arguments ─► members, variants ─► "netdev_add+tap.fd"     ─┐ ends as a row
//!   query-command-line-options ─────────────────────────► "-machine.kernel"       ─┤ says, or is in
//!                                                         "-pidfile"              ─┘ the lists below
//! ```

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::PROPERTIES;
use crate::Vm;

/// Members that are names of objects inside the program, words or texts, wherever they stand.
const WORDS: &[&str] = &[
    "addr",
    "base",
    "base-node",
    "bitmaps",
    "bottom",
    "bus",
    "chardev",
    "command",
    "device_id",
    "drive",
    "duplex",
    "fdname",
    "filter-node-name",
    "format",
    "group",
    "guid",
    "id",
    "image",
    "image-node-name",
    "implements",
    "interfaces",
    "iothread",
    "job-id",
    "mac",
    "memdev",
    "name",
    "netdev",
    "node",
    "node-name",
    "opaque",
    "option",
    "overlay",
    "position",
    "priority",
    "product",
    "property",
    "rng",
    "serial",
    "snapshot-node-name",
    "status",
    "tag",
    "target",
    "throttle-group",
    "tls-creds",
    "top",
    "top-node",
    "tpmdev",
    "tx",
    "typename",
    "vendor",
    "ver",
];

/// Strings that need no row, although they may sound like it, and why.
const WITHOUT_ROW: &[(&str, &str)] = &[
    (
        "open-hook-set.fd",
        "the hook's own connection, which only the other table has",
    ),
    (
        "open-hook-set.path",
        "the hook's own connection, which only the other table has",
    ),
    (
        "-open-hook.fd",
        "the hook's own connection, which only the other table has",
    ),
    (
        "-open-hook.path",
        "the hook's own connection, which only the other table has",
    ),
    (
        "-accel.device",
        "KVM itself, without which nothing starts: the other table has it",
    ),
    ("-initrd", "as '-kernel', with it: the other table has it"),
    (
        "-machine.initrd",
        "as '-kernel', with it: the other table has it",
    ),
    (
        "+pty.data.path",
        "where a link to the pty is made; ptys are in the other table",
    ),
    (
        "blockdev-snapshot-sync.snapshot-file",
        "the file of a node, as blockdev-add's",
    ),
    (
        "blockdev-snapshot-sync.data.snapshot-file",
        "the file of a node, as blockdev-add's",
    ),
    ("-qtest-log", "a tester's log, as a chardev's"),
    (".device", "a device or drive inside the program"),
    ("+filter-mirror.outdev", "a chardev inside the program"),
    ("+filter-redirector.indev", "a chardev inside the program"),
    ("+filter-redirector.outdev", "a chardev inside the program"),
    (".host", "an address of the network: no path"),
    (".port", "an address of the network: no path"),
    ("+socket.connect", "an address of the network: no path"),
    ("+socket.listen", "an address of the network: no path"),
    (
        "+tap.ifname",
        "an interface by its name: the path is the kernel's",
    ),
    ("+tap.script", "refused, but for 'no'"),
    ("+tap.downscript", "refused, but for 'no'"),
    (
        ".backing-file",
        "a name to be written into a header; no job opens it",
    ),
    (
        ".file",
        "another node, or options of one: its file has a row",
    ),
    (
        ".backing",
        "another node, or options of one: its file has a row",
    ),
    (
        ".data-file",
        "another node, or options of one: its file has a row",
    ),
    ("add-fd-alias.path", "a path for which a set is to answer"),
    ("remove-fd-alias.path", "a path for which a set answers"),
    ("qom-get.path", "a place in the object tree"),
    ("qom-list.path", "a place in the object tree"),
    ("qom-set.path", "a place in the object tree"),
    ("x-inspect.path", "a place in the object tree"),
    ("x-query-virtio-status.path", "a place in the object tree"),
    (
        "x-query-virtio-queue-status.path",
        "a place in the object tree",
    ),
    (
        "x-query-virtio-vhost-queue-status.path",
        "a place in the object tree",
    ),
    ("dgram.remote+fd.str", "refused: packets go to an address"),
    (
        "dgram.remote+unix.path",
        "an address to send to: nothing is opened",
    ),
    ("+secret.data", "the secret itself"),
    (
        "+tls-creds-x509.dir",
        "a folder: its files are what is opened, and cannot be handed in",
    ),
    ("+tls-creds-x509.passwordid", "another object"),
    (
        "human-monitor-command.command-line",
        "a line: its commands have rows",
    ),
    ("query-open-plan.command-line", "options: nothing is opened"),
];

/// Options, and strings in options, that open nothing or are read as one of the commands above.
const OPTIONS: &[&str] = &[
    "-S",
    "-accel.accel",
    "-accel.kernel-irqchip",
    "-action",
    "-add-fd",
    "-append",
    "-audio",
    "-audiodev",
    "-blockdev",
    "-boot-opts",
    "-chardev",
    "-chroot",
    "-compat",
    "-cpu",
    "-daemonize",
    "-device",
    "-display",
    "-drive.aio",
    "-drive.cache",
    "-drive.if",
    "-drive.media",
    "-drive.rerror",
    "-drive.werror",
    "-fw_cfg.name",
    "-fw_cfg.string",
    "-global",
    "-h",
    "-incoming",
    "-machine.accel",
    "-machine.acpi",
    "-machine.append",
    "-machine.hmat",
    "-machine.kernel-irqchip",
    "-machine.memory-backend",
    "-machine.smm",
    "-machine.smp",
    "-machine.type",
    "-machine.vmport",
    "-memory",
    "-mon.allow-gid",
    "-mon.allow-uid",
    "-mon.chardev",
    "-mon.fd-scope",
    "-mon.id",
    "-mon.mode",
    "-monitor",
    "-msg",
    "-name",
    "-netdev",
    "-nic",
    "-no-reboot",
    "-no-shutdown",
    "-no-user-config",
    "-nodefaults",
    "-nographic",
    "-numa",
    "-object",
    "-open-policy",
    "-overcommit",
    "-parallel",
    "-preconfig",
    "-qmp",
    "-qmp-pretty",
    "-qtest",
    "-rtc",
    "-run-with",
    "-runas",
    "-sandbox",
    "-serial",
    "-set",
    "-smp-opts",
    "-tpmdev",
    "-uuid",
    "-version",
    "-vga",
    "-watchdog-action",
    // Read before there is anything that could be handed in.
    "-readconfig",
];

/// Whether nothing is opened by the string at `path`.
fn opens_nothing(path: &str) -> bool {
    let member = path.rsplit('.').next().unwrap_or(path);
    let option = path.split('.').next().unwrap_or(path);
    WORDS.contains(&member)
        || WITHOUT_ROW.iter().any(|(end, _)| path.ends_with(end))
        || OPTIONS.contains(&path)
        || (path.starts_with('-') && OPTIONS.contains(&option))
}

/// Every string that is taken has a row, or opens nothing; and every row is of the schema.
///
/// # Errors
/// Says which string has neither, and which row is of nothing.
pub fn check(vm: &mut Vm) -> Result<()> {
    let mut paths = commands(&vm.execute("query-qmp-schema", json!({}))?)?;
    paths.extend(options(
        &vm.execute("query-command-line-options", json!({}))?,
    ));
    ensure!(paths.len() > 300, "only {} strings", paths.len());
    let ends = || PROPERTIES.iter().flat_map(|row| row.schema);
    let has_row = |path: &String| ends().any(|end| path.ends_with(end));
    let forgotten: Vec<_> = paths
        .iter()
        .filter(|path| !has_row(path) && !opens_nothing(path))
        .collect();
    ensure!(
        forgotten.is_empty(),
        "give them a row in tests/src/handed/rows.rs, or say there why they open nothing: \
         {forgotten:?}"
    );
    let strays: Vec<_> = ends()
        .filter(|end| !paths.iter().any(|path| path.ends_with(*end)))
        .collect();
    ensure!(strays.is_empty(), "rows of nothing: {strays:?}");
    Ok(())
}

/// The strings of the command line.
fn options(options: &Value) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for option in options.as_array().into_iter().flatten() {
        let name = option["option"].as_str().unwrap_or_default();
        let parameters = option["parameters"].as_array().into_iter().flatten();
        let mut strings = parameters
            .filter(|parameter| parameter["type"] == "string")
            .filter_map(|parameter| parameter["name"].as_str())
            .map(|parameter| format!("-{name}.{parameter}"))
            .peekable();
        if strings.peek().is_none() {
            paths.insert(format!("-{name}"));
        }
        paths.extend(strings);
    }
    paths
}

/// The strings in the arguments of commands.
fn commands(schema: &Value) -> Result<BTreeSet<String>> {
    let entries = schema.as_array().context("a list")?;
    let types: BTreeMap<&str, &Value> = entries
        .iter()
        .filter_map(|entry| Some((entry["name"].as_str()?, entry)))
        .collect();
    let mut paths = BTreeSet::new();
    for command in entries
        .iter()
        .filter(|entry| entry["meta-type"] == "command")
    {
        let name = command["name"].as_str().context("a name")?;
        strings(
            &types,
            &command["arg-type"],
            name,
            &mut Vec::new(),
            &mut paths,
        );
    }
    Ok(paths)
}

/// The strings in the type `name`, which is at `path`; `above` are the types around it.
fn strings<'a>(
    types: &BTreeMap<&str, &'a Value>,
    name: &'a Value,
    path: &str,
    above: &mut Vec<&'a str>,
    paths: &mut BTreeSet<String>,
) {
    let Some(name) = name.as_str() else { return };
    let Some(entry) = types.get(name) else { return };
    let list = |key: &str| entry[key].as_array().into_iter().flatten();
    match entry["meta-type"].as_str() {
        Some("builtin") if entry["json-type"] == "string" => {
            paths.insert(path.to_owned());
        }
        Some("array") => strings(types, &entry["element-type"], path, above, paths),
        Some("alternate") => {
            for member in list("members") {
                strings(types, &member["type"], path, above, paths);
            }
        }
        Some("object") if !above.contains(&name) => {
            above.push(name);
            for member in list("members") {
                let below = format!("{path}.{}", member["name"].as_str().unwrap_or_default());
                strings(types, &member["type"], &below, above, paths);
            }
            for variant in list("variants") {
                let below = format!("{path}+{}", variant["case"].as_str().unwrap_or_default());
                strings(types, &variant["type"], &below, above, paths);
            }
            above.pop();
        }
        _ => {}
    }
}
