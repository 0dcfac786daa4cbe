//! What the registry promises, one sentence each.

use super::*;
use crate::limits::MAX_NAMES;
use crate::request::Role;
use crate::sets::Member;
use crate::watch::{passed, raise_fd_limit, watched};

fn set(id: i64) -> FdsetId {
    FdsetId::new(id).expect("not negative")
}

#[test]
fn listing_shows_members_in_order_with_their_opaque_text() {
    let registry = FdRegistry::new();
    let (id, first) = registry.add(passed(watched().0), Some(set(3)), Some("one".to_owned()));
    let (_, second) = registry.add(passed(watched().0), Some(id), None);
    let member = |fd, opaque: Option<&str>| Member {
        fd,
        opaque: opaque.map(str::to_owned),
    };
    assert_eq!(
        registry.query(),
        [Fdset {
            id: set(3),
            members: vec![member(first, Some("one")), member(second, None)],
        }]
    );
}

#[test]
fn a_monitor_may_have_so_many_names_and_replace_each_of_them() {
    raise_fd_limit();
    let registry = FdRegistry::new();
    let source = std::io::pipe().expect("a pipe").0;
    let copy = || passed(source.try_clone().expect("an fd"));
    let (mine, other) = (Scope::Monitor(1), Scope::Monitor(2));
    for number in 0..MAX_NAMES {
        registry
            .add_named(mine, &format!("n{number}"), copy())
            .expect("room");
    }
    let (fd, watch) = watched();
    let error = registry.add_named(mine, "one more", passed(fd));
    assert_eq!(
        error.expect_err("full").to_string(),
        "There are 1024 named file descriptors of this monitor or session already, which is the most; \
         use some, or take them back with closefd, first"
    );
    assert!(watch.is_closed());
    for (scope, name) in [(mine, "n7"), (other, "n7"), (Scope::Process, "n7")] {
        registry.add_named(scope, name, copy()).expect("room");
    }
    let long = "n".repeat(256);
    let error = registry.add_named(other, &long, copy());
    assert_eq!(
        error.expect_err("too long").to_string(),
        "Parameter 'fdname' has 256 bytes; the most is 255"
    );
}

#[test]
fn removing_a_member_closes_it_and_keeps_the_others() {
    let registry = FdRegistry::new();
    let (fd, watch) = watched();
    let (id, number) = registry.add(passed(fd), None, None);
    let (_, other) = registry.add(passed(watched().0), Some(id), None);
    registry
        .remove(0, Some(number.into()))
        .expect("it is there");
    assert!(watch.is_closed());
    assert_eq!(registry.query()[0].members[0].fd, other);
}

#[test]
fn removing_from_an_unknown_set_names_set_and_fd() {
    let registry = FdRegistry::new();
    let text = |result: Result<(), RegistryError>| result.expect_err("unknown").to_string();
    assert_eq!(
        text(registry.remove(3, None)),
        "File descriptor named 'fdset-id:3' not found"
    );
    assert_eq!(
        text(registry.remove(3, Some(7))),
        "File descriptor named 'fdset-id:3, fd:7' not found"
    );
    registry.add(passed(watched().0), Some(set(3)), None);
    assert_eq!(
        text(registry.remove(3, Some(-1))),
        "File descriptor named 'fdset-id:3, fd:-1' not found"
    );
    assert_eq!(
        text(registry.remove(-3, None)),
        "File descriptor named 'fdset-id:-3' not found"
    );
}

#[test]
fn same_name_replaces_and_closes_the_old_fd() {
    let registry = FdRegistry::new();
    let (old, watch) = watched();
    registry
        .add_named(Scope::Monitor(0), "a", passed(old))
        .expect("good name");
    let (new, _keep) = watched();
    registry
        .add_named(Scope::Monitor(0), "a", passed(new))
        .expect("good name");
    assert!(watch.is_closed());
    assert_eq!(registry.names(Scope::Monitor(0)), ["a"]);
}

