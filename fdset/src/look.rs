//! Looking before opening: where a name would be opened from, and what is there.
//!
//! Nothing is used up and nothing outside this process is touched: a passed fd is looked at, a
//! path is not. To look *into* what would be opened, there is [`peek`].

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::kind::Nature;
use crate::lease::Identity;
use crate::open::{NAMED_PREFIX, SET_PREFIX};
use crate::registry::Door;
use crate::request::Request;
use crate::sets::FdsetId;

/// Where a name leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// To a named fd.
    Named,
    /// To a set, by its number or an alias.
    Set,
    /// Out of this process: to the open hook, or into the file system.
    Path,
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where the name leads.
    pub source: Source,
    /// Whether a passed fd is there that can do it; `false` for a path.
    pub present: bool,
    /// Which file that fd leads to.
    pub identity: Option<Identity>,
}

/// Looks where `request` would be opened from.
#[must_use]
pub fn look(door: &Door, request: &Request<'_>) -> Found {
    if let Some(name) = request.name.strip_prefix(NAMED_PREFIX) {
        // A check that refuses leaves the fd where it is.
        let seen = door.registry().take_if(door.scope(), name, |fd| {
            let nature = Nature::of(fd);
            let serves = request.is_served_by(nature) && request.takes(nature.kind);
            Err::<(), _>((serves, nature.identity))
        });
        return match seen {
            Some(Err((true, identity))) => Found::passed(Source::Named, identity),
            _ => Found::missing(Source::Named),
        };
    }
    let set = match request.name.strip_prefix(SET_PREFIX) {
        Some(id) => FdsetId::parse(id),
        None => match door.registry().alias(request.name) {
            Some(set) => Some(set),
            None => return Found::missing(Source::Path),
        },
    };
    let member = set.and_then(|set| door.registry().look(set, request));
    match member {
        Some(nature) => Found::passed(Source::Set, nature.identity),
        None => Found::missing(Source::Set),
    }
}

/// A duplicate of the passed fd, or of the open hook's answer, that `request` would be served with:
/// to read what is in it. The name, the answer and the set's leases stay as they are. `None` where
/// there is none that would do; a path is not opened.
#[must_use]
pub fn peek(door: &Door, request: &Request<'_>) -> Option<OwnedFd> {
    if let Some(name) = request.name.strip_prefix(NAMED_PREFIX) {
        // A check that refuses leaves the fd where it is.
        let copy = |fd: BorrowedFd<'_>| {
            let nature = Nature::of(fd);
            let serves = request.is_served_by(nature) && request.takes(nature.kind);
            let copy = serves.then(|| fd.try_clone_to_owned().ok());
            Err::<(), _>(copy.flatten())
        };
        let seen = door.registry().take_if(door.scope(), name, copy);
        return seen?.err().flatten();
    }
    let set = match request.name.strip_prefix(SET_PREFIX) {
        Some(id) => Some(FdsetId::parse(id)?),
        None => door.registry().alias(request.name),
    };
    match set {
        Some(set) => door.registry().peek(set, request),
        None => door.peek_answer(request.name, request.access),
    }
}

impl Found {
    fn passed(source: Source, identity: Option<Identity>) -> Self {
        Self {
            source,
            present: true,
            identity,
        }
    }

    fn missing(source: Source) -> Self {
        Self {
            source,
            present: false,
            identity: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::lease::OpenFile;
    use crate::open::open;
    use crate::registry::{FdRegistry, Scope};
    use crate::request::{Access, Role};
    use crate::watch::passed;

    fn look_at(door: &Door, name: &str, access: Access) -> Found {
        look(door, &Request::new(name, access, Role::Image, "node 'n'"))
    }

    #[test]
    fn a_look_tells_which_file_a_passed_fd_is_and_takes_nothing() {
        let door = Door::new(Arc::new(FdRegistry::new()), Scope::Monitor(0));
        let file = OpenFile::new(tempfile::tempfile().expect("a file").into(), None);
        let identity = file.identity().ok();
        let copy = file.try_clone().expect("an fd").into_parts().0;
        let id = FdsetId::new(3).ok();
        door.registry().add(passed(copy), id, None);
        door.registry()
            .add_named(Scope::Monitor(0), "disk", passed(file.into_parts().0))
            .expect("good name");
        for (name, source) in [("fd:disk", Source::Named), ("/dev/fdset/3", Source::Set)] {
            for _ in 0..2 {
                let found = look_at(&door, name, Access::ReadWrite);
                assert_eq!((found.source, found.present), (source, true));
                assert_eq!(found.identity, identity);
            }
            let request = Request::new(name, Access::ReadWrite, Role::Image, "");
            assert!(open(&door, &request).is_ok());
        }
        // No lease is left behind: an emptied set vanishes.
        door.registry().remove(3, None).expect("the set is there");
        assert!(door.registry().query().is_empty());
    }

    #[test]
    fn a_peek_reads_what_will_be_opened_and_leaves_it_there() {
        let answers = Arc::new(crate::hook::Answers::new());
        let door = Door::new(Arc::new(FdRegistry::new()), Scope::Monitor(0));
        let door = door.with_answers(Arc::clone(&answers));
        let file = || -> OwnedFd { tempfile::tempfile().expect("a file").into() };
        let id = FdsetId::new(3).ok();
        door.registry().add(passed(file()), id, None);
        let named = door
            .registry()
            .add_named(Scope::Monitor(0), "disk", passed(file()));
        named.expect("good name");
        answers.put("/no/a", Access::ReadWrite, Ok(file()), None);
        for name in ["fd:disk", "/dev/fdset/3", "/no/a"] {
            let request = Request::new(name, Access::ReadWrite, Role::Image, "");
            let seen = peek(&door, &request).map(|fd| Nature::of(fd).identity);
            assert!(seen.is_some(), "{name}");
            assert!(door.registry().uses().is_empty());
            let file = open(&door, &request).expect("still there");
            assert_eq!(seen, Some(file.identity().ok()), "{name}");
        }
        for gone in ["fd:disk", "/no/a", "/dev/null", "/dev/fdset/x"] {
            let request = Request::new(gone, Access::ReadWrite, Role::Image, "");
            assert!(peek(&door, &request).is_none(), "{gone}");
        }
        door.registry().remove(3, None).expect("the set is there");
        assert!(door.registry().query().is_empty());
    }

    #[test]
    fn what_is_not_there_or_has_the_wrong_access_is_not_present() {
        let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
        let reader = std::io::pipe().expect("a pipe").0;
        door.registry().add(passed(reader), None, None);
        for (name, source) in [
            ("fd:x", Source::Named),
            ("/dev/fdset/0", Source::Set),
            ("/dev/fdset/9", Source::Set),
            ("/dev/fdset/x", Source::Set),
            ("/tmp/x", Source::Path),
        ] {
            let found = look_at(&door, name, Access::WriteOnly);
            assert_eq!(found, Found::missing(source), "{name}");
        }
        let empty = door.registry().query()[0].id;
        door.registry().remove(empty.value(), None).expect("there");
        assert!(door.registry().query().is_empty());
    }
}
