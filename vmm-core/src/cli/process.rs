//! Options about the process and its descriptors: `-add-fd`, `-sandbox`, `-open-policy`, `-run-with`, `-name`, `-boot`, `-fw_cfg`, `-uuid`,
//! `-incoming`, `-overcommit`, `-msg`, `-watchdog-action`.

use devices::legacy::fw_cfg::contents::LONGEST_NAME;
use fdset::Policy;
use qapi_schema::cli::{
    AddFdOptions, BootOptions, FwCfgOptions, MsgOptions, NameOptions, OpenHookOptions,
    OvercommitOptions, RunWithOptions, SandboxOptions, WatchdogOptions,
};
use qapi_schema::run_state::SetAction;

use super::config::{
    AddFdSpec, BootSpec, FwCfgSource, FwCfgSpec, Incoming, MessageSpec, NameSpec, OvercommitSpec,
    RunWithSpec, UserSpec,
};
use super::draft::{Draft, Given, Step};
use super::error::Problem;
use super::help;
use super::read::{self, Form};
use crate::resolve::open_hook::open_hook;
use crate::sandbox::SandboxSpec;
use crate::uuid;

/// The highest number of a standard stream.
const LAST_STANDARD_FD: i32 = 2;

pub(super) fn take_add_fd(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let parsed = read::parse::<AddFdOptions>(given.text, Form::KEYS)?;
    if parsed.help {
        return Ok(Step::Print(help::keys_of::<AddFdOptions>("add-fd", None)));
    }
    let options: AddFdOptions = read::typed(parsed.value, parsed.mode)?;
    if options.fd < 0 {
        return Err(Problem::new(
            "fd option is required and must be non-negative",
        ));
    }
    if options.fd <= LAST_STANDARD_FD {
        return Err(Problem::new("fd cannot be a standard I/O stream"));
    }
    let set = u32::try_from(options.set)
        .map_err(|_| Problem::new("set option is required and must be non-negative"))?;
    if draft.add_fds.iter().any(|other| other.fd == options.fd) {
        return Err(Problem::new("fd is not valid or already in use"));
    }
    draft.add_fds.push(AddFdSpec {
        fd: options.fd,
        set,
        opaque: options.opaque,
        kind: options
            .kind
            .and_then(|kind| fdset::Kind::from_name(kind.as_str())),
        alias: options.alias,
    });
    Ok(Step::Next)
}

pub(super) fn take_open_hook(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let parsed = read::parse::<OpenHookOptions>(given.text, Form::KEYS)?;
    if parsed.help {
        return Ok(Step::Print(help::keys_of::<OpenHookOptions>(
            "open-hook",
            None,
        )));
    }
    let options: OpenHookOptions = read::typed(parsed.value, parsed.mode)?;
    let spec = open_hook(options.fd, options.path, options.timeout)?;
    draft.open_hook = Some(spec);
    Ok(Step::Next)
}

pub(super) fn take_sandbox(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let parsed = read::parse::<SandboxOptions>(given.text, Form::implied("enable"))?;
    if parsed.help {
        return Ok(Step::Print(help::keys_of::<SandboxOptions>(
            "sandbox", None,
        )));
    }
    let options: SandboxOptions = read::typed(parsed.value, parsed.mode)?;
    let denies = |key: &str, value: Option<&str>, default: bool| match value {
        None => Ok(default),
        Some("deny") => Ok(true),
        Some("allow") => Ok(false),
        // A filter is only put on with no_new_privs, which is what is asked for.
        Some("children") if key == "elevateprivileges" => Ok(false),
        Some(other) => Err(Problem::new(format!("{key}={other}: wanted allow or deny"))),
    };
    let spec = SandboxSpec {
        deny_obsolete: denies("obsolete", options.obsolete.as_deref(), true)?,
        deny_elevate_privileges: denies(
            "elevateprivileges",
            options.elevateprivileges.as_deref(),
            false,
        )?,
        deny_spawn: denies("spawn", options.spawn.as_deref(), false)?,
        deny_resource_control: denies(
            "resourcecontrol",
            options.resourcecontrol.as_deref(),
            false,
        )?,
    };
    draft.sandbox = options.enable.then_some(spec);
    Ok(Step::Next)
}

pub(super) fn take_open_policy(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let known = [Policy::Open, Policy::Passed, Policy::Sealed];
    let wanted = known
        .into_iter()
        .find(|policy| policy.as_str() == given.text)
        .ok_or_else(|| Problem::new(format!("{}: wanted open, passed or sealed", given.text)))?;
    draft.open_policy = wanted;
    Ok(Step::Next)
}

pub(super) fn take_watchdog(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let parsed = read::parse::<WatchdogOptions>(given.text, Form::implied("action"))?;
    if parsed.help {
        let text = help::keys_of::<WatchdogOptions>("watchdog-action", None);
        return Ok(Step::Print(text));
    }
    let options = read::typed::<WatchdogOptions>(parsed.value, parsed.mode)?;
    draft.merge_actions(&SetAction {
        watchdog: Some(options.action),
        ..SetAction::default()
    })
}

