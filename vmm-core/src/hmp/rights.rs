//! Who may give which line: whoever may send the commands of QMP that do the same. A monitor whose
//! clients may not send everything is so no wider for those who can send `human-monitor-command`.

use qapi_schema::{Context, QmpError};

/// What lines do in QMP's words, where it is not the command of their own name. A line that stands
/// nowhere here and has no command of its name is for those who may send everything.
const DOES: &[(&str, &[&str])] = &[
    ("commit", &["block-commit"]),
    ("help", &[]),
    ("info", &[]),
    ("info block", &["query-block", "query-named-block-nodes"]),
    ("info blockstats", &["query-blockstats"]),
    ("info chardev", &["query-chardev"]),
    ("info cpus", &["query-cpus-fast"]),
    ("info iothreads", &["query-iothreads"]),
    ("info jobs", &["query-jobs"]),
    ("info kvm", &["query-kvm"]),
    ("info memdev", &["query-memdev"]),
    ("info memory-devices", &["query-memory-devices"]),
    ("info memory_size_summary", &["query-memory-size-summary"]),
    ("info migrate_capabilities", &["query-migrate-capabilities"]),
    ("info name", &["query-name"]),
    ("info network", &["qom-list"]),
    (
        "info numa",
        &["query-cpus-fast", "query-memory-size-summary"],
    ),
    ("info pci", &["query-pci"]),
    ("info qtree", &["qom-list"]),
    ("info status", &["query-status"]),
    ("info uuid", &["query-uuid"]),
    ("info version", &["query-version"]),
    ("nmi", &["inject-nmi"]),
    ("object_del", &["object-del"]),
    // It changes what is on disks: for who may give the guest other disks.
    ("qemu-io", &["blockdev-add", "device_add", "block_resize"]),
];

/// Whether the client may give the line that begins with the command `names` (its names, separated
/// by `|`) and goes on with `arguments`.
///
/// # Errors
/// One of the commands that do the same is not for this client; its name and the reason.
pub(super) fn permit(cx: &dyn Context, names: &str, arguments: &str) -> Result<(), QmpError> {
    let name = names.split('|').next().unwrap_or(names);
    let subject = arguments.split_ascii_whitespace().next();
    let line = match subject {
        Some(subject) if name == "info" => format!("info {subject}"),
        _ => name.to_owned(),
    };
    match DOES.iter().find(|(known, _)| *known == line) {
        Some((_, commands)) => commands.iter().try_for_each(|command| cx.permits(command)),
        None => cx.permits(&line),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use qapi_schema::{MonitorId, SessionPeer, find_command};

    use super::*;
    use crate::hmp::{COMMANDS, info};

    /// A client who may send only some commands.
    struct Client(&'static [&'static str]);

    impl Context for Client {
        fn take_fd(&mut self) -> Option<OwnedFd> {
            None
        }

        fn monitor(&self) -> MonitorId {
            MonitorId(0)
        }

        fn permits(&self, command: &str) -> Result<(), QmpError> {
            let may = self.0.contains(&command);
            may.then_some(()).ok_or_else(|| QmpError::generic(command))
        }

        fn peer(&self) -> Option<SessionPeer> {
            None
        }
    }

    fn told(may: &'static [&'static str], names: &str, arguments: &str) -> Result<(), String> {
        permit(&Client(may), names, arguments).map_err(|error| error.desc)
    }

    #[test]
    fn a_line_is_for_those_who_may_send_what_does_the_same() {
        assert_eq!(told(&["stop"], "stop|s", ""), Ok(()));
        assert_eq!(told(&["stop"], "cont|c", ""), Err("cont".into()));
        assert_eq!(told(&["inject-nmi"], "nmi", "0"), Ok(()));
        assert_eq!(told(&["query-status"], "info", "status"), Ok(()));
        assert_eq!(told(&["query-status"], "info", " status  x"), Ok(()));
        assert_eq!(
            told(&["query-block"], "info", "block"),
            Err("query-named-block-nodes".into())
        );
        assert_eq!(told(&[], "help|?", "stop"), Ok(()));
        assert_eq!(told(&[], "info", "sing"), Err("info sing".into()));
        assert_eq!(told(&["stop"], "sing", "a song"), Err("sing".into()));
    }

    #[test]
    fn of_every_line_it_is_known_what_it_does() {
        for (line, commands) in DOES {
            for command in *commands {
                assert!(find_command(command).is_some(), "{line}: {command}");
            }
        }
        let of_info = info::subjects().map(|subject| format!("info {subject}"));
        let lines = COMMANDS.iter().map(|command| {
            let names = command.names;
            names.split('|').next().unwrap_or(names).to_owned()
        });
        for line in lines.chain(of_info) {
            let stands_here = DOES.iter().any(|(known, _)| *known == line);
            assert!(stands_here || find_command(&line).is_some(), "{line}");
        }
    }
}
