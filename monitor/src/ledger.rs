//! The registry's ledger in the words of the schema.

use std::time::{Duration, Instant};

use fdset::{Access, FdRegistry, Kind, Nature, Origin, Peer, Place, Scope, Use, Via, Waiting};
use qapi_schema::fds::{
    FdAccess, FdGiver, FdKind, FdLedger, FdOrigin, FdSource, FdUnclaimed, FdUse, FdWaiting,
};

/// What `query-fds` tells.
pub(crate) fn ledger(registry: &FdRegistry, now: Instant) -> FdLedger {
    let (waiting, uses) = (registry.waiting(), registry.uses());
    FdLedger {
        waiting: waiting.into_iter().map(|each| wait(each, now)).collect(),
        in_use: uses.into_iter().map(|each| in_use(each, now)).collect(),
    }
}

/// The events for the fds that have waited too long.
pub(crate) fn unclaimed(registry: &FdRegistry, now: Instant) -> Vec<FdUnclaimed> {
    let forgotten = registry.take_unclaimed(now).into_iter();
    forgotten
        .map(|each| FdUnclaimed {
            fd: wait(each, now),
        })
        .collect()
}

/// What `fd-unclaimed-set` means.
pub(crate) fn patience(milliseconds: u32) -> Option<Duration> {
    (milliseconds > 0).then(|| Duration::from_millis(milliseconds.into()))
}

fn wait(waiting: Waiting, now: Instant) -> FdWaiting {
    let Nature {
        kind,
        access,
        identity,
    } = waiting.nature;
    let (name, monitor, set, opaque) = match waiting.place {
        Place::Name { scope, name } => (Some(name), monitor(scope), None, None),
        Place::Set { set, opaque } => (None, None, Some(set.value()), opaque),
        Place::Number => (None, None, None, None),
    };
    FdWaiting {
        kind: wire_kind(kind),
        access: access.map(wire_access),
        device: identity.map(|file| file.dev),
        inode: identity.map(|file| file.ino),
        fd: waiting.fd.into(),
        name,
        monitor,
        fdset_id: set,
        opaque,
        origin: wire_origin(waiting.origin),
        age: age(waiting.since, now),
        opened: waiting.opened,
        session: waiting.ends_with.is_some(),
    }
}

fn in_use(entry: Use, now: Instant) -> FdUse {
    let Nature {
        kind,
        access,
        identity,
    } = entry.nature;
    FdUse {
        kind: wire_kind(kind),
        access: access.map(wire_access),
        device: identity.map(|file| file.dev),
        inode: identity.map(|file| file.ino),
        name: entry.name,
        source: match entry.via {
            Via::Name => FdSource::Name,
            Via::Set(_) => FdSource::Fdset,
            Via::Hook => FdSource::Hook,
            Via::Path => FdSource::Path,
            Via::Address => FdSource::Address,
            Via::Anonymous => FdSource::Anonymous,
            Via::Accepted => FdSource::Accepted,
            Via::Standard => FdSource::Standard,
        },
        fdset_id: entry.via.set().map(fdset::FdsetId::value),
        role: entry.role.to_string(),
        reason: entry.reason,
        origin: entry.origin.map(wire_origin),
        age: age(entry.since, now),
    }
}

fn monitor(scope: Scope) -> Option<i64> {
    match scope {
        Scope::Process => None,
        Scope::Monitor(number)
        | Scope::Session {
            monitor: number, ..
        } => Some(number.into()),
    }
}

fn wire_kind(kind: Kind) -> FdKind {
    let mut all = FdKind::ALL.iter().copied();
    all.find(|wire| wire.as_str() == kind.name())
        .unwrap_or(FdKind::Other)
}

fn wire_access(access: Access) -> FdAccess {
    match access {
        Access::ReadOnly => FdAccess::ReadOnly,
        Access::WriteOnly => FdAccess::WriteOnly,
        Access::ReadWrite => FdAccess::ReadWrite,
    }
}

fn wire_origin(origin: Origin) -> FdOrigin {
    let (by, monitor) = match origin {
        Origin::CommandLine => (FdGiver::CommandLine, None),
        Origin::Environment => (FdGiver::SocketActivation, None),
        Origin::Inheritance => (FdGiver::Inheritance, None),
        Origin::Monitor { monitor, .. } => (FdGiver::Monitor, Some(monitor.into())),
        Origin::Hook { .. } => (FdGiver::OpenHook, None),
        Origin::Caller { .. } => (FdGiver::Caller, None),
    };
    let peer = origin.peer();
    let of_peer = |part: fn(Peer) -> u32| peer.map(|peer| part(peer).into());
    FdOrigin {
        by,
        monitor,
        pid: of_peer(|peer| peer.pid),
        uid: of_peer(|peer| peer.uid),
        gid: of_peer(|peer| peer.gid),
    }
}

fn age(since: Instant, now: Instant) -> i64 {
    let age = now.saturating_duration_since(since).as_millis();
    i64::try_from(age).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_and_the_registry_have_the_same_names_for_the_kinds_of_fds() {
        let ours: Vec<_> = Kind::all().map(Kind::name).collect();
        let theirs: Vec<_> = FdKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(ours, theirs);
        for kind in Kind::all() {
            assert_eq!(wire_kind(kind).as_str(), kind.name());
        }
    }
}
