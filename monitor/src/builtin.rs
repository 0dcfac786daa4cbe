//! The commands that need no VM: the session's own, and those of the fd registry.

use std::os::fd::OwnedFd;
use std::time::Instant;

use fdset::{FdsetId, Handover, Kind, Origin, Peer, RegistryError, Scope};
use qapi_schema::control::{
    self, CommandInfo, EventInfo, QmpCapabilities, QmpCapability, SchemaInfo, VersionInfo,
    VersionTriple,
};
use qapi_schema::fds::{
    self, AddFd, AddFdAlias, AddfdInfo, Closefd, FdAlias, FdKind, FdLedger, FdUnclaimedSet,
    FdsetFdInfo, FdsetInfo, Getfd, RemoveFd, RemoveFdAlias,
};
use qapi_schema::input::{self, FromInput as _};
use qapi_schema::{
    COMMANDS, Context, Event, INTROSPECTION, Module, MonitorId, QmpError, Reply, SessionId,
    SessionPeer, compat, to_wire,
};
use serde_json::Value;

use crate::call::Call;
use crate::ledger;
use crate::line::Note;
use crate::server::Shared;

/// What the greeting and `query-version` say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The QEMU release whose QMP this is; clients derive what they may ask from it.
    pub major: i64,
    /// Its second part.
    pub minor: i64,
    /// Its third part.
    pub micro: i64,
    /// Our own name and version.
    pub package: String,
}

impl Version {
    fn wire(&self) -> VersionInfo {
        VersionInfo {
            qemu: VersionTriple {
                major: self.major,
                minor: self.minor,
                micro: self.micro,
            },
            package: self.package.clone(),
        }
    }
}

/// The first message of every session, in wire form.
pub(crate) fn greeting(version: &Version) -> String {
    let Version {
        major,
        minor,
        micro,
        package,
    } = version;
    // Spelled out, because this order of members is the one that clients have seen for ever.
    let package = to_wire(package).unwrap_or_default();
    format!(
        "{{\"QMP\": {{\"version\": {{\"qemu\": {{\"micro\": {micro}, \"minor\": {minor}, \
         \"major\": {major}}}, \"package\": {package}}}, \"capabilities\": [\"oob\"]}}}}"
    )
}

/// Runs `qmp_capabilities`: whether the client wants out-of-band commands.
///
/// # Errors
/// When the arguments are wrong or a capability is unknown.
pub(crate) fn negotiate(shared: &Shared, arguments: Value) -> Result<bool, QmpError> {
    let mut builtin = Builtin { shared, oob: false };
    control::dispatch(&mut builtin, "qmp_capabilities", &mut NoRequest, arguments)?;
    Ok(builtin.oob)
}

/// Answers a request of the modules `control` and `fds`; gives back any other.
pub(crate) fn serve(shared: &Shared, mut call: Call) -> Option<Call> {
    let dispatch = match call.command.module {
        Module::Control => |builtin: &mut Builtin<'_>, call: &mut Call, arguments| {
            control::dispatch(builtin, call.command.name, call, arguments)
        },
        Module::Fds => |builtin: &mut Builtin<'_>, call: &mut Call, arguments| {
            fds::dispatch(builtin, call.command.name, call, arguments)
        },
        _ => return Some(call),
    };
    let mut builtin = Builtin { shared, oob: false };
    let arguments = call.arguments.take();
    let result = dispatch(&mut builtin, &mut call, arguments);
    call.finish(result);
    None
}

/// The context of the negotiation, which takes no fds.
struct NoRequest;

impl Context for NoRequest {
    fn take_fd(&mut self) -> Option<OwnedFd> {
        None
    }

    fn monitor(&self) -> MonitorId {
        MonitorId(0)
    }

    fn peer(&self) -> Option<SessionPeer> {
        None
    }
}

/// Implements the commands.
struct Builtin<'a> {
    shared: &'a Shared,
    /// What `qmp_capabilities` found.
    oob: bool,
}

impl control::Commands for Builtin<'_> {
    fn qmp_capabilities(
        &mut self,
        _cx: &mut dyn Context,
        args: QmpCapabilities,
    ) -> Result<(), QmpError> {
        self.oob = args
            .enable
            .unwrap_or_default()
            .contains(&QmpCapability::Oob);
        Ok(())
    }

    fn query_version(&mut self, _cx: &mut dyn Context) -> Result<VersionInfo, QmpError> {
        Ok(self.shared.version.wire())
    }

    fn query_commands(&mut self, cx: &mut dyn Context) -> Result<Vec<CommandInfo>, QmpError> {
        let names = COMMANDS.iter().map(|command| command.name);
        let permitted = names.filter(|name| cx.permits(name).is_ok());
        let named = permitted.map(|name| CommandInfo {
            name: name.to_owned(),
        });
        Ok(named.collect())
    }

    fn query_events(&mut self, _cx: &mut dyn Context) -> Result<Vec<EventInfo>, QmpError> {
        let names = Event::NAMES.iter().map(|name| (*name).to_owned());
        Ok(names.map(|name| EventInfo { name }).collect())
    }

    fn query_qmp_schema(
        &mut self,
        _cx: &mut dyn Context,
        arguments: Value,
    ) -> Result<Reply, QmpError> {
        input::no_arguments(arguments)?;
        if !compat::hides(compat::DEPRECATED | compat::UNSTABLE) {
            return Ok(Reply::constant(INTROSPECTION));
        }
        // The description itself has members that are marked; its types know which.
        let whole = serde_json::from_str(INTROSPECTION)
            .map_err(|error| QmpError::generic(error.to_string()))?;
        let typed = Vec::<SchemaInfo>::from_input(whole, &input::Path::Root, input::Mode::Reply)?;
        Reply::of(&typed)
    }

    fn quit(&mut self, _cx: &mut dyn Context) -> Result<(), QmpError> {
        (self.shared.quit)(&*self.shared.events);
        Ok(())
    }
}

