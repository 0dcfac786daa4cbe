//! What is planned, and that it is what is opened.

use serde_json::json;

use super::*;

fn opens(steps: Vec<Step>) -> Vec<Planned> {
    let opens = steps.into_iter().filter_map(|step| match step {
        Step::Open(planned) => Some(planned),
        Step::Settled(_) | Step::Image(_) => None,
    });
    opens.collect()
}

fn planned(name: &str, arguments: Value) -> Vec<Planned> {
    opens(command(name, arguments).expect("good arguments"))
}

/// Name, access and kind of each.
fn short(plan: &[Planned]) -> Vec<(&str, Access, Expected)> {
    plan.iter()
        .map(|planned| {
            let wish = &planned.wish;
            (wish.name.as_str(), wish.access, wish.expected)
        })
        .collect()
}

#[test]
fn a_node_opens_what_the_nodes_inside_it_open() {
    let arguments = json!({"driver": "raw", "node-name": "disk", "read-only": true,
        "file": {"driver": "host_device", "node-name": "below", "filename": "/dev/vdb",
            "cache": {"direct": true}}});
    let plan = planned("blockdev-add", arguments);
    let wanted = ("/dev/vdb", Access::ReadOnly, Expected::BlockDevice);
    assert_eq!(short(&plan), [wanted]);
    assert_eq!(plan[0].wish.reason, "node 'below'");
    assert!(plan[0].wish.direct && plan[0].required && !plan[0].fallback);
}

#[test]
fn auto_read_only_falls_back_to_reading() {
    let arguments = json!({"driver": "file", "node-name": "n", "filename": "/d",
        "auto-read-only": true});
    let plan = planned("blockdev-add", arguments);
    let of = |access| ("/d", access, Expected::RegularFile);
    assert_eq!(short(&plan), [of(Access::ReadWrite), of(Access::ReadOnly)]);
    assert_eq!((plan[0].fallback, plan[1].fallback), (false, true));
}

#[test]
fn memory_is_written_only_when_it_is_shared() {
    for (share, access) in [(true, Access::ReadWrite), (false, Access::ReadOnly)] {
        let arguments = json!({"qom-type": "memory-backend-file", "id": "m", "size": 4096,
            "mem-path": "/m", "share": share});
        let plan = planned("object-add", arguments);
        assert_eq!(short(&plan), [("/m", access, Expected::Memory)]);
    }
    let made = json!({"qom-type": "memory-backend-memfd", "id": "m", "size": 4096});
    assert!(planned("object-add", made).is_empty());
}

#[test]
fn a_chardev_opens_its_ends_and_its_log() {
    let file = json!({"id": "c", "backend": {"type": "file", "data":
        {"out": "/out", "in": "/in", "append": true, "logfile": "/log"}}});
    let plan = planned("chardev-add", file);
    let of = |name, access| (name, access, Expected::Stream);
    assert_eq!(
        short(&plan),
        [
            of("/out", Access::WriteOnly),
            of("/in", Access::ReadOnly),
            of("/log", Access::WriteOnly)
        ]
    );
    let existing = |at: usize| plan[at].wish.create.map(|create| create.existing);
    assert_eq!(existing(0), Some(Existing::Append));
    assert_eq!(existing(1), None);
    assert_eq!(existing(2), Some(Existing::Truncate));
}

#[test]
fn a_socket_is_asked_for_by_its_path_address_or_fd_name() {
    for (address, server, wanted) in [
        (
            json!({"type": "unix", "data": {"path": "/s"}}),
            true,
            ("/s", Access::ReadWrite, Expected::ListeningSocket),
        ),
        (
            json!({"type": "inet", "data": {"host": "h", "port": "1"}}),
            false,
            ("tcp:h:1", Access::ReadWrite, Expected::ConnectedSocket),
        ),
        (
            json!({"type": "fd", "data": {"str": "s"}}),
            true,
            ("fd:s", Access::ReadWrite, Expected::ListeningSocket),
        ),
    ] {
        let data = json!({"addr": address, "server": server});
        let arguments = json!({"id": "c", "backend": {"type": "socket", "data": data}});
        assert_eq!(short(&planned("chardev-add", arguments)), [wanted]);
    }
}

