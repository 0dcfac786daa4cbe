//! Monitors: what a chardev has opened becomes what the QMP server talks through.
//!
//! ```text
//!   open  in the order of the chardevs: it is there, and waits for a caller if it is to
//!   admit once images are open and devices plugged (or the client is to ask for the machine):
//!         only now is a client greeted, and finds in images what a running VM marks there
//! ```

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, bail};
use devices::chardev::{ChardevSpec, Endpoint, Terminal, open_endpoint};
use fdset::{Access, Door, Lease, OpenFile, Request, Role};
use monitor::{CommandPolicy, LONGEST_POLICY, MonitorSpec, Style};
use qapi_schema::MonitorId;

use crate::messages::report;
use crate::vm::Vm;

/// What must live as long as a monitor.
#[derive(Default)]
pub(super) struct Kept {
    /// Uses of fd sets.
    leases: Vec<Lease>,
    /// The mode of a terminal, given back at the end.
    terminal: Option<Terminal>,
}

impl Kept {
    /// What the server is given of a chardev's endpoint, and whether it waits for the first
    /// client there. The rest is kept here.
    fn take(&mut self, id: &str, endpoint: Endpoint) -> Result<(monitor::Endpoint, bool)> {
        let taken = match endpoint {
            Endpoint::Listener { listener, wait, .. } => {
                return Ok((monitor::Endpoint::Listener(listener), wait));
            }
            Endpoint::Stream { stream, .. } => monitor::Endpoint::Stream(self.fd(stream)),
            Endpoint::Pty { master, path } => {
                report(format_args!(
                    "char device redirected to {path} (label {id})"
                ));
                monitor::Endpoint::Pty(self.fd(master))
            }
            Endpoint::Pair {
                input: Some(input),
                output,
                terminal,
            } => {
                self.terminal = terminal;
                monitor::Endpoint::Pair {
                    input: self.fd(input),
                    output: self.fd(output),
                }
            }
            Endpoint::Pair { input: None, .. } | Endpoint::Caller { .. } | Endpoint::Nothing => {
                bail!(
                    "-chardev {id}: a monitor needs a chardev that a client can talk through: a \
                     socket that listens or is connected, a pty, or stdio"
                )
            }
        };
        Ok((taken, false))
    }

    fn fd(&mut self, file: OpenFile) -> OwnedFd {
        let (fd, lease) = file.into_parts();
        self.leases.extend(lease);
        fd
    }
}

/// What the clients of a monitor may ask.
fn commands(door: &Door, monitor: &crate::cli::config::MonitorSpec) -> Result<CommandPolicy> {
    let policy = match &monitor.commands {
        None => CommandPolicy::everything(),
        Some(name) => {
            let what = || format!("-mon commands={name}");
            let text = rules(door, name).with_context(what)?;
            CommandPolicy::from_rules(name, &text).with_context(what)?
        }
    };
    Ok(if monitor.read_only {
        policy.read_only()
    } else {
        policy
    })
}

/// The text of a file of rules.
fn rules(door: &Door, name: &str) -> Result<String> {
    let request = Request::new(name, Access::ReadOnly, Role::Commands, "-mon commands=");
    let (fd, _lease) = fdset::open(door, &request)?.into_parts();
    let mut text = String::new();
    let read = File::from(fd)
        .take(LONGEST_POLICY)
        .read_to_string(&mut text)
        .context("it cannot be read")?;
    if u64::try_from(read).unwrap_or(u64::MAX) == LONGEST_POLICY {
        bail!("it is longer than a list of commands can be: {LONGEST_POLICY} bytes");
    }
    Ok(text)
}

/// Which monitor it is.
pub(super) struct Place<'c> {
    /// The id of its chardev.
    pub(super) id: &'c str,
    /// Its number.
    pub(super) number: usize,
    /// The id of its TLS credentials.
    pub(super) tls: Option<String>,
}

/// A monitor whose chardev is open, and who waits to be let in.
pub(super) struct Waiting {
    /// The id of its chardev.
    id: String,
    spec: MonitorSpec,
}

/// Gives monitors to the server, which greets their clients.
///
/// # Errors
/// One cannot be served.
pub(super) fn admit(vm: &Vm, waiting: Vec<Waiting>) -> Result<()> {
    for Waiting { id, spec } in waiting {
        vm.server
            .add_monitor(spec)
            .with_context(|| format!("-chardev {id}"))?;
    }
    Ok(())
}

/// Opens a monitor's chardev.
///
/// # Errors
/// It cannot be opened, or no client could ever talk through it.
pub(super) fn open(
    vm: &mut Vm,
    door: &Door,
    place: &Place<'_>,
    spec: &ChardevSpec,
    monitor: &crate::cli::config::MonitorSpec,
) -> Result<(Kept, Waiting)> {
    let Place { id, number, tls } = place;
    let what = || format!("-chardev {id}");
    if spec.log.is_some() {
        bail!("-chardev {id}: a monitor's chardev takes no logfile");
    }
    let endpoint = open_endpoint(id, &spec.backend, door).with_context(what)?;
    // A monitor is a place, not a peer: its clients come and go, several at once.
    let filename = endpoint.filename().replacen("disconnected:", "", 1);
    let mut kept = Kept::default();
    if let Endpoint::Listener {
        listener,
        wait: true,
        ..
    } = &endpoint
    {
        fdset::wait_for_caller(listener)
            .context("waiting for a client")
            .with_context(what)?;
    }
    let (endpoint, wait) = kept.take(id, endpoint)?;
    let commands = commands(door, monitor)?;
    let tls = tls
        .as_deref()
        .map(|creds| vm.objects.claim_tls(creds, &format!("chardev {id}")))
        .transpose()?;
    let id_number = u32::try_from(*number).context("-mon: too many monitors")?;
    let spec = MonitorSpec {
        id: MonitorId(id_number),
        name: monitor.name().to_owned(),
        style: if monitor.pretty {
            Style::Pretty
        } else {
            Style::Line
        },
        fd_scope: monitor.fd_scope,
        tls,
        clients: monitor.clients.clone(),
        commands,
        endpoint,
        wait,
    };
    vm.monitor_chardevs.insert((*id).to_owned(), filename);
    let id = (*id).to_owned();
    Ok((kept, Waiting { id, spec }))
}