impl Builtin<'_> {
    /// Lets `qmp-io` look anew for how long it may sleep, if fds may be forgotten meanwhile.
    fn watch_the_clock(&self) {
        if self.shared.registry.unclaimed_deadline().is_some() {
            self.shared.bell.ring(Note::Clock);
        }
    }
}

impl fds::Commands for Builtin<'_> {
    fn getfd(&mut self, cx: &mut dyn Context, args: Getfd) -> Result<(), QmpError> {
        let passed = passed_fd(cx, args.kind)?;
        self.shared
            .registry
            .add_named(scope_of(cx), &args.fdname, passed)
            .map_err(refused)?;
        self.watch_the_clock();
        Ok(())
    }

    fn closefd(&mut self, cx: &mut dyn Context, args: Closefd) -> Result<(), QmpError> {
        self.shared
            .registry
            .remove_named(scope_of(cx), &args.fdname)
            .map_err(refused)
    }

    fn add_fd(&mut self, cx: &mut dyn Context, args: AddFd) -> Result<AddfdInfo, QmpError> {
        let passed = passed_fd(cx, args.kind)?;
        let set = args
            .fdset_id
            .map(FdsetId::new)
            .transpose()
            .map_err(refused)?;
        let (set, fd) = self
            .shared
            .registry
            .add_for_client(passed, set, args.opaque)
            .map_err(refused)?;
        self.watch_the_clock();
        Ok(AddfdInfo {
            fdset_id: set.value(),
            fd: fd.into(),
        })
    }

    fn remove_fd(&mut self, _cx: &mut dyn Context, args: RemoveFd) -> Result<(), QmpError> {
        self.shared
            .registry
            .remove(args.fdset_id, args.fd)
            .map_err(refused)
    }

    fn add_fd_alias(&mut self, _cx: &mut dyn Context, args: AddFdAlias) -> Result<(), QmpError> {
        FdsetId::new(args.fdset_id)
            .and_then(|set| self.shared.registry.add_alias(&args.path, set))
            .map_err(refused)
    }

    fn remove_fd_alias(
        &mut self,
        _cx: &mut dyn Context,
        args: RemoveFdAlias,
    ) -> Result<(), QmpError> {
        self.shared
            .registry
            .remove_alias(&args.path)
            .map_err(refused)
    }

    fn query_fd_aliases(&mut self, _cx: &mut dyn Context) -> Result<Vec<FdAlias>, QmpError> {
        let aliases = self.shared.registry.aliases().into_iter();
        Ok(aliases
            .map(|(path, set)| FdAlias {
                path,
                fdset_id: set.value(),
            })
            .collect())
    }

    fn query_fds(&mut self, _cx: &mut dyn Context) -> Result<FdLedger, QmpError> {
        Ok(ledger::ledger(&self.shared.registry, Instant::now()))
    }

    fn fd_unclaimed_set(
        &mut self,
        _cx: &mut dyn Context,
        args: FdUnclaimedSet,
    ) -> Result<(), QmpError> {
        self.shared
            .registry
            .set_patience(ledger::patience(args.after));
        self.watch_the_clock();
        Ok(())
    }

    fn query_fdsets(&mut self, _cx: &mut dyn Context) -> Result<Vec<FdsetInfo>, QmpError> {
        // The highest id comes first, as clients of QEMU know it.
        let sets = self.shared.registry.query().into_iter().rev();
        Ok(sets
            .map(|set| FdsetInfo {
                fdset_id: set.id.value(),
                fds: set
                    .members
                    .into_iter()
                    .map(|member| FdsetFdInfo {
                        fd: member.fd.into(),
                        opaque: member.opaque,
                    })
                    .collect(),
            })
            .collect())
    }
}

fn passed_fd(cx: &mut dyn Context, kind: Option<FdKind>) -> Result<Handover, QmpError> {
    let fd = cx
        .take_fd()
        .ok_or_else(|| QmpError::generic("No file descriptor supplied via SCM_RIGHTS"))?;
    let origin = Origin::Monitor {
        monitor: cx.monitor().0,
        peer: cx
            .peer()
            .map(|SessionPeer { pid, uid, gid }| Peer { pid, uid, gid }),
    };
    let announced = kind.and_then(|kind| Kind::from_name(kind.as_str()));
    let passed = Handover::new(fd, origin)
        .announced_as(announced)
        .map_err(refused)?;
    Ok(match scope_of(cx) {
        session @ Scope::Session { .. } => passed.bound_to(session),
        Scope::Monitor(_) | Scope::Process => passed,
    })
}

/// Whose fd names a request means.
#[must_use]
pub fn scope_of(cx: &dyn Context) -> Scope {
    let monitor = cx.monitor().0;
    match cx.session() {
        Some(SessionId(session)) => Scope::Session { monitor, session },
        None => Scope::Monitor(monitor),
    }
}

fn refused(error: RegistryError) -> QmpError {
    QmpError::generic(error.to_string())
}