pub(super) fn take_uuid(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let uuid = uuid::parse(given.text).map_err(|error| Problem::new(error.to_string()))?;
    draft.uuid = Some(uuid);
    Ok(Step::Next)
}

pub(super) fn take_incoming(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    draft.incoming = Some(match given.text {
        "defer" => Incoming::Defer,
        "" => return Err(Problem::new("wanted defer or a URI")),
        uri => Incoming::Uri(uri.to_owned()),
    });
    Ok(Step::Next)
}

pub(super) fn resolve_boot(options: BootOptions) -> Result<BootSpec, Problem> {
    for order in [&options.order, &options.once].into_iter().flatten() {
        for (at, letter) in order.char_indices() {
            if !('a'..='p').contains(&letter) {
                return Err(Problem::new(format!("Invalid boot device '{letter}'")));
            }
            if order[..at].contains(letter) {
                return Err(Problem::new(format!(
                    "Boot device '{letter}' was given twice"
                )));
            }
        }
    }
    if options.menu == Some(true) {
        return Err(Problem::new(
            "menu=on: there is no firmware to show a menu; leave it out",
        ));
    }
    Ok(BootSpec {
        order: options.order,
        once: options.once,
        strict: options.strict.unwrap_or(false),
        fail_wait: within("reboot-timeout", options.reboot_timeout, -1)?,
        splash_time: within("splash-time", options.splash_time, 0)?,
    })
}

/// A time that fits its place in the guest's configuration.
fn within<T: TryFrom<i64>>(key: &str, time: Option<i64>, least: i64) -> Result<Option<T>, Problem> {
    let Some(time) = time else { return Ok(None) };
    let fits = (least..=i64::from(u16::MAX)).contains(&time);
    let fitting = fits.then(|| T::try_from(time).ok()).flatten();
    fitting.map(Some).ok_or_else(|| {
        Problem::new(format!(
            "{key}={time}: wanted a value between {least} and {}",
            u16::MAX
        ))
    })
}

pub(super) fn take_fw_cfg(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let parsed = read::parse::<FwCfgOptions>(given.text, Form::implied("name"))?;
    if parsed.help {
        return Ok(Step::Print(help::keys_of::<FwCfgOptions>("fw_cfg", None)));
    }
    let options: FwCfgOptions = read::typed(parsed.value, parsed.mode)?;
    let name = options.name;
    if draft.fw_cfg.iter().any(|other| other.name == name) {
        return Err(Problem::new(format!("duplicate fw_cfg file name: {name}")));
    }
    if !(1..=LONGEST_NAME).contains(&name.len()) {
        return Err(Problem::new(format!(
            "name '{name}': wanted 1 to {LONGEST_NAME} bytes"
        )));
    }
    let source = match (options.file, options.string) {
        (Some(file), None) => FwCfgSource::File(file),
        (None, Some(text)) => FwCfgSource::Text(text),
        _ => {
            return Err(Problem::new(format!(
                "name={name}: wanted exactly one of file= and string="
            )));
        }
    };
    draft.fw_cfg.push(FwCfgSpec { name, source });
    Ok(Step::Next)
}

pub(super) fn resolve_name(options: NameOptions) -> Result<NameSpec, Problem> {
    if options.debug_threads == Some(false) {
        return Err(Problem::new(
            "debug-threads=off: threads always have names; leave it out",
        ));
    }
    Ok(NameSpec {
        guest: options.guest,
        process: options.process,
    })
}

pub(super) fn resolve_overcommit(options: &OvercommitOptions) -> Result<OvercommitSpec, Problem> {
    if options.cpu_pm == Some(true) {
        return Err(Problem::new(
            "cpu-pm=on: a guest that idles always gives its processor back; leave it out",
        ));
    }
    Ok(OvercommitSpec {
        mem_lock: options.mem_lock.unwrap_or(false),
    })
}

pub(super) fn resolve_run_with(options: RunWithOptions) -> Result<RunWithSpec, Problem> {
    if options.chroot.as_deref() == Some("") {
        return Err(Problem::new("chroot=: wanted a folder"));
    }
    Ok(RunWithSpec {
        user: options.user.map(user).transpose()?,
        chroot: options.chroot,
    })
}

/// A name, or two numbers: no user's name has a colon.
fn user(text: String) -> Result<UserSpec, Problem> {
    let Some((uid, gid)) = text.split_once(':') else {
        if text.is_empty() {
            return Err(Problem::new("user=: wanted a user's name or UID:GID"));
        }
        return Ok(UserSpec::Name(text));
    };
    // The highest number means "as before" to the kernel.
    let id = |digits: &str| digits.parse().ok().filter(|id| *id != u32::MAX);
    match (id(uid), id(gid)) {
        (Some(uid), Some(gid)) => Ok(UserSpec::Ids { uid, gid }),
        _ => Err(Problem::new(format!(
            "user={text}: wanted a user's name, or UID:GID in decimal"
        ))),
    }
}

pub(super) fn resolve_messages(options: &MsgOptions) -> MessageSpec {
    MessageSpec {
        timestamp: options.timestamp.unwrap_or(false),
        guest_name: options.guest_name.unwrap_or(false),
    }
}