#[test]
fn a_name_that_would_read_as_a_number_is_refused_and_its_fd_closed() {
    let registry = FdRegistry::new();
    for name in ["", "3", "0disk"] {
        let (fd, watch) = watched();
        let error = registry
            .add_named(Scope::Monitor(0), name, passed(fd))
            .expect_err("bad name");
        assert_eq!(
            error.to_string(),
            "Parameter 'fdname' expects a name not starting with a digit"
        );
        assert!(watch.is_closed());
    }
}

#[test]
fn closing_an_unknown_name_says_which() {
    let error = FdRegistry::new()
        .remove_named(Scope::Monitor(0), "a")
        .expect_err("unknown");
    assert_eq!(error.to_string(), "File descriptor named 'a' not found");
}

#[test]
fn own_names_come_before_those_of_the_command_line() {
    let registry = FdRegistry::new();
    let (process, _watch) = watched();
    let (own, own_watch) = watched();
    registry
        .add_named(Scope::Process, "a", passed(process))
        .expect("good name");
    registry
        .add_named(Scope::Monitor(1), "a", passed(own))
        .expect("good name");
    drop(registry.take(Scope::Monitor(1), "a").expect("its own"));
    assert!(own_watch.is_closed());
    assert!(registry.take(Scope::Monitor(1), "a").is_some());
    assert!(registry.take(Scope::Monitor(1), "a").is_none());
}

#[test]
fn one_monitor_cannot_see_or_close_what_is_not_its_own() {
    let registry = FdRegistry::new();
    registry
        .add_named(Scope::Monitor(1), "a", passed(watched().0))
        .expect("good name");
    registry
        .add_named(Scope::Process, "kvm", passed(watched().0))
        .expect("good name");
    assert!(registry.take(Scope::Monitor(2), "a").is_none());
    assert!(registry.remove_named(Scope::Monitor(2), "a").is_err());
    assert!(registry.remove_named(Scope::Monitor(2), "kvm").is_err());
    assert!(registry.take(Scope::Process, "a").is_none());
}

#[test]
fn a_scope_that_ends_takes_its_names_and_members_and_nobody_elses() {
    let registry = Arc::new(FdRegistry::new());
    let mine = Scope::Session {
        monitor: 1,
        session: 7,
    };
    let other = Scope::Session {
        monitor: 1,
        session: 8,
    };
    let lease = registry.begin_scope(mine);
    let (named, named_watch) = watched();
    let (member, member_watch) = watched();
    let (theirs, theirs_watch) = watched();
    registry
        .add_named(mine, "a", passed(named))
        .expect("good name");
    registry.add(passed(member).bound_to(mine), Some(set(3)), None);
    registry.add(passed(watched().0).bound_to(mine), Some(set(4)), None);
    registry.add(passed(theirs).bound_to(other), Some(set(3)), None);
    registry.add_alias("/nowhere/a", set(4)).expect("a path");
    registry
        .add_named(other, "a", passed(watched().0))
        .expect("good name");
    drop(lease);
    assert!(named_watch.is_closed() && member_watch.is_closed());
    assert!(!theirs_watch.is_closed());
    assert_eq!(registry.query().len(), 1, "the set that is empty has gone");
    assert_eq!(registry.query()[0].members.len(), 1);
    assert!(registry.aliases().is_empty());
    assert!(registry.names(mine).is_empty());
    assert_eq!(registry.names(other), ["a"]);
}

#[test]
fn what_a_scope_has_opened_outlives_it() {
    let registry = Arc::new(FdRegistry::new());
    let mine = Scope::Session {
        monitor: 1,
        session: 7,
    };
    let door = Door::new(Arc::clone(&registry), mine);
    let lease = registry.begin_scope(mine);
    let (member, watch) = watched();
    registry.add(passed(member).bound_to(mine), Some(set(3)), None);
    let request = Request::new("/dev/fdset/3", Access::WriteOnly, Role::Chardev, "test");
    let file = crate::open(&door, &request).expect("a member");
    drop(lease);
    assert!(!watch.is_closed());
    assert!(registry.query()[0].members.is_empty());
    drop(file);
    assert!(watch.is_closed() && registry.query().is_empty());
}