/// Everything that the plan names is refused, under names that no file has: so an open that
/// the plan does not know would find no file instead.
#[test]
fn what_is_planned_is_what_is_opened() {
    for arguments in [
        json!({"driver": "file", "node-name": "n", "filename": "/no/f"}),
        json!({"driver": "file", "node-name": "n", "filename": "/no/f", "read-only": true}),
        json!({"driver": "host_device", "node-name": "n", "filename": "/no/f",
            "auto-read-only": true, "cache": {"direct": true}}),
        json!({"driver": "raw", "node-name": "n",
            "file": {"driver": "file", "filename": "/no/f"}}),
        json!({"driver": "blkdebug", "node-name": "n", "config": "/no/f",
            "image": {"driver": "null-co"}}),
    ] {
        let door = refusing("blockdev-add", &arguments);
        let spec = input::arguments(arguments).and_then(resolve::node::node);
        let error = block::BlockGraph::new().add(&door, spec.expect("good arguments"));
        assert_refused(&error.expect_err("refused"));
    }
    for data in [
        json!({"type": "file", "data": {"out": "/no/f"}}),
        json!({"type": "null", "data": {"logfile": "/no/f", "logappend": true}}),
        json!({"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": "/no/s"}},
            "server": true}}),
        json!({"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": "/no/s"}},
            "server": false}}),
    ] {
        let arguments = json!({"id": "c", "backend": data});
        let door = refusing("chardev-add", &arguments);
        let args: qapi_schema::char::ChardevAdd =
            input::arguments(arguments).expect("good arguments");
        let spec = resolve::chardev::chardev(args.backend).expect("good arguments");
        let chardevs = devices::chardev::ChardevRegistry::new(devices::reactor::Reactor::new());
        assert_refused(&chardevs.add("c", &spec, &door).expect_err("refused"));
    }
    let memory = json!({"qom-type": "memory-backend-file", "id": "m", "size": 4096,
        "mem-path": "/no/f", "share": true});
    let door = refusing("object-add", &memory);
    let spec = input::arguments(memory).and_then(resolve::object::object);
    let Ok((_, ObjectSpec::Memory(spec))) = spec else {
        panic!("no memory");
    };
    assert_refused(&crate::memory::RamBackend::open(&door, spec).expect_err("refused"));
}

fn refusing(name: &str, arguments: &Value) -> fdset::Door {
    let answers = fdset::Answers::new();
    for planned in planned(name, arguments.clone()) {
        let refusal = fdset::HookError::Refused("no".to_owned());
        answers.put(&planned.wish.name, planned.wish.access, Err(refusal), None);
    }
    let registry = std::sync::Arc::new(fdset::FdRegistry::new());
    fdset::Door::new(registry, fdset::Scope::Process).with_answers(answers.into())
}

fn assert_refused(error: &(dyn std::error::Error + 'static)) {
    let text = QmpError::from_error(error).to_string();
    assert!(text.ends_with("the open hook refuses: no"), "{text}");
}

#[test]
fn a_pty_is_asked_for_as_a_kind_and_the_pid_file_of_a_launch_comes_first() {
    let pty = json!({"id": "c", "backend": {"type": "pty", "data": {}}});
    let wanted = ("pty", Access::ReadWrite, Expected::Terminal);
    assert_eq!(short(&planned("chardev-add", pty)), [wanted]);
    let words = ["-machine", "none", "-pidfile", "/p", "-chardev", "pty,id=c"];
    let Ok(crate::cli::Outcome::Run(launch)) =
        crate::cli::parse(words.map(Into::into), |_| Err("no file".to_owned()))
    else {
        panic!("a good command line");
    };
    let plan = opens(config(&launch));
    let pid = ("/p", Access::WriteOnly, Expected::RegularFile);
    assert_eq!(short(&plan)[..2], [pid, wanted]);
}

#[test]
fn commands_that_open_nothing_have_an_empty_plan_and_unknown_ones_none() {
    assert!(planned("query-status", json!({})).is_empty());
    assert!(command("no-such-command", json!({})).is_err());
    assert!(command("blockdev-add", json!({"driver": "file"})).is_err());
}
